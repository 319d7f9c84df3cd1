package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// tide asks where the cluster is, for many who want to know at the same time. A
// hub that starts again loads thousands of nodes, and a list that is not older
// than a given version costs the apiserver little, while a list that must be
// consistent in itself makes it ask its store each time.
type tide struct {
	from  source
	turn  chan struct{} // capacity 1: who has it asks
	total atomic.Int64  // how many objects there were when it was last asked

	mu      sync.Mutex
	waiting *flight // who asks next, nil for nobody
}

type flight struct {
	done      chan struct{}
	version   string
	empty     bool // there was no object at all
	err       error
	cancelled bool // by the one who asked, not by the apiserver
}

func newTide(from source) *tide { return &tide{from: from, turn: make(chan struct{}, 1)} }

// now returns a version of the cluster as of a moment after the call, and whether
// it had no object at all then.
func (t *tide) now(ctx context.Context) (version string, empty bool, err error) {
	for {
		f, first := t.join()
		if first {
			t.ask(ctx, f)
		}
		select {
		case <-f.done:
			if f.cancelled && ctx.Err() == nil {
				continue
			}
			return f.version, f.empty, f.err
		case <-ctx.Done():
			return "", false, context.Cause(ctx)
		}
	}
}

func (t *tide) join() (f *flight, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting, first = &flight{done: make(chan struct{})}, true
	}
	return t.waiting, first
}

// ask waits for its turn, lets nobody else join, and asks.
func (t *tide) ask(ctx context.Context, f *flight) {
	defer close(f.done)
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
	}
	t.mu.Lock()
	t.waiting = nil
	t.mu.Unlock()
	var total int64
	if f.version, total, f.empty, f.err = position(ctx, t.from); f.err == nil && total > 0 {
		t.total.Store(total)
	}
	f.cancelled = ctx.Err() != nil
}

// shelved is one kind of which whole nodes are kept.
type shelved[T any] struct {
	*shelf[T]
	cluster  *Cluster
	stream   *stream
	tide     *tide
	selector func(node string) string
	crowd    int // loads that wait before they may be done as one
	bulks    atomic.Uint64

	waitMu  sync.Mutex
	waiting map[*ask[T]]struct{}
	bulk    bool // a list for all that waited runs
}

// ask is a load that waits for its list.
type ask[T any] struct {
	node    string
	taken   bool          // by a list for many; under waitMu
	done    chan struct{} // closed when that has ended
	version string
	objects map[string]entry[T]
	err     error
}

// crowd is how many loads must wait, and which part of all nodes they must be,
// before one list of everything is cheaper than theirs.
const (
	crowd      = 128
	crowdShare = 8
	// gather is how long such a list waits for more who need it.
	gather = 200 * time.Millisecond
)

// load reads what there is of a node, if that is not known.
func (s *shelved[T]) load(ctx context.Context, node string) error {
	l, err := s.begin(node)
	if l == nil {
		return err
	}
	version, objects, err := s.list(ctx, node)
	if err != nil {
		s.abandon(l)
		return fmt.Errorf("list the %s of node %s: %w", s.kind, node, err)
	}
	if err := s.finish(node, l, version, objects); err != nil {
		return fmt.Errorf("take the %s of node %s: %w", s.kind, node, err)
	}
	s.cluster.loads.Add(1)
	return nil
}

// list waits for its turn and lists one node's objects. When too many wait, one
// of them lists for all.
func (s *shelved[T]) list(ctx context.Context, node string) (version string, objects map[string]entry[T], err error) {
	at, empty, err := s.tide.now(ctx)
	if err != nil {
		return "", nil, err
	}
	if older(at, s.position()) {
		// What was told before is not there any more.
		s.stream.again()
		return "", nil, errRestored
	}
	if empty {
		return at, make(map[string]entry[T]), nil
	}
	a := &ask[T]{node: node, done: make(chan struct{})}
	if s.join(a) {
		// More will come: the first of many are seldom alone.
		select {
		case <-time.After(gather):
		case <-ctx.Done():
		}
		s.listFor(ctx, s.take())
	}
	select {
	case s.cluster.acquired <- struct{}{}:
		if s.leave(a) {
			defer func() { <-s.cluster.acquired }()
			return s.listOne(ctx, node, at)
		}
		<-s.cluster.acquired // somebody lists for it already
	case <-a.done:
	case <-ctx.Done():
		s.leave(a)
		return "", nil, context.Cause(ctx)
	}
	select {
	case <-a.done:
		return a.version, a.objects, a.err
	case <-ctx.Done():
		return "", nil, context.Cause(ctx)
	}
}

// join makes a wait, and says whether it is one too many: then its caller must list
// for all who wait.
func (s *shelved[T]) join(a *ask[T]) (leads bool) {
	s.waitMu.Lock()
	defer s.waitMu.Unlock()
	s.waiting[a] = struct{}{}
	if s.bulk || len(s.waiting) < max(s.crowd, int(s.cluster.total()/crowdShare)) {
		return false
	}
	s.bulk = true
	return true
}

// take takes all who wait.
func (s *shelved[T]) take() (all map[*ask[T]]struct{}) {
	s.waitMu.Lock()
	defer s.waitMu.Unlock()
	all, s.waiting = s.waiting, make(map[*ask[T]]struct{})
	for a := range all {
		a.taken = true
	}
	return all
}

// leave ends a wait, unless somebody lists for it.
func (s *shelved[T]) leave(a *ask[T]) bool {
	s.waitMu.Lock()
	defer s.waitMu.Unlock()
	delete(s.waiting, a)
	return !a.taken
}

// listOne lists one node's objects, not older than at.
func (s *shelved[T]) listOne(ctx context.Context, node, at string) (version string, objects map[string]entry[T], err error) {
	s.cluster.reads.Add(1)
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	o := metav1.ListOptions{FieldSelector: s.selector(node), ResourceVersion: at, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}
	list, err := s.stream.source.ListWithContext(ctx, o)
	if err != nil && tooLarge(err) {
		// This apiserver's cache does not keep up: it must ask its store.
		o.ResourceVersion, o.ResourceVersionMatch = "", ""
		list, err = s.stream.source.ListWithContext(ctx, o)
	}
	if apierrors.IsBadRequest(err) {
		// A server that cannot select by this field: what is others' is not taken.
		o.FieldSelector = ""
		list, err = s.stream.source.ListWithContext(ctx, o)
	}
	if err != nil {
		return "", nil, err
	}
	if version, err = listVersion(list); err != nil {
		return "", nil, err
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return "", nil, err
	}
	objects, err = s.entries(node, items)
	return version, objects, err
}

// listFor lists everything once for all that wait, and keeps what is theirs.
func (s *shelved[T]) listFor(ctx context.Context, all map[*ask[T]]struct{}) {
	s.bulks.Add(1)
	ctx, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	byNode := make(map[string]map[string]entry[T], len(all))
	for a := range all {
		byNode[a.node] = make(map[string]entry[T])
	}
	var failed error
	at := make(map[string]string) // by key: the node, of what may move while the list is told
	version, w, err := s.stream.everything(ctx, func(obj runtime.Object, gone bool) {
		node, key, version := s.place(obj)
		if s.moves != nil {
			if was, ok := at[key]; ok && was != node {
				delete(byNode[was], key)
			}
			at[key] = node
		}
		objects := byNode[node]
		if objects == nil {
			return
		}
		if gone {
			delete(objects, key)
			return
		}
		kept, err := s.keep(obj, nil)
		failed = errors.Join(failed, err)
		objects[key] = entry[T]{kept, version}
	})
	if w != nil {
		w.Stop()
	}
	if err = errors.Join(err, failed); err != nil {
		s.cluster.log.Warn("one list for many nodes failed; each is listed again", "objects", s.kind, "nodes", len(all), "err", err)
	}
	s.waitMu.Lock()
	s.bulk = false
	s.waitMu.Unlock()
	for a := range all {
		a.version, a.objects, a.err = version, maps.Clone(byNode[a.node]), err
		close(a.done)
	}
}

// bulkTimeout bounds a list of everything for many nodes.
const bulkTimeout = 2 * time.Minute

// load makes sure that a followed node's pods and Node are known, and its devices,
// without which the rest is of use.
func (c *Cluster) load(ctx context.Context, node string) (devices, err error) {
	var pods, own error
	var all sync.WaitGroup
	all.Go(func() { pods = c.pods.load(ctx, node) })
	all.Go(func() { devices = c.loadDevices(ctx, node) })
	own = c.nodes.load(ctx, node)
	all.Wait()
	return devices, errors.Join(pods, own)
}
