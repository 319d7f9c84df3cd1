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
	return stream(ctx, h, node, link.Conn.OpenStream)
}

// BeginStream does not wait until the node has taken the stream; reading does, and
// fails where the node takes none.
func (h *Hub) BeginStream(ctx context.Context, node string) (link.BegunStream, error) {
	return stream(ctx, h, node, link.Conn.BeginStream)
}

func stream[S link.Stream](ctx context.Context, h *Hub, node string, open func(link.Conn, context.Context) (S, error)) (none S, err error) {
	h.mu.Lock()
	s := h.sessions[node]
	h.mu.Unlock()
	if s == nil {
		return none, fmt.Errorf("open a stream to node %s: %w", node, ErrNotConnected)
	}
	opened, err := open(s.conn, ctx)
	if err != nil {
		return none, fmt.Errorf("open a stream to node %s: %w", node, err)
	}
	return opened, nil
}

// Holds says that a node has a session with this hub.
func (h *Hub) Holds(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[node] != nil
}
