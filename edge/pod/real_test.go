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

func TestEveryPodComesBackAfterAReboot(t *testing.T) {
	n := newNode(t)
	forever := "trap 'exit 0' TERM; while :; do sleep 1; done"
	web := busyboxPod("web", forever)
	web.Spec.InitContainers = []corev1.Container{shell("prepare", "true")}
	job := busyboxPod("job", "exit 0")
	job.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	broken := busyboxPod("broken", "exit 3")
	broken.Spec.RestartPolicy = corev1.RestartPolicyNever
	once := busyboxPod("once", forever)
	once.Spec.RestartPolicy = corev1.RestartPolicyNever
	half := busyboxPod("half", forever)
	half.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	half.Spec.Containers = append(half.Spec.Containers, shell("short", "exit 0"))
	all := []*corev1.Pod{web, job, broken, once, half}
	for _, p := range all {
		n.apply(p)
	}
	n.awaitStatus(web, "web is ready", ready)
	n.awaitStatus(job, "job has succeeded", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	n.awaitStatus(broken, "broken has failed", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	n.awaitStatus(once, "once is ready", ready)
	n.awaitStatus(half, "half of half is done", func(s *corev1.PodStatus) bool {
		return s.Phase == corev1.PodRunning && s.ContainerStatuses[1].State.Terminated != nil && s.ContainerStatuses[0].State.Running != nil
	})

	for boot := int32(1); boot <= 2; boot++ {
		n.reboot()
		s := n.awaitStatus(web, "web is back", func(s *corev1.PodStatus) bool {
			return ready(s) && s.ContainerStatuses[0].RestartCount == boot
		})
		if last := s.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode == 0 {
			t.Errorf("boot %d: lastState of web: %v, want that it did not end well", boot, last)
		}
		if init := s.InitContainerStatuses[0]; init.State.Terminated == nil || init.RestartCount != boot {
			t.Errorf("boot %d: init container of web: %v, want it to have run again", boot, init)
		}
		s = n.awaitStatus(half, "half is back", func(s *corev1.PodStatus) bool {
			return s.ContainerStatuses[0].State.Running != nil && s.ContainerStatuses[0].RestartCount == boot
		})
		if done := s.ContainerStatuses[1]; done.State.Terminated == nil || done.State.Terminated.ExitCode != 0 || done.RestartCount != 0 {
			t.Errorf("boot %d: the container of half that had ended: %v, want it left as it was", boot, done)
		}
		n.awaitStatus(once, "once has failed", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
		for _, p := range []*corev1.Pod{job, broken, once} {
			n.await("the workers are at rest", func() error { return n.settled(p) })
			seen, err := n.runtime.Inspect(t.Context(), string(p.UID))
			must(t, err)
			for _, c := range seen.Containers {
				if c.Attempt != 0 {
					t.Errorf("boot %d: %s of pod %s was started again", boot, c.Name, p.Name)
				}
			}
		}
		if got := n.status(job.UID).Phase; got != corev1.PodSucceeded {
			t.Errorf("boot %d: pod job is %s, want it to stay Succeeded", boot, got)
		}
		if got := n.status(broken.UID); got.Phase != corev1.PodFailed || got.ContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Errorf("boot %d: pod broken is %v, want it to stay Failed with 3", boot, got)
		}
	}
}

func TestCrashingContainerIsHeldBack(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("crash", "echo going down >/dev/termination-log; exit 7")
	n.apply(p)
	s := n.awaitStatus(p, "back-off", func(s *corev1.PodStatus) bool {
		c := s.ContainerStatuses[0]
		return c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff" && c.RestartCount >= 1
	})
	last := s.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 7 || last.Message != "going down\n" || last.Reason != "Error" {
		t.Errorf("lastState: %v, want exit code 7 and the termination message", last)
	}
	if s.Phase != corev1.PodRunning || condition(s, corev1.PodReady) {
		t.Errorf("phase %s, ready %t; want Running and not ready", s.Phase, condition(s, corev1.PodReady))
	}
	n.awaitStatus(p, "second restart", func(s *corev1.PodStatus) bool { return s.ContainerStatuses[0].RestartCount >= 2 })
	n.awaitEvents(p, "BackOff")
	seen, err := n.runtime.Inspect(t.Context(), string(p.UID))
	must(t, err)
	n.await("older containers are removed", func() error {
		if seen, err = n.runtime.Inspect(t.Context(), string(p.UID)); err != nil || len(seen.Containers) > 2 {
			return errStill
		}
		return nil
	})
}

func TestKilledContainerRestartsAndItsNeighbourDoesNot(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("victim", "trap 'exit 0' TERM; while :; do sleep 1; done")
	p.Spec.Containers = append(p.Spec.Containers, shell("other", "trap 'exit 0' TERM; while :; do sleep 1; done"))
	n.apply(p)
	s := n.awaitStatus(p, "ready", ready)
	other := s.ContainerStatuses[1].ContainerID
	id := s.ContainerStatuses[0].ContainerID[len("containerd://"):]
	must(t, n.runtime.StopContainer(t.Context(), id, 0))
	s = n.awaitStatus(p, "restarted", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	if got := s.ContainerStatuses[1]; got.ContainerID != other || got.RestartCount != 0 {
		t.Errorf("the other container: %v, want it untouched", got)
	}
}
