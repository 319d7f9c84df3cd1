package device

import (
	"cmp"
	"slices"
	"sync"

	"github.com/holdfast-edge/holdfast/edge/twin"
)

func compareKeys(a, b twin.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Listen returns a channel of everything that is committed from now on, in order,
// and a function that ends it and closes the channel. A slow listener loses nothing
// and holds nobody up: changes of one device that wait become one, from the first
// Before to the last After, and of no Source unless all have the same; of a device that
// has come and gone meanwhile it hears nothing.
func (m *Manager) Listen(buffer int) (<-chan Change, func()) {
	l := &listener{
		out: make(chan Change, buffer), wake: make(chan struct{}, 1), done: make(chan struct{}),
		waiting: make(map[twin.Key]Change),
	}
	m.mu.Lock()
	m.listeners[l] = struct{}{}
	m.mu.Unlock()
	go l.run()
	return l.out, sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.listeners, l)
		m.mu.Unlock()
		close(l.done)
	})
}

// listener hands changes to one reader; run owns out.
type listener struct {
	out  chan Change
	wake chan struct{}
	done chan struct{}

	mu      sync.Mutex
	order   []twin.Key
	waiting map[twin.Key]Change
}

func (l *listener) add(changes []Change) {
	l.mu.Lock()
	for _, c := range changes {
		key := c.Key()
		was, waits := l.waiting[key]
		if !waits {
			l.order = append(l.order, key)
		} else {
			if was.Source != c.Source {
				c.Source = nil
			}
			c.Before = was.Before
			if c.Before.Definition == nil && c.After.Definition == nil { // it has come and gone
				delete(l.waiting, key)
				l.order = slices.DeleteFunc(l.order, func(k twin.Key) bool { return k == key })
				continue
			}
		}
		l.waiting[key] = c
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *listener) next() (c Change, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		l.order = nil
		return c, false
	}
	key := l.order[0]
	l.order = l.order[1:]
	c = l.waiting[key]
	delete(l.waiting, key)
	return c, true
}

func (l *listener) run() {
	defer close(l.out)
	for {
		c, ok := l.next()
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-l.done:
				return
			}
		}
		select {
		case l.out <- c:
		case <-l.done:
			return
		}
	}
}
