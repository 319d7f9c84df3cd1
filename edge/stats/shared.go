package stats

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errHangs says that a measurement has not come to its end.
var errHangs = errors.New("what the node and its pods use cannot be measured: something hangs on the node, see its kernel's log (dmesg)")

// shared is a measurement that several may ask for: it is made once for all who wait for it, and kept for those who come
// a little later.
type shared[T any] struct {
	now  func() time.Time
	keep time.Duration
	most time.Duration // that one measurement may take
	read func(context.Context) T

	mu    sync.Mutex
	made  bool
	last  T
	at    time.Time // when last was complete
	going chan struct{}
}

// get returns what was measured within keep, or measures. It ends early only with ctx; a measurement under way goes on
// for the others.
func (s *shared[T]) get(ctx context.Context) (T, error) { return s.within(ctx, s.keep) }

// within is get with another measure of what is too old; 0 always measures.
func (s *shared[T]) within(ctx context.Context, age time.Duration) (T, error) {
	s.mu.Lock()
	if d := s.now().Sub(s.at); s.made && age > 0 && d >= 0 && d < age {
		defer s.mu.Unlock()
		return s.last, nil
	}
	if s.going == nil {
		s.going = make(chan struct{})
		go s.measure(s.going)
	}
	going := s.going
	s.mu.Unlock()
	var none T
	limit := time.NewTimer(s.most + time.Second)
	defer limit.Stop()
	select {
	case <-going:
	case <-limit.C: // not the runtime, which is called off before: a disk, perhaps
		return none, errHangs
	case <-ctx.Done():
		return none, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

func (s *shared[T]) measure(going chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), s.most)
	defer cancel()
	v := s.read(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.at, s.made, s.going = v, s.now(), true, nil
	close(going)
}
