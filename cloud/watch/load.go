package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// tide asks where the cluster is, for many who want to know at the same time. A
// hub that starts again loads thousands of nodes, and a list that is not older
// than a given version costs the apiserver little, while a list that must be
// consistent in itself makes it ask its store each time.
type tide struct {
	from source
	turn chan struct{} // capacity 1: who has it asks

	mu      sync.Mutex
	waiting *flight // who asks next, nil for nobody
}

type flight struct {
	done      chan struct{}
	version   string
	err       error
	cancelled bool // by the one who asked, not by the apiserver
}

func newTide(from source) *tide { return &tide{from: from, turn: make(chan struct{}, 1)} }

// now returns a version of the cluster as of a moment after the call.
func (t *tide) now(ctx context.Context) (string, error) {
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
			return f.version, f.err
		case <-ctx.Done():
			return "", context.Cause(ctx)
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
	f.version, f.err = position(ctx, t.from)
	f.cancelled = ctx.Err() != nil
}

// shelved is one kind of which whole nodes are kept.
type shelved[T any] struct {
	*shelf[T]
	cluster  *Cluster
	stream   *stream
	tide     *tide
	selector func(node string) string
}

// load reads what there is of a node, if that is not known.
func (s *shelved[T]) load(ctx context.Context, node string) error {
	l, err := s.begin(node)
	if l == nil {
		return err
	}
	version, items, err := s.list(ctx, node)
	if err != nil {
		s.abandon(l)
		return fmt.Errorf("list the %s of node %s: %w", s.kind, node, err)
	}
	if err := s.finish(node, l, version, items); err != nil {
		return fmt.Errorf("take the %s of node %s: %w", s.kind, node, err)
	}
	s.cluster.loads.Add(1)
	return nil
}

func (s *shelved[T]) list(ctx context.Context, node string) (version string, items []runtime.Object, err error) {
	at, err := s.tide.now(ctx)
	if err != nil {
		return "", nil, err
	}
	if older(at, s.position()) {
		// What was told before is not there any more.
		s.stream.again()
		return "", nil, errRestored
	}
	release, err := s.cluster.acquire(ctx)
	if err != nil {
		return "", nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	o := metav1.ListOptions{FieldSelector: s.selector(node), ResourceVersion: at, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}
	list, err := s.stream.source.ListWithContext(ctx, o)
	if err != nil && tooLarge(err) {
		// This apiserver's cache does not keep up: it must ask its store.
		o.ResourceVersion, o.ResourceVersionMatch = "", ""
		list, err = s.stream.source.ListWithContext(ctx, o)
	}
	if err != nil {
		return "", nil, err
	}
	if version, err = listVersion(list); err != nil {
		return "", nil, err
	}
	items, err = meta.ExtractList(list)
	return version, items, err
}

// load makes sure that a followed node's pods and Node are known.
func (c *Cluster) load(ctx context.Context, node string) error {
	var pods, own error
	var both sync.WaitGroup
	both.Go(func() { pods = c.pods.load(ctx, node) })
	own = c.nodes.load(ctx, node)
	both.Wait()
	return errors.Join(pods, own)
}
