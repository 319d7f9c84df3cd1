// Command controlplane is the cluster for people who have none yet: Kubernetes' apiserver,
// controller manager and scheduler, and a SQLite-backed store, in one process with one data
// directory.
//
// This package is the front door: it reads the flags, prepares the data directory, and starts and
// stops the parts in order. The parts themselves live in datastore (kine on SQLite), kube
// (Kubernetes) and pki (certificates). `holdfast init` starts the command on a machine without a
// cluster; cloudcore talks to it as to any other apiserver.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "unreleased"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal finds the default behaviour again and ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseFlags(args, stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.version {
		return printVersion(stdout)
	}
	if err := setupLogging(stderr, o.logLevel); err != nil {
		return err
	}
	s, err := prepare(ctx, o)
	if err != nil {
		return unlessAsked(ctx, err)
	}
	return s.serve(ctx, stdout)
}
