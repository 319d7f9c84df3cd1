package stats

import (
	"strings"
	"testing"
	"time"
)

// FuzzKernelFiles: whatever the kernel, or a process that may name its own things, writes into these files, reading them
// ends well, and nothing is told that is not a plain number or name.
func FuzzKernelFiles(f *testing.F) {
	for _, files := range []map[string]string{versionOne(), versionTwo()} {
		for _, content := range files {
			f.Add([]byte(content))
		}
	}
	for _, odd := range []string{"cpu 18446744073709551615 1 1 1", "a:", ":", "eth0: 1 2", "MemTotal: 18446744073709551615 kB", "1/", "-1", "\x00", "btime -5", "cpu"} {
		f.Add([]byte(odd))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name := range keyed(b) {
			if strings.ContainsAny(name, " \t\n") {
				t.Errorf("name %q", name)
			}
		}
		if at := bootTime(b); !at.IsZero() && at.Unix() <= 0 {
			t.Errorf("boot time %s", at)
		}
		for _, l := range links(b) {
			if l.name == "" || strings.ContainsAny(l.name, "\n:") {
				t.Errorf("interface %q", l.name)
			}
		}
		for _, pid := range pids(b) {
			if pid <= 0 {
				t.Errorf("process %d", pid)
			}
		}
		if n := threads(b); n != nil && *n < 0 {
			t.Errorf("%d threads", *n)
		}
		processorTime(b)
		resident(b)
		defaultLink(b)
	})
}

func TestKernelFiles(t *testing.T) {
	if got := processorTime([]byte("cpu  10 1 20 1000 50 3 4 5 100 100\n")); got == nil || *got != uint64(43*10*time.Millisecond) {
		t.Errorf("busy for %v, want 430 ms: idle, waiting and guests are not counted again", got)
	}
	for _, bad := range []string{"", "cpu", "cpu a b c d e", "intr 1 2 3 4 5", "cpu 18446744073709551615 1 1 1 1"} {
		if got := processorTime([]byte(bad)); got != nil {
			t.Errorf("%q: %d", bad, *got)
		}
	}
	m := keyed([]byte("a 1\na 2\nb x\nc\nd: 3 kB\ne 18446744073709551615 kB\n"))
	if len(m) != 2 || m["a"] != 1 || m["d"] != 3072 {
		t.Errorf("%v", m)
	}
	if got := defaultLink([]byte("eth0 00000000 1 1 0 0 9 000000FF 0 0 0\n")); got != "" {
		t.Errorf("a route to a part of the world is taken for the default: %q", got)
	}
}

func TestHugeKernelFileIsNotRead(t *testing.T) {
	m := newMachine(t, false, nil)
	m.write(map[string]string{"proc/net/dev": strings.Repeat("eth0: 1\n", maxKernelFile/8+1), "proc/net/route": "x"})
	if b := m.cgroups.file("proc/net/dev"); b != nil {
		t.Errorf("%d bytes were read: half a file is worse than none", len(b))
	}
	if b := m.cgroups.file("proc/net/route"); string(b) != "x" {
		t.Errorf("%q", b)
	}
}
