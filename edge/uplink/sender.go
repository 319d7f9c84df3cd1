package uplink

import (
	"context"
	"sync"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// sender is the queue between a conversation and its line, so that reading never
// waits for writing. What stands in it is bounded by the protocol: one window of
// reports, one acknowledgement for each batch the hub has under way, one
// inventory.
type sender struct {
	mu     sync.Mutex
	queue  []outgoing
	wake   chan struct{}
	failed chan error
}

// outgoing is a message and what it is on the line.
type outgoing struct {
	message *wire.EdgeMessage
	encoded []byte
}

func newSender() *sender {
	return &sender{wake: make(chan struct{}, 1), failed: make(chan error, 1)}
}

func (s *sender) put(o outgoing) {
	s.mu.Lock()
	s.queue = append(s.queue, o)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sender) take() []outgoing {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// writeAll sends what is put until the first error or the end of ctx.
func (c *conversation) writeAll(ctx context.Context) {
	for {
		for _, o := range c.out.take() {
			if err := c.conn.Send(ctx, o.encoded); err != nil {
				c.out.failed <- err
				return
			}
			c.u.count.meter.Sent(o.message, len(o.encoded))
		}
		select {
		case <-c.out.wake:
		case <-ctx.Done():
			return
		}
	}
}
