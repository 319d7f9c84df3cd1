package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestPodsUseWhatTheAPIOffers(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("pods-api", world.NodeOptions{})
	core := s.Client.CoreV1()
	_, err := core.ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"a": "alpha", "b": "beta"}}, metav1.CreateOptions{})
	s.Must(err)

	t.Run("environment, downward API, init containers and volumes", func(t *testing.T) {
		s := s.Within(t)
		s.Start("env", n, func(p *corev1.Pod) {
			p.Labels = map[string]string{"tier": "edge"}
			p.Spec.InitContainers = []corev1.Container{{
				Name: "prepare", Image: world.BusyboxImage, Command: scene.Shell("echo prepared > /scratch/file"),
				VolumeMounts: []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}},
			}}
			c := &p.Spec.Containers[0]
			c.Command = scene.Shell(`echo "$LITERAL $FIELD $CPU $X_a $X_b $(cat /scratch/file) $(cat /conf/a) $(cat /down/labels) $0 $1"; trap 'exit 0' TERM; while :; do sleep 1; done`)
			c.Args = []string{"$(LITERAL)-arg", "$$(LITERAL)"}
			c.Env = []corev1.EnvVar{
				{Name: "LITERAL", Value: "lit"},
				{Name: "FIELD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
			}
			c.EnvFrom = []corev1.EnvFromSource{{Prefix: "X_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi")}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}, {Name: "conf", MountPath: "/conf"}, {Name: "down", MountPath: "/down"}}
			p.Spec.Volumes = []corev1.Volume{
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
				{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
					{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				}}}},
			}
		})
		s.LogEnds(n, "env", "main", `lit env 33554432 alpha beta prepared alpha tier="edge" lit-arg $(LITERAL)`)
	})

	t.Run("a changed ConfigMap reaches the volume of a running pod", func(t *testing.T) {
		s := s.Within(t)
		_, err := core.ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "live"}, Data: map[string]string{"k": "first"}}, metav1.CreateOptions{})
		s.Must(err)
		s.Start("live", n, func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = scene.Shell(`trap 'exit 0' TERM; while :; do cat /conf/k; echo; sleep 1; done`)
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "conf", MountPath: "/conf"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "live"}}}}}
		})
		_, err = core.ConfigMaps(s.NS).Update(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "live", Namespace: s.NS}, Data: map[string]string{"k": "second"}}, metav1.UpdateOptions{})
		s.Must(err)
		s.Until("the container reads the new value", func(context.Context) (bool, error) {
			line, err := n.PodLog(s.NS, "live", "main")
			return strings.Contains(line, "second"), err
		})
	})

	t.Run("probes and hooks", func(t *testing.T) {
		s := s.Within(t)
		probe := func(cmd string) *corev1.Probe {
			return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: scene.Shell(cmd)}}, PeriodSeconds: 1, FailureThreshold: 2}
		}
		s.Create(s.Pod("probed", n, func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyAlways
			c := &p.Spec.Containers[0]
			c.Command = scene.Shell("mkdir -p /www; cd /www; echo ok > index.html; httpd -f -p 8080")
			c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: scene.Shell("touch /started")}}}
			c.StartupProbe = probe("test -e /started")
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/index.html", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 1}
			c.LivenessProbe = probe("! test -e /dead")
		}))
		first := s.Ready("probed")
		if first.Status.PodIP == "" {
			t.Error("the pod has no IP")
		}
		// A failing liveness probe restarts the container, and only it.
		out, code, err := n.Exec(s.Ctx, s.Running(n)["probed/main"].ID, "touch", "/dead")
		if err != nil || code != 0 {
			t.Fatalf("exec: %v, exit code %d: %s", err, code, out)
		}
		p := s.ReadyAfter("probed", 1)
		if p.Status.PodIP != first.Status.PodIP {
			t.Errorf("the pod's IP is %s, was %s: the sandbox was rebuilt", p.Status.PodIP, first.Status.PodIP)
		}
		s.Reported("probed", "Unhealthy")
	})

	t.Run("exit codes, restart policies and back-off", func(t *testing.T) {
		s := s.Within(t)
		s.Create(s.Pod("fails", n, func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.Containers[0].Command = scene.Shell("echo broken > /dev/termination-log; exit 3")
		}))
		s.Create(s.Pod("loops", n, func(p *corev1.Pod) { p.Spec.Containers[0].Command = scene.Shell("exit 4") }))
		p := s.When("fails", "Failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if term := p.Status.ContainerStatuses[0].State.Terminated; term == nil || term.ExitCode != 3 || term.Reason != "Error" || term.Message != "broken\n" {
			t.Errorf("terminated %+v, want exit code 3, reason Error, message \"broken\"", term)
		}
		s.When("loops", "in CrashLoopBackOff", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
				p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff" && p.Status.ContainerStatuses[0].RestartCount >= 1
		})
	})

	t.Run("what cannot be had is said, and mended when it comes", func(t *testing.T) {
		s := s.Within(t)
		s.Create(s.Pod("wants", n, func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "K", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "late"}, Key: "k"}}}}
		}))
		s.Create(s.Pod("noimage", n, func(p *corev1.Pod) {
			p.Spec.Containers[0].Image = "example.test/holdfast/absent:1"
			p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
		}))
		waits := func(reason string) func(*corev1.Pod) bool {
			return func(p *corev1.Pod) bool {
				return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
			}
		}
		s.When("noimage", "waits with ErrImageNeverPull", waits("ErrImageNeverPull"))
		s.When("wants", "waits with CreateContainerConfigError", waits("CreateContainerConfigError"))
		_, err := core.ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{})
		s.Must(err)
		s.Ready("wants")
	})

	t.Run("a graceful end runs the hook and obeys the signal", func(t *testing.T) {
		s := s.Within(t)
		dir := t.TempDir()
		s.Start("polite", n, func(p *corev1.Pod) {
			grace := int64(30)
			p.Spec.TerminationGracePeriodSeconds = &grace
			c := &p.Spec.Containers[0]
			c.Command = scene.Shell("trap 'echo term >> /out/log; exit 0' TERM; while :; do sleep 1; done")
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: scene.Shell("echo hook >> /out/log")}}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "out", MountPath: "/out"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "out", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}}}
		})
		s.Delete("polite")
		s.Gone("polite")
		if got := scene.ReadFile(t, dir, "log"); got != "hook\nterm\n" {
			t.Errorf("the pod wrote %q at its end, want hook, then term", got)
		}
	})
}
