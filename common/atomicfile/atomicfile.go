// Package atomicfile writes small files so that a reader, or a machine that
// loses power, sees the old content or the new, never half of it. Everybody who
// keeps a certificate, key or config file uses it; it never makes a decision
// about what is in a file.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file at path. The new file has exactly that mode, whatever
// the umask, from its first byte on; file and folder are synced before Write
// returns. The folder must exist. A symbolic link at path is replaced, not
// followed.
func Write(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, f.Close(), os.Remove(f.Name())))
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// From here on the file is in its place: its errors must not remove it.
	if cerr := f.Close(); cerr != nil {
		return nil
	}
	return syncDir(dir)
}

// WriteIn makes the folder of path (mode 0700) where there is none, then writes.
func WriteIn(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return Write(path, content, mode)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
