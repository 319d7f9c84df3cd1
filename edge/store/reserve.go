package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// The reserve is a file that only takes up room beside the database. When the
// disk is full at the start, its room is what SQLite opens with: a full disk must
// not keep a rebooted node from starting its pods.
const reserveBytes = 2 << 20

func (s *Store) reservePath() string { return s.path + ".reserve" }

// keepReserve makes the reserve if there is room for it.
func (s *Store) keepReserve() {
	path := s.reservePath()
	if sizeOf(path) >= reserveBytes {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, reserveBytes))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
	}
}

// releaseReserve gives the room back and says whether there was any.
func (s *Store) releaseReserve() bool {
	return sizeOf(s.reservePath()) > 0 && os.Remove(s.reservePath()) == nil
}
