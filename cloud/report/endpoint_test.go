package report

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func statusAt(port int32, addresses ...string) *corev1.NodeStatus {
	s := &corev1.NodeStatus{}
	s.DaemonEndpoints.KubeletEndpoint.Port = port
	for _, a := range addresses {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return s
}

// TestWhereANodeIsReachedIsTheHubsToSay: whatever the edge says of ports.
func TestWhereANodeIsReachedIsTheHubsToSay(t *testing.T) {
	const hub, own = "198.51.100.1", "192.0.2.7"
	here := func(string) (string, int32, bool) { return hub, 10400, true }
	unknown := func(string) (string, int32, bool) { return "", 0, false }
	for _, c := range []struct {
		name      string
		endpoint  func(string) (string, int32, bool)
		was, said *corev1.NodeStatus
		want      *corev1.NodeStatus
	}{
		{"a new node", here, statusAt(0), statusAt(0, own), statusAt(10400, hub, own)},
		{"an edge that says a port", here, statusAt(0), statusAt(22, own), statusAt(10400, hub, own)},
		{"it is known again", here, statusAt(10555, "198.51.100.2", own), statusAt(0, own), statusAt(10400, hub, own)},
		{"not known for now", unknown, statusAt(10400, hub, own), statusAt(0, own), statusAt(10400, hub, own)},
		{"not known yet, and the edge says a port", unknown, statusAt(0), statusAt(22, own), statusAt(0, own)},
		{"no tunnel", nil, statusAt(0, own), statusAt(0, own), statusAt(0, own)},
		{"no tunnel any more", nil, statusAt(10400, hub, own), statusAt(0, own), statusAt(0, own)},
		{"no tunnel, and somebody else's port", nil, statusAt(10350, own), statusAt(0, own), statusAt(10350, own)},
	} {
		w := &Writer{endpoint: c.endpoint}
		n := &corev1.Node{Status: *c.was}
		s := mergeNodeStatus(n, c.said, n.CreationTimestamp.Time)
		w.reachable("till-1", s, c.was, c.said.Addresses)
		if s.DaemonEndpoints != c.want.DaemonEndpoints || !slices.Equal(s.Addresses, c.want.Addresses) {
			t.Errorf("%s: %v port %d, want %v port %d", c.name, s.Addresses, s.DaemonEndpoints.KubeletEndpoint.Port, c.want.Addresses, c.want.DaemonEndpoints.KubeletEndpoint.Port)
		}
		if n.Status = *s; c.endpoint != nil {
			if needs, known := w.NeedsEndpoint(n); needs {
				t.Errorf("%s: it would be written again (known %v)", c.name, known)
			}
		}
	}
}
