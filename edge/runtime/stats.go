package runtime

import (
	"context"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Usage is what one running container uses. Numbers that the runtime does not tell are nil.
type Usage struct {
	ID, PodUID, Namespace, Pod, Name string
	Image                            string
	StartedAt                        time.Time // zero: not known

	CPUTime time.Time // when CPU was read
	CPU     *uint64   // nanoseconds of one core, since the container started

	MemoryTime                                   time.Time // when the next were read
	WorkingSet, Available, Memory, RSS           *uint64   // bytes
	PageFaults, MajorPageFaults, Swap, SwapSpare *uint64

	Layer *FilesystemUsage // what the container wrote to its own file system
}

// FilesystemUsage is what something takes of a file system.
type FilesystemUsage struct {
	Time          time.Time
	MountPoint    string // a directory in the file system
	Bytes, Inodes *uint64
}

// Usage asks what every running container uses. Containers that no pod owns are left out, and so are those of which the
// runtime tells nothing: they have not started, or have ended. Each answer costs containerd a question to every shim.
func (r *Runtime) Usage(ctx context.Context) ([]Usage, error) {
	resp, err := r.runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list what containers use: %w", wrap(err))
	}
	list := make([]Usage, 0, len(resp.Stats))
	for _, s := range resp.Stats {
		labels := s.GetAttributes().GetLabels()
		if labels[labelPodUID] == "" || labels[labelContainerName] == "" || s.GetCpu() == nil && s.GetMemory() == nil {
			continue
		}
		u := usage(s)
		if st := r.knownStatus(ctx, u.ID); st != nil {
			if st.State != cri.ContainerState_CONTAINER_RUNNING {
				continue
			}
			u.StartedAt, u.Image = when(st.StartedAt), st.GetImage().GetImage()
		}
		list = append(list, u)
	}
	return list, nil
}

// knownStatus is a container's status, which is known already of nearly all that run. Without it less is told.
func (r *Runtime) knownStatus(ctx context.Context, id string) *cri.ContainerStatus {
	r.mu.Lock()
	st := r.containers[id]
	r.mu.Unlock()
	if st == nil {
		st, _ = r.freshStatus(ctx, id)
	}
	return st
}

func usage(s *cri.ContainerStats) Usage {
	labels := s.GetAttributes().GetLabels()
	u := Usage{
		ID: s.GetAttributes().GetId(), PodUID: labels[labelPodUID], Namespace: labels[labelPodNamespace], Pod: labels[labelPodName],
		Name: labels[labelContainerName],
	}
	cpu, memory, swap := s.GetCpu(), s.GetMemory(), s.GetSwap()
	// The usage of this moment (usageNanoCores) is left out: containerd measures it against whoever asked last, and 1.6
	// gives figures far from the truth.
	u.CPUTime, u.CPU = when(cpu.GetTimestamp()), number(cpu.GetUsageCoreNanoSeconds())
	u.MemoryTime = when(memory.GetTimestamp())
	u.WorkingSet, u.Available = number(memory.GetWorkingSetBytes()), number(memory.GetAvailableBytes())
	u.Memory, u.RSS = number(memory.GetUsageBytes()), number(memory.GetRssBytes())
	u.PageFaults, u.MajorPageFaults = number(memory.GetPageFaults()), number(memory.GetMajorPageFaults())
	u.Swap, u.SwapSpare = number(swap.GetSwapUsageBytes()), number(swap.GetSwapAvailableBytes())
	if s.GetWritableLayer() != nil {
		layer := filesystemUsage(s.GetWritableLayer())
		u.Layer = &layer
	}
	return u
}

func filesystemUsage(f *cri.FilesystemUsage) FilesystemUsage {
	return FilesystemUsage{Time: when(f.GetTimestamp()), MountPoint: f.GetFsId().GetMountpoint(), Bytes: number(f.GetUsedBytes()), Inodes: number(f.GetInodesUsed())}
}

func number(v *cri.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

// ImageUsage asks what images take on the disk, and where they are.
func (r *Runtime) ImageUsage(ctx context.Context) (FilesystemUsage, error) {
	resp, err := r.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return FilesystemUsage{}, fmt.Errorf("file system of images: %w", wrap(err))
	}
	if len(resp.ImageFilesystems) == 0 {
		return FilesystemUsage{}, fmt.Errorf("file system of images: the runtime names none")
	}
	return filesystemUsage(resp.ImageFilesystems[0]), nil
}
