package stats

import (
	"math"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// summary is a measurement in the kubelet's form. Without w only processor and memory are told, as with
// only_cpu_and_memory=true.
func (s *Stats) summary(u *usage, w *wider) *statsapi.Summary {
	k := s.cgroups.kernel
	boot := metav1.NewTime(bootTime(k.file("proc/stat")))
	out := &statsapi.Summary{Pods: []statsapi.PodStats{}}
	out.Node = statsapi.NodeStats{NodeName: s.o.Node, StartTime: boot, CPU: cpuStats(&u.node), Memory: memoryStats(&u.node), Swap: swapStats(&u.node)}
	if u.hasAll {
		out.Node.SystemContainers = append(out.Node.SystemContainers, statsapi.ContainerStats{Name: statsapi.SystemContainerPods, StartTime: boot,
			CPU: cpuStats(&u.all), Memory: memoryStats(&u.all)})
	}
	out.Node.SystemContainers = append(out.Node.SystemContainers, statsapi.ContainerStats{Name: statsapi.SystemContainerKubelet, StartTime: metav1.NewTime(s.started),
		CPU: cpuStats(&u.edgecore), Memory: memoryStats(&u.edgecore)})
	if w != nil {
		s.nodeWider(&out.Node, w)
	}
	for i := range u.pods {
		out.Pods = append(out.Pods, podStats(&u.pods[i], w))
	}
	return out
}

// nodeWider adds networks, disks and processes.
func (s *Stats) nodeWider(n *statsapi.NodeStats, w *wider) {
	at := metav1.NewTime(w.at)
	n.Network = networkStats(w.at, w.links, w.defaultLink)
	n.Fs = fsStats(w.at, w.data)
	if w.images != nil {
		images, containers := fsStats(w.at, w.images), fsStats(w.at, w.images)
		if w.imagesUsed != nil {
			images.UsedBytes = w.imagesUsed
		}
		n.Runtime = &statsapi.RuntimeStats{ImageFs: images, ContainerFs: containers}
	}
	k := s.cgroups.kernel
	limit := &statsapi.RlimitStats{Time: at, NumOfRunningProcesses: threads(k.file("proc/loadavg"))}
	for _, file := range []string{"proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max"} {
		if v := k.number(file); v != nil && *v <= math.MaxInt64 {
			if n := int64(*v); limit.MaxPID == nil || n < *limit.MaxPID {
				limit.MaxPID = &n
			}
		}
	}
	n.Rlimit = limit
}

func podStats(p *podUsage, w *wider) statsapi.PodStats {
	out := statsapi.PodStats{
		PodRef: statsapi.PodReference{Name: p.name, Namespace: p.namespace, UID: p.uid}, StartTime: metav1.NewTime(p.start),
		Containers: make([]statsapi.ContainerStats, 0, len(p.containers)),
		CPU:        cpuStats(&p.figures), Memory: memoryStats(&p.figures), Swap: swapStats(&p.figures),
	}
	total := space{}
	for i := range p.containers {
		c := &p.containers[i]
		cs := statsapi.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(c.StartedAt), CPU: cpuStats(&c.figures), Memory: memoryStats(&c.figures), Swap: swapStats(&c.figures)}
		if w != nil {
			cs.Rootfs, cs.Logs = layerStats(c, w), logStats(w, w.pods[p.uid].logs[c.Name])
			for _, f := range []*statsapi.FsStats{cs.Rootfs, cs.Logs} {
				if f.UsedBytes != nil && f.InodesUsed != nil {
					total.bytes, total.inodes = total.bytes+*f.UsedBytes, total.inodes+*f.InodesUsed
				}
			}
		}
		out.Containers = append(out.Containers, cs)
	}
	if w != nil {
		out.EphemeralStorage = fsStats(w.at, w.data)
		out.EphemeralStorage.UsedBytes, out.EphemeralStorage.InodesUsed = &total.bytes, &total.inodes
		if of := w.pods[p.uid].links; len(of) > 0 {
			out.Network = networkStats(w.at, of, "eth0")
		}
	}
	return out
}

func cpuStats(f *figures) *statsapi.CPUStats {
	if f.cpu == nil {
		return nil
	}
	return &statsapi.CPUStats{Time: metav1.NewTime(f.at), UsageNanoCores: f.rate, UsageCoreNanoSeconds: f.cpu}
}

func memoryStats(f *figures) *statsapi.MemoryStats {
	if f.workingSet == nil {
		return nil
	}
	return &statsapi.MemoryStats{Time: metav1.NewTime(f.at), AvailableBytes: f.available, UsageBytes: f.memory, WorkingSetBytes: f.workingSet,
		RSSBytes: f.rss, PageFaults: f.pageFaults, MajorPageFaults: f.majorPageFaults}
}

func swapStats(f *figures) *statsapi.SwapStats {
	if f.swap == nil {
		return nil
	}
	return &statsapi.SwapStats{Time: metav1.NewTime(f.at), SwapUsageBytes: f.swap, SwapAvailableBytes: f.swapSpare}
}

// fsStats is never nil: a file system that cannot be looked at has no figures but the time.
func fsStats(at time.Time, f *filesystem) *statsapi.FsStats {
	out := &statsapi.FsStats{Time: metav1.NewTime(at)}
	if f != nil {
		used := f.inodes - min(f.inodesFree, f.inodes)
		capacity, available, bytes, inodes, free := f.capacity, f.available, f.used, f.inodes, f.inodesFree
		out.CapacityBytes, out.AvailableBytes, out.UsedBytes = &capacity, &available, &bytes
		out.Inodes, out.InodesFree, out.InodesUsed = &inodes, &free, &used
	}
	return out
}

func layerStats(c *containerUsage, w *wider) *statsapi.FsStats {
	out := fsStats(w.at, w.images)
	out.UsedBytes, out.InodesUsed = nil, nil
	if c.Layer != nil {
		out.UsedBytes, out.InodesUsed = c.Layer.Bytes, c.Layer.Inodes
		if !c.Layer.Time.IsZero() {
			out.Time = metav1.NewTime(c.Layer.Time)
		}
	}
	return out
}

func logStats(w *wider, s space) *statsapi.FsStats {
	out := fsStats(w.at, w.data)
	out.UsedBytes, out.InodesUsed = &s.bytes, &s.inodes
	return out
}

// networkStats shows the default interface on its own, as the kubelet does, and then all.
func networkStats(at time.Time, list []link, usual string) *statsapi.NetworkStats {
	if len(list) == 0 {
		return nil
	}
	out := &statsapi.NetworkStats{Time: metav1.NewTime(at)}
	for _, l := range list {
		received, receiveErrors, sent, sendErrors := l.received, l.receiveErrors, l.sent, l.sendErrors
		i := statsapi.InterfaceStats{Name: l.name, RxBytes: &received, RxErrors: &receiveErrors, TxBytes: &sent, TxErrors: &sendErrors}
		out.Interfaces = append(out.Interfaces, i)
		if l.name == usual {
			out.InterfaceStats = i
		}
	}
	return out
}
