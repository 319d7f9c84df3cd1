// Package bootunit says what systemd will start when the machine boots, read from the
// links by which units are enabled: no process is started, and nothing is changed.
// edge/outage and common/adm ask it whether a node comes back by itself.
package bootunit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// System is a machine whose operating system lies below Root; empty: this one.
type System struct{ Root string }

// places hold units, the first wins. /run does too, but is empty after a reboot.
func places() []string {
	return []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

func (s System) path(parts ...string) string {
	return filepath.Join("/", s.Root, filepath.Join(parts...))
}

// Runs says whether systemd is what runs the machine.
func (s System) Runs() bool {
	info, err := os.Stat(s.path("/run/systemd/system"))
	return err == nil && info.IsDir()
}

// State is what becomes of a unit at boot.
type State int

// The states of a unit.
const (
	Absent   State = iota // there is no such unit
	Disabled              // nothing starts it
	Masked                // nothing can start it
	Enabled               // a target or another unit wants it
)

func (s State) String() string {
	return [...]string{"not there", "not enabled", "masked", "enabled"}[s]
}

// Unit tells of the unit of that name, containerd.service say.
func (s System) Unit(name string) State {
	for _, place := range places() {
		// A unit is masked by a link to /dev/null, or by an empty file.
		file := s.path(place, name)
		if target, err := os.Readlink(file); err == nil && target == "/dev/null" {
			return Masked
		}
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			return Masked
		}
	}
	for _, place := range places() {
		for _, kind := range []string{"wants", "requires"} {
			if links, err := filepath.Glob(s.path(place, "*."+kind, name)); err == nil && len(links) > 0 {
				return Enabled
			}
		}
	}
	if s.text(name) == "" {
		return Absent
	}
	return Disabled
}

// Wants says whether a unit starts another one with itself.
func (s System) Wants(name, other string) bool {
	for line := range strings.Lines(s.text(name)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && slices.Contains([]string{"Wants", "Requires", "BindsTo"}, strings.TrimSpace(key)) && slices.Contains(strings.Fields(value), other) {
			return true
		}
	}
	return false
}

func (s System) text(name string) string {
	for _, place := range places() {
		if b, err := os.ReadFile(s.path(place, name)); err == nil {
			return string(b)
		}
	}
	return ""
}

// Own is the unit of which the calling process is part, by its cgroup; empty: a shell or
// another program started it.
func (s System) Own() string {
	b, err := os.ReadFile(s.path("/proc/self/cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		// hierarchy:controllers:path; systemd's own is 0::path or 1:name=systemd:path.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		rest, ok := strings.CutPrefix(fields[2], "/system.slice/")
		if !ok {
			continue
		}
		for part := range strings.SplitSeq(rest, "/") {
			if strings.HasSuffix(part, ".service") {
				return part
			}
		}
	}
	return ""
}
