package pod

import (
	"context"
	"slices"
	"sync"
)

// lanes bound how much is started at once. A container whose pod has its sandbox goes before a sandbox: a pod that
// has begun comes up, and its status travels while the next one starts. Left to the order of asking, the first
// container of a node that boots would wait for the last sandbox. Within each kind the order of asking holds.
type lanes struct {
	mu         sync.Mutex
	free       int
	containers []chan struct{} // who waits; closed when it is its turn
	sandboxes  []chan struct{}
}

func newLanes(n int) *lanes { return &lanes{free: n} }

// container waits for its turn to start a container.
func (l *lanes) container(ctx context.Context) error { return l.wait(ctx, &l.containers) }

// sandbox waits for its turn to start a sandbox.
func (l *lanes) sandbox(ctx context.Context) error { return l.wait(ctx, &l.sandboxes) }

func (l *lanes) wait(ctx context.Context, line *[]chan struct{}) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	if l.free > 0 {
		l.free--
		l.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	*line = append(*line, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	at := slices.Index(*line, turn)
	if at >= 0 {
		*line = slices.Delete(*line, at, at+1)
	}
	l.mu.Unlock()
	if at < 0 { // its turn came at the same moment
		l.leave()
	}
	return ctx.Err()
}

// leave gives the lane to who is next.
func (l *lanes) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range []*[]chan struct{}{&l.containers, &l.sandboxes} {
		if len(*line) > 0 {
			close((*line)[0])
			*line = slices.Delete(*line, 0, 1)
			return
		}
	}
	l.free++
}
