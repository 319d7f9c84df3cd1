package report

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// reachable makes a status lead to the node through this hub; own are the node's own
// addresses. While it is not known where that is, what was there stays, so that the
// node is not lost meanwhile. Where an edge says that it is reached counts for nothing.
func (w *Writer) reachable(node string, s, was *corev1.NodeStatus, own []corev1.NodeAddress) {
	if w.endpoint == nil {
		// The port of a hub that had a tunnel leads nowhere at the node's own address.
		if len(was.Addresses) > 0 && len(own) > 0 && !slices.Contains(own, was.Addresses[0]) && s.DaemonEndpoints == was.DaemonEndpoints {
			s.DaemonEndpoints = corev1.NodeDaemonEndpoints{}
		}
		return
	}
	address, port, ok := w.endpoint(node)
	switch {
	case ok:
		s.Addresses = reachedAt(address, own)
		s.DaemonEndpoints.KubeletEndpoint.Port = port
	case was.DaemonEndpoints.KubeletEndpoint.Port != 0:
		s.Addresses, s.DaemonEndpoints = was.Addresses, was.DaemonEndpoints
	default:
		s.DaemonEndpoints = corev1.NodeDaemonEndpoints{}
	}
}

// reachedAt are a node's addresses with that of the hub before its own. Names and
// external addresses are left out: an apiserver that prefers them, as it does names
// unless it is told otherwise, would be led past the hub.
func reachedAt(hub string, own []corev1.NodeAddress) []corev1.NodeAddress {
	out := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: hub}}
	for _, a := range own {
		if a.Type == corev1.NodeInternalIP && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ownAddresses are the node's own in what reachedAt made of them: before them there
// is the hub's, if the status leads to a hub.
func ownAddresses(s *corev1.NodeStatus) []corev1.NodeAddress {
	if s.DaemonEndpoints.KubeletEndpoint.Port != 0 && len(s.Addresses) > 0 {
		return s.Addresses[1:]
	}
	return s.Addresses
}

// NeedsEndpoint says whether a Node does not lead to this hub although it could; known
// is false while it cannot be said.
func (w *Writer) NeedsEndpoint(n *corev1.Node) (needs, known bool) {
	if w.endpoint == nil {
		return false, true
	}
	address, port, ok := w.endpoint(n.Name)
	if !ok {
		return false, false
	}
	return n.Status.DaemonEndpoints.KubeletEndpoint.Port != port || !slices.Equal(n.Status.Addresses, reachedAt(address, ownAddresses(&n.Status))), true
}
