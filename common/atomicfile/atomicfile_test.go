package atomicfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
)

func TestWriteReplacesContentAndMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, c := range []struct {
		content string
		mode    fs.FileMode
	}{{"one", 0o644}, {"", 0o600}, {"three", 0o666}} {
		if err := atomicfile.Write(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.content {
			t.Fatalf("read %q, %v; want %q", got, err, c.content)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != c.mode {
			t.Fatalf("mode %v, %v; want %v", info.Mode(), err, c.mode)
		}
	}
	onlyFile(t, filepath.Dir(path), "f")
}

// onlyFile fails unless dir holds that file and nothing else.
func onlyFile(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Fatalf("the folder holds %v, %v; want %s alone", entries, err, name)
	}
}

func TestReadersSeeOldOrNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	contents := [][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if err := atomicfile.Write(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
				t.Errorf("read %d bytes, %v", len(got), err)
				return
			}
		}
	})
	for n := range 50 {
		if err := atomicfile.Write(path, contents[n%2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	reader.Wait()
}

func TestWriteReplacesALinkRatherThanItsTarget(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "f")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "precious" {
		t.Fatalf("the target reads %q, %v", got, err)
	}
	if got, err := os.ReadFile(link); err != nil || string(got) != "new" {
		t.Fatalf("the file reads %q, %v", got, err)
	}
}

func TestFailedWriteLeavesTheOldFileAndNoRemains(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("new"), 0o600); err == nil {
		t.Fatal("a folder was replaced by a file")
	}
	onlyFile(t, dir, "f")
	if err := atomicfile.Write(filepath.Join(dir, "missing", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a file in a folder that is not there: %v", err)
	}
}

func TestWriteInMakesAPrivateFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "f")
	if err := atomicfile.WriteIn(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the folder's mode is %v, %v", info.Mode(), err)
	}
	if err := atomicfile.WriteIn(filepath.Join(path, "g"), nil, 0o600); err == nil {
		t.Fatal("a file served as a folder")
	}
}
