package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// with runs the command on a node with an input, and returns its outputs apart.
func with(s *scene.Scene, n *world.Node, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Ctx, scene.Patience)
	defer cancel()
	cmd := n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), args...)
	var out, beside bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &beside
	s.Must(cmd.Start())
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	var failed *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &failed) {
		s.Fatal(err)
	}
	return out.String(), beside.String(), cmd.ProcessState.ExitCode()
}

// TestANodeIsOperatedWhileTheCloudIsAway: what it holds and runs, its logs and a shell in
// its containers are to be had at the machine itself.
func TestANodeIsOperatedWhileTheCloudIsAway(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("local", world.NodeOptions{})
	s.Start("web", n, func(p *corev1.Pod) {
		main := &p.Spec.Containers[0]
		main.Command = scene.Shell(`trap 'exit 0' TERM; echo one; echo two; i=0; while :; do [ -e /tmp/go ] && { i=$((i+1)); echo "tick $i"; }; sleep 0.1; done`)
		side := *main
		side.Name, side.Command = "side", scene.Shell("echo beside; sleep 100000")
		p.Spec.Containers = append(p.Spec.Containers, side)
	})
	s.Must(n.Cut())
	at := func(args ...string) []string { return append([]string{args[0], "--run-dir", n.RunDir()}, args[1:]...) }
	line(s, n, "notices the cut", func(l localstatus.Line) bool { return !l.Connected && l.LastError != "" && l.Hub != "" })

	s.Crash(n, s.Running(n)["web/side"])
	s.RunsAgain(n, map[string]uint32{"web/main": 0, "web/side": 1})
	var status localstatus.Status
	s.Until("the status counts the restart", func(context.Context) (bool, error) {
		out, _, code := with(s, n, nil, at("status", "-o", "json")...)
		return code == 0 && json.Unmarshal([]byte(out), &status) == nil && len(status.Pods) == 1 && status.Pods[0].Restarts == 1 && status.Pods[0].Ready, nil
	})
	side := status.Pods[0].Containers[1]
	if side.Last == nil || side.Last.ExitCode != 137 || side.Image != world.BusyboxImage {
		t.Errorf("container %+v", side)
	}
	if status.Certificate.State != localstatus.CertificateValid || status.Certificate.Node != n.Name || status.Clock.Hub == nil || status.Clock.Behind ||
		status.Store.Kinds["pods"] != 1 || !status.Store.SyncedOnce || status.Waiting.Reports["podStatus"] != 1 || status.Disk.Free == 0 || !status.Runtime.Ready {
		t.Errorf("status %+v", status)
	}
	table, _, code := with(s, n, nil, at("status")...)
	for _, words := range []string{"cut for", "pod status 1", "valid until", "as the hub's", "web", "side: Error (137)", world.BusyboxImage} {
		if code != 0 || !strings.Contains(table, words) {
			t.Errorf("exit code %d, and the table does not say %q:\n%s", code, words, table)
		}
	}
	ps, _, _ := with(s, n, nil, at("ps")...)
	if id := s.Running(n)["web/main"].ID; strings.Count(ps, "\n") != 3 || !strings.Contains(ps, id[:13]) {
		t.Errorf("ps does not list container %s:\n%s", id, ps)
	}

	logs(s, n, at)
	execs(s, n, at)
	s.Must(n.Mend())
	s.NodeTurns(n, corev1.ConditionTrue)
}

func logs(s *scene.Scene, n *world.Node, at func(...string) []string) {
	s.Helper()
	out, beside, code := with(s, n, nil, at("logs", "web")...)
	if code != 0 || out != "one\ntwo\n" || !strings.Contains(beside, "name another with -c") {
		s.Errorf("logs: exit code %d, %q, beside it %q", code, out, beside)
	}
	if out, _, _ := with(s, n, nil, at("logs", s.NS+"/web", "-c", "main", "--tail", "1")...); out != "two\n" {
		s.Errorf("the last line is %q", out)
	}
	if out, beside, code := with(s, n, nil, at("logs", "web", "-c", "side", "-p")...); code != 0 || out != "beside\n" {
		s.Errorf("of the attempt before: exit code %d, %q, %q", code, out, beside)
	}
	follow := n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), at("logs", "web", "-c", "main", "-f", "--tail", "0")...)
	pipe, err := follow.StdoutPipe()
	s.Must(err)
	s.Must(follow.Start())
	if _, beside, code := with(s, n, nil, at("exec", "web", "-c", "main", "--", "touch", "/tmp/go")...); code != 0 {
		s.Errorf("exec touch: exit code %d, %s", code, beside)
	}
	first := make([]byte, len("tick 1\n"))
	_, err = io.ReadFull(pipe, first)
	s.Must(err)
	s.Must(follow.Process.Signal(syscall.SIGINT))
	_, _ = io.Copy(io.Discard, pipe)
	if err := follow.Wait(); err != nil || !strings.HasPrefix(string(first), "tick ") {
		s.Errorf("a followed log begins with %q and ends, interrupted, with %v", first, err)
	}
}

func execs(s *scene.Scene, n *world.Node, at func(...string) []string) {
	s.Helper()
	out, beside, code := with(s, n, strings.NewReader("some input"), at("exec", "web", "-c", "main", "-i", "--", "sh", "-c", "cat; echo oops >&2; exit 7")...)
	if code != 7 || out != "some input" || !strings.HasPrefix(beside, "oops\n") || !strings.Contains(beside, "exit code 7") {
		s.Errorf("exec: exit code %d, %q, beside it %q", code, out, beside)
	}
	// What went in comes out, and its end too.
	large := strings.Repeat("0123456789abcde\n", 1<<16)
	if out, beside, code := with(s, n, strings.NewReader(large), at("exec", "web", "-c", "main", "-i", "--", "cat")...); code != 0 || out != large {
		s.Errorf("1 MiB through cat: exit code %d, %d bytes, %s", code, len(out), beside)
	}
	if out, beside, code := with(s, n, nil, at("exec", "web", "-c", "main", "--", "no-such-command")...); code == 0 || !strings.Contains(beside, "no-such-command") {
		s.Errorf("a command that there is not: exit code %d, %q, %q", code, out, beside)
	}
	cmd := n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), at("exec", "web", "-c", "main", "-it", "--", "sh")...)
	shell := s.OnTerminal("holdfast exec -it", cmd, 24, 80)
	shell.Says("#")
	shell.Type("stty size\n")
	shell.Says("24 80")
	shell.Resize(50, 132)
	saysSize(s, shell, "50 132")
	shell.Type("exit 5\n")
	if code := shell.Wait(scene.Patience); code != 5 {
		s.Errorf("exit code %d, want the shell's 5", code)
	}
	_, beside, code = with(s, n, nil, at("exec", "nobody", "--", "true")...)
	if code != 1 || !strings.Contains(beside, "no pod nobody; it has "+s.NS+"/web") {
		s.Errorf("in a pod that there is not: exit code %d, %q", code, beside)
	}
}

// TestTheCloudTellsOfItsNodes: on the server, without kubectl.
func TestTheCloudTellsOfItsNodes(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("told", world.NodeOptions{JoinArgs: []string{"--transport", "quic"}})
	s.Start("web", n, nil)
	ask := func(args ...string) (string, int) {
		out, err := exec.CommandContext(s.Ctx, filepath.Join(s.World.Bin, "holdfast"), append([]string{"status", "--cloud", "--config", s.World.CloudConfig()}, args...)...).CombinedOutput()
		var failed *exec.ExitError
		if err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if failed != nil {
			return string(out), failed.ExitCode()
		}
		return string(out), 0
	}
	node := func(what string, cond func(fleet.Node) bool) {
		t.Helper()
		var last string
		err := world.Eventually(s.Ctx, scene.Patience, what, func(context.Context) (bool, error) {
			var f fleet.Fleet
			var code int
			if last, code = ask("-o", "json"); code != 0 || json.Unmarshal([]byte(last), &f) != nil {
				return false, nil
			}
			for _, one := range f.Nodes {
				if one.Name == n.Name {
					return cond(one), nil
				}
			}
			return false, nil
		})
		if err != nil {
			t.Fatalf("%v; the last answer:\n%s", err, last)
		}
	}
	node("the node is connected", func(d fleet.Node) bool {
		return d.Connected && d.Ready == "True" && d.Transport == "quic" && d.RTTMillis > 0 && d.BytesToday.Down > 0 && d.BytesToday.Up > 0 &&
			d.LastSeen != nil && d.Since != nil && d.Hub != "" && d.Version != "" && d.Pods == fleet.PodCount{Total: 1, Ready: 1}
	})
	if out, code := ask(); code != 0 || !strings.Contains(out, n.Name) || !strings.Contains(out, "OFFLINE-READY") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out, code := ask(n.Name); code != 0 || !strings.Contains(out, "web") || !strings.Contains(out, "EdgecoreReady") {
		t.Errorf("of one node: exit code %d:\n%s", code, out)
	}
	if out, code := ask("nobody"); code != 1 || !strings.Contains(out, "nobody") {
		t.Errorf("of a node that there is not: exit code %d:\n%s", code, out)
	}
	s.Must(n.Cut())
	node("the node is offline", func(d fleet.Node) bool { return !d.Connected && d.Ready == "Unknown" && d.Since != nil })
	if out, code := ask("--offline"); code != 0 || !strings.Contains(out, n.Name) || !strings.Contains(out, "offline ") {
		t.Errorf("what is offline: exit code %d:\n%s", code, out)
	}
}
