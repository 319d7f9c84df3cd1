package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one line of the machine's process table.
type process struct {
	pid    int
	parent int
	start  uint64
	args   []string
}

// isShim tells whether the process is a shim of the containerd that listens on socket.
func (p process) isShim(socket string) bool {
	i := slices.Index(p.args, "-address")
	return i >= 0 && i+1 < len(p.args) && p.args[i+1] == socket &&
		strings.HasPrefix(filepath.Base(p.args[0]), "containerd-shim")
}

// isDaemon tells whether the process is the containerd that was started with the configuration file.
func (p process) isDaemon(config string) bool {
	i := slices.Index(p.args, "--config")
	return i >= 0 && i+1 < len(p.args) && p.args[i+1] == config
}

// processes lists the living processes; the dead that nobody has reaped yet are left out.
func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		s := string(raw)
		fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		p := process{pid: pid}
		if p.parent, err = strconv.Atoi(fields[1]); err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if p.start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if raw, err = os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err != nil {
			continue
		}
		p.args = strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		out = append(out, p)
	}
	return out, nil
}

// mount is one line of /proc/self/mountinfo.
type mount struct {
	point  string
	fstype string
}

// mountInfo lists the mounts in the order in which they were made.
func mountInfo() ([]mount, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []mount
	for line := range strings.Lines(string(raw)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, types := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(types) < 1 {
			return nil, fmt.Errorf("list mounts: unexpected line %q", line)
		}
		out = append(out, mount{point: unescape.Replace(fields[4]), fstype: types[0]})
	}
	return out, nil
}
