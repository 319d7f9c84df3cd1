// Package checklist is the list of checks that a command makes before it changes
// anything: each check is run, printed as [ok], [warn] or [fail] with its remedy,
// and all of them are made before the command gives up, so that a user mends
// everything in one go. common/adm fills the lists. It never changes anything.
package checklist

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Level is how bad a finding is.
type Level int

// The levels, worst last.
const (
	OK Level = iota
	Warn
	Fail
)

func (l Level) String() string { return [...]string{"ok", "warn", "fail"}[l] }

// Result is what a check found: the fact, and for Warn and Fail what to do.
type Result struct {
	Level  Level
	Fact   string
	Remedy string
}

// Good, Doubt and Bad make results.
func Good(format string, args ...any) Result { return Result{OK, fmt.Sprintf(format, args...), ""} }

// Doubt makes a warning.
func Doubt(remedy, format string, args ...any) Result {
	return Result{Warn, fmt.Sprintf(format, args...), remedy}
}

// Bad makes a failure.
func Bad(remedy, format string, args ...any) Result {
	return Result{Fail, fmt.Sprintf(format, args...), remedy}
}

// Check is one entry of a list. Its name is what --ignore-preflight-errors takes.
type Check struct {
	Name string
	Run  func(context.Context) Result
}

// ErrFailed is wrapped by Run's error when a check failed.
var ErrFailed = errors.New("the machine is not ready")

// Run makes all checks in order and prints them to w. A failure whose name (or
// "all") is in ignore counts as a warning.
func Run(ctx context.Context, w io.Writer, checks []Check, ignore []string) error {
	if err := known(checks, ignore); err != nil {
		return err
	}
	var failed []string
	for _, c := range checks {
		r := c.Run(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		note := ""
		if r.Level == Fail && (slices.Contains(ignore, c.Name) || slices.Contains(ignore, "all")) {
			r.Level, note = Warn, " (a failure, ignored as you asked)"
		}
		fmt.Fprintf(w, "  %-6s %-12s %s%s\n", "["+r.Level.String()+"]", c.Name, r.Fact, note)
		if r.Remedy != "" {
			fmt.Fprintf(w, "  %-6s %-12s -> %s\n", "", "", r.Remedy)
		}
		if r.Level == Fail {
			failed = append(failed, c.Name)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: mend what is marked [fail] above and run the command again, or pass --ignore-preflight-errors=%s", ErrFailed, strings.Join(failed, ","))
	}
	return nil
}

// known refuses names that no check has, which would ignore nothing.
func known(checks []Check, ignore []string) error {
	names := []string{"all"}
	for _, c := range checks {
		names = append(names, c.Name)
	}
	for _, name := range ignore {
		if !slices.Contains(names, name) {
			return fmt.Errorf("--ignore-preflight-errors: there is no check %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return nil
}
