package stats

import (
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// figures are what a cgroup, a container or the node uses. What is not known is nil.
type figures struct {
	at                                 time.Time
	cpu                                *uint64 // nanoseconds of one core
	rate                               *uint64 // billionths of a core, since the measurement before
	workingSet, memory, rss, available *uint64
	pageFaults, majorPageFaults        *uint64
	swap, swapSpare                    *uint64
}

// cgroups is the mounted cgroup file system, of either version.
type cgroups struct {
	kernel
	unified bool
	root    string // under which all pods lie, as edgecore is configured
}

const cgroupMount = "sys/fs/cgroup"

func newCgroups(k kernel, root string) cgroups {
	var st unix.Statfs_t
	v2 := unix.Statfs(filepath.Join(k.root, cgroupMount), &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	return cgroups{kernel: k, unified: v2, root: root}
}

// of are the figures of one cgroup. The working set is what cannot be given up without harm: all but the pages of files
// that nobody has touched for a while.
func (c cgroups) of(cg string, at time.Time) figures {
	f := figures{at: at}
	var stat map[string]uint64
	prefix := ""
	if c.unified {
		if us, ok := keyed(c.file(cgroupMount, cg, "cpu.stat"))["usage_usec"]; ok && us <= math.MaxUint64/1000 {
			ns := us * 1000
			f.cpu = &ns
		}
		stat = keyed(c.file(cgroupMount, cg, "memory.stat"))
		f.memory = c.number(cgroupMount, cg, "memory.current")
		f.swap = c.number(cgroupMount, cg, "memory.swap.current")
		f.rss = entry(stat, "anon")
	} else {
		f.cpu = c.number(cgroupMount, "cpuacct", cg, "cpuacct.usage")
		stat, prefix = keyed(c.file(cgroupMount, "memory", cg, "memory.stat")), "total_"
		f.memory = c.number(cgroupMount, "memory", cg, "memory.usage_in_bytes")
		f.swap, f.rss = entry(stat, "total_swap"), entry(stat, "total_rss")
	}
	f.pageFaults, f.majorPageFaults = entry(stat, prefix+"pgfault"), entry(stat, prefix+"pgmajfault")
	f.workingSet = less(f.memory, entry(stat, prefix+"inactive_file"))
	return f
}

func entry(m map[string]uint64, name string) *uint64 {
	n, ok := m[name]
	if !ok {
		return nil
	}
	return &n
}

// less is a without b, not below 0; what is not known of b counts as 0.
func less(a, b *uint64) *uint64 {
	if a == nil {
		return nil
	}
	n := *a
	if b != nil {
		n -= min(n, *b)
	}
	return &n
}

// node are the machine's figures: of the root cgroup where it tells them, else from /proc.
func (c cgroups) node(at time.Time) figures {
	f := c.of("", at)
	if f.cpu == nil {
		f.cpu = processorTime(c.file("proc/stat"))
	}
	info := keyed(c.file("proc/meminfo"))
	total, spare := entry(info, "MemTotal"), entry(info, "MemFree")
	if f.memory == nil && total != nil && spare != nil { // version 2 has no such file at its root
		f.memory = less(total, spare)
		inactive := entry(info, "Inactive(file)")
		if f.rss == nil {
			f.rss = entry(info, "AnonPages")
		}
		f.workingSet = less(f.memory, inactive)
	}
	if total != nil && f.workingSet != nil {
		f.available = less(total, f.workingSet)
	}
	f.swapSpare = entry(info, "SwapFree")
	f.swap = nil
	if t := entry(info, "SwapTotal"); t != nil && f.swapSpare != nil {
		f.swap = less(t, f.swapSpare)
	}
	return f
}

// pod is the pod's cgroup, empty when there is none: whichever driver made it.
func (c cgroups) pod(p *corev1.Pod) string {
	for _, driver := range []string{"cgroupfs", "systemd"} {
		if cg := runtime.CgroupParent(c.root, driver, p); c.exists(cg) {
			return cg
		}
	}
	return ""
}

// pods is the cgroup of all pods together.
func (c cgroups) pods() string {
	whole := &corev1.Pod{ObjectMeta: uidMeta("0"), Status: corev1.PodStatus{QOSClass: corev1.PodQOSGuaranteed}}
	for _, driver := range []string{"cgroupfs", "systemd"} {
		if cg := path.Dir(runtime.CgroupParent(c.root, driver, whole)); c.exists(cg) {
			return cg
		}
	}
	return ""
}

// hierarchies are where a cgroup may have its directory, the surest first.
func (c cgroups) hierarchies() []string {
	if c.unified {
		return []string{cgroupMount}
	}
	return []string{cgroupMount + "/cpuacct", cgroupMount + "/pids", cgroupMount + "/memory", cgroupMount + "/systemd"}
}

func (c cgroups) exists(cg string) bool {
	for _, h := range c.hierarchies() {
		if st, err := os.Stat(filepath.Join(c.kernel.root, h, cg)); err == nil && st.IsDir() {
			return true
		}
	}
	return false
}

// processes are those of the cgroups directly below a pod's, by the cgroup's name: containers, and the sandbox.
func (c cgroups) processes(cg string) map[string][]int {
	for _, h := range c.hierarchies() {
		entries, err := os.ReadDir(filepath.Join(c.kernel.root, h, cg))
		if err != nil {
			continue
		}
		out := map[string][]int{}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if list := pids(c.file(h, cg, e.Name(), "cgroup.procs")); len(list) > 0 {
				out[e.Name()] = list
			}
		}
		return out
	}
	return nil
}

// containerOf finds a container's processes among those of its pod.
func containerOf(processes map[string][]int, id string) []int {
	for _, name := range []string{id, "cri-containerd-" + id + ".scope"} {
		if list := processes[name]; list != nil {
			return list
		}
	}
	for name, list := range processes {
		if strings.Contains(name, id) {
			return list
		}
	}
	return nil
}
