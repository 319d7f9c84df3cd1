// Command demo shows what Holdfast is for, in about two minutes and on one
// machine: an edge node whose line is cut and whose power fails brings its pods
// back by itself. Everything in it is real: control plane, cloudcore, edgecore,
// containerd. It runs in namespaces of its own and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-edge/holdfast/tests/world"
)

func main() {
	if err := world.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	s := newStage(os.Stdout)
	w, err := raise(ctx, s)
	if err != nil {
		return err
	}
	defer func() {
		s.note("Cleaning up.")
		err = errors.Join(err, w.Close())
	}()
	return play(ctx, s, w)
}
