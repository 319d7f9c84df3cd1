package chaos

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestADamagedDatabaseIsSetAsideAndThePodsRunOn(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("damaged", world.NodeOptions{})
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]
	db := filepath.Join(n.DataDir(), "store.db")
	garbage := bytes.Repeat([]byte("not a database. "), 4096)
	for name, damage := range map[string]func() error{
		"garbage":   func() error { return os.WriteFile(db, garbage, 0o600) },
		"emptied":   func() error { return os.Truncate(db, 0) },
		"cut short": func() error { return os.Truncate(db, 5000) },
		"gone":      func() error { return os.Remove(db) },
		"gone, and every copy with it": func() error {
			files, err := filepath.Glob(db + "*")
			for _, f := range files {
				if err == nil {
					err = os.Remove(f)
				}
			}
			return err
		},
	} {
		s.Must(n.KillEdgecore())
		// The write-ahead log would mend some of it: a card that fails takes both.
		for _, side := range []string{"-wal", "-shm"} {
			if err := os.Remove(db + side); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		s.Must(damage())
		s.Must(n.StartEdgecore())
		pod := "after-" + strings.Map(func(r rune) rune {
			if r == ' ' || r == ',' {
				return '-'
			}
			return r
		}, name)
		s.Start(pod, n, nil) // the node is at work and in touch again
		if after := s.Running(n)["web/main"]; after.ID != before.ID {
			t.Errorf("%s: pod web was rebuilt: container %q, was %q", name, after.ID, before.ID)
		}
		if p := s.Ready("web"); p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: pod web has %d restarts, want 0", name, p.Status.ContainerStatuses[0].RestartCount)
		}
	}
}

func TestAFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("full", world.NodeOptions{NoJoin: true})
	s.Must(os.MkdirAll(n.DataDir(), 0o700))
	s.Must(syscall.Mount("tmpfs", n.DataDir(), "tmpfs", 0, "size=8m"))
	s.Must(n.Join(s.Ctx, "--ignore-preflight-errors", "disk"))
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]

	ballast := filepath.Join(n.DataDir(), "ballast")
	s.Must(fill(ballast))
	_, err := s.Client.CoreV1().ConfigMaps(s.NS).Create(s.Ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "big"}, Data: map[string]string{"k": strings.Repeat("x", 500_000)}}, metav1.CreateOptions{})
	s.Must(err)
	s.Create(s.Pod("late", n, func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "absent"}, Optional: ptr(true)}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "big", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "big"}}}}}
	}))
	s.Until("edgecore says that the disk is full", func(context.Context) (bool, error) {
		return strings.Contains(strings.ToLower(s.EdgeLog(n)), "full"), nil
	})
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("pod web was rebuilt: container %q, was %q", after.ID, before.ID)
	}
	s.Must(os.Remove(ballast))
	s.Ready("late")
	if p := s.Ready("web"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("pod web has %d restarts, want 0", p.Status.ContainerStatuses[0].RestartCount)
	}
}

// fill writes a file until the disk has no room left.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return nil
}

func ptr[T any](v T) *T { return &v }

func TestTheRuntimeGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("noruntime", world.NodeOptions{})
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]
	s.Must(n.Containerd.Kill9())
	s.NodeTurns(n, corev1.ConditionFalse)
	// An edgecore that starts without a runtime waits for it.
	s.Must(n.KillEdgecore())
	s.Must(n.StartEdgecore())
	s.Create(s.Pod("late", n, func(p *corev1.Pod) { p.Spec.NodeSelector, p.Spec.NodeName = nil, n.Name }))
	s.Until("edgecore says what it waits for", func(context.Context) (bool, error) {
		return strings.Contains(n.EdgecoreOutput(), n.Containerd.Socket()), nil
	})
	s.Must(n.Containerd.Start(s.Ctx))
	s.NodeTurns(n, corev1.ConditionTrue)
	s.Ready("late")
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("pod web was rebuilt: container %q, was %q", after.ID, before.ID)
	}
}

// TestARolloutSurvivesEverythingAtOnce changes pods in the cloud while the line
// flaps and the daemons die; at the end the node holds what the cloud says.
func TestARolloutSurvivesEverythingAtOnce(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("storm", world.NodeOptions{})
	s.Start("rock", n, nil)
	rnd := rand.New(rand.NewSource(7))
	want := map[string]bool{"rock": true}
	for i := range 12 {
		name := fmt.Sprintf("p%d", i)
		s.Create(s.Pod(name, n, func(p *corev1.Pod) { p.Spec.NodeSelector, p.Spec.NodeName = nil, n.Name }))
		want[name] = true
		if victim := fmt.Sprintf("p%d", rnd.Intn(i+1)); want[victim] && i%3 == 2 {
			s.Delete(victim)
			delete(want, victim)
		}
		switch i % 4 {
		case 0:
			s.Must(n.Cut())
		case 1:
			s.Must(n.Mend())
		case 2:
			s.Must(n.KillEdgecore())
			s.Must(n.StartEdgecore())
		case 3:
			s.Must(n.Containerd.Kill9())
			s.Must(n.Containerd.Start(s.Ctx))
		}
	}
	s.Must(n.Mend())
	s.NodeTurns(n, corev1.ConditionTrue)
	for name := range want {
		s.Ready(name)
	}
	var last []string
	err := world.Eventually(s.Ctx, scene.Patience, "the node runs what the cloud says", func(ctx context.Context) (bool, error) {
		running, err := n.Running(ctx)
		if err != nil {
			return false, err
		}
		last = last[:0]
		for _, c := range running {
			last = append(last, c.Pod)
			if c.Namespace == s.NS && !want[c.Pod] {
				return false, nil
			}
		}
		return len(running) == len(want), nil
	})
	if err != nil {
		t.Fatalf("%v; running %v, want %v", err, last, want)
	}
	if p := s.Get("rock"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("pod rock has %d restarts, want 0", p.Status.ContainerStatuses[0].RestartCount)
	}
}
