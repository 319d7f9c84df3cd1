package status

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// conditions in the kubelet's order. The time of the last transition moves only with the status.
func conditions(in Input, s *corev1.PodStatus) []corev1.PodCondition {
	terminal := s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
	ready := containersReady(in, s, terminal)
	list := []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: truth(in.SandboxID != "" && (in.Pod.Spec.HostNetwork || len(in.PodIPs) > 0))},
		initialized(in, s, terminal),
		ready,
		ready,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	list[2].Type = corev1.PodReady
	for i := range list {
		c := &list[i]
		c.ObservedGeneration = in.Pod.Generation
		c.LastTransitionTime = metav1.NewTime(in.Now.UTC().Truncate(time.Second))
		if in.Previous == nil {
			continue
		}
		for _, old := range in.Previous.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return list
}

func truth(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

func initialized(in Input, s *corev1.PodStatus, terminal bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	if in.Initialized && !terminal {
		return c
	}
	var missing []string
	for i, st := range s.InitContainerStatuses {
		done := st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
		if plan.Sidecar(&in.Pod.Spec.InitContainers[i]) {
			done = st.Started != nil && *st.Started || terminal
		}
		if !done {
			missing = append(missing, st.Name)
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(missing, " "))
	}
	return c
}

func containersReady(in Input, s *corev1.PodStatus, terminal bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}
	switch {
	case s.Phase == corev1.PodSucceeded:
		c.Status, c.Reason = corev1.ConditionFalse, "PodCompleted"
		return c
	case terminal:
		c.Status, c.Reason = corev1.ConditionFalse, "PodFailed"
		return c
	}
	var unready []string
	for i, st := range s.InitContainerStatuses {
		if plan.Sidecar(&in.Pod.Spec.InitContainers[i]) && !st.Ready {
			unready = append(unready, st.Name)
		}
	}
	for _, st := range s.ContainerStatuses {
		if !st.Ready {
			unready = append(unready, st.Name)
		}
	}
	if len(unready) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotReady"
		c.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	return c
}

// QOS is the pod's quality of service class: Guaranteed when every container's limits equal its
// requests for cpu and memory, BestEffort when nothing is asked for, Burstable otherwise.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	guaranteed, any := true, false
	look := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if !request.IsZero() || !limit.IsZero() {
				any = true
			}
			if limit.IsZero() || !request.IsZero() && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if r := pod.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		look(*r)
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				look(list[i].Resources)
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// Equal tells whether two statuses say the same to a reader.
func Equal(a, b *corev1.PodStatus) bool {
	x, errX := a.Marshal()
	y, errY := b.Marshal()
	return errX == nil && errY == nil && string(x) == string(y)
}
