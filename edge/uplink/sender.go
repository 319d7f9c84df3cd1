package uplink

import (
	"context"
	"sync"
)

// sender is the queue between a conversation and its line, so that reading never
// waits for writing. What stands in it is bounded by the protocol: one window of
// reports, one acknowledgement for each batch the hub has under way, one
// inventory.
type sender struct {
	mu     sync.Mutex
	queue  [][]byte
	wake   chan struct{}
	failed chan error
}

func newSender() *sender {
	return &sender{wake: make(chan struct{}, 1), failed: make(chan error, 1)}
}

func (s *sender) put(b []byte) {
	s.mu.Lock()
	s.queue = append(s.queue, b)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sender) take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// writeAll sends what is put until the first error or the end of ctx.
func (c *conversation) writeAll(ctx context.Context) {
	for {
		for _, b := range c.out.take() {
			if err := c.conn.Send(ctx, b); err != nil {
				c.out.failed <- err
				return
			}
		}
		select {
		case <-c.out.wake:
		case <-ctx.Done():
			return
		}
	}
}
