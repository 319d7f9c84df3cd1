package stats

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// kernel reads what the kernel tells, below root, which is "/" but in tests.
type kernel struct{ root string }

// maxKernelFile bounds what is read of one file of the kernel's. The longest is /proc/net/dev, with a line for each
// interface.
const maxKernelFile = 1 << 20

// file is a file's content, empty when it cannot be read: not every kernel has every file.
func (k kernel) file(path ...string) []byte {
	f, err := os.Open(filepath.Join(append([]string{k.root}, path...)...))
	if err != nil {
		return nil
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(&limited{f, maxKernelFile}); err != nil {
		return nil
	}
	return b.Bytes()
}

// limited ends after so many bytes.
type limited struct {
	f    *os.File
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, os.ErrInvalid
	}
	n, err := l.f.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// number reads a file that holds one number.
func (k kernel) number(path ...string) *uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(k.file(path...))), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// keyed reads lines of a name and a number: memory.stat, cpu.stat, and /proc/meminfo with its colons. Lines of another
// form are left out. A name that comes twice keeps its first number.
func keyed(b []byte) map[string]uint64 {
	out := map[string]uint64{}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseUint(string(f[1]), 10, 64)
		name := strings.TrimSuffix(string(f[0]), ":")
		if _, known := out[name]; err != nil || known {
			continue
		}
		if len(f) == 3 && string(f[2]) == "kB" {
			if n > math.MaxUint64>>10 {
				continue
			}
			n <<= 10
		}
		out[name] = n
	}
	return out
}

// ticks is how many of /proc/stat's units make a second, on every architecture that Go runs on.
const ticks = 100

// processorTime adds up the busy time of all processors in /proc/stat; nil when it does not say.
func processorTime(b []byte) *uint64 {
	first, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(first)
	if len(f) < 5 || string(f[0]) != "cpu" {
		return nil
	}
	sum := uint64(0)
	// user nice system idle iowait irq softirq steal; the guests' time is within user's and nice's.
	for i, v := range f[1:min(len(f), 9)] {
		if i == 3 || i == 4 {
			continue
		}
		n, err := strconv.ParseUint(string(v), 10, 64)
		if err != nil || n > math.MaxUint64/8/uint64(time.Second/ticks) {
			return nil
		}
		sum += n
	}
	sum *= uint64(time.Second / ticks)
	return &sum
}

// bootTime is when the machine started, by /proc/stat; zero when it does not say.
func bootTime(b []byte) time.Time {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			if n, err := strconv.ParseInt(string(bytes.TrimSpace(rest)), 10, 64); err == nil && n > 0 {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}

// link is what went over one network interface.
type link struct {
	name                        string
	received, receiveErrors     uint64
	sent, sendErrors            uint64
	receivePackets, sendPackets uint64
	receiveDropped, sendDropped uint64
}

// links reads /proc/net/dev. The loopback interface is left out, as are lines that are not understood.
func links(b []byte) []link {
	var out []link
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		f := bytes.Fields(rest)
		if !ok || len(f) < 16 {
			continue
		}
		l := link{name: string(bytes.TrimSpace(name))}
		if l.name == "" || l.name == "lo" {
			continue
		}
		good := true
		for i, to := range map[int]*uint64{0: &l.received, 1: &l.receivePackets, 2: &l.receiveErrors, 3: &l.receiveDropped,
			8: &l.sent, 9: &l.sendPackets, 10: &l.sendErrors, 11: &l.sendDropped} {
			n, err := strconv.ParseUint(string(f[i]), 10, 64)
			good = good && err == nil
			*to = n
		}
		if good {
			out = append(out, l)
		}
	}
	return out
}

// defaultLink is the interface of the route to everywhere, by /proc/net/route; empty when there is none.
func defaultLink(b []byte) string {
	best, metric := "", uint64(math.MaxUint64)
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 8 || string(f[1]) != "00000000" || string(f[7]) != "00000000" {
			continue
		}
		if n, err := strconv.ParseUint(string(f[6]), 10, 32); err == nil && n < metric {
			best, metric = string(f[0]), n
		}
	}
	return best
}

// threads are how many there are, by /proc/loadavg.
func threads(b []byte) *int64 {
	f := bytes.Fields(b)
	if len(f) < 4 {
		return nil
	}
	_, all, ok := bytes.Cut(f[3], []byte("/"))
	n, err := strconv.ParseInt(string(all), 10, 64)
	if !ok || err != nil || n < 0 {
		return nil
	}
	return &n
}

// resident is a process's memory in bytes, by /proc/<pid>/statm.
func resident(b []byte) uint64 {
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	n, err := strconv.ParseUint(string(f[1]), 10, 64)
	if page := uint64(os.Getpagesize()); err == nil && n <= math.MaxUint64/page {
		return n * page
	}
	return 0
}

// pids reads cgroup.procs.
func pids(b []byte) []int {
	var out []int
	for f := range bytes.FieldsSeq(b) {
		if n, err := strconv.Atoi(string(f)); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}
