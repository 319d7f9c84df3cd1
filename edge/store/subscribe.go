package store

import (
	"sync"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Change says that an object was stored or deleted; whoever is told reads the
// store for what is now there. The zero Change means: look at everything again
// (the hub's first complete word arrived, see SyncedOnce).
type Change struct {
	Kind                 wire.Kind
	Namespace, Name, UID string
	Deleted              bool
}

// Subscribe returns a channel of changes committed from now on. A slow reader
// loses nothing and holds nobody up: changes of one object coalesce to the
// latest. cancel closes the channel; so does Close.
func (s *Store) Subscribe(buf int) (<-chan Change, func()) {
	sub := &subscription{
		out:     make(chan Change, buf),
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[changeKey]Change),
	}
	s.subMu.Lock()
	s.subs[sub] = struct{}{}
	s.subMu.Unlock()
	go sub.run()
	return sub.out, func() {
		s.subMu.Lock()
		delete(s.subs, sub)
		s.subMu.Unlock()
		sub.stop()
	}
}

func (s *Store) notify(changes []Change) {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	for sub := range s.subs {
		sub.add(changes)
	}
}

func (s *Store) closeSubscriptions() {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	for sub := range s.subs {
		sub.stop()
	}
	clear(s.subs)
}

type changeKey struct {
	kind wire.Kind
	uid  string
}

// subscription hands changes to one reader; run owns out.
type subscription struct {
	out  chan Change
	wake chan struct{}
	done chan struct{}
	once sync.Once

	mu      sync.Mutex
	order   []changeKey
	pending map[changeKey]Change
}

func (s *subscription) add(changes []Change) {
	s.mu.Lock()
	for _, c := range changes {
		k := changeKey{c.Kind, c.UID}
		if _, waiting := s.pending[k]; !waiting {
			s.order = append(s.order, k)
		}
		s.pending[k] = c
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) next() (Change, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		s.order = nil
		return Change{}, false
	}
	k := s.order[0]
	s.order = s.order[1:]
	c := s.pending[k]
	delete(s.pending, k)
	return c, true
}

func (s *subscription) run() {
	defer close(s.out)
	for {
		c, ok := s.next()
		if !ok {
			select {
			case <-s.wake:
				continue
			case <-s.done:
				return
			}
		}
		select {
		case s.out <- c:
		case <-s.done:
			return
		}
	}
}

func (s *subscription) stop() { s.once.Do(func() { close(s.done) }) }
