package volume

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// mountEmptyDir makes the directory, or the tmpfs for medium Memory. What is there stays: an emptyDir lives as long as
// its pod, and one on disk outlives a reboot. A sizeLimit bounds a tmpfs; on disk nothing bounds it, see OverSize.
func mountEmptyDir(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, path string) error {
	if e.Medium != corev1.StorageMediumDefault && e.Medium != corev1.StorageMediumMemory {
		return fmt.Errorf("emptyDir medium %q: %w", e.Medium, ErrUnsupported)
	}
	made := false
	if _, err := os.Lstat(path); err != nil {
		made = true
		if err := os.MkdirAll(path, 0o750); err != nil {
			return fmt.Errorf("emptyDir: %w", err)
		}
	}
	if e.Medium == corev1.StorageMediumMemory {
		mounted, err := isMountPoint(path)
		if err != nil {
			return fmt.Errorf("emptyDir: %w", err)
		}
		if mounted {
			return nil
		}
		data := "mode=0777"
		if size := memorySize(pod, e); size > 0 {
			data += ",size=" + strconv.FormatInt(size, 10)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, data); err != nil {
			return fmt.Errorf("emptyDir: mount tmpfs on %s: %w", path, err)
		}
		made = true
	}
	if !made {
		return nil
	}
	// Any user of the pod may write; the node's own users cannot come this far.
	if err := os.Chmod(path, 0o777); err != nil {
		return fmt.Errorf("emptyDir: %w", err)
	}
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		if err := os.Lchown(path, -1, int(*sc.FSGroup)); err != nil {
			return fmt.Errorf("emptyDir: %w", err)
		}
		if err := os.Chmod(path, 0o777|os.ModeSetgid); err != nil {
			return fmt.Errorf("emptyDir: %w", err)
		}
	}
	return nil
}

// memorySize is the volume's limit, or the memory that the pod may have at all; 0 is the kernel's default, half of the
// node's memory.
func memorySize(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource) int64 {
	most := int64(0)
	for i := range pod.Spec.Containers {
		limit := pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if limit == 0 {
			most = 0
			break
		}
		most += limit
	}
	if e.SizeLimit != nil {
		if limit := e.SizeLimit.Value(); limit > 0 && (most == 0 || limit < most) {
			return limit
		}
	}
	return most
}

// Oversized names a volume that holds more than its pod allowed itself.
type Oversized struct {
	Volume      string
	Used, Limit int64 // bytes
}

// OverSize lists the emptyDir volumes on disk that have outgrown their sizeLimit. Nothing on a plain file system stops
// them; the caller tells, and may end the pod.
func (m *Manager) OverSize(pod *corev1.Pod) ([]Oversized, error) {
	var out []Oversized
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Value() <= 0 || v.EmptyDir.Medium == corev1.StorageMediumMemory {
			continue
		}
		path, err := m.path(pod, v)
		if err != nil {
			return nil, err
		}
		used, err := diskUsage(path)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: volume %s: %w", pod.Namespace, pod.Name, v.Name, err)
		}
		if limit := v.EmptyDir.SizeLimit.Value(); used > limit {
			out = append(out, Oversized{Volume: v.Name, Used: used, Limit: limit})
		}
	}
	return out, nil
}

// diskUsage adds up what the files below dir take on disk; a file with several links counts once, and what is mounted
// below is not counted.
func diskUsage(dir string) (int64, error) {
	var top syscall.Stat_t
	if err := syscall.Lstat(dir, &top); err != nil {
		if err == syscall.ENOENT {
			return 0, nil
		}
		return 0, err
	}
	type inode struct{ n uint64 }
	seen := map[inode]bool{}
	var walk func(dir string) (int64, error)
	walk = func(dir string) (int64, error) {
		entries, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		sum := int64(0)
		for _, e := range entries {
			var st syscall.Stat_t
			p := dir + "/" + e.Name()
			if err := syscall.Lstat(p, &st); err != nil || st.Dev != top.Dev {
				continue
			}
			if st.Nlink > 1 && !e.IsDir() {
				if seen[inode{st.Ino}] {
					continue
				}
				seen[inode{st.Ino}] = true
			}
			sum += st.Blocks * 512
			if e.IsDir() {
				below, err := walk(p)
				if err != nil {
					return 0, err
				}
				sum += below
			}
		}
		return sum, nil
	}
	return walk(dir)
}
