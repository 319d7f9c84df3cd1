package status

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// ephemeral is the status of an ephemeral container. It is never ready and counts for nothing: neither the pod's phase
// nor its conditions depend on it. As it is started once, it has neither restarts nor a last state.
func ephemeral(in Input, c *corev1.EphemeralContainer) corev1.ContainerStatus {
	out := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	list := records(in, c.Name)
	if len(list) == 0 || list[0].State == plan.Created {
		lacking(in, c.Name, &out)
		return out
	}
	cur := list[0]
	out.ContainerID, out.ImageID = containerID(cur.ID), cur.ImageID
	if cur.Image != "" && !strings.HasPrefix(cur.Image, "sha256:") {
		out.Image = cur.Image
	}
	switch cur.State {
	case plan.Running:
		out.State.Running = &corev1.ContainerStateRunning{StartedAt: stamp(cur.Started)}
	case plan.Exited:
		out.State.Terminated = terminated(cur)
	default:
		out.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerStatusUnknown"}
	}
	return out
}

// lacking fills in an ephemeral container of which the runtime has none that ran.
func lacking(in Input, name string, out *corev1.ContainerStatus) {
	if in.Memory.Attempts[name] == 0 {
		out.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
		if w, ok := in.Waiting[name]; ok {
			out.State.Waiting.Reason, out.State.Waiting.Message = w.Reason, w.Message
		}
		return
	}
	if last, ok := in.Last[name]; ok {
		out.State.Terminated = &last
		out.ContainerID = last.ContainerID
		return
	}
	out.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: plan.LostCode, Reason: "ContainerStatusUnknown",
		Message: "The container could not be located; an ephemeral container is not started again"}
}
