// Package adm is what the holdfast command does: it makes a cloud (init), lets
// nodes into it (token, join), tells how a node is (status), and undoes all of
// that (reset). common/cmd/holdfast is its front door and turns flags into the
// options here. Every command may be run again; what it made on a machine it
// notes in a journal first. It never runs a workload and never keeps running,
// save with --foreground, when it is the parent of the daemons.
package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/machine"
)

// App is one run of the command.
type App struct {
	Out     io.Writer // what the user asked for, and progress
	Err     io.Writer // what is said beside it
	Machine machine.Machine
	// Bin is the folder with the daemons; empty: that of this program, then PATH.
	Bin string
}

// UsageError is a mistake in how the command was called; nothing was done.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// ExitError ends the program with a code that is not its own: that of a command which
// it ran for the user.
type ExitError struct {
	Code int // 1 to 255
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

func (a *App) printf(format string, args ...any) { fmt.Fprintf(a.Out, format, args...) }

// step announces what is done next.
func (a *App) step(format string, args ...any) { a.printf("* "+format+"\n", args...) }

// binary finds one of the daemons.
func (a *App) binary(name string) (string, error) {
	dir := a.Bin
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		dir = filepath.Dir(self)
	}
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
		return path, nil
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("the program %s is neither in %s nor in PATH: put it beside holdfast", name, dir)
	}
	return filepath.Abs(found)
}

// How often the commands look whether what they wait for has happened, and how
// often they say that they still wait.
const (
	lookEvery = 200 * time.Millisecond
	sayEvery  = 10 * time.Second
)

// errTooLate is wrapped by await's error when what it waits for did not come.
var errTooLate = errors.New("not in time")

// await waits until done holds. While it waits it says so with the reason that
// done gives, at once when that changes. It ends early when a daemon does.
func (a *App) await(ctx context.Context, what string, limit time.Duration, d *daemon, done func(context.Context) (ok bool, why string)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began, said := time.Now(), time.Now()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		ok, why := done(ctx)
		if ok {
			return nil
		}
		if time.Since(said) >= sayEvery {
			a.printf("  ... %s: %s (%.0f s)\n", what, why, time.Since(began).Seconds())
			said = time.Now()
		}
		select {
		case <-d.ended():
			return d.failure()
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("wait for %s: %w", what, ctx.Err())
			}
			return fmt.Errorf("%s: %w (%s): %s%s", what, errTooLate, limit, why, d.seeLog())
		case <-look.C:
		}
	}
}
