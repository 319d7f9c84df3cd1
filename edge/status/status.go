// Package status works out what a pod's status says from what was observed of it, with the reasons and
// the semantics of the kubelet, so that kubectl, controllers and people read the same.
//
// It is called by edge/pod after each turn. It never asks the runtime, reads a clock or keeps state: the
// previous status comes in, the new one goes out.
package status

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// Container is one record of the runtime, in the words of the status.
type Container struct {
	ID        string // as the runtime has it
	SandboxID string
	Name      string
	Attempt   uint32
	State     plan.State
	ExitCode  int32
	Reason    string
	Message   string
	Started   time.Time
	Finished  time.Time
	Image     string
	ImageID   string
}

// Waiting is why a container does not run.
type Waiting struct {
	Reason, Message string
}

// Input is all that a status is made from.
type Input struct {
	Pod        *corev1.Pod
	Containers []Container
	SandboxID  string // the one that is ready; "" when there is none
	PodIPs     []string
	HostIPs    []string
	Memory     plan.Memory
	// Last remembers how containers ended of which the runtime may have forgotten.
	Last        map[string]corev1.ContainerStateTerminated
	Waiting     map[string]Waiting // by container name
	Ready       map[string]bool    // by container id: its readiness probe (if any) succeeds
	Started     map[string]bool    // by container id: its startup probe (if any) has succeeded
	Initialized bool
	Ending      bool     // the pod is to go
	Refused     *Waiting // the pod is not run at all
	StartTime   time.Time
	Previous    *corev1.PodStatus // may be nil
	Now         time.Time
}

// Of works the status out.
func Of(in Input) corev1.PodStatus {
	s := corev1.PodStatus{
		ObservedGeneration: in.Pod.Generation,
		QOSClass:           QOS(in.Pod),
	}
	if !in.StartTime.IsZero() {
		t := metav1.NewTime(in.StartTime.UTC().Truncate(time.Second))
		s.StartTime = &t
	}
	if len(in.HostIPs) > 0 {
		s.HostIP = in.HostIPs[0]
		for _, ip := range in.HostIPs {
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
		}
	}
	for i, ip := range in.PodIPs {
		if i == 0 {
			s.PodIP = ip
		}
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	if in.Refused != nil {
		in.Waiting = map[string]Waiting{}
		for i := range in.Pod.Spec.Containers {
			in.Waiting[in.Pod.Spec.Containers[i].Name] = *in.Refused
		}
	}
	for i := range in.Pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, container(in, &in.Pod.Spec.InitContainers[i], true))
	}
	for i := range in.Pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, container(in, &in.Pod.Spec.Containers[i], false))
	}
	for i := range in.Pod.Spec.EphemeralContainers {
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, ephemeral(in, &in.Pod.Spec.EphemeralContainers[i]))
	}
	s.Phase = phase(in, &s)
	if r := in.Refused; r != nil && s.Phase == corev1.PodPending {
		s.Reason, s.Message = r.Reason, r.Message
	}
	if o := in.Memory.Outcome; o != nil {
		s.Reason, s.Message = o.Reason, o.Message
	}
	s.Conditions = conditions(in, &s)
	return s
}

// records of one name, newest first.
func records(in Input, name string) []Container {
	var list []Container
	for _, c := range in.Containers {
		if c.Name == name {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b Container) int {
		if (a.State == plan.Running) != (b.State == plan.Running) {
			if a.State == plan.Running {
				return -1
			}
			return 1
		}
		return int(b.Attempt) - int(a.Attempt)
	})
	return list
}

func container(in Input, c *corev1.Container, init bool) corev1.ContainerStatus {
	no := false
	out := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: &no}
	list := records(in, c.Name)
	if len(list) > 0 && list[0].State == plan.Created {
		// Being started: the one before it is what there is to tell.
		list = list[1:]
	}
	if n := in.Memory.Attempts[c.Name]; n > 0 {
		out.RestartCount = int32(n) - 1
	}
	if last, ok := in.Last[c.Name]; ok {
		out.LastTerminationState.Terminated = &last
	}
	if len(list) == 0 {
		absent(in, c, init, &out)
		return out
	}
	cur := list[0]
	out.RestartCount = max(int32(cur.Attempt), 0)
	out.ContainerID = containerID(cur.ID)
	out.ImageID = cur.ImageID
	if cur.Image != "" && !strings.HasPrefix(cur.Image, "sha256:") {
		out.Image = cur.Image
	}
	for _, older := range list[1:] {
		if older.State == plan.Exited {
			out.LastTerminationState.Terminated = terminated(older)
			break
		}
	}
	switch {
	case cur.State == plan.Running:
		out.State.Running = &corev1.ContainerStateRunning{StartedAt: stamp(cur.Started)}
		started := in.Started[cur.ID]
		out.Started = &started
		out.Ready = started && in.Ready[cur.ID]
		if init && !plan.Sidecar(c) {
			out.Ready = false
		}
	case again(in, c, cur, init):
		out.State.Waiting = waiting(in, c, init)
		out.LastTerminationState.Terminated = terminated(cur)
	default:
		out.State.Terminated = terminated(cur)
		if t := out.LastTerminationState.Terminated; t != nil && t.ContainerID == containerID(cur.ID) {
			out.LastTerminationState.Terminated = nil
		}
		out.Ready = init && !plan.Sidecar(c) && cur.ExitCode == 0
	}
	return out
}

// again tells whether a container that exited is shown as waiting for its next start rather than as
// terminated.
func again(in Input, c *corev1.Container, cur Container, init bool) bool {
	if in.Memory.Outcome != nil || in.Ending {
		return false
	}
	if _, held := in.Waiting[c.Name]; held {
		return true
	}
	if cur.SandboxID == in.SandboxID {
		return false
	}
	if init && !plan.Sidecar(c) {
		return true // all of them run again in a new sandbox
	}
	return plan.Restarts(in.Pod, c, cur.ExitCode)
}

// absent fills in a container of which the runtime knows nothing.
func absent(in Input, c *corev1.Container, init bool, out *corev1.ContainerStatus) {
	ran := in.Memory.Attempts[c.Name] > 0
	over := in.Memory.Outcome != nil || in.Ending && in.SandboxID == "" && len(in.Containers) == 0
	if !over {
		out.State.Waiting = waiting(in, c, init)
		return
	}
	if last := out.LastTerminationState.Terminated; last != nil {
		out.State.Terminated, out.LastTerminationState.Terminated = last, nil
		return
	}
	if !ran && !in.Ending {
		out.State.Waiting = waiting(in, c, init)
		return
	}
	out.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: plan.LostCode, Reason: "ContainerStatusUnknown",
		Message: "The container could not be located when the pod was terminated"}
	if code, ok := in.Memory.Exits[c.Name]; ok {
		out.State.Terminated.ExitCode = code
		if code == 0 {
			out.State.Terminated.Reason, out.State.Terminated.Message = "Completed", ""
		}
	}
}

func waiting(in Input, c *corev1.Container, init bool) *corev1.ContainerStateWaiting {
	if w, ok := in.Waiting[c.Name]; ok {
		return &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
	}
	reason := "ContainerCreating"
	if len(in.Pod.Spec.InitContainers) > 0 && (init || !in.Initialized) {
		reason = "PodInitializing"
	}
	return &corev1.ContainerStateWaiting{Reason: reason}
}

func terminated(c Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		StartedAt: stamp(c.Started), FinishedAt: stamp(c.Finished), ContainerID: containerID(c.ID),
	}
	if t.Reason == "" {
		t.Reason = "Error"
		if c.ExitCode == 0 {
			t.Reason = "Completed"
		}
	}
	return t
}

// Terminated is how a container that exited reads in lastState.
func Terminated(c Container) corev1.ContainerStateTerminated { return *terminated(c) }

func containerID(id string) string { return "containerd://" + id }

func stamp(t time.Time) metav1.Time {
	if t.IsZero() || t.Unix() <= 0 {
		return metav1.Time{}
	}
	return metav1.NewTime(t.UTC().Truncate(time.Second))
}

func phase(in Input, s *corev1.PodStatus) corev1.PodPhase {
	running, waits, failed, ran := 0, 0, 0, 0
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			if c.State.Running != nil {
				running++
			}
		}
	}
	for _, c := range s.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			ran++
		case c.State.Terminated != nil:
			ran++
			if c.State.Terminated.ExitCode != 0 {
				failed++
			}
		case c.LastTerminationState.Terminated != nil:
			ran++
		default:
			waits++
		}
	}
	before := corev1.PodPhase("")
	if in.Previous != nil {
		before = in.Previous.Phase
	}
	if before == corev1.PodFailed || before == corev1.PodSucceeded {
		return before // there is no way back
	}
	if running == 0 {
		switch {
		case in.Memory.Outcome != nil:
			return in.Memory.Outcome.Phase
		case in.Ending && (failed > 0 || waits > 0 || ran == 0):
			return corev1.PodFailed
		case in.Ending:
			return corev1.PodSucceeded
		}
	}
	if before == corev1.PodRunning {
		return before
	}
	if waits == 0 && ran > 0 {
		return corev1.PodRunning // everything has run before, if only before a reboot
	}
	if in.Memory.Outcome != nil && ran > 0 {
		return corev1.PodRunning
	}
	if !in.Initialized || waits > 0 {
		return corev1.PodPending
	}
	return corev1.PodRunning
}
