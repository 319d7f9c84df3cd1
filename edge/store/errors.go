package store

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// Errors of the store; test with errors.Is.
var (
	// ErrNotFound: the store holds no such object.
	ErrNotFound = errors.New("not in the node's store")
	// ErrDiskFull: nothing of the call was stored, and everything stored before is intact.
	ErrDiskFull = errors.New("the disk is full")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store is closed")
)

// explain wraps a full disk as ErrDiskFull, whichever way SQLite met it.
func explain(err error) error {
	if err == nil || errors.Is(err, ErrDiskFull) {
		return err
	}
	var se sqlite3.Error
	if errors.As(err, &se) {
		if se.Code == sqlite3.ErrFull || se.SystemErrno == syscall.ENOSPC || se.SystemErrno == syscall.EDQUOT ||
			se.ExtendedCode == sqlite3.ErrIoErrSHMSize {
			return fmt.Errorf("%w: %w", ErrDiskFull, err)
		}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}

// damaged says whether err means that the file's content cannot be trusted, as
// opposed to a disk, a permission or a lock that stands in the way.
func damaged(err error) bool {
	var se sqlite3.Error
	return errors.Is(err, errDamaged) ||
		errors.As(err, &se) && (se.Code == sqlite3.ErrCorrupt || se.Code == sqlite3.ErrNotADB)
}

var errDamaged = errors.New("the database file is damaged")
