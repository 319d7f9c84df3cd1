package e2e

import (
	"context"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// line waits until what `holdfast status` says of the line fulfils cond.
func line(s *scene.Scene, n *world.Node, what string, cond func(localstatus.Line) bool) {
	s.Helper()
	var last localstatus.Line
	err := world.Eventually(s.Ctx, scene.Patience, "node "+n.Name+": "+what, func(context.Context) (bool, error) {
		out, code := s.Holdfast(n, "status", "--run-dir", n.RunDir(), "-o", "json")
		var status localstatus.Status
		if code != 0 || json.Unmarshal([]byte(out), &status) != nil {
			return false, nil
		}
		last = status.Line
		return cond(last), nil
	})
	if err != nil {
		s.Fatalf("%v; the line: %+v", err, last)
	}
}

// TestQUICCarriesANode: all that websocket does, a node on QUIC does, too.
func TestQUICCarriesANode(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("quic", world.NodeOptions{JoinArgs: []string{"--transport", "quic"}})
	line(s, n, "connected over QUIC", func(l localstatus.Line) bool { return l.Connected && l.Transport == "quic" })
	s.Start("web", n, nil)

	s.Must(n.Cut())
	line(s, n, "notices the cut", func(l localstatus.Line) bool { return !l.Connected })
	s.Must(n.PowerCut())
	s.Must(n.Boot(s.Ctx))
	s.RunsAgain(n, map[string]uint32{"web/main": 1})
	s.Must(n.Mend())
	s.ReadyAfter("web", 1)
	s.Delete("web")
	s.Gone("web")
}

// TestAutoUsesWebsocketWhereUDPIsBlocked: no line would be the only other outcome.
func TestAutoUsesWebsocketWhereUDPIsBlocked(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("auto", world.NodeOptions{NoJoin: true})
	block := n.Netns.Command("iptables", "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
	if out, err := block.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Must(n.Join(s.Ctx, "--transport", "auto"))
	line(s, n, "connected over websocket", func(l localstatus.Line) bool { return l.Connected && l.Transport == "websocket" })
	s.Start("web", n, nil)

	// Without the firewall auto is QUIC, from edgecore's next start at the latest.
	s.Must(n.StopEdgecore())
	allow := n.Netns.Command("iptables", "-F", "OUTPUT")
	if out, err := allow.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Must(n.StartEdgecore())
	line(s, n, "connected over QUIC", func(l localstatus.Line) bool { return l.Connected && l.Transport == "quic" })
	s.ReadyAfter("web", 0)
}

// TestANodeMovesToAnotherHub: kill -9 of the hub that serves a node costs the node
// nothing but the way: no pod restarts, nothing is lost, and what the cloud wants
// arrives by the other hub.
func TestANodeMovesToAnotherHub(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	doomed, err := s.World.AddHub(s.Ctx)
	s.Must(err)
	both := []string{doomed.Address, s.World.Hub()}
	nodes := []*world.Node{
		s.Node("moving-ws", world.NodeOptions{Hubs: both}),
		s.Node("moving-quic", world.NodeOptions{Hubs: both, JoinArgs: []string{"--transport", "quic"}}),
	}
	before := make([]map[string]world.Running, len(nodes))
	for i, n := range nodes {
		line(s, n, "connected to the first of its hubs", func(l localstatus.Line) bool { return l.Connected && l.Hub == doomed.Address })
		s.Start("stays-"+n.Name, n, nil)
		before[i] = s.Running(n)
	}

	s.Must(doomed.Kill())
	for i, n := range nodes {
		line(s, n, "connected to the other hub", func(l localstatus.Line) bool { return l.Connected && l.Hub == s.World.Hub() })
		s.Start("new-"+n.Name, n, nil)
		name := "stays-" + n.Name + "/main"
		if now := s.Running(n)[name]; now.ID != before[i][name].ID {
			t.Errorf("container %s is %q, was %q: moving to another hub restarted it", name, now.ID, before[i][name].ID)
		}
		if p := s.Ready("stays-" + n.Name); p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, p.Status.ContainerStatuses[0].RestartCount)
		}
		s.NodeTurns(n, corev1.ConditionTrue)
	}

	// The hub that comes back gets the nodes that know no other.
	s.Must(doomed.Start(s.Ctx))
	late := s.Node("moving-late", world.NodeOptions{Hubs: []string{doomed.Address}})
	s.Start("late", late, nil)
}
