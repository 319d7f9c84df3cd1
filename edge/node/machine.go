package node

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// machine is what does not change while the machine runs.
type machine struct {
	memory                                        int64 // bytes
	cpus                                          int
	machineID, systemUUID, bootID, kernel, osName string
}

// files reads the machine below root, which is "/" but in tests.
type files struct{ root string }

func (f files) path(p string) string { return filepath.Join(f.root, p) }

// line is a file's first line, empty when there is none: not every machine has
// every file.
func (f files) line(p string) string {
	b, err := os.ReadFile(f.path(p))
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(first)
}

func (f files) machine() (machine, error) {
	total, _, err := f.memory()
	if err != nil {
		return machine{}, err
	}
	m := machine{
		memory: total, cpus: goruntime.NumCPU(),
		machineID:  f.line("etc/machine-id"),
		systemUUID: f.line("sys/class/dmi/id/product_uuid"),
		bootID:     f.line("proc/sys/kernel/random/boot_id"),
		kernel:     f.line("proc/sys/kernel/osrelease"),
		osName:     f.osName(),
	}
	if m.systemUUID == "" { // no DMI on a Pi
		m.systemUUID = m.machineID
	}
	return m, nil
}

// memory returns the bytes of memory that there are and that could be had.
func (f files) memory() (total, available int64, err error) {
	b, err := os.ReadFile(f.path("proc/meminfo"))
	if err != nil {
		return 0, 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		key, rest, _ := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "MemTotal":
			total = kib << 10
		case "MemAvailable":
			available = kib << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("read the machine's memory: no MemTotal in %s", f.path("proc/meminfo"))
	}
	return total, available, nil
}

func (f files) osName() string {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := os.ReadFile(f.path(p))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

// threads returns how many there are and how many there may be; 0, 0 unknown.
func (f files) threads() (now, most int64) {
	fields := strings.Fields(f.line("proc/loadavg"))
	if len(fields) < 4 {
		return 0, 0
	}
	_, all, _ := strings.Cut(fields[3], "/")
	now, err := strconv.ParseInt(all, 10, 64)
	if err != nil {
		return 0, 0
	}
	for _, p := range []string{"proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max"} {
		if v, err := strconv.ParseInt(f.line(p), 10, 64); err == nil && v > 0 && (most == 0 || v < most) {
			most = v
		}
	}
	return now, most
}

// disk is the file system of the data directory.
type disk struct {
	bytes, free, inodes, inodesFree uint64
}

func statDisk(dir string) (disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return disk{}, fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	size := uint64(st.Bsize)
	return disk{bytes: uint64(st.Blocks) * size, free: uint64(st.Bavail) * size, inodes: uint64(st.Files), inodesFree: uint64(st.Ffree)}, nil
}

// capacity is what the machine has; allocatable what of it pods may be promised.
func (m machine) capacity(d disk, maxPods int) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(m.cpus), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(m.memory, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(d.bytes), resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(maxPods), resource.DecimalSI),
	}
}

func (m machine) allocatable(d disk, maxPods int) corev1.ResourceList {
	r := m.capacity(d, maxPods)
	r[corev1.ResourceMemory] = *resource.NewQuantity(m.memory-m.memoryReserve(), resource.BinarySI)
	r[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(d.bytes-d.reserve()), resource.BinarySI)
	return r
}

// memoryReserve is where memory becomes short: 100 MiB as the kubelet has it, less
// on a machine of less than 1 GiB.
func (m machine) memoryReserve() int64 { return min(100<<20, m.memory/10) }

// reserve is where the disk becomes short: a tenth as the kubelet has it, but no
// more than 2 GiB.
func (d disk) reserve() uint64 { return min(2<<30, d.bytes/10) }
