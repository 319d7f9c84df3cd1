package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestOfflineACrashedContainerIsRestartedAndCounted(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("off-crash", world.NodeOptions{})
	s.Start("web", n, nil)
	s.Must(n.Cut())
	s.Crash(n, s.Running(n)["web/main"])
	s.RunsAgain(n, map[string]uint32{"web/main": 1})
	s.Must(n.Mend())
	p := s.ReadyAfter("web", 1)
	if term := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; term == nil || term.ExitCode != 137 {
		t.Errorf("the last state says %v, want exit code 137", term)
	}
}

func TestOfflineEdgecoreDiesAndAdoptsWhatRuns(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("off-adopt", world.NodeOptions{})
	s.Start("a", n, nil)
	s.Start("b", n, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	before := s.Running(n)
	s.Must(n.Cut())
	s.Must(n.KillEdgecore())
	s.Must(n.StartEdgecore())
	// A crash proves that the new edgecore is at work; the other pod that it left
	// all the rest alone.
	s.Crash(n, before["a/main"])
	s.RunsAgain(n, map[string]uint32{"a/main": 1})
	if after := s.Running(n); after["b/main"].ID != before["b/main"].ID {
		t.Errorf("container of pod b is %s, was %s: it was not adopted", after["b/main"].ID, before["b/main"].ID)
	}
	s.Must(n.Mend())
	s.ReadyAfter("a", 1)
	s.ReadyAfter("b", 0)
}

func TestOfflineRebootBringsEveryPodBackFromTheStore(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("off-reboot", world.NodeOptions{})
	core := s.Client.CoreV1()
	_, err := core.ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "from-configmap"}}, metav1.CreateOptions{})
	s.Must(err)
	_, err = core.Secrets(s.NS).Create(s.Ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"k": "from-secret"}}, metav1.CreateOptions{})
	s.Must(err)
	expiry := int64(600)
	full := s.Start("full", n, func(p *corev1.Pod) {
		p.Spec.Containers[0].Command = scene.Shell(`echo "$CM $(cat /sec/k) $(cat /tok/one | wc -c) $(cat /tok/two | wc -c) $(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token)"; trap 'exit 0' TERM; while :; do sleep 1; done`)
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "CM", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Key: "k"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "sec", MountPath: "/sec"}, {Name: "tok", MountPath: "/tok"}}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec"}}},
			{Name: "tok", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "one", Path: "one", ExpirationSeconds: &expiry}},
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "two", Path: "two", ExpirationSeconds: &expiry}},
			}}}},
		}
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: world.BusyboxImage, Command: scene.Shell("echo initialised")}}
	})
	twin := s.Start("twin", n, func(p *corev1.Pod) {
		second := p.Spec.Containers[0]
		second.Name = "side"
		p.Spec.Containers = append(p.Spec.Containers, second)
		p.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways // and there is no registry
	})
	said, err := n.PodLog(s.NS, "full", "main")
	s.Must(err)
	s.Create(s.Pod("done", n, func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = scene.Shell("echo finished")
	}))
	s.When("done", "Succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	s.Must(n.Cut())
	for _, attempt := range []uint32{1, 2} { // a power cut seldom comes alone
		s.Must(n.PowerCut())
		s.Must(n.Boot(s.Ctx))
		s.RunsAgain(n, map[string]uint32{"full/main": attempt, "twin/main": attempt, "twin/side": attempt})
	}
	running := s.Running(n)
	for name, uid := range map[string]string{"full/main": string(full.UID), "twin/main": string(twin.UID)} {
		if running[name].PodUID != uid {
			t.Errorf("%s came back with the UID %s, was %s", name, running[name].PodUID, uid)
		}
	}
	if _, ok := running["done/main"]; ok {
		t.Error("a pod that had finished runs again")
	}
	s.LogEnds(n, "full", "main", said)

	s.Must(n.Mend())
	s.NodeTurns(n, corev1.ConditionTrue)
	for _, name := range []string{"full", "twin"} {
		s.ReadyAfter(name, 2)
	}
	if p := s.Get("done"); p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("pod done is %s, want Succeeded", p.Status.Phase)
	}
	if got := s.Get("full").UID; got != full.UID {
		t.Errorf("pod full has the UID %s, was %s", got, full.UID)
	}
}

func TestOfflineChangesInTheCloudAreReconciledAndNothingElseIsTouched(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("off-change", world.NodeOptions{})
	s.Start("kept", n, nil)
	s.Start("deleted", n, nil)
	s.Start("forced", n, nil)
	before := s.Running(n)["kept/main"]
	s.Must(n.Cut())
	s.Delete("deleted")
	zero := int64(0)
	s.Must(s.Client.CoreV1().Pods(s.NS).Delete(s.Ctx, "forced", metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	s.Create(s.Pod("created", n, func(p *corev1.Pod) {
		p.Spec.NodeSelector, p.Spec.NodeName = nil, n.Name
	}))
	if got := s.Running(n); len(got) != 3 {
		t.Errorf("%d containers run with the line cut, want the 3 from before: %v", len(got), got)
	}
	s.Must(n.Mend())
	s.Ready("created")
	s.Gone("deleted")
	s.Until("only kept and created run", func(context.Context) (bool, error) {
		got := s.Running(n)
		_, kept := got["kept/main"]
		_, created := got["created/main"]
		return len(got) == 2 && kept && created, nil
	})
	if after := s.Running(n)["kept/main"]; after.ID != before.ID {
		t.Errorf("pod kept was rebuilt: container %s, was %s", after.ID, before.ID)
	}
}

func TestOfflineTheStoreOutlivesPowerCutsInTheMiddleOfARollout(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("off-rollout", world.NodeOptions{})
	for i := range 3 {
		s.Create(s.Pod(fmt.Sprintf("p%d", i), n, nil))
		s.Must(n.PowerCut())
		s.Must(n.Boot(s.Ctx))
	}
	for i := range 3 {
		s.Ready(fmt.Sprintf("p%d", i))
	}
	if got := s.Running(n); len(got) != 3 {
		t.Errorf("%d containers run, want 3: %v", len(got), got)
	}
}
