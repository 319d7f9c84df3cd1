package pod

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// debug adds an ephemeral container, as kubectl debug does.
func (n *node) debug(p *corev1.Pod, name, from, script, target string) {
	n.t.Helper()
	p.Generation++
	c := shell(name, script)
	c.Image = from
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon(c), TargetContainerName: target,
	})
	n.apply(p)
}

func ephemeralStatus(s *corev1.PodStatus, name string) corev1.ContainerState {
	for _, c := range s.EphemeralContainerStatuses {
		if c.Name == name {
			return c.State
		}
	}
	return corev1.ContainerState{}
}

func TestDebugContainerLooksIntoItsTarget(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("web", "echo here >/shared/file; "+forever)
	p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	mount := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	p.Spec.Containers[0].VolumeMounts = mount
	n.apply(p)
	before := n.awaitStatus(p, "ready", ready)

	yes := true
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon(shell("shell", "cat /shared/file; cat /proc/1/cmdline | tr '\\0' ' '; echo who=$WHO; tty; read line; echo got=$line; exit 3")),
		TargetContainerName:      "main",
	}}
	c := &p.Spec.EphemeralContainers[0]
	c.VolumeMounts, c.Stdin, c.TTY = mount, true, true
	c.Env = []corev1.EnvVar{{Name: "WHO", Value: "debugger"}}
	c.SecurityContext = &corev1.SecurityContext{Privileged: &yes} // kubectl debug --profile=sysadmin
	p.Generation++
	n.apply(p)
	s := n.awaitStatus(p, "the debug container runs", func(s *corev1.PodStatus) bool { return ephemeralStatus(s, "shell").Running != nil })
	for _, want := range []string{"here", "/bin/sh -c echo here", "who=debugger", "/dev/"} {
		n.awaitLog(p, "shell", want)
	}
	// A line that somebody types ends it, which is nobody's concern.
	id := strings.TrimPrefix(s.EphemeralContainerStatuses[0].ContainerID, "containerd://")
	must(t, n.runtime.StopContainer(t.Context(), id, 0))
	s = n.awaitStatus(p, "the debug container has ended", func(s *corev1.PodStatus) bool { return ephemeralStatus(s, "shell").Terminated != nil })
	if !ready(s) || s.ContainerStatuses[0].ContainerID != before.ContainerStatuses[0].ContainerID {
		t.Errorf("status once the debug container has ended: %v, want the pod ready and its container the same", s)
	}
	n.reboot()
	s = n.awaitStatus(p, "back", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	n.await("at rest", func() error { return n.settled(p) })
	if ended := ephemeralStatus(n.status(p.UID), "shell").Terminated; ended == nil || ended.ContainerID != s.EphemeralContainerStatuses[0].ContainerID {
		t.Errorf("after a reboot: %v, want the container that ended and no other", n.status(p.UID).EphemeralContainerStatuses)
	}
	seen, err := n.runtime.Inspect(t.Context(), string(p.UID))
	must(t, err)
	for _, c := range seen.Containers {
		if c.Name == "shell" && c.Attempt != 0 {
			t.Errorf("the debug container was started again: %+v", c)
		}
	}
}

// TestStandardInputReachesTheRuntime: what attach needs is in the container that the runtime made.
func TestStandardInputReachesTheRuntime(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("run", "tty; exec cat")
	p.Spec.Containers[0].Stdin, p.Spec.Containers[0].StdinOnce, p.Spec.Containers[0].TTY = true, true, true
	n.apply(p)
	n.awaitStatus(p, "ready, so cat still waits for its input", ready)
	n.awaitLog(p, "main", "/dev/")
	plain := busyboxPod("plain", "exec cat")
	plain.Spec.RestartPolicy = corev1.RestartPolicyNever
	n.apply(plain)
	n.awaitStatus(plain, "without stdin its input ends at once", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
}

func TestJobDoesNotWaitForItsDebugger(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("job", "while ! test -e /shared/go; do sleep 0.1; done")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	n.apply(p)
	s := n.awaitStatus(p, "ready", ready)
	n.debug(p, "shell", image.BusyboxName, forever, "")
	n.awaitStatus(p, "debugged", func(s *corev1.PodStatus) bool { return ephemeralStatus(s, "shell").Running != nil })
	n.exec(strings.TrimPrefix(s.ContainerStatuses[0].ContainerID, "containerd://"), "touch /shared/go")
	s = n.awaitStatus(p, "done", func(s *corev1.PodStatus) bool {
		return s.Phase == corev1.PodSucceeded && ephemeralStatus(s, "shell").Terminated != nil
	})
	if s.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("status: %v", s)
	}
}

// TestDebugImageHoldsUpNobody: while the image of a debug container comes, the pod's own container crashes and is
// started again; both starts are remembered.
func TestDebugImageHoldsUpNobody(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	comes := make(chan struct{})
	n.fake.Fail("Pull", func(ctx context.Context, _ string) error {
		select {
		case <-comes:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	n.debug(p, "shell", "example.test/tools:1", "", "main")
	n.await("the image is being pulled", func() error {
		if n.fake.Calls()["Pull"] == 0 {
			return errStill
		}
		return nil
	})
	n.fake.Exit(string(p.UID), "main", 1)
	n.awaitStatus(p, "restarted", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	close(comes)
	n.awaitStatus(p, "the debug container runs", func(s *corev1.PodStatus) bool { return ephemeralStatus(s, "shell").Running != nil })
	b, err := n.store.PodState(t.Context(), string(p.UID))
	must(t, err)
	r, err := readRecord(string(p.UID), b, n.clock)
	must(t, err)
	if got := r.Memory.Attempts; got["main"] != 2 || got["shell"] != 1 {
		t.Errorf("remembered starts: %v, want main twice and shell once", got)
	}
}

func TestDebugContainerWithoutItsTargetSaysSo(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	n.debug(p, "shell", image.BusyboxName, "", "nobody")
	n.awaitStatus(p, "it waits", func(s *corev1.PodStatus) bool {
		w := ephemeralStatus(s, "shell").Waiting
		return ready(s) && w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, "nobody")
	})
	now := metav1.Now()
	p.DeletionTimestamp = &now
	n.apply(p)
	n.await("gone", func() error {
		if !n.gone(p.UID) {
			return errStill
		}
		return nil
	})
}

// TestDebugContainerIsPointedAtTheRunningTarget: of several containers of that name the one that runs is joined.
func TestDebugContainerIsPointedAtTheRunningTarget(t *testing.T) {
	p := busyboxPod("web", "")
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "shell"}, TargetContainerName: "main"}}
	w := &worker{pod: p, seen: runtime.Pod{Containers: []runtime.Container{
		{ID: "c", Name: "main", State: runtime.Created}, {ID: "b", Name: "main", State: runtime.Running}, {ID: "a", Name: "main", State: runtime.Exited}, {ID: "o", Name: "other", State: runtime.Running}}}}
	if id, err := w.target("shell"); id != "b" || err != nil {
		t.Errorf("target %q, %v; want b", id, err)
	}
	w.seen.Containers = w.seen.Containers[2:]
	if id, err := w.target("shell"); id != "a" || err != nil {
		t.Errorf("target %q, %v; want a: the runtime says why it cannot be joined", id, err)
	}
	if id, err := w.target("main"); id != "" || err != nil {
		t.Errorf("a container proper has target %q, %v", id, err)
	}
}
