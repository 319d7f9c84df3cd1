package tunnel

import (
	"net/netip"
	"sync"
	"time"
)

// directory is where the Nodes of the cluster say that they are reached. It costs a
// hub some hundred bytes a node.
type directory struct {
	mu  sync.Mutex
	all map[string]place
}

// place is where one node is reached.
type place struct {
	address netip.Addr
	port    int
	silent  time.Time // since when the cluster has given it up; zero: it has not
}

func (d *directory) of(node string) (place, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.all[node]
	return at, ok
}

func (d *directory) learn(node string, at place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all[node] = at
}

func (d *directory) forget(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, node)
}
