package world

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (w *World) nodeReady(ctx context.Context, name string) (bool, error) {
	node, err := w.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return NodeReady(node) == corev1.ConditionTrue, nil
}

// NodeReady is the status of the node's Ready condition; empty if it has none.
func NodeReady(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

// PodReady says whether the pod runs and is Ready.
func PodReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return pod.Status.Phase == corev1.PodRunning && c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Eventually polls until done returns true, and says what it waited for when the
// limit ends first. done's last error is part of the answer, not its end: an
// apiserver may be away for a moment.
func Eventually(ctx context.Context, limit time.Duration, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if last != nil {
				return fmt.Errorf("%s: not within %s: %w", what, limit, last)
			}
			return fmt.Errorf("%s: not within %s", what, limit)
		case <-tick.C:
		}
	}
}

// Running is one running container of a pod, as containerd sees it.
type Running struct {
	Namespace, Pod, PodUID, Name, ID string
	Attempt                          uint32
}

// Running lists the running containers of the node, by pod and name.
func (n *Node) Running(ctx context.Context) ([]Running, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := n.Containerd.CRI().ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil {
		return nil, fmt.Errorf("list the containers of node %s: %w", n.Name, err)
	}
	var all []Running
	for _, c := range list.Containers {
		all = append(all, Running{
			Namespace: c.Labels["io.kubernetes.pod.namespace"], Pod: c.Labels["io.kubernetes.pod.name"], PodUID: c.Labels["io.kubernetes.pod.uid"],
			Name: c.Metadata.Name, ID: c.Id, Attempt: c.Metadata.Attempt,
		})
	}
	slices.SortFunc(all, func(a, b Running) int {
		return strings.Compare(a.Namespace+"/"+a.Pod+"/"+a.Name, b.Namespace+"/"+b.Pod+"/"+b.Name)
	})
	return all, nil
}

// PodLog is the last line that a container of a pod has logged, over all attempts.
func (n *Node) PodLog(namespace, pod, container string) (string, error) {
	files, err := filepath.Glob(filepath.Join(n.PodLogs(), namespace+"_"+pod+"_*", container, "*.log"))
	if err != nil {
		return "", err
	}
	slices.SortFunc(files, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	if len(files) == 0 {
		return "", fmt.Errorf("container %s of pod %s/%s has no log on node %s", container, namespace, pod, n.Name)
	}
	b, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		return "", err
	}
	// A line of a CRI log: time, stream, tag, text.
	fields := strings.SplitN(tail(string(b), 1), " ", 4)
	return fields[len(fields)-1], nil
}

// Sandboxes counts the pod sandboxes that containerd holds, running or not.
func (n *Node) Sandboxes(ctx context.Context) (int, error) {
	list, err := n.Containerd.CRI().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return 0, fmt.Errorf("list the sandboxes of node %s: %w", n.Name, err)
	}
	return len(list.Items), nil
}

// ContainerPid is the process number of a container's first process in this world.
func (n *Node) ContainerPid(ctx context.Context, id string) (int, error) {
	answer, err := n.Containerd.CRI().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("status of container %s on node %s: %w", id, n.Name, err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil {
		return 0, fmt.Errorf("status of container %s on node %s: %w", id, n.Name, err)
	}
	if info.Pid <= 0 {
		return 0, fmt.Errorf("container %s on node %s has no process", id, n.Name)
	}
	return info.Pid, nil
}

// Exec runs a command in a container and returns what it printed and its exit code.
func (n *Node) Exec(ctx context.Context, id string, command ...string) (string, int32, error) {
	answer, err := n.Containerd.CRI().ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 30})
	if err != nil {
		return "", 0, fmt.Errorf("exec in container %s on node %s: %w", id, n.Name, err)
	}
	return string(answer.Stdout) + string(answer.Stderr), answer.ExitCode, nil
}

// Resident is how much memory a process has, in KiB; 0 when it has ended.
func Resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.Atoi(strings.Fields(rest)[0])
			return kib
		}
	}
	return 0
}
