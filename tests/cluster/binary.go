package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const module = "module github.com/holdfast-edge/holdfast\n"

// Find returns the control plane's binary of the repository around the working directory. When it
// is missing, or older than its sources, it is built first, which takes minutes the first time;
// several programs may ask at once, one of them builds. log, which may be nil, hears of a build.
func Find(ctx context.Context, log io.Writer) (path string, err error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	room := filepath.Join(root, "build", "controlplane")
	path = filepath.Join(room, "_output", "controlplane")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("prepare to build %s: %w", path, err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("prepare to build %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // which gives the lock back
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build of %s: %w", path, err)
	}
	stale, err := isStale(path, room)
	if err != nil || !stale {
		return path, err
	}
	if log != nil {
		fmt.Fprintf(log, "building %s (some minutes the first time)\n", path)
	}
	var said bytes.Buffer
	build := exec.CommandContext(ctx, "make", "-C", room, "build")
	build.Stdout, build.Stderr = &said, &said
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build %s: %w; `make -C %s build` said:\n%s", path, err, room, said.String())
	}
	// The go command leaves a binary alone that is right already; say that it is fresh.
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		return "", fmt.Errorf("build %s: %w", path, err)
	}
	return path, nil
}

// isStale tells whether any source in room is newer than the binary.
func isStale(binary, room string) (bool, error) {
	built, err := os.Stat(binary)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	stale := false
	err = filepath.WalkDir(room, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "_output" {
				return fs.SkipDir
			}
			return nil
		}
		if !isSource(d.Name()) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stale = stale || info.ModTime().After(built.ModTime())
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look for changed sources of %s: %w", binary, err)
	}
	return stale, nil
}

func isSource(name string) bool {
	switch name {
	case "go.mod", "go.sum", "Makefile":
		return true
	}
	return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
}

// repositoryRoot is the nearest folder, from the working directory upwards, that holds the main module.
func repositoryRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(text), module) {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the repository: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the repository: neither %s nor a folder above it holds Holdfast's go.mod; name the binary in Options.Binary", start)
		}
	}
}
