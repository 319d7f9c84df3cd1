// Package machine is the computer that a holdfast command works on: its service
// manager, its package manager, its processes and its disks. common/adm asks it
// and changes it only through here, so that a test can put a folder in the place
// of "/" and commands of its own into PATH. It never decides what shall be
// installed or removed.
package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
)

// Machine is the computer; the zero value is the real one.
type Machine struct {
	// Root is put before the places of the operating system (/etc/systemd, /run,
	// /proc, /etc/containerd); it is not put before paths that a user gave.
	Root string
}

const unitDir = "/etc/systemd/system"

// Path is where the operating system's file at path is found.
func (m Machine) Path(path string) string { return filepath.Join("/", m.Root, path) }

// Systemd says whether systemd runs this machine. A container or a chroot may
// have systemctl and no systemd behind it.
func (m Machine) Systemd() bool {
	if info, err := os.Stat(m.Path("/run/systemd/system")); err != nil || !info.IsDir() {
		return false
	}
	_, err := exec.LookPath("systemctl")
	return err == nil
}

// UnitPath is the file of a unit.
func (m Machine) UnitPath(unit string) string { return m.Path(filepath.Join(unitDir, unit)) }

// InstallUnit writes the unit, has it start at boot, and starts it. A unit that
// runs and whose file has changed is restarted, and also when restart says that
// something else which it reads has changed; restarted tells. Where wait is
// false, it does not wait for a daemon that says itself when it has started.
func (m Machine) InstallUnit(ctx context.Context, unit, text string, restart, wait bool) (restarted bool, err error) {
	path := m.UnitPath(unit)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("install unit %s: %w", unit, err)
	}
	changed := string(old) != text
	if changed {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return false, fmt.Errorf("install unit %s: %w", unit, err)
		}
		if err := atomicfile.Write(path, []byte(text), 0o644); err != nil {
			return false, fmt.Errorf("install unit %s: %w", unit, err)
		}
		if err := m.systemctl(ctx, "daemon-reload"); err != nil {
			return false, err
		}
	}
	if err := m.systemctl(ctx, "enable", unit); err != nil {
		return false, err
	}
	args := []string{"start"}
	if changed || restart {
		args[0] = "restart"
	}
	if !wait {
		args = append(args, "--no-block")
	}
	return changed || restart, m.systemctl(ctx, append(args, unit)...)
}

// RemoveUnit stops the unit, has it start no more, and removes its file. It does
// nothing where there is no such unit.
func (m Machine) RemoveUnit(ctx context.Context, unit string) error {
	path := m.UnitPath(unit)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if m.Systemd() {
		if err := m.systemctl(ctx, "disable", "--now", unit); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove unit %s: %w", unit, err)
	}
	if !m.Systemd() {
		return nil
	}
	return m.systemctl(ctx, "daemon-reload")
}

// UnitActive says whether the unit runs.
func (m Machine) UnitActive(ctx context.Context, unit string) bool {
	return m.Systemd() && exec.CommandContext(ctx, "systemctl", "is-active", "--quiet", unit).Run() == nil
}

// EnableService starts a service that came with a package, now and at boot.
func (m Machine) EnableService(ctx context.Context, unit string) error {
	return m.systemctl(ctx, "enable", "--now", unit)
}

func (m Machine) systemctl(ctx context.Context, args ...string) error {
	return run(ctx, "systemctl", args...)
}

// run executes a command and puts the end of what it printed into the error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(out))
	}
	return nil
}

func tail(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return string(bytes.Join(lines, []byte("; ")))
}

// Process finds a running process by the name of its executable.
func (m Machine) Process(name string) (pid int, found bool) {
	files, err := filepath.Glob(m.Path("/proc/[0-9]*/cmdline"))
	if err != nil {
		return 0, false
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		first, _, _ := bytes.Cut(b, []byte{0})
		if filepath.Base(string(first)) != name {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			return pid, true
		}
	}
	return 0, false
}

// FreeSpace is how many bytes an ordinary user may still write below path, or
// below the nearest folder above it that exists.
func FreeSpace(path string) (uint64, error) {
	for {
		var s syscall.Statfs_t
		err := syscall.Statfs(path, &s)
		if err == nil {
			return s.Bavail * uint64(s.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(path) == path {
			return 0, fmt.Errorf("free space of %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// DeleteLink removes a network interface.
func (m Machine) DeleteLink(ctx context.Context, name string) error {
	return run(ctx, "ip", "link", "delete", name)
}
