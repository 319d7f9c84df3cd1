package containerlog

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// RotatedLayout is what rotation (edge/runtime) appends to the name of a log, behind a dot; the names
// of one log sort by age. ".gz" follows once it is compressed.
const RotatedLayout = "20060102-150405"

// Rotated lists the earlier files of a log, oldest first, without ".gz". One that is
// being compressed counts once.
func Rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		suffix, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		suffix = strings.TrimSuffix(suffix, ".gz")
		if !ok {
			continue
		}
		if _, err := time.Parse(RotatedLayout, suffix); err == nil {
			out = append(out, path+"."+suffix)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// openLog opens a file of a log. The directory belongs to root and the runtime; all the
// same nothing but a file is opened, and nothing waits for one.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openPresent opens the file that the runtime writes to now, and lists those before it.
func openPresent(path string) (*os.File, []string, error) {
	for range 10 { // a rotation between the two makes it look again
		f, err := openLog(path)
		if err != nil {
			return nil, nil, err
		}
		rotated, err := Rotated(path)
		if err == nil && isAt(f, path) {
			return f, rotated, nil
		}
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("%s is rotated all the time", path)
}

func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

// earlier is a rotated file, compressed or not.
type earlier struct {
	io.Reader
	file *os.File
	size int64 // of a plain one; -1: it is compressed
}

func (e *earlier) Close() error { return e.file.Close() }

// openEarlier opens a rotated file by its name without ".gz", behind offset bytes of
// what the container wrote. nil: it is gone.
func openEarlier(name string, offset int64) (*earlier, error) {
	f, err := openLog(name)
	if err == nil {
		info, err := f.Stat()
		if err == nil {
			_, err = f.Seek(offset, io.SeekStart)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		return &earlier{Reader: f, file: f, size: info.Size()}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		f, err = openLog(name + ".gz")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err == nil {
		_, err = io.CopyN(io.Discard, z, offset)
	}
	if err != nil { // as if it were gone
		f.Close()
		return nil, nil
	}
	return &earlier{Reader: untilDamage{z}, file: f, size: -1}, nil
}

// untilDamage ends where a compressed file is damaged: the files after it count too.
type untilDamage struct{ r io.Reader }

func (u untilDamage) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

// nameOf finds under which name the file that was read as the present one lies now. It
// may have been compressed meanwhile: then it is known by how it begins. "": it is gone.
func nameOf(f *os.File, rotated []string) string {
	var head, other [maxHeader]byte
	n, _ := f.ReadAt(head[:], 0)
	for _, name := range slices.Backward(rotated) {
		if isAt(f, name) {
			return name
		}
		e, err := openEarlier(name, 0)
		if err != nil || e == nil {
			continue
		}
		m, _ := io.ReadFull(e, other[:])
		e.Close()
		if n > 0 && bytes.Equal(head[:n], other[:min(m, n)]) && m >= n {
			return name
		}
	}
	return ""
}
