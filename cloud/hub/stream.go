package hub

import (
	"context"
	"fmt"

	"github.com/holdfast-edge/holdfast/common/link"
)

// OpenStream opens a stream to a node beside its messages. It fails with
// ErrNotConnected where the node has no session with this hub, with
// link.ErrNoStream where the node takes none (any more), and with ctx's error
// where the node does not answer.
func (h *Hub) OpenStream(ctx context.Context, node string) (link.Stream, error) {
	h.mu.Lock()
	s := h.sessions[node]
	h.mu.Unlock()
	if s == nil {
		return nil, fmt.Errorf("open a stream to node %s: %w", node, ErrNotConnected)
	}
	stream, err := s.conn.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a stream to node %s: %w", node, err)
	}
	return stream, nil
}

// Holds says that a node has a session with this hub.
func (h *Hub) Holds(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[node] != nil
}
