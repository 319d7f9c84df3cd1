package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodRunsIsAdoptedAndGoes(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("web", "trap 'exit 0' TERM; echo $GREETING; while :; do sleep 1; done")
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "GREETING", Value: "hello"}}
	n.apply(p)
	s := n.awaitStatus(p, "pod is ready", ready)
	if s.PodIP == "" || s.HostIP != "192.0.2.11" || s.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("status of a pod that runs: %v", s)
	}
	first := s.ContainerStatuses[0].ContainerID

	n.stop()
	n.start()
	n.await("adopted", func() error { return n.settled(p) })
	s = n.status(p.UID)
	if got := s.ContainerStatuses[0]; got.ContainerID != first || got.RestartCount != 0 || !ready(s) {
		t.Errorf("after a restart of edgecore: %v, want container %s", got, first)
	}

	now := metav1.Now()
	grace := int64(1)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	n.apply(p)
	n.await("gone", func() error {
		if !n.gone(p.UID) {
			return errStill
		}
		return nil
	})
	left, err := n.runtime.Inspect(t.Context(), string(p.UID))
	must(t, err)
	if left != nil {
		t.Errorf("left in the runtime: %v", left)
	}
}
