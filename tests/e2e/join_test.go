package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestJoinRefusesWhatIsWrongAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("join-bad", world.NodeOptions{NoJoin: true})
	token, err := s.World.Token()
	s.Must(err)

	out, code := s.Holdfast(n, n.JoinArgs("aaaaaa.aaaaaaaaaaaaaaaa", s.World.CAHash())...)
	s.Refused(out, code, "aaaaaa", "holdfast token create")
	out, code = s.Holdfast(n, n.JoinArgs(token, "sha256:"+strings.Repeat("0", 64))...)
	s.Refused(out, code, s.World.CAHash(), "--ca-hash")
	short, err := s.World.Token("--ttl", "1s")
	s.Must(err)
	made := time.Now()
	s.Until("the short token has expired", func(context.Context) (bool, error) { return time.Since(made) > 2*time.Second, nil })
	out, code = s.Holdfast(n, n.JoinArgs(short, s.World.CAHash())...)
	s.Refused(out, code, strings.Split(short, ".")[0], "holdfast token create")
	if _, err := os.Stat(filepath.Join(n.DataDir(), "pki", "node.key")); err == nil {
		t.Error("a refused join left a private key behind")
	}

	// What is right goes through on the same machine, and twice does no harm.
	s.Must(n.Join(s.Ctx))
	uid := nodeUID(s, n.Name)
	s.Must(n.KillEdgecore())
	s.Must(n.Join(s.Ctx))
	s.Start("web", n, nil) // until then the Node is Ready by what was heard before
	if again := nodeUID(s, n.Name); again != uid {
		t.Errorf("joining again made the Node anew: UID %s, was %s", again, uid)
	}

	// A second machine with the name of a node that is at work.
	twin := s.Node("join-twin", world.NodeOptions{NoJoin: true})
	args := twin.JoinArgs(token, s.World.CAHash())
	for i, a := range args {
		if a == "--node-name" {
			args[i+1] = n.Name
		}
	}
	out, code = s.Holdfast(twin, args...)
	s.Refused(out, code, n.Name)
}

// nodeUID is the UID of the Node object.
func nodeUID(s *scene.Scene, name string) string {
	s.Helper()
	node, err := s.Client.CoreV1().Nodes().Get(s.Ctx, name, metav1.GetOptions{})
	s.Must(err)
	return string(node.UID)
}

func TestResetRemovesWhatJoinMade(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("reset", world.NodeOptions{})
	s.Start("web", n, nil)
	s.Must(n.StopEdgecore())
	out, code := s.Holdfast(n, "reset", "--force", "--data-dir", n.DataDir(), "--config", n.Config(), "--run-dir", n.RunDir(),
		"--pod-logs-dir", n.PodLogs(), "--container-runtime-endpoint", n.Containerd.Endpoint(), "--cni-conf-dir", n.Containerd.CNIConfDir())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	if got := s.Running(n); len(got) != 0 {
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
	s.Must(s.Client.CoreV1().Nodes().Delete(s.Ctx, n.Name, metav1.DeleteOptions{}))
	s.Until("the pods of the deleted node are gone", func(ctx context.Context) (bool, error) {
		_, err := s.Client.CoreV1().Pods(s.NS).Get(ctx, "web", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	s.Must(n.Join(s.Ctx))
	s.Start("web", n, nil)
}

func TestEdgecoreRefusesABadConfigAndSaysWhereItIs(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("config", world.NodeOptions{})
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]
	s.Must(n.KillEdgecore())
	good := scene.ReadFile(t, n.Config())
	s.Must(os.WriteFile(n.Config(), []byte(good+"\nnodeNmae: typo\n"), 0o600))
	cmd := exec.Command(filepath.Join(s.World.Bin, "edgecore"), "--config", n.Config())
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("edgecore started with an unknown key in its config")
	}
	s.Refused(string(out), cmd.ProcessState.ExitCode(), n.Config(), "nodeNmae", "nodeName")
	s.Must(os.WriteFile(n.Config(), []byte(good), 0o600))
	s.Must(n.StartEdgecore())
	s.Until("edgecore answers again", func(context.Context) (bool, error) {
		out, code := s.Holdfast(n, "status", "--run-dir", n.RunDir())
		return code == 0 && strings.Contains(out, "web"), nil
	})
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("the pod was rebuilt: container %s, was %s", after.ID, before.ID)
	}
	if p := s.Ready("web"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("restarts %d, want 0", p.Status.ContainerStatuses[0].RestartCount)
	}
}

func TestInitAgainKeepsEverythingAndPrintsANewJoinCommand(t *testing.T) {
	// Not in parallel: the cloud goes away for a moment.
	s := scene.New(t)
	n := s.Node("init-again", world.NodeOptions{})
	s.Start("web", n, nil)
	before, hash := s.Running(n)["web/main"], s.World.CAHash()
	s.Must(s.World.KillCloud())
	s.Must(s.World.StartCloud(s.Ctx))
	if got := s.World.CAHash(); got != hash {
		t.Errorf("the CA's hash is %s, was %s", got, hash)
	}
	s.NodeTurns(n, corev1.ConditionTrue)
	s.Start("next", n, nil)
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("the pod was rebuilt: container %s, was %s", after.ID, before.ID)
	}
}
