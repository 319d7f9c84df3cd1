package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupMount is where Linux distributions mount the cgroup file systems.
const cgroupMount = "/sys/fs/cgroup"

// CgroupParent is a pod's cgroup, in the form that CRI takes: <root>/kubepods/<class>/pod<uid> for the cgroupfs driver,
// /<root>-kubepods.slice/... for systemd, as the kubelet names them. A guaranteed pod has no class of its own. root is
// "/" or the cgroup under which all pods lie; an unknown driver counts as cgroupfs.
func CgroupParent(root, driver string, pod *corev1.Pod) string {
	return cgroupPath(root, driver, QOS(pod), string(pod.UID))
}

func cgroupPath(root, driver string, class corev1.PodQOSClass, uid string) string {
	parts := cgroupParts(root)
	switch class {
	case corev1.PodQOSBurstable:
		parts = append(parts, "burstable")
	case corev1.PodQOSBestEffort:
		parts = append(parts, "besteffort")
	}
	return joinCgroup(driver, append(parts, "pod"+uid))
}

func cgroupParts(root string) []string {
	var parts []string
	for _, p := range strings.Split(root, "/") {
		if p != "" && p != "." {
			parts = append(parts, strings.TrimSuffix(p, ".slice"))
		}
	}
	return append(parts, "kubepods")
}

func joinCgroup(driver string, parts []string) string {
	if driver != "systemd" {
		return "/" + path.Join(parts...)
	}
	// A slice's name spells out its ancestors: a-b.slice lies in a.slice. Dashes within a part would be taken for that.
	full, name := "", ""
	for i, p := range parts {
		p = strings.ReplaceAll(p, "-", "_")
		if i > 0 {
			name += "-"
		}
		name += p
		full += "/" + name + ".slice"
	}
	return full
}

// EnsurePodCgroup makes the pod's cgroup with the pod's limits (requests and limits of its containers together). It
// may be called for a cgroup that is there: the limits are written again.
func EnsurePodCgroup(root, driver string, pod *corev1.Pod) error {
	t := cgroupTree{mount: cgroupMount, unified: isUnified(cgroupMount)}
	if err := t.ensure(root, driver, pod); err != nil {
		return fmt.Errorf("cgroup of pod %s: %w", podName(pod), err)
	}
	return nil
}

// RemovePodCgroup removes the pod's cgroup and what lies in it, in whichever class it is, and kills the processes that are
// still there. Removing one that is not there is no error. It fails, and may be called again, as long as a killed
// process has not gone.
func RemovePodCgroup(root, driver, uid string) error {
	if uid == "" || strings.ContainsAny(uid, "/\x00") {
		return fmt.Errorf("cgroup of pod %q: that is no pod UID", uid)
	}
	t := cgroupTree{mount: cgroupMount, unified: isUnified(cgroupMount)}
	var errs []error
	for _, class := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		if err := t.remove(cgroupPath(root, driver, class, uid), driver); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cgroup of pod %s: %w", uid, err)
	}
	return nil
}

// cgroupTree is the mounted cgroup file system, of either version.
type cgroupTree struct {
	mount   string
	unified bool
}

func isUnified(mount string) bool {
	var st unix.Statfs_t
	return unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// swapAccounting says whether the kernel can limit swap: writing the limit where it cannot fails a container's start.
func (t cgroupTree) swapAccounting() bool {
	if !t.unified {
		return exists(filepath.Join(t.mount, "memory", "memory.memsw.limit_in_bytes"))
	}
	found, err := filepath.Glob(filepath.Join(t.mount, "*", "memory.swap.max"))
	return err == nil && len(found) > 0
}

// controllers are the hierarchies of cgroup v1 in which a pod has a directory, each given once although it may have
// several names (cpu is a link to cpu,cpuacct).
func (t cgroupTree) controllers() ([]string, error) {
	if t.unified {
		return []string{t.mount}, nil
	}
	entries, err := os.ReadDir(t.mount)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(t.mount, e.Name()))
		}
	}
	return out, nil
}

func (t cgroupTree) ensure(root, driver string, pod *corev1.Pod) error {
	res := podResources(pod)
	cg := CgroupParent(root, driver, pod)
	if driver == "systemd" {
		return ensureSlice(path.Base(cg), res)
	}
	if t.unified {
		dir, err := t.mkdirUnified(cg)
		if err != nil {
			return err
		}
		return writeUnified(dir, res)
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		base := filepath.Join(t.mount, c)
		if !exists(base) {
			continue // a Pi's kernel may come without the memory controller
		}
		dir := filepath.Join(base, cg)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := writeV1(c, dir, res); err != nil {
			return err
		}
	}
	if QOS(pod) == corev1.PodQOSBestEffort {
		// Best effort as a class gets the least, however many pods are in it.
		return writeUnlessMissing(filepath.Join(t.mount, "cpu", path.Dir(cg), "cpu.shares"), strconv.Itoa(minShares))
	}
	return nil
}

func writeV1(controller, dir string, res *cri.LinuxContainerResources) error {
	switch controller {
	case "cpu":
		if err := writeValue(filepath.Join(dir, "cpu.shares"), strconv.FormatInt(res.CpuShares, 10)); err != nil {
			return err
		}
		if res.CpuPeriod == 0 {
			return nil
		}
		limit := res.CpuQuota
		if limit == 0 {
			limit = -1
		}
		return errors.Join(
			writeUnlessMissing(filepath.Join(dir, "cpu.cfs_period_us"), strconv.FormatInt(res.CpuPeriod, 10)),
			writeUnlessMissing(filepath.Join(dir, "cpu.cfs_quota_us"), strconv.FormatInt(limit, 10)))
	case "memory":
		if res.MemoryLimitInBytes > 0 {
			return writeValue(filepath.Join(dir, "memory.limit_in_bytes"), strconv.FormatInt(res.MemoryLimitInBytes, 10))
		}
	}
	return nil
}

// mkdirUnified makes a cgroup v2 directory and hands the controllers down to it. A controller that the kernel lacks is
// left out: the file that would need it is then missing, and its limit is not set.
func (t cgroupTree) mkdirUnified(cg string) (string, error) {
	dir := t.mount
	for _, part := range strings.Split(strings.Trim(cg, "/"), "/") {
		for _, c := range []string{"+cpu", "+memory", "+pids", "+io", "+cpuset", "+hugetlb"} {
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(c), 0o644)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOENT) {
				return "", err
			}
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if part == "besteffort" {
			if err := writeUnlessMissing(filepath.Join(dir, "cpu.weight"), "1"); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

func writeUnified(dir string, res *cri.LinuxContainerResources) error {
	errs := []error{writeUnlessMissing(filepath.Join(dir, "cpu.weight"), strconv.FormatInt(weight(res.CpuShares), 10))}
	if res.CpuPeriod > 0 {
		limit := "max"
		if res.CpuQuota > 0 {
			limit = strconv.FormatInt(res.CpuQuota, 10)
		}
		errs = append(errs, writeUnlessMissing(filepath.Join(dir, "cpu.max"), limit+" "+strconv.FormatInt(res.CpuPeriod, 10)))
	}
	if res.MemoryLimitInBytes > 0 {
		errs = append(errs, writeUnlessMissing(filepath.Join(dir, "memory.max"), strconv.FormatInt(res.MemoryLimitInBytes, 10)))
	}
	return errors.Join(errs...)
}

// ensureSlice asks systemd for the slice: what somebody else writes below systemd's cgroups it may undo at any time.
func ensureSlice(slice string, res *cri.LinuxContainerResources) error {
	args := []string{"set-property", "--runtime", slice, "CPUAccounting=yes", "MemoryAccounting=yes", "TasksAccounting=yes",
		fmt.Sprintf("CPUWeight=%d", weight(res.CpuShares))}
	if res.CpuPeriod > 0 && res.CpuQuota > 0 {
		args = append(args, fmt.Sprintf("CPUQuota=%d%%", max(res.CpuQuota*100/res.CpuPeriod, 1)))
	}
	if res.MemoryLimitInBytes > 0 {
		args = append(args, fmt.Sprintf("MemoryMax=%d", res.MemoryLimitInBytes))
	}
	for _, a := range [][]string{args, {"start", slice}} {
		if out, err := exec.Command("systemctl", a...).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl %s %s: %w: %s", a[0], slice, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func (t cgroupTree) remove(cg, driver string) error {
	dirs, err := t.controllers()
	if err != nil {
		return err
	}
	found := false
	for _, d := range dirs {
		dir := filepath.Join(d, cg)
		if !exists(dir) {
			continue
		}
		found = true
		if err := killAll(dir); err != nil {
			return err
		}
		if err := removeCgroupDir(dir); err != nil {
			return err
		}
	}
	if found && driver == "systemd" {
		// Without this systemd remembers the slice and its limits until the next boot.
		slice := path.Base(cg)
		if out, err := exec.Command("systemctl", "stop", slice).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl stop %s: %w: %s", slice, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// killAll kills every process in the cgroup and below it.
func killAll(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !d.IsDir()) {
			return nil
		} else if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil // the cgroup has gone meanwhile
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid <= 1 || pid == os.Getpid() {
				continue
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		return nil
	})
}

// removeCgroupDir removes a cgroup from its leaves upwards: its files cannot be removed and go with it.
func removeCgroupDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupDir(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func writeValue(file, value string) error {
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", value, err)
	}
	return nil
}

func writeUnlessMissing(file, value string) error {
	if !exists(file) {
		return nil
	}
	return writeValue(file, value)
}

// Cgroups are the pods' cgroups below one root, for one driver: CgroupParent, EnsurePodCgroup and RemovePodCgroup with
// those two settled.
type Cgroups struct {
	Root   string // "/" or the cgroup under which all pods lie
	Driver string // cgroupfs or systemd
}

// Parent is the pod's cgroup, in the form that CRI takes.
func (c Cgroups) Parent(pod *corev1.Pod) string { return CgroupParent(c.Root, c.Driver, pod) }

// Ensure makes the pod's cgroup with its limits.
func (c Cgroups) Ensure(pod *corev1.Pod) error { return EnsurePodCgroup(c.Root, c.Driver, pod) }

// Remove removes the pod's cgroup, whichever class it is in.
func (c Cgroups) Remove(pod *corev1.Pod) error {
	return RemovePodCgroup(c.Root, c.Driver, string(pod.UID))
}
