package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Main is the TestMain of a package whose tests need worlds: it builds the
// binaries, does what else must be done where the network is (outside), enters,
// and runs the tests.
func Main(m *testing.M, outside ...func() error) {
	if err := prepare(append([]func() error{Build}, outside...)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare(outside []func() error) error {
	if err := Outside(outside...); err != nil {
		return err
	}
	return Enter()
}

// Outside does things in their order where a program starts, before Enter, and
// nothing when Enter runs it again further inside.
func Outside(things ...func() error) error {
	if os.Getenv(stageVariable) != "" {
		return nil
	}
	for _, do := range things {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// Build brings the binaries up to date. Two test packages may ask at the same
// time: a lock lets one build while the other waits and then finds all done.
func Build() error {
	root, err := Root()
	if err != nil {
		return err
	}
	output := filepath.Join(root, "_output")
	if err := os.MkdirAll(output, 0o755); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	lock, err := os.Create(filepath.Join(output, ".lock"))
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("build: wait for another build: %w", err)
	}
	cmd := exec.Command("make", "--no-print-directory", "-C", root, "build")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	return nil
}

// Root is the top of the repository that holds the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "keps")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no repository of Holdfast holds the working directory")
		}
		dir = parent
	}
}
