package pod

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// TestASummarySaysWhatTheStatusSays: and why a pod is as it is.
func TestASummarySaysWhatTheStatusSays(t *testing.T) {
	at := func(s int64) metav1.Time { return metav1.NewTime(time.Unix(s, 0)) }
	w := &worker{uid: "u", pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "till", CreationTimestamp: at(10), Annotations: map[string]string{"kubectl.kubernetes.io/default-container": "main"}}}}
	if _, ok := w.summary(); ok {
		t.Error("a pod of which nothing is known yet has a summary")
	}
	started := at(20)
	s := &corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.7", StartTime: &started,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}},
		InitContainerStatuses: []corev1.ContainerStatus{{Name: "setup", RestartCount: 1,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: at(21), FinishedAt: at(22)}}}},
		ContainerStatuses: []corev1.ContainerStatus{
			{Name: "main", Ready: true, RestartCount: 2, ContainerID: "containerd://abc", Image: "till:1", ImageID: "till@sha256:1",
				State:                corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(30)}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137, FinishedAt: at(29)}}},
			{Name: "side", RestartCount: 3, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 20s"}}},
		},
	}
	w.publishSummary(s)
	got, ok := w.summary()
	want := Summary{
		Namespace: "shop", Name: "till", UID: "u", Phase: "Running", Restarts: 5, Reason: "CrashLoopBackOff", Message: "back-off 20s",
		Created: at(10).Time, Started: at(20).Time, IP: "10.0.0.7", DefaultContainer: "main",
		Containers: []ContainerSummary{
			{Name: "setup", Kind: "init", State: "exited", Reason: "Completed", Restarts: 1, Started: at(21).Time, Finished: at(22).Time},
			{Name: "main", State: "running", Ready: true, Restarts: 2, ID: "abc", Image: "till:1", ImageID: "till@sha256:1", Started: at(30).Time,
				Last: &Ended{Reason: "OOMKilled", ExitCode: 137, At: at(29).Time}},
			{Name: "side", State: "waiting", Reason: "CrashLoopBackOff", Message: "back-off 20s", Restarts: 3},
		},
	}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("summary\n%+v, want\n%+v", got, want)
	}
	w.record.Ending = &plan.Ending{}
	w.publishSummary(s)
	if got, _ := w.summary(); got.Reason != "Terminating" {
		t.Errorf("a pod that is to go is %q", got.Reason)
	}
}
