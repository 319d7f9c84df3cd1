package cluster

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bounded allows for a cold build of the binary on a small machine.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestClusterSurvivesKillAndRestart(t *testing.T) {
	ctx := bounded(t)
	c, err := Start(ctx, Options{Dir: t.TempDir(), GracePeriod: 4 * time.Second, AdvertiseAddresses: []string{"127.0.0.1", "cloud.example.test"}, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	pods := c.Client().CoreV1().Pods("default")
	made, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "kept"},
		Spec:       corev1.PodSpec{NodeName: "edge", Containers: []corev1.Container{{Name: "c", Image: "example.test/none:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	url := c.URL()
	for _, how := range []struct {
		name string
		end  func() error
	}{{"kill", c.Kill}, {"stop", c.Stop}, {"restart alone", func() error { return nil }}} {
		if err := how.end(); err != nil {
			t.Fatalf("%s: %v", how.name, err)
		}
		if err := c.Restart(ctx); err != nil {
			t.Fatalf("%s: %v", how.name, err)
		}
		if c.URL() != url {
			t.Errorf("%s: the cluster moved from %s to %s", how.name, url, c.URL())
		}
		// A client made earlier must find it again, as cloudcore's does.
		got, err := pods.Get(ctx, "kept", metav1.GetOptions{})
		if err != nil {
			t.Fatalf("%s: %v", how.name, err)
		}
		if got.UID != made.UID {
			t.Errorf("%s: pod default/kept has uid %s, want %s", how.name, got.UID, made.UID)
		}
	}
	config, err := c.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != url {
		t.Errorf("the kubeconfig leads to %s, the cluster is at %s", config.Host, url)
	}
}

func TestSilentNodeTurnsNotReadyAfterTheGracePeriod(t *testing.T) {
	ctx := bounded(t)
	entered := false
	c, err := Start(ctx, Options{Dir: t.TempDir(), GracePeriod: 4 * time.Second, Log: t.Output(), Enter: func(cmd *exec.Cmd) {
		// As `ip netns exec` does: another program first, which becomes the control plane.
		entered = true
		cmd.Args = append([]string{"env", cmd.Path}, cmd.Args[1:]...)
		if cmd.Path, cmd.Err = exec.LookPath("env"); cmd.Err != nil {
			t.Error(cmd.Err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	if !entered {
		t.Error("Enter was not called")
	}
	now := metav1.Now()
	nodes := c.Client().CoreV1().Nodes()
	_, err = nodes.Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "silent"},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now, Reason: "KubeletReady",
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		node, err := nodes.Get(ctx, "silent", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(node.Status.Conditions) > 0 && node.Status.Conditions[0].Status == corev1.ConditionUnknown {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("node silent has conditions %v, want Ready Unknown", node.Status.Conditions)
		}
	}
}

func TestStartSaysWhyTheControlPlaneEnded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Start(bounded(t), Options{Dir: t.TempDir(), Listen: l.Addr().String()})
	if err == nil {
		t.Fatal("it started on a port that is taken", c.Kill())
	}
	for _, word := range []string{l.Addr().String(), "taken"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestBinaryIsStaleWhenASourceIsNewer(t *testing.T) {
	room := t.TempDir()
	binary := filepath.Join(room, "_output", "controlplane")
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	stale := func() bool {
		t.Helper()
		is, err := isStale(binary, room)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	old, built, recent := time.Unix(1000, 0), time.Unix(2000, 0), time.Unix(3000, 0)
	write := func(name string, at time.Time) {
		t.Helper()
		path := filepath.Join(room, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write("main.go", old)
	if !stale() {
		t.Error("a missing binary is not stale")
	}
	write("_output/controlplane", built)
	write("main_test.go", recent)
	write("README.md", recent)
	if stale() {
		t.Error("the binary is stale though no source is newer")
	}
	write("go.mod", recent)
	if !stale() {
		t.Error("the binary is not stale though go.mod is newer")
	}
}
