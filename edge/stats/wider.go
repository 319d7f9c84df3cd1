package stats

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// wider is a measurement of what changes more slowly or costs more to find out: disks and networks.
type wider struct {
	at          time.Time
	links       []link // the node's, without those that lead to its pods
	defaultLink string
	data        *filesystem
	images      *filesystem
	imagesUsed  *uint64
	pods        map[string]podWider // by uid
}

type podWider struct {
	links []link           // nil with the node's own network
	logs  map[string]space // by container
}

// filesystem is how full one is.
type filesystem struct {
	capacity, available, used uint64 // bytes
	inodes, inodesFree        uint64
}

// space is what files take.
type space struct{ bytes, inodes uint64 }

func (s *Stats) measureWider(ctx context.Context) *wider {
	k := s.cgroups.kernel
	w := &wider{at: s.o.Now(), data: statfs(s.o.DataDir), pods: map[string]podWider{}}
	w.defaultLink = defaultLink(k.file("proc/net/route"))
	w.links = slices.DeleteFunc(links(k.file("proc/net/dev")), func(l link) bool { return s.virtual(l.name) })
	if rt, err := s.o.Runtime(); err == nil {
		images, err := rt.ImageUsage(ctx)
		if err != nil {
			s.o.Log.Debug("what images take is not known", "err", err)
		} else {
			w.images, w.imagesUsed = statfs(images.MountPoint), images.Bytes
		}
	}
	for _, p := range s.o.Pods() {
		if ctx.Err() != nil {
			break
		}
		if p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodPending {
			w.pods[string(p.UID)] = s.podWider(p)
		}
	}
	return w
}

// virtual tells whether an interface is one end of a pair, as those are that lead to pods.
func (s *Stats) virtual(name string) bool {
	k := s.cgroups.kernel
	index, peer := k.number("sys/class/net", name, "ifindex"), k.number("sys/class/net", name, "iflink")
	return index != nil && peer != nil && *index != *peer && len(name) >= 4 && name[:4] == "veth"
}

func (s *Stats) podWider(p *corev1.Pod) podWider {
	out := podWider{logs: logs(runtime.LogDir(s.o.PodLogsDir, p))}
	if p.Spec.HostNetwork {
		return out
	}
	// The lowest process id is the sandbox's own as a rule, and all of the pod share its network anyhow.
	first := 0
	if cg := s.cgroups.pod(p); cg != "" {
		for _, list := range s.cgroups.processes(cg) {
			for _, pid := range list {
				if first == 0 || pid < first {
					first = pid
				}
			}
		}
	}
	if first > 0 {
		out.links = links(s.cgroups.file("proc", strconv.Itoa(first), "net/dev"))
	}
	return out
}

// maxLogFiles bounds what is looked at of one container: the rotation keeps far fewer.
const maxLogFiles = 1000

// logs is what the log files of each of a pod's containers take.
func logs(dir string) map[string]space {
	containers, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := map[string]space{}
	for _, c := range containers {
		if !c.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, c.Name()))
		if err != nil {
			continue
		}
		var sum space
		for _, f := range files[:min(len(files), maxLogFiles)] {
			info, err := f.Info()
			if err != nil {
				continue
			}
			sum.inodes++
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum.bytes += uint64(st.Blocks) * 512
			}
		}
		out[c.Name()] = sum
	}
	return out
}

// statfs is the file system of a directory, nil when it cannot be looked at.
func statfs(dir string) *filesystem {
	var st unix.Statfs_t
	if dir == "" || unix.Statfs(dir, &st) != nil {
		return nil
	}
	size := uint64(st.Bsize)
	return &filesystem{capacity: st.Blocks * size, available: st.Bavail * size, used: (st.Blocks - min(st.Bfree, st.Blocks)) * size,
		inodes: st.Files, inodesFree: st.Ffree}
}

// own is what edgecore itself uses.
func own(at time.Time) figures {
	f := figures{at: at}
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) == nil {
		ns := uint64(r.Utime.Nano() + r.Stime.Nano())
		f.cpu = &ns
	}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if n := resident(b); n > 0 {
			f.workingSet, f.memory, f.rss = &n, &n, &n
		}
	}
	return f
}
