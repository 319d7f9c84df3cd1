// Command holdfast makes clouds and edge nodes (init, token, node, join, reset), shows
// how they are and what runs on a node (status, ps, logs, exec, devices), and turns
// KubeEdge's manifests into Holdfast's (convert). It turns flags into the options of
// common/adm, which does the work. Exit codes: 0 done, 1 failed, 2 called in a wrong
// way; of exec, that of the command which it ran.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-edge/holdfast/common/adm"
)

// version is set by the linker.
var version = "unreleased"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal finds the default behaviour again and ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is one call of the command; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := &adm.App{Out: stdout, Err: stderr}
	root := command(app, stdin)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "holdfast: "+err.Error())
	var exit *adm.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	var wrong *adm.UsageError
	if errors.As(err, &wrong) {
		return 2
	}
	return 1
}
