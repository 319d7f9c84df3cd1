package e2e

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// crash kills a running container's process from outside, as a crash would.
func (s *scene) crash(n *world.Node, c world.Running) {
	s.Helper()
	pid, err := n.ContainerPid(s.ctx, c.ID)
	s.must(err)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.Fatal(err)
	}
}

// runsAgain waits until containers run under names, each with the attempt stated.
func (s *scene) runsAgain(n *world.Node, attempts map[string]uint32) {
	s.Helper()
	var last map[string]world.Running
	err := world.Eventually(s.ctx, patience, fmt.Sprintf("containers run with attempts %v", attempts), func(ctx context.Context) (bool, error) {
		all, err := n.Running(ctx)
		if err != nil {
			return false, err
		}
		last = map[string]world.Running{}
		for _, c := range all {
			if c.Namespace == s.ns {
				last[c.Pod+"/"+c.Name] = c
			}
		}
		for name, attempt := range attempts {
			if c, ok := last[name]; !ok || c.Attempt != attempt {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		s.Fatalf("%v; running: %v", err, last)
	}
}

func TestOfflineACrashedContainerIsRestartedAndCounted(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("off-crash", world.NodeOptions{})
	s.run("web", n, nil)
	s.must(n.Cut())
	s.crash(n, s.running(n)["web/main"])
	s.runsAgain(n, map[string]uint32{"web/main": 1})
	s.must(n.Mend())
	p := s.readyAfter("web", 1)
	if term := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; term == nil || term.ExitCode != 137 {
		t.Errorf("the last state says %v, want exit code 137", term)
	}
}

func TestOfflineEdgecoreDiesAndAdoptsWhatRuns(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("off-adopt", world.NodeOptions{})
	s.run("a", n, nil)
	s.run("b", n, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	before := s.running(n)
	s.must(n.Cut())
	s.must(n.KillEdgecore())
	s.must(n.StartEdgecore())
	// A crash proves that the new edgecore is at work; the other pod that it left
	// all the rest alone.
	s.crash(n, before["a/main"])
	s.runsAgain(n, map[string]uint32{"a/main": 1})
	if after := s.running(n); after["b/main"].ID != before["b/main"].ID {
		t.Errorf("container of pod b is %s, was %s: it was not adopted", after["b/main"].ID, before["b/main"].ID)
	}
	s.must(n.Mend())
	s.readyAfter("a", 1)
	s.readyAfter("b", 0)
}

func TestOfflineRebootBringsEveryPodBackFromTheStore(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("off-reboot", world.NodeOptions{})
	core := s.client.CoreV1()
	_, err := core.ConfigMaps(s.ns).Create(s.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "from-configmap"}}, metav1.CreateOptions{})
	s.must(err)
	_, err = core.Secrets(s.ns).Create(s.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"k": "from-secret"}}, metav1.CreateOptions{})
	s.must(err)
	expiry := int64(600)
	full := s.run("full", n, func(p *corev1.Pod) {
		p.Spec.Containers[0].Command = shell(`echo "$CM $(cat /sec/k) $(cat /tok/one | wc -c) $(cat /tok/two | wc -c) $(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token)"; trap 'exit 0' TERM; while :; do sleep 1; done`)
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "CM", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Key: "k"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "sec", MountPath: "/sec"}, {Name: "tok", MountPath: "/tok"}}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec"}}},
			{Name: "tok", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "one", Path: "one", ExpirationSeconds: &expiry}},
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "two", Path: "two", ExpirationSeconds: &expiry}},
			}}}},
		}
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: world.BusyboxImage, Command: shell("echo initialised")}}
	})
	twin := s.run("twin", n, func(p *corev1.Pod) {
		second := p.Spec.Containers[0]
		second.Name = "side"
		p.Spec.Containers = append(p.Spec.Containers, second)
		p.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways // and there is no registry
	})
	said, err := n.PodLog(s.ns, "full", "main")
	s.must(err)
	s.create(s.pod("done", n, func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = shell("echo finished")
	}))
	s.when("done", "Succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	s.must(n.Cut())
	for _, attempt := range []uint32{1, 2} { // a power cut seldom comes alone
		s.must(n.PowerCut())
		s.must(n.Boot(s.ctx))
		s.runsAgain(n, map[string]uint32{"full/main": attempt, "twin/main": attempt, "twin/side": attempt})
	}
	running := s.running(n)
	for name, uid := range map[string]string{"full/main": string(full.UID), "twin/main": string(twin.UID)} {
		if running[name].PodUID != uid {
			t.Errorf("%s came back with the UID %s, was %s", name, running[name].PodUID, uid)
		}
	}
	if _, ok := running["done/main"]; ok {
		t.Error("a pod that had finished runs again")
	}
	s.log(n, "full", "main", said)

	s.must(n.Mend())
	s.nodeTurns(n, corev1.ConditionTrue)
	for _, name := range []string{"full", "twin"} {
		s.readyAfter(name, 2)
	}
	if p := s.get("done"); p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("pod done is %s, want Succeeded", p.Status.Phase)
	}
	if got := s.get("full").UID; got != full.UID {
		t.Errorf("pod full has the UID %s, was %s", got, full.UID)
	}
}

func TestOfflineChangesInTheCloudAreReconciledAndNothingElseIsTouched(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("off-change", world.NodeOptions{})
	s.run("kept", n, nil)
	s.run("deleted", n, nil)
	s.run("forced", n, nil)
	before := s.running(n)["kept/main"]
	s.must(n.Cut())
	s.delete("deleted")
	zero := int64(0)
	s.must(s.client.CoreV1().Pods(s.ns).Delete(s.ctx, "forced", metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	s.create(s.pod("created", n, func(p *corev1.Pod) {
		p.Spec.NodeSelector, p.Spec.NodeName = nil, n.Name
	}))
	if got := s.running(n); len(got) != 3 {
		t.Errorf("%d containers run with the line cut, want the 3 from before: %v", len(got), got)
	}
	s.must(n.Mend())
	s.ready("created")
	s.gone("deleted")
	s.until("only kept and created run", func(context.Context) (bool, error) {
		got := s.running(n)
		_, kept := got["kept/main"]
		_, created := got["created/main"]
		return len(got) == 2 && kept && created, nil
	})
	if after := s.running(n)["kept/main"]; after.ID != before.ID {
		t.Errorf("pod kept was rebuilt: container %s, was %s", after.ID, before.ID)
	}
}

func TestOfflineTheStoreOutlivesPowerCutsInTheMiddleOfARollout(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("off-rollout", world.NodeOptions{})
	for i := range 3 {
		s.create(s.pod(fmt.Sprintf("p%d", i), n, nil))
		s.must(n.PowerCut())
		s.must(n.Boot(s.ctx))
	}
	for i := range 3 {
		s.ready(fmt.Sprintf("p%d", i))
	}
	if got := s.running(n); len(got) != 3 {
		t.Errorf("%d containers run, want 3: %v", len(got), got)
	}
}
