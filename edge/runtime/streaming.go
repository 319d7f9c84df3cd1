package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Streams say which streams of a process are wanted. With TTY there is no Stderr of its
// own.
type Streams struct{ Stdin, Stdout, Stderr, TTY bool }

// RunningContainer is the id of the container of that name that runs in the pod; the
// error wraps ErrNotFound when none does.
func (r *Runtime) RunningContainer(ctx context.Context, podUID, name string) (string, error) {
	list, err := r.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{labelPodUID: podUID, labelContainerName: name},
	}})
	if err != nil {
		return "", fmt.Errorf("find container %s of pod %s: %w", name, podUID, wrap(err))
	}
	var newest *cri.Container
	for _, c := range list.Containers {
		if newest == nil || c.GetMetadata().GetAttempt() > newest.GetMetadata().GetAttempt() {
			newest = c
		}
	}
	if newest == nil {
		return "", fmt.Errorf("find container %s of pod %s: %w", name, podUID, ErrNotFound)
	}
	return newest.Id, nil
}

// ReadySandbox is the id of the pod's sandbox that is up; the error wraps ErrNotFound
// when none is.
func (r *Runtime) ReadySandbox(ctx context.Context, podUID string) (string, error) {
	list, err := r.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State:         &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{labelPodUID: podUID},
	}})
	if err != nil {
		return "", fmt.Errorf("find sandbox of pod %s: %w", podUID, wrap(err))
	}
	var newest *cri.PodSandbox
	for _, s := range list.Items {
		if newest == nil || s.GetMetadata().GetAttempt() > newest.GetMetadata().GetAttempt() {
			newest = s
		}
	}
	if newest == nil {
		return "", fmt.Errorf("find sandbox of pod %s: %w", podUID, ErrNotFound)
	}
	return newest.Id, nil
}

// Log is where a container's log lies, and whether the container runs.
func (r *Runtime) Log(ctx context.Context, id string) (path string, running bool, err error) {
	st, err := r.freshStatus(ctx, id)
	if err != nil {
		return "", false, fmt.Errorf("container %s: %w", id, err)
	}
	return st.LogPath, st.State == cri.ContainerState_CONTAINER_RUNNING, nil
}

// ExecURL makes the runtime's streaming server ready to run a command in a container.
// The URL is good for one request within a minute, by whoever knows it.
func (r *Runtime) ExecURL(ctx context.Context, id string, cmd []string, s Streams) (*url.URL, error) {
	resp, err := r.runtime.Exec(ctx, &cri.ExecRequest{
		ContainerId: id, Cmd: cmd, Tty: s.TTY, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr && !s.TTY,
	})
	return streamingURL("exec in container "+id, resp.GetUrl(), err)
}

// AttachURL does it for the streams of the container's own process; TTY must be as the
// container was made.
func (r *Runtime) AttachURL(ctx context.Context, id string, s Streams) (*url.URL, error) {
	resp, err := r.runtime.Attach(ctx, &cri.AttachRequest{
		ContainerId: id, Tty: s.TTY, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr && !s.TTY,
	})
	return streamingURL("attach to container "+id, resp.GetUrl(), err)
}

// PortForwardURL does it for connections to ports of a sandbox. Clients that speak
// websocket name the ports beforehand, others with each connection.
func (r *Runtime) PortForwardURL(ctx context.Context, sandbox string, ports []int32) (*url.URL, error) {
	resp, err := r.runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: sandbox, Port: ports})
	return streamingURL("forward ports of sandbox "+sandbox, resp.GetUrl(), err)
}

func streamingURL(what, address string, err error) (*url.URL, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, wrap(err))
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: the runtime's URL: %w", what, err)
	case u.Scheme == "https":
		return nil, fmt.Errorf("%s: containerd serves streams over TLS: set enable_tls_streaming = false in /etc/containerd/config.toml "+
			"(the streams stay on this machine)", what)
	case u.Scheme != "http" || u.Host == "":
		return nil, fmt.Errorf("%s: the runtime's URL %q is of no use", what, address)
	}
	return u, nil
}

// Network is the path of the network namespace of a sandbox, for setns; empty: the node's
// own. The error wraps ErrNotFound where the runtime does not tell.
func (r *Runtime) Network(ctx context.Context, sandbox string) (string, error) {
	resp, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	if err != nil {
		return "", fmt.Errorf("network of sandbox %s: %w", sandbox, wrap(err))
	}
	if resp.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return "", nil
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct{ Namespaces []struct{ Type, Path string } }
		}
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err == nil {
		for _, n := range info.RuntimeSpec.Linux.Namespaces {
			if n.Type == "network" && n.Path != "" {
				return n.Path, nil
			}
		}
	}
	return "", fmt.Errorf("network of sandbox %s: the runtime does not tell its path: %w", sandbox, ErrNotFound)
}
