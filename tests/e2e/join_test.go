package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// holdfast runs the command on a node and returns what it printed and its exit code.
func (s *scene) holdfast(n *world.Node, args ...string) (string, int) {
	s.Helper()
	cmd := n.Netns.Command(filepath.Join(s.world.Bin, "holdfast"), args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		s.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// refused checks that a command failed with exit code 1 and said every one of words.
func (s *scene) refused(out string, code int, words ...string) {
	s.Helper()
	if code != 1 {
		s.Errorf("exit code %d, want 1", code)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			s.Errorf("the message does not say %q:\n%s", w, out)
		}
	}
}

func TestJoinRefusesWhatIsWrongAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("join-bad", world.NodeOptions{NoJoin: true})
	token, err := s.world.Token()
	s.must(err)

	out, code := s.holdfast(n, n.JoinArgs("aaaaaa.aaaaaaaaaaaaaaaa", s.world.CAHash())...)
	s.refused(out, code, "aaaaaa", "holdfast token create")
	out, code = s.holdfast(n, n.JoinArgs(token, "sha256:"+strings.Repeat("0", 64))...)
	s.refused(out, code, s.world.CAHash(), "--ca-hash")
	short, err := s.world.Token("--ttl", "1s")
	s.must(err)
	s.until("the short token expires", func(context.Context) (bool, error) {
		out, code = s.holdfast(n, n.JoinArgs(short, s.world.CAHash())...)
		return code != 0, nil
	})
	s.refused(out, code, strings.Split(short, ".")[0], "holdfast token create")
	if _, err := os.Stat(filepath.Join(n.DataDir(), "pki", "node.key")); err == nil {
		t.Error("a refused join left a private key behind")
	}

	// What is right goes through on the same machine, and twice does no harm.
	s.must(n.Join(s.ctx))
	uid := s.nodeUID(n.Name)
	s.must(n.KillEdgecore())
	s.must(n.Join(s.ctx))
	if again := s.nodeUID(n.Name); again != uid {
		t.Errorf("joining again made the Node anew: UID %s, was %s", again, uid)
	}

	// A second machine with the name of a node that is at work.
	twin := s.node("join-twin", world.NodeOptions{NoJoin: true})
	args := twin.JoinArgs(token, s.world.CAHash())
	for i, a := range args {
		if a == "--node-name" {
			args[i+1] = n.Name
		}
	}
	out, code = s.holdfast(twin, args...)
	s.refused(out, code, n.Name)
}

func (s *scene) nodeUID(name string) string {
	s.Helper()
	node, err := s.client.CoreV1().Nodes().Get(s.ctx, name, metav1.GetOptions{})
	s.must(err)
	return string(node.UID)
}

func TestResetRemovesWhatJoinMade(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("reset", world.NodeOptions{})
	s.run("web", n, nil)
	s.must(n.StopEdgecore())
	out, code := s.holdfast(n, "reset", "--force", "--data-dir", n.DataDir(), "--config", n.Config(), "--run-dir", n.RunDir(),
		"--pod-logs-dir", n.PodLogs(), "--container-runtime-endpoint", n.Containerd.Endpoint(), "--cni-conf-dir", n.Containerd.CNIConfDir())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	if got := s.running(n); len(got) != 0 {
		t.Errorf("containers still run: %v", got)
	}
	for _, path := range []string{n.Config(), filepath.Join(n.DataDir(), "store.db"), filepath.Join(n.DataDir(), "pki", "node.key")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
	if !strings.Contains(out, "kubectl delete node "+n.Name) {
		t.Errorf("reset does not say what it leaves in the cloud:\n%s", out)
	}
	// The machine can join again as if new.
	s.must(s.client.CoreV1().Nodes().Delete(s.ctx, n.Name, metav1.DeleteOptions{}))
	s.until("the pods of the deleted node are gone", func(ctx context.Context) (bool, error) {
		_, err := s.client.CoreV1().Pods(s.ns).Get(ctx, "web", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	s.must(n.Join(s.ctx))
	s.run("web", n, nil)
}

func TestEdgecoreRefusesABadConfigAndSaysWhereItIs(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	n := s.node("config", world.NodeOptions{})
	s.run("web", n, nil)
	before := s.running(n)["web/main"]
	s.must(n.KillEdgecore())
	good := readFile(t, n.Config())
	s.must(os.WriteFile(n.Config(), []byte(good+"\nnodeNmae: typo\n"), 0o600))
	cmd := exec.Command(filepath.Join(s.world.Bin, "edgecore"), "--config", n.Config())
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("edgecore started with an unknown key in its config")
	}
	s.refused(string(out), cmd.ProcessState.ExitCode(), n.Config(), "nodeNmae", "nodeName")
	s.must(os.WriteFile(n.Config(), []byte(good), 0o600))
	s.must(n.StartEdgecore())
	s.until("edgecore answers again", func(context.Context) (bool, error) {
		out, code := s.holdfast(n, "status", "--run-dir", n.RunDir())
		return code == 0 && strings.Contains(out, "web"), nil
	})
	if after := s.running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("the pod was rebuilt: container %s, was %s", after.ID, before.ID)
	}
	if p := s.ready("web"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("restarts %d, want 0", p.Status.ContainerStatuses[0].RestartCount)
	}
}

func TestInitAgainKeepsEverythingAndPrintsANewJoinCommand(t *testing.T) {
	// Not in parallel: the cloud goes away for a moment.
	s := newScene(t)
	n := s.node("init-again", world.NodeOptions{})
	s.run("web", n, nil)
	before, hash := s.running(n)["web/main"], s.world.CAHash()
	s.must(s.world.KillCloud())
	s.must(s.world.StartCloud(s.ctx))
	if got := s.world.CAHash(); got != hash {
		t.Errorf("the CA's hash is %s, was %s", got, hash)
	}
	s.nodeTurns(n, corev1.ConditionTrue)
	s.run("next", n, nil)
	if after := s.running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("the pod was rebuilt: container %s, was %s", after.ID, before.ID)
	}
}
