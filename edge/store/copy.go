package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func (s *Store) goodPath() string { return s.path + ".good" }

// keepCopies makes the good copy soon after Open, and again when something worth
// it has changed, at most once per CopyEvery: an SD card wears.
func (s *Store) keepCopies() {
	defer s.copier.Done()
	timer := time.NewTimer(s.opts.CopyAfter)
	defer timer.Stop()
	var copied uint64
	first := true
	for {
		select {
		case <-s.closed:
			return
		case <-timer.C:
		}
		timer.Reset(s.opts.CopyEvery)
		s.keepReserve()
		at := s.changes.Load()
		if !first && at == copied {
			continue
		}
		if err := s.Copy(context.Background()); err != nil {
			s.log.Warn("no good copy of the node's database could be made; the one before stays", "path", s.path, "err", err)
			continue
		}
		first, copied = false, at
	}
}

// Copy makes the good copy now: a compact, checked file beside the database that
// Open falls back to. The copy before stays until the new one is safe.
func (s *Store) Copy(ctx context.Context) error {
	temp := s.goodPath() + ".tmp"
	if err := s.copyTo(ctx, temp); err != nil {
		os.Remove(temp)
		return fmt.Errorf("copy the node's database to %s: %w", s.goodPath(), s.explain(err))
	}
	return nil
}

func (s *Store) copyTo(ctx context.Context, temp string) error {
	// VACUUM INTO takes an existing file only when it is empty; made here for its mode.
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.read(ctx).Exec("VACUUM INTO ?", temp).Error; err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	db, err := connectReadOnly(temp)
	if err != nil {
		return err
	}
	if err := errors.Join(quickCheck(db), disconnect(db)); err != nil {
		return err
	}
	if err := os.Rename(temp, s.goodPath()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}
