package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// offlineReady waits until the Node's condition is so, and returns it.
func offlineReady(s *scene.Scene, n *world.Node, want corev1.ConditionStatus) corev1.NodeCondition {
	s.Helper()
	var last corev1.NodeCondition
	err := world.Eventually(s.Ctx, scene.Patience, "node "+n.Name+" OfflineReady="+string(want), func(ctx context.Context) (bool, error) {
		node, err := s.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "OfflineReady" {
				last = c
			}
		}
		return last.Status == want, nil
	})
	if err != nil {
		s.Fatalf("%v; it is %+v", err, last)
	}
	return last
}

// removeImage takes an image away from under its containers.
func removeImage(s *scene.Scene, n *world.Node, name string) {
	s.Helper()
	_, err := n.Containerd.CRI().RemoveImage(s.Ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	s.Must(err)
}

func TestOfflineReadySaysWhatANodeLacks(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("outage", world.NodeOptions{})
	core := s.Client.CoreV1()
	_, err := core.ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{})
	s.Must(err)
	_, err = core.Secrets(s.NS).Create(s.Ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"k": "v"}}, metav1.CreateOptions{})
	s.Must(err)
	s.Start("web", n, func(p *corev1.Pod) { // and the token of its service account, which every pod has
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "sec", MountPath: "/sec"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec"}}}}
	})
	if c := offlineReady(s, n, corev1.ConditionTrue); c.Reason != "AllChecksPassed" {
		t.Errorf("condition %+v", c)
	}
	out, code := s.Holdfast(n, "doctor", "--config", n.Config())
	for _, words := range []string{"is ready for an outage", "1 to bring back", "2 ConfigMaps and 1 Secrets", "1 kept", "all of it was read just now"} {
		if !strings.Contains(out, words) {
			t.Errorf("doctor does not say %q:\n%s", words, out)
		}
	}
	if code != 0 {
		t.Errorf("exit code %d of a node that is ready:\n%s", code, out)
	}
	labels := func() string {
		text, err := exec.Command("ctr", "-a", n.Containerd.Socket(), "-n", "k8s.io", "images", "list").CombinedOutput()
		s.Must(err)
		return string(text)
	}
	if n := strings.Count(labels(), "io.cri-containerd.pinned=pinned"); n != 2 { // the pod's and the sandboxes'
		t.Errorf("%d images are pinned:\n%s", n, labels())
	}

	removeImage(s, n, world.BusyboxImage)
	if c := offlineReady(s, n, corev1.ConditionFalse); c.Reason != "ImageMissing" || !strings.Contains(c.Message, "pod "+s.NS+"/web: image "+world.BusyboxImage) {
		t.Errorf("condition %+v", c)
	}
	out, code = s.Holdfast(n, "doctor", "--config", n.Config())
	s.Refused(out, code, "NOT ready", "[FAIL]", world.BusyboxImage, "-> ", "ctr -n k8s.io images import")
	out, code = s.Holdfast(n, "drill", "--config", n.Config(), "--for", "10s", "--restart-runtime=false")
	s.Refused(out, code, "[FAIL]", "--force")

	busybox, err := image.Busybox(world.BusyboxImage)
	s.Must(err)
	s.Must(n.Containerd.Import(s.Ctx, busybox))
	offlineReady(s, n, corev1.ConditionTrue)

	s.Must(n.KillEdgecore())
	out, code = s.Holdfast(n, "doctor", "--config", n.Config(), "-o", "json")
	s.Refused(out, code, "EdgecoreDown", "journalctl -u edgecore", "is good", "node "+n.Name+" has one")
	if out, code = s.Holdfast(n, "reset", "--force", "--data-dir", n.DataDir()); code != 0 || strings.Contains(labels(), "pinned") {
		t.Errorf("reset: exit code %d:\n%s\nimages:\n%s", code, out, labels())
	}
}

// restarter serves --runtime-command: the machine of a test has no systemd.
type restarter struct{ ask, done string }

func newRestarter(t *testing.T) restarter {
	dir := t.TempDir()
	return restarter{filepath.Join(dir, "ask"), filepath.Join(dir, "done")}
}

func (r restarter) command() string {
	return "touch " + r.ask + "; while [ ! -e " + r.done + " ]; do sleep 0.1; done"
}

// serve does what the command asks for, once.
func (r restarter) serve(s *scene.Scene, restart func()) {
	s.Helper()
	s.Until("the runtime's restart is asked for", func(context.Context) (bool, error) {
		_, err := os.Stat(r.ask)
		return err == nil, nil
	})
	restart()
	s.Must(os.WriteFile(r.done, nil, 0o600))
}

// drilling is a drill that runs.
type drilling struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func startDrill(s *scene.Scene, n *world.Node, args ...string) *drilling {
	s.Helper()
	d := &drilling{cmd: n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), append([]string{"drill", "--config", n.Config()}, args...)...)}
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	s.Must(d.cmd.Start())
	s.Cleanup(func() { _ = d.cmd.Process.Kill() }) // it has ended already, unless the test failed
	return d
}

func (d *drilling) end(s *scene.Scene) (string, int) {
	s.Helper()
	_ = d.cmd.Wait() // the code tells
	return d.out.String(), d.cmd.ProcessState.ExitCode()
}

func TestDrillProvesThatPodsDoWithoutTheCloud(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("drill", world.NodeOptions{})
	s.Start("crashes", n, nil)
	s.Start("stays", n, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	before := s.Running(n)
	offlineReady(s, n, corev1.ConditionTrue)

	r := newRestarter(t)
	d := startDrill(s, n, "--for", "20s", "--runtime-command", r.command(), "-o", "json")
	r.serve(s, func() {
		line(s, n, "is held down", func(l localstatus.Line) bool { return !l.Connected && !l.HeldUntil.IsZero() })
		s.Crash(n, before["crashes/main"])
		s.Must(n.Containerd.Kill9())
		s.Must(n.Containerd.Start(s.Ctx))
	})
	out, code := d.end(s)
	var report localstatus.Drill
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, out)
	}
	if !report.Passed || len(report.Pods) != 2 || report.Runtime == nil || report.Line.Cut.IsZero() || report.Line.Back.Sub(report.Line.Cut).Seconds() < 15 {
		t.Errorf("report:\n%s", out)
	}
	for _, p := range report.Pods {
		crashed := p.Name == "crashes"
		if !p.Ready || (p.Restarts == 1) != crashed || (p.Replaced == 1) != crashed {
			t.Errorf("pod %+v", p)
		}
	}
	line(s, n, "is up", func(l localstatus.Line) bool { return l.Connected && l.HeldUntil.IsZero() })
	s.ReadyAfter("crashes", 1)
	if after := s.Running(n)["stays/main"]; after.ID != before["stays/main"].ID {
		t.Errorf("container of pod stays is %s, was %s", after.ID, before["stays/main"].ID)
	}

	// Ctrl-C lets the line go.
	d = startDrill(s, n, "--for", "10m", "--restart-runtime=false")
	line(s, n, "is held down", func(l localstatus.Line) bool { return !l.Connected && !l.HeldUntil.IsZero() })
	out, code = s.Holdfast(n, "drill", "--config", n.Config())
	s.Refused(out, code, "held down already")
	s.Must(d.cmd.Process.Signal(syscall.SIGINT))
	out, code = d.end(s)
	s.Refused(out, code, "ended early", "NOT PASSED")
	line(s, n, "is up", func(l localstatus.Line) bool { return l.Connected && l.HeldUntil.IsZero() })

	// A pod that cannot come back is named.
	removeImage(s, n, world.BusyboxImage)
	r = newRestarter(t)
	d = startDrill(s, n, "--for", "15s", "--force", "--runtime-command", r.command())
	r.serve(s, func() { s.Crash(n, s.Running(n)["stays/main"]) })
	out, code = d.end(s)
	s.Refused(out, code, "NOT PASSED", "pod "+s.NS+"/stays is not ready again", "NO: ")
}
