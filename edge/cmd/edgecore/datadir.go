package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/edge/store"
)

func databasePath(cfg config.Edge) string { return filepath.Join(cfg.DataDir, "store.db") }

var errInUse = errors.New("the data directory is in use by another edgecore")

// lockDataDir makes the data directory this process's own. The lock ends with the
// process, however it ends.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 32)) // only to name it
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked by process %s: stop it, or give this one a dataDir of its own", errInUse, path, pid)
		}
		return nil, fmt.Errorf("lock the data directory: %s: %w", path, err)
	}
	// Best effort: the number is for people, and a full disk must not stop the pods.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "%d", os.Getpid())
	}
	return func() { f.Close() }, nil
}

// checkOnly is edgecore --check.
func checkOnly(ctx context.Context, cfg config.Edge, file string, out io.Writer) error {
	unlock, err := lockDataDir(cfg.DataDir)
	if errors.Is(err, errInUse) {
		fmt.Fprintf(out, "config %s: good; the database was not looked at: %v\n", file, err)
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	st, err := store.Open(databasePath(cfg), store.Options{})
	if err != nil {
		return err
	}
	counts, err := st.Counts(ctx)
	if err := errors.Join(err, st.Close()); err != nil {
		return err
	}
	fmt.Fprintf(out, "config %s: good; database %s: sound, %d objects, %d reports waiting\n", file, databasePath(cfg), counts.Objects, counts.Outbox)
	if r := st.Opened().Recovery; r != nil {
		fmt.Fprintln(out, recoveryText(r))
	}
	return nil
}

func recoveryText(r *store.Recovery) string {
	if r == nil {
		return ""
	}
	text := "the database was damaged (" + r.Reason + ")"
	if r.SetAside != "" {
		text += " and lies in " + r.SetAside + " now"
	}
	if r.Restored {
		return text + "; the copy of " + r.CopyTime.Format("2006-01-02 15:04:05") + " took its place"
	}
	return text + "; there was no good copy, so it began empty"
}
