package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/runtime"
)

const forever = "trap 'exit 0' TERM; while :; do sleep 0.2; done"

// put stores a ConfigMap or Secret as if the hub had sent it.
func (n *node) put(kind wire.Kind, name string, o interface{ Marshal() ([]byte, error) }) {
	n.t.Helper()
	b, err := o.Marshal()
	must(n.t, err)
	must(n.t, n.store.Apply(n.t.Context(), []*wire.Object{{Payload: b, Ref: &wire.ObjectRef{Kind: kind, Namespace: "shop", Name: name,
		Uid: "uid-" + name, Version: wire.Version(b)}}}, nil))
}

func (n *node) putConfigMap(name string, data map[string]string) {
	n.put(wire.Kind_KIND_CONFIG_MAP, name, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}, Data: data})
}

func (n *node) putSecret(name string, data map[string][]byte) {
	n.put(wire.Kind_KIND_SECRET, name, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}, Data: data})
}

// log is what a container wrote.
func (n *node) log(p *corev1.Pod, container string) string {
	files, err := filepath.Glob(filepath.Join(n.dir, "logs", "shop_"+p.Name+"_"+string(p.UID), container, "*.log"))
	must(n.t, err)
	all := ""
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(n.t, err)
		all += string(b)
	}
	return all
}

func (n *node) awaitLog(p *corev1.Pod, container, want string) {
	n.t.Helper()
	n.await("log of "+container+" says "+want, func() error {
		if !strings.Contains(n.log(p, container), want) {
			return errStill
		}
		return nil
	})
}

func TestContainersGetWhatThePodSays(t *testing.T) {
	n := newNode(t)
	n.online.Store(true)
	p := busyboxPod("full", "echo env=$A,$B,$C,$NAME,$IP,$MEM,$P_ONE; cat /cfg/greeting /sub/greeting /token/token /secret/key; cat /etc/hosts; "+
		"echo args=$0,$1; cat /scratch/from-init; "+forever)
	p.Labels = map[string]string{"app": "full"}
	c := &p.Spec.Containers[0]
	c.Args = []string{"$(A)-$(NAME)", "$$(A) $(NONE)"}
	c.Env = []corev1.EnvVar{
		{Name: "A", Value: "one"}, {Name: "B", Value: "$(A)-two"},
		{Name: "C", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}, Key: "key"}}},
		{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
		{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}},
		{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
	}
	c.EnvFrom = []corev1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "cfg", MountPath: "/cfg"}, {Name: "cfg", MountPath: "/sub/greeting", SubPath: "greeting"}, {Name: "token", MountPath: "/token"},
		{Name: "secret", MountPath: "/secret"}, {Name: "scratch", MountPath: "/scratch"}, {Name: "down", MountPath: "/down"},
	}
	init := shell("prepare", "echo prepared >/scratch/from-init")
	init.VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	p.Spec.InitContainers = []corev1.Container{init}
	p.Spec.Volumes = []corev1.Volume{
		{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}}}}}},
		{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "app", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}}}}},
	}
	n.apply(p)
	// Nothing is there yet: the pod waits and says why, and goes on when it comes.
	n.await("FailedMount is told", func() error {
		if _, ok := n.events(p.UID)["FailedMount"]; !ok {
			return errStill
		}
		return nil
	})
	n.putConfigMap("settings", map[string]string{"greeting": "good morning\n", "ONE": "1"})
	n.putSecret("keys", map[string][]byte{"key": []byte("s3cret")})
	s := n.awaitStatus(p, "ready", ready)
	if s.QOSClass != corev1.PodQOSBurstable && s.QOSClass != corev1.PodQOSGuaranteed {
		t.Errorf("QoS class %s", s.QOSClass)
	}
	for _, want := range []string{"env=one,one-two,s3cret,full,192.0.2.11,67108864,1", "good morning", "token-1-default-[vault]", "s3cret",
		"Kubernetes-managed hosts file", s.PodIP, "args=one-full,$(A) $(NONE)", "prepared"} {
		n.awaitLog(p, "main", want)
	}
	// A ConfigMap that changes shows in the running container.
	n.putConfigMap("settings", map[string]string{"greeting": "good evening\n", "ONE": "1"})
	id := strings.TrimPrefix(s.ContainerStatuses[0].ContainerID, "containerd://")
	shows := func(file, want string) {
		n.await(file+" shows the new content", func() error {
			r, err := n.runtime.Exec(t.Context(), id, []string{"cat", file}, patience)
			if err != nil || string(r.Stdout) != want {
				return errStill
			}
			return nil
		})
	}
	shows("/cfg/greeting", "good evening\n")
	// So does a label.
	relabelled := p.DeepCopy()
	relabelled.Labels["app"] = "renamed"
	n.apply(relabelled)
	shows("/down/app", "renamed")
	// Offline reboot: the token is the stored one.
	n.online.Store(false)
	n.reboot()
	n.awaitStatus(p, "back", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	if got := n.asked.Load(); got != 1 {
		t.Errorf("the hub was asked for %d tokens, want 1", got)
	}
}

func TestProbesAndHooks(t *testing.T) {
	n := newNode(t)
	p := busyboxPod("probed", "echo run >>/shared/runs; "+forever)
	grace := int64(30)
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	exec := func(script string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", script}}}
	}
	short := int64(20) // the hook has as long, also on a slow machine
	c.StartupProbe = &corev1.Probe{ProbeHandler: exec("test -e /shared/poststart"), PeriodSeconds: 1, FailureThreshold: 600, TimeoutSeconds: 60}
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: exec("test -e /shared/ready"), PeriodSeconds: 1, TimeoutSeconds: 60}
	c.LivenessProbe = &corev1.Probe{ProbeHandler: exec("test ! -e /shared/sick"), PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 60, TerminationGracePeriodSeconds: &short}
	c.Lifecycle = &corev1.Lifecycle{
		PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "echo started >>/shared/poststart"}}},
		PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "echo stopped >>/shared/prestop; rm -f /shared/sick"}}},
	}
	n.apply(p)
	s := n.awaitStatus(p, "started but not ready", func(s *corev1.PodStatus) bool {
		c := s.ContainerStatuses
		return len(c) == 1 && c[0].Started != nil && *c[0].Started && !c[0].Ready && s.Phase == corev1.PodRunning
	})
	id := func(s *corev1.PodStatus) string {
		return strings.TrimPrefix(s.ContainerStatuses[0].ContainerID, "containerd://")
	}
	n.exec(id(s), "touch /shared/ready")
	s = n.awaitStatus(p, "ready", ready)
	n.exec(id(s), "rm /shared/ready")
	n.awaitStatus(p, "not ready", func(s *corev1.PodStatus) bool { return !condition(s, corev1.PodReady) })
	// Edgecore restarts: what was ready is not reported as unready for lack of a probe.
	n.exec(id(s), "touch /shared/ready")
	n.awaitStatus(p, "ready again", ready)
	n.exec(id(s), "touch /shared/sick")
	s = n.awaitStatus(p, "restarted by its liveness probe", func(s *corev1.PodStatus) bool {
		return ready(s) && s.ContainerStatuses[0].RestartCount == 1
	})
	if got := n.exec(id(s), "cat /shared/runs /shared/poststart /shared/prestop"); got != "run\nrun\nstarted\nstarted\nstopped\n" {
		t.Errorf("runs and hooks: %q", got)
	}
	n.await("events", func() error {
		e := n.events(p.UID)
		if e["Unhealthy"] == "" || !strings.Contains(e["Killing"], "failed liveness probe") {
			return errStill
		}
		return nil
	})
}

func (n *node) exec(id, script string) string {
	n.t.Helper()
	r, err := n.runtime.Exec(n.t.Context(), id, []string{"/bin/sh", "-c", script}, patience)
	must(n.t, err)
	return string(r.Stdout)
}

func TestWhatCannotRunSaysWhy(t *testing.T) {
	n := newNode(t)
	never := busyboxPod("never", "true")
	never.Spec.Containers[0].Image, never.Spec.Containers[0].ImagePullPolicy = "example.test/holdfast/none:1", corev1.PullNever
	config := busyboxPod("config", forever)
	config.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}}}}
	always := busyboxPod("always", forever)
	always.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
	refused := busyboxPod("refused", forever)
	refused.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nfs", Path: "/"}}}}
	missing := busyboxPod("missing", "true")
	missing.Spec.Containers[0].Command = []string{"/no/such/program"}
	hook := busyboxPod("hook", forever)
	hook.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}}
	for _, p := range []*corev1.Pod{never, config, always, refused, missing, hook} {
		n.apply(p)
	}
	waits := func(reason string) func(*corev1.PodStatus) bool {
		return func(s *corev1.PodStatus) bool {
			return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == reason
		}
	}
	n.awaitStatus(never, "image", waits("ErrImageNeverPull"))
	s := n.awaitStatus(config, "secret", waits("CreateContainerConfigError"))
	if got := s.ContainerStatuses[0].State.Waiting.Message; got != `secret "later" not found` {
		t.Errorf("message: %q", got)
	}
	s = n.awaitStatus(refused, "refused", waits("FieldNotSupported"))
	if s.Phase != corev1.PodPending || !strings.Contains(s.Message, "spec.volumes[data].nfs") {
		t.Errorf("a refused pod's status: %v", s)
	}
	n.awaitStatus(missing, "no program", waits("RunContainerError"))
	n.awaitStatus(always, "offline, but the image is here", ready)
	n.awaitStatus(hook, "the hook's failure restarts the container", func(s *corev1.PodStatus) bool {
		return s.ContainerStatuses[0].RestartCount > 0 || s.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	n.putSecret("later", map[string][]byte{"X": []byte("1")})
	n.awaitStatus(config, "the secret has come", ready)
	// A refused pod goes like any other.
	now := metav1.Now()
	refused.DeletionTimestamp = &now
	n.apply(refused)
	n.await("refused is gone", func() error {
		if !n.gone(refused.UID) {
			return errStill
		}
		return nil
	})
}

func TestOnlyWhatIsOursIsRemoved(t *testing.T) {
	n := newNode(t)
	mine, foreign := busyboxPod("mine", forever), busyboxPod("foreign", forever)
	n.apply(mine)
	n.apply(foreign)
	n.awaitStatus(mine, "ready", ready)
	n.awaitStatus(foreign, "ready", ready)
	n.stop()
	// While edgecore was away both were deleted; of the one it has no memory, as if a kubelet had made it.
	must(t, n.store.DeletePodState(t.Context(), string(foreign.UID)))
	n.remove(mine)
	n.remove(foreign)
	n.start()
	must(t, n.store.MarkSynced(t.Context()))
	n.await("mine is removed", func() error {
		if p, err := n.runtime.Inspect(t.Context(), string(mine.UID)); err != nil || p != nil {
			return errStill
		}
		// The directory goes last.
		if _, err := os.Stat(filepath.Join(n.dir, "pods", string(mine.UID))); !os.IsNotExist(err) {
			return errStill
		}
		return nil
	})
	p, err := n.runtime.Inspect(t.Context(), string(foreign.UID))
	must(t, err)
	if p == nil || len(p.Containers) != 1 || p.Containers[0].State != runtime.Running {
		t.Errorf("the pod that is not ours: %+v, want it running", p)
	}
	if n.gone(mine.UID) {
		t.Error("a pod that the hub itself removed was reported to be gone")
	}
}
