package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// TestJoinGivesPodsANetworkWhereThereIsNone: on a machine with containerd, the
// plugins and no configuration, join writes a bridge that real pods run on, also
// after a reboot, and reset takes it away.
func TestJoinGivesPodsANetworkWhereThereIsNone(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("bare", world.NodeOptions{NoJoin: true})
	files, err := filepath.Glob(filepath.Join(n.Containerd.CNIConfDir(), "*"))
	s.Must(err)
	for _, file := range files {
		s.Must(os.Remove(file))
	}
	s.Must(n.Join(s.Ctx))
	conf := filepath.Join(n.Containerd.CNIConfDir(), "10-holdfast.conflist")
	if _, err := os.Stat(conf); err != nil {
		t.Fatalf("join wrote no network:\n%s", n.JoinOutput())
	}
	if !strings.Contains(n.JoinOutput(), conf) {
		t.Errorf("join does not say that it wrote %s:\n%s", conf, n.JoinOutput())
	}
	s.Start("web", n, func(p *corev1.Pod) {})
	inRange(t, s.Ready("web"))

	// A reboot ends the pod's network and its lease; the pod gets both anew.
	s.Must(n.PowerCut())
	s.Must(n.Boot(s.Ctx))
	inRange(t, s.ReadyAfter("web", 1))

	s.Must(n.StopEdgecore())
	out, code := s.Holdfast(n, "reset", "--force", "--data-dir", n.DataDir())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	if _, err := os.Stat(conf); !os.IsNotExist(err) {
		t.Errorf("reset leaves %s", conf)
	}
	if out, err := n.Netns.Command("ip", "link", "show", "holdfast0").CombinedOutput(); err == nil {
		t.Errorf("reset leaves the bridge: %s", out)
	}
}

func inRange(t *testing.T, p *corev1.Pod) {
	t.Helper()
	ip, err := netip.ParseAddr(p.Status.PodIP)
	if err != nil || !netip.MustParsePrefix("10.88.0.0/16").Contains(ip) {
		t.Errorf("pod %s has the address %q, want one of 10.88.0.0/16", p.Name, p.Status.PodIP)
	}
}
