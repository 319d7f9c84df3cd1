package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Health is how safely the database lies on its disk.
type Health struct {
	// GoodCopy is when the copy was made that Open falls back to; zero: there is none.
	GoodCopy time.Time
	// Reserve: the room is there with which a full disk does not keep Open from opening.
	Reserve bool
	// Free is how many bytes root may still write, of Bytes that the file system has.
	Free, Bytes uint64
}

// Health looks at the files beside the database; it reads none of them.
func (s *Store) Health() (Health, error) {
	h := Health{Reserve: sizeOf(s.reservePath()) >= reserveBytes}
	if info, err := os.Stat(s.goodPath()); err == nil {
		h.GoodCopy = info.ModTime()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.path), &st); err != nil {
		return h, fmt.Errorf("disk of the node's database %s: %w", s.path, err)
	}
	h.Free, h.Bytes = st.Bfree*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	return h, nil
}

// Check reads the whole database and returns an error where it is not sound; nothing is
// done about it, the next Open does. It has a connection of its own, so that nobody who
// writes waits for it; on an SD card it may take seconds.
func (s *Store) Check(ctx context.Context) error {
	db, err := connectBeside(s.path)
	if err != nil {
		return fmt.Errorf("check the node's database %s: %w", s.path, err)
	}
	if err := errors.Join(quickCheck(db.WithContext(ctx)), disconnect(db)); err != nil {
		return fmt.Errorf("check the node's database %s: %w", s.path, explain(err))
	}
	return nil
}
