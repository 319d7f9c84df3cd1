package tunnel

import (
	"context"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// Bounds of the reading of all Nodes.
const (
	pageSize  = 500
	listWait  = time.Second
	listAgain = time.Hour
	listLimit = 30 * time.Second // of one page
)

// list reads which edge nodes there are: what follows the cluster tells of changes
// alone, and not of deletions that fell into a break. What a change has told meanwhile
// is newer.
func (t *Tunnel) list(ctx context.Context) {
	if t.o.WaitSynced(ctx) != nil {
		return
	}
	for told := false; ; {
		wait := listAgain
		if err := t.listAll(ctx); err == nil {
			t.known.Store(true)
		} else if !t.known.Load() {
			wait = listWait
			if !told && ctx.Err() == nil {
				t.o.Log.Warn("the nodes cannot be listed yet: they get their ports when that is done", "err", err)
			}
			told = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (t *Tunnel) listAll(ctx context.Context) error {
	o := metav1.ListOptions{LabelSelector: roster.LabelEdge, Limit: pageSize}
	began, there := t.nodes.now(), make(map[string]bool)
	for {
		page, err := func() (*corev1.NodeList, error) {
			ctx, cancel := context.WithTimeout(ctx, listLimit)
			defer cancel()
			return t.o.Client.CoreV1().Nodes().List(ctx, o)
		}()
		if err != nil {
			return err
		}
		for i := range page.Items {
			there[page.Items[i].Name] = true
			at := placeOf(&page.Items[i])
			if t.nodes.learnFirst(page.Items[i].Name, at) {
				t.settle(page.Items[i].Name, at)
			}
		}
		if o.Continue = page.Continue; o.Continue == "" {
			for _, node := range t.nodes.forgetOthers(there, began) {
				if !t.o.Holds(node) { // else it registers again, or its Node has lost the label
					t.ports.release(node)
				}
			}
			return nil
		}
	}
}

// directory is where the Nodes of the cluster say that they are reached. It costs a
// hub some hundred bytes a node.
type directory struct {
	address netip.Addr // of this hub

	mu     sync.Mutex
	all    map[string]place
	told   uint64         // how often something was learned
	claims map[int]string // by port of address: whose Node names it, opened here or not
}

// place is where one node is reached.
type place struct {
	address netip.Addr
	port    int
	silent  time.Time // since when the cluster has given it up; zero: it has not
	told    uint64    // the directory's when this was learned
}

func (d *directory) of(node string) (place, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.all[node]
	return at, ok
}

// learnFirst is learn, unless the node is known; it says whether it was not.
func (d *directory) learnFirst(node string, at place) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.all[node]; ok {
		return false
	}
	d.set(node, at)
	return true
}

func (d *directory) learn(node string, at place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set(node, at)
}

// set is called with mu held. Of two Nodes that name one port the first has it.
func (d *directory) set(node string, at place) {
	d.unclaim(node)
	d.told++
	at.told = d.told
	d.all[node] = at
	if at.port != 0 && at.address == d.address && d.claims[at.port] == "" {
		d.claims[at.port] = node
	}
}

func (d *directory) unclaim(node string) {
	if was, ok := d.all[node]; ok && was.address == d.address && d.claims[was.port] == node {
		delete(d.claims, was.port)
	}
}

// claimed says that a port is where another Node leads. Whoever asks for that one
// would meet this one.
func (d *directory) claimed(node string, port int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	owner := d.claims[port]
	return owner != "" && owner != node
}

func (d *directory) forget(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unclaim(node)
	delete(d.all, node)
}

// now is for forgetOthers.
func (d *directory) now() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// forgetOthers forgets the nodes that are not there and of which nothing was learned
// since then, and returns them.
func (d *directory) forgetOthers(there map[string]bool, since uint64) (gone []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for node, at := range d.all {
		if !there[node] && at.told <= since {
			d.unclaim(node)
			delete(d.all, node)
			gone = append(gone, node)
		}
	}
	return gone
}
