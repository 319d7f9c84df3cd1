package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Env is one environment variable, its value fully expanded.
type Env struct{ Name, Value string }

// Mount shows a file or directory of the node inside a container. Its fields are those of volume.Mount, so that one
// converts to the other.
type Mount struct {
	HostPath          string
	ContainerPath     string
	ReadOnly          bool
	RecursiveReadOnly bool
	SELinuxRelabel    bool
	Propagation       corev1.MountPropagationMode // "" is None
}

// ContainerSpec is what CreateContainer needs. The security context, the resources and the OOM score are worked out here
// from the pod and the container.
type ContainerSpec struct {
	Pod       *corev1.Pod
	Container *corev1.Container
	Attempt   uint32
	SandboxID string
	Sandbox   SandboxSpec // as it was run: CRI wants it again
	ImageRef  string      // what Image or Pull returned
	Command   []string    // expanded
	Args      []string    // expanded
	Envs      []Env
	Mounts    []Mount
	Hash      string // "" is Hash(Container)
	LogPath   string // relative to Sandbox.LogDir; "" is LogPath(name, Attempt)

	// EtcHosts names the pod's managed hosts file on the node (see WriteEtcHosts); it is mounted unless the container
	// mounts /etc/hosts itself. "" mounts none.
	EtcHosts string
	// TerminationLog names the file on the node that takes this attempt's termination message; CreateContainer creates it
	// and mounts it at the container's terminationMessagePath. "" mounts none.
	TerminationLog string
	// PIDTarget is the ID of the container whose PID namespace is joined where each container has its own; "" joins none.
	PIDTarget string
}

// ExecResult is what a command run inside a container left behind.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// CreateContainer creates a container in its sandbox without starting it. The error wraps ErrRunAsNonRoot when the image
// would run as root although the pod forbids it, and ErrInvalidSpec when the spec asks for what cannot be done on this
// node; both stay wrong until the pod or the image changes.
func (r *Runtime) CreateContainer(ctx context.Context, spec ContainerSpec) (string, error) {
	where := fmt.Sprintf("create container %s of pod %s", spec.Container.Name, podName(spec.Pod))
	cfg, err := r.containerConfig(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	sandbox, err := sandboxConfig(spec.Sandbox)
	if err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	if dir := spec.Sandbox.LogDir; dir != "" {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(cfg.LogPath)), 0o755); err != nil {
			return "", fmt.Errorf("%s: log directory: %w", where, err)
		}
	}
	resp, err := r.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: spec.SandboxID, Config: cfg, SandboxConfig: sandbox})
	if err != nil {
		return "", fmt.Errorf("%s: %w", where, wrap(err))
	}
	if dir := spec.Sandbox.LogDir; dir != "" {
		if err := linkLog(dir, cfg.LogPath, spec.Pod, spec.Container.Name, resp.ContainerId); err != nil {
			r.log.Warn("no link to the container's log for log collectors", "pod", podName(spec.Pod), "container", spec.Container.Name, "error", err)
		}
	}
	return resp.ContainerId, nil
}

// StartContainer starts a created container.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	_, err := r.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, wrap(err))
	}
	return nil
}

// StopContainer sends the stop signal, waits up to grace for the container to end and then kills it. It returns when the
// container has ended. Stopping one that has ended or is gone is no error.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int64((max(grace, 0) + time.Second - 1) / time.Second)
	// The kill that follows the grace needs time too on a loaded Pi; without a limit a lost shim would hold a worker for ever.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+2*time.Minute)
	defer cancel()
	_, err := r.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return unlessGone("stop container", id, err)
}

// RemoveContainer removes a container that does not run, and its log files with it, as the kubelet does. Removing one that
// is gone is no error.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	st, statusErr := r.freshStatus(ctx, id)
	_, err := r.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
	r.forget(id)
	if err := unlessGone("remove container", id, err); err != nil {
		return err
	}
	if statusErr != nil || st.LogPath == "" {
		return nil
	}
	if err := removeLogs(st.LogPath, id); err != nil {
		return fmt.Errorf("remove logs of container %s: %w", id, err)
	}
	return nil
}

// Exec runs a command inside a running container and waits for its end. A command that ends with a status other than 0
// is not an error. When timeout (rounded up to seconds; 0 is none) runs out the command is killed and the error wraps
// context.DeadlineExceeded. The output is bounded by the runtime to 16 MiB.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	seconds := int64((max(timeout, 0) + time.Second - 1) / time.Second)
	if seconds > 0 {
		// containerd waits for the command's output to be drained after it has killed it; some seconds of patience keep
		// its own answer from being cut off.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second+15*time.Second)
		defer cancel()
	}
	resp, err := r.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: seconds})
	if err != nil {
		return ExecResult{}, fmt.Errorf("run %q in container %s: %w", cmd, id, wrap(err))
	}
	return ExecResult{Stdout: resp.Stdout, Stderr: resp.Stderr, ExitCode: resp.ExitCode}, nil
}

func unlessGone(what, id string, err error) error {
	if err == nil {
		return nil
	}
	if err = wrap(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, id, err)
}

func (r *Runtime) containerConfig(ctx context.Context, spec ContainerSpec) (*cri.ContainerConfig, error) {
	pod, c := spec.Pod, spec.Container
	if spec.Hash == "" {
		spec.Hash = Hash(c)
	}
	if spec.LogPath == "" {
		spec.LogPath = LogPath(c.Name, spec.Attempt)
	}
	annotations, err := containerAnnotations(pod, c, spec.Attempt, spec.Hash)
	if err != nil {
		return nil, err
	}
	user, err := r.effectiveUser(ctx, pod, c, spec.ImageRef)
	if err != nil {
		return nil, err
	}
	sec, err := containerSecurity(pod, c, user)
	if err != nil {
		return nil, err
	}
	if spec.PIDTarget != "" && sec.NamespaceOptions.Pid == cri.NamespaceMode_CONTAINER {
		sec.NamespaceOptions.Pid, sec.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, spec.PIDTarget
	}
	mounts, err := containerMounts(spec)
	if err != nil {
		return nil, err
	}
	cfg := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: spec.Attempt},
		Image:       &cri.ImageSpec{Image: spec.ImageRef, UserSpecifiedImage: c.Image},
		Command:     spec.Command,
		Args:        spec.Args,
		WorkingDir:  c.WorkingDir,
		Mounts:      mounts,
		Labels:      containerLabels(pod, c),
		Annotations: annotations,
		LogPath:     spec.LogPath,
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux:       &cri.LinuxContainerConfig{Resources: r.containerResources(pod, c), SecurityContext: sec},
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		cfg.StopSignal = cri.Signal(cri.Signal_value[string(*c.Lifecycle.StopSignal)])
	}
	for _, e := range spec.Envs {
		cfg.Envs = append(cfg.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	return cfg, nil
}

func containerMounts(spec ContainerSpec) ([]*cri.Mount, error) {
	var out []*cri.Mount
	taken := map[string]bool{}
	for _, m := range spec.Mounts {
		cm := &cri.Mount{
			HostPath: m.HostPath, ContainerPath: m.ContainerPath, Readonly: m.ReadOnly,
			RecursiveReadOnly: m.RecursiveReadOnly, SelinuxRelabel: m.SELinuxRelabel,
		}
		switch m.Propagation {
		case corev1.MountPropagationBidirectional:
			cm.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		case corev1.MountPropagationHostToContainer:
			cm.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		taken[filepath.Clean(m.ContainerPath)] = true
		out = append(out, cm)
	}
	if spec.EtcHosts != "" && !taken["/etc/hosts"] {
		out = append(out, &cri.Mount{HostPath: spec.EtcHosts, ContainerPath: "/etc/hosts", SelinuxRelabel: true})
	}
	path := spec.Container.TerminationMessagePath
	if spec.TerminationLog != "" && path != "" && !taken[filepath.Clean(path)] {
		if err := createTerminationLog(spec.TerminationLog); err != nil {
			return nil, err
		}
		out = append(out, &cri.Mount{HostPath: spec.TerminationLog, ContainerPath: path, SelinuxRelabel: true})
	}
	return out, nil
}

// createTerminationLog makes the file anew and lets any user write to it: the container's user is not known here.
func createTerminationLog(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("termination message file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return fmt.Errorf("termination message file: %w", err)
	}
	if err := errors.Join(f.Chmod(0o666), f.Close()); err != nil {
		return fmt.Errorf("termination message file %s: %w", path, err)
	}
	return nil
}
