package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is all that the runtime holds of one pod.
type Pod struct {
	UID, Namespace, Name string
	Sandboxes            []Sandbox   // newest first
	Containers           []Container // newest first
}

// Sandbox is one attempt at a pod's sandbox.
type Sandbox struct {
	ID          string
	Attempt     uint32
	Ready       bool
	CreatedAt   time.Time
	IPs         []string // empty with host networking, and for a sandbox that is not ready
	HostNetwork bool
}

// Container is one attempt at a container.
type Container struct {
	ID, SandboxID, Name              string
	Attempt                          uint32
	Hash                             string
	State                            State
	ExitCode                         int32
	Reason                           string // OOMKilled, Error, Completed, ...
	Message                          string // the termination message of an exited container, or the runtime's own words
	CreatedAt, StartedAt, FinishedAt time.Time
	Image, ImageID                   string // ImageID is the digest form that pod status shows, where the runtime tells it
	LogPath                          string
	Annotations                      map[string]string
}

// List observes every pod that the runtime holds, by UID. Sandboxes and containers which no pod owns (a bare `crictl
// run`) are left out. A container or sandbox that vanishes meanwhile is left out too.
func (r *Runtime) List(ctx context.Context) (map[string]*Pod, error) {
	pods, err := r.observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list pods of the container runtime: %w", err)
	}
	r.forgetGone(pods)
	return pods, nil
}

// Inspect observes one pod. It returns nil, nil when the runtime holds nothing of it.
func (r *Runtime) Inspect(ctx context.Context, uid string) (*Pod, error) {
	pods, err := r.observe(ctx, map[string]string{labelPodUID: uid})
	if err != nil {
		return nil, fmt.Errorf("inspect pod %s: %w", uid, err)
	}
	return pods[uid], nil
}

func (r *Runtime) observe(ctx context.Context, selector map[string]string) (map[string]*Pod, error) {
	sandboxes, err := r.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return nil, wrap(err)
	}
	containers, err := r.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return nil, wrap(err)
	}
	pods := map[string]*Pod{}
	pod := func(labels map[string]string) *Pod {
		uid := labels[labelPodUID]
		if uid == "" {
			return nil
		}
		p := pods[uid]
		if p == nil {
			p = &Pod{UID: uid, Namespace: labels[labelPodNamespace], Name: labels[labelPodName]}
			pods[uid] = p
		}
		return p
	}
	for _, s := range sandboxes.Items {
		p := pod(s.Labels)
		if p == nil {
			continue
		}
		sb, err := r.sandbox(ctx, s)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("sandbox %s of pod %s/%s: %w", s.Id, p.Namespace, p.Name, err)
		}
		p.Sandboxes = append(p.Sandboxes, sb)
	}
	for _, c := range containers.Containers {
		p := pod(c.Labels)
		if p == nil || c.Labels[labelContainerName] == "" {
			continue
		}
		ct, err := r.container(ctx, c)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("container %s of pod %s/%s: %w", c.Labels[labelContainerName], p.Namespace, p.Name, err)
		}
		p.Containers = append(p.Containers, ct)
	}
	for uid, p := range pods {
		if len(p.Sandboxes) == 0 && len(p.Containers) == 0 {
			delete(pods, uid)
			continue
		}
		sortPod(p)
	}
	return pods, nil
}

// sortPod puts the newest first. Attempts count before times: a node's clock may have been set back in between.
func sortPod(p *Pod) {
	sort.Slice(p.Sandboxes, func(i, j int) bool {
		a, b := &p.Sandboxes[i], &p.Sandboxes[j]
		if a.Attempt != b.Attempt {
			return a.Attempt > b.Attempt
		}
		return a.CreatedAt.After(b.CreatedAt)
	})
	sort.Slice(p.Containers, func(i, j int) bool {
		a, b := &p.Containers[i], &p.Containers[j]
		if a.Attempt != b.Attempt {
			return a.Attempt > b.Attempt
		}
		if !a.CreatedAt.Equal(b.CreatedAt) {
			return a.CreatedAt.After(b.CreatedAt)
		}
		return a.ID > b.ID
	})
}

func (r *Runtime) sandbox(ctx context.Context, s *cri.PodSandbox) (Sandbox, error) {
	out := Sandbox{
		ID:        s.Id,
		Attempt:   s.GetMetadata().GetAttempt(),
		Ready:     s.State == cri.PodSandboxState_SANDBOX_READY,
		CreatedAt: when(s.CreatedAt),
	}
	st, err := r.sandboxStatus(ctx, s)
	if err != nil {
		return out, err
	}
	out.HostNetwork = st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
	out.Ready = st.State == cri.PodSandboxState_SANDBOX_READY
	if out.Ready && !out.HostNetwork {
		out.IPs = ips(st.GetNetwork())
	}
	return out, nil
}

func ips(n *cri.PodSandboxNetworkStatus) []string {
	var out []string
	if n.GetIp() != "" && net.ParseIP(n.GetIp()) != nil {
		out = append(out, n.GetIp())
	}
	for _, a := range n.GetAdditionalIps() {
		if net.ParseIP(a.GetIp()) != nil {
			out = append(out, a.GetIp())
		}
	}
	return out
}

// sandboxStatus asks for the status of a sandbox once for as long as its state stays what it is: addresses do not
// change while a sandbox lives.
func (r *Runtime) sandboxStatus(ctx context.Context, s *cri.PodSandbox) (*cri.PodSandboxStatus, error) {
	r.mu.Lock()
	st := r.sandboxes[s.Id]
	r.mu.Unlock()
	if st != nil && st.State == s.State {
		return st, nil
	}
	resp, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.Id})
	if err != nil {
		return nil, wrap(err)
	}
	// Labels and annotations are in the list already; there is no need to keep them twice.
	st = resp.GetStatus()
	st.Labels, st.Annotations = nil, nil
	r.mu.Lock()
	r.sandboxes[s.Id] = st
	r.mu.Unlock()
	return st, nil
}

func (r *Runtime) container(ctx context.Context, c *cri.Container) (Container, error) {
	st, err := r.containerStatus(ctx, c)
	if err != nil {
		return Container{}, err
	}
	return describe(c.GetPodSandboxId(), c.GetLabels(), c.GetAnnotations(), st), nil
}

func describe(sandbox string, labels, annotations map[string]string, st *cri.ContainerStatus) Container {
	out := Container{
		ID:          st.Id,
		SandboxID:   sandbox,
		Name:        labels[labelContainerName],
		Attempt:     st.GetMetadata().GetAttempt(),
		Hash:        annotations[AnnotationHash],
		State:       state(st.State),
		ExitCode:    st.ExitCode,
		Reason:      st.Reason,
		Message:     st.Message,
		CreatedAt:   when(st.CreatedAt),
		StartedAt:   when(st.StartedAt),
		FinishedAt:  when(st.FinishedAt),
		Image:       st.GetImage().GetImage(),
		ImageID:     st.ImageRef,
		LogPath:     st.LogPath,
		Annotations: annotations,
	}
	// A kubelet counts restarts in the annotation; CRI's attempt is the same number.
	if n, err := strconv.ParseUint(annotations[AnnotationRestartCount], 10, 32); err == nil {
		out.Attempt = uint32(n)
	}
	if out.ImageID == "" {
		out.ImageID = st.ImageId
	}
	return out
}

// containerStatus asks for a container's status, except when it is known and cannot have changed: a running container
// goes on having the start time it had, an exited one never changes again.
func (r *Runtime) containerStatus(ctx context.Context, c *cri.Container) (*cri.ContainerStatus, error) {
	r.mu.Lock()
	st := r.containers[c.Id]
	r.mu.Unlock()
	if st != nil && st.State == c.State {
		return st, nil
	}
	st, err := r.freshStatus(ctx, c.Id)
	if err != nil {
		return nil, err
	}
	if st.State == cri.ContainerState_CONTAINER_EXITED {
		if m, ok := terminationMessage(st); ok {
			st.Message = m
		}
	}
	st.Labels, st.Annotations, st.Mounts = nil, nil, nil
	if st.State == cri.ContainerState_CONTAINER_RUNNING || st.State == cri.ContainerState_CONTAINER_EXITED {
		r.mu.Lock()
		r.containers[c.Id] = st
		r.mu.Unlock()
	}
	return st, nil
}

func (r *Runtime) freshStatus(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	resp, err := r.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return nil, wrap(err)
	}
	if resp.GetStatus() == nil {
		return nil, fmt.Errorf("container %s: the runtime answered without a status", id)
	}
	return resp.Status, nil
}

// forgetGone drops what is remembered of sandboxes and containers that a complete list no longer has.
func (r *Runtime) forgetGone(pods map[string]*Pod) {
	keep := map[string]bool{}
	for _, p := range pods {
		for i := range p.Sandboxes {
			keep[p.Sandboxes[i].ID] = true
		}
		for i := range p.Containers {
			keep[p.Containers[i].ID] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.containers {
		if !keep[id] {
			delete(r.containers, id)
		}
	}
	for id := range r.sandboxes {
		if !keep[id] {
			delete(r.sandboxes, id)
		}
	}
}

func (r *Runtime) forget(id string) {
	r.mu.Lock()
	delete(r.containers, id)
	delete(r.sandboxes, id)
	r.mu.Unlock()
}

func state(s cri.ContainerState) State {
	switch s {
	case cri.ContainerState_CONTAINER_CREATED:
		return Created
	case cri.ContainerState_CONTAINER_RUNNING:
		return Running
	case cri.ContainerState_CONTAINER_EXITED:
		return Exited
	default:
		return Unknown
	}
}

func when(nanoseconds int64) time.Time {
	if nanoseconds <= 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}
