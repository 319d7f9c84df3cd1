package watch

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
)

// shelf keeps the objects of one kind that belong to followed nodes, and drops
// all others as they come by. It has no clock and does no I/O: a stream tells it
// changes, loads tell it what a node's list said, in any order of the two.
//
// Three rules keep it right. A load's list is read after the load began, and is
// not older than that, so that what came by before is in it. While it runs,
// changes are remembered, and those that are newer than the list come on top.
// From then on, changes that are not newer than the list are old news.
type shelf[T any] struct {
	kind string
	// place says whose an object is and under which key, "" for nobody's.
	place func(obj runtime.Object) (node, key, version string)
	// keep makes of an object what the shelf keeps; was is what it keeps of the
	// object already, if anything.
	keep func(obj runtime.Object, was *T) (*T, error)
	// changed hears of a node whose objects may have changed.
	changed func(node string)
	// failed hears of an object that cannot be kept.
	failed func(node, key string, err error)
	// quiet says that the difference concerns no follower; nil: each does.
	quiet func(was, now *T) bool
	moves *moves // nil: objects stay where they are

	mu    sync.Mutex
	nodes map[string]*lot[T]
	at    string // the stream has told everything up to here
	floor string // and everything after this; "" before it has started
	none  bool   // the cluster has no objects of this kind, and cannot have any
}

// lot is one node's part of a shelf.
type lot[T any] struct {
	since   string // where the stream was when the node began to be followed
	known   bool
	version string // of the list that it came from
	objects map[string]entry[T]
	loads   int                 // that run
	missed  map[string]entry[T] // what came by while they run; nil kept: gone
	relist  map[string]entry[T] // what a list of everything has told so far; nil: begun before the node was followed
}

type entry[T any] struct {
	kept    *T
	version string
}

var (
	errNotFollowed = errors.New("nobody follows the node any more")
	errStale       = errors.New("the list is older than what is known already")
	errNotYet      = errors.New("not followed yet")
)

// follow begins to keep a node's objects; nothing is known of them yet.
func (s *shelf[T]) follow(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[node] = &lot[T]{since: s.at}
}

// drop forgets a node.
func (s *shelf[T]) drop(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.nodes[node]; p != nil {
		s.forget(node, p)
	}
	delete(s.nodes, node)
}

// get returns what is known of a node; ok is false for unknown, which is not empty.
func (s *shelf[T]) get(node string) (kept []*T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.nodes[node]
	if p == nil || !p.known && !s.none {
		return nil, false
	}
	if s.none {
		return nil, true
	}
	kept = make([]*T, 0, len(p.objects))
	for _, e := range p.objects {
		kept = append(kept, e.kept)
	}
	return kept, true
}

// size is how many nodes are followed, how many of them are known, and how many
// objects are kept.
func (s *shelf[T]) size() (nodes, known, objects int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.nodes {
		if p.known {
			known++
		}
		objects += len(p.objects)
	}
	return len(s.nodes), known, objects
}

// begin starts a load of a node, nil when everything is known. The list must be
// read after begin has returned, and not from a cache that lags. finish or
// abandon ends it.
func (s *shelf[T]) begin(node string) (*lot[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.nodes[node]
	switch {
	case p == nil:
		return nil, errNotFollowed
	case p.known || s.none:
		return nil, nil
	case s.floor == "":
		return nil, fmt.Errorf("the cluster's %s are %w", s.kind, errNotYet)
	}
	if p.loads == 0 {
		p.missed = make(map[string]entry[T])
	}
	p.loads++
	s.moves.begun()
	return p, nil
}

func (s *shelf[T]) abandon(p *lot[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(p)
}

func (s *shelf[T]) end(p *lot[T]) {
	if p.loads--; p.loads == 0 {
		p.missed = nil
	}
	s.moves.ended()
}

// entries makes what is kept of a node out of a list.
func (s *shelf[T]) entries(node string, items []runtime.Object) (map[string]entry[T], error) {
	objects := make(map[string]entry[T], len(items))
	for _, obj := range items {
		of, key, version := s.place(obj)
		if of != node {
			continue
		}
		kept, err := s.keep(obj, nil)
		if err != nil {
			return nil, fmt.Errorf("keep %s %s: %w", s.kind, key, err)
		}
		objects[key] = entry[T]{kept, version}
	}
	return objects, nil
}

// finish takes what a load's list said, as of version, and the map with it. An
// error means that nothing has changed, and that the node is to be loaded again.
func (s *shelf[T]) finish(node string, p *lot[T], version string, objects map[string]entry[T]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.end(p)
	switch {
	case s.nodes[node] != p:
		return errNotFollowed
	case p.known:
		return nil // another load, or a list of everything, was faster
	case older(version, s.floor), older(version, p.since):
		return errStale
	}
	for key, m := range p.missed {
		cmp, ok := order(m.version, version)
		switch {
		case !ok:
			return fmt.Errorf("%w: versions %q and %q have no order", errStale, m.version, version)
		case cmp <= 0:
		case m.kept == nil:
			delete(objects, key)
		default:
			objects[key] = m
		}
	}
	if err := s.moved(node, version, objects); err != nil {
		return err
	}
	s.hold(node, p, version, objects)
	return nil
}

// started begins, maybe anew: then what was known counts no more.
func (s *shelf[T]) started(version string) {
	s.mu.Lock()
	s.at, s.floor, s.none = version, version, false
	for node, p := range s.nodes {
		s.forget(node, p)
		p.since = version
	}
	s.mu.Unlock()
	s.tellAll()
}

// absent says that the cluster has no such kind of object.
func (s *shelf[T]) absent() {
	s.mu.Lock()
	was := s.none
	s.at, s.floor, s.none = "", "", true
	for node, p := range s.nodes {
		s.forget(node, p)
		p.relist = nil
	}
	s.mu.Unlock()
	if !was {
		s.tellAll()
	}
}

func (s *shelf[T]) tellAll() {
	s.mu.Lock()
	nodes := slices.Collect(maps.Keys(s.nodes))
	s.mu.Unlock()
	for _, node := range nodes {
		s.changed(node)
	}
}

// one returns what is kept of one object, or nil.
func (s *shelf[T]) one(node, key string) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.nodes[node]; p != nil {
		return p.objects[key].kept
	}
	return nil
}

// amend puts what f makes of a kept object in its place, until the stream tells of
// it again. f may return nil to leave it.
func (s *shelf[T]) amend(node, key string, f func(was *T) *T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.nodes[node]
	if p == nil || p.objects[key].kept == nil {
		return
	}
	if now := f(p.objects[key].kept); now != nil {
		p.objects[key] = entry[T]{now, p.objects[key].version}
	}
}

// each calls f for all objects of the known nodes. f must not call the shelf.
func (s *shelf[T]) each(f func(node string, kept *T)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, p := range s.nodes {
		for _, e := range p.objects {
			f(node, e.kept)
		}
	}
}

func (s *shelf[T]) reached(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = version
}

// position is how far the stream is.
func (s *shelf[T]) position() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// event takes one change. The object is made into what is kept outside of the
// lock; nobody but the stream's goroutine comes here meanwhile.
func (s *shelf[T]) event(obj runtime.Object, gone bool) {
	node, key, version := s.place(obj)
	s.mu.Lock()
	s.at = version
	left := s.leave(node, key, version)
	p := s.nodes[node]
	var was *T
	if p != nil {
		was = p.objects[key].kept
	}
	idle := p == nil || !p.known && p.loads == 0
	s.mu.Unlock()
	for _, other := range left {
		s.changed(other)
	}
	if idle {
		return
	}
	e := entry[T]{version: version}
	if !gone {
		var err error
		if e.kept, err = s.keep(obj, was); err != nil {
			s.failed(node, key, err)
			return
		}
	}
	if s.apply(node, p, key, e) && (s.quiet == nil || was == nil || gone || !s.quiet(was, e.kept)) {
		s.changed(node)
	}
}

// apply puts a change where it belongs and says whether it was news.
func (s *shelf[T]) apply(node string, p *lot[T], key string, e entry[T]) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node] == p && s.put(node, p, key, e)
}

// put is apply; the caller holds mu.
func (s *shelf[T]) put(node string, p *lot[T], key string, e entry[T]) bool {
	if p.loads > 0 {
		p.missed[key] = e
	}
	if !p.known {
		return false
	}
	cmp, ok := order(e.version, p.version)
	switch {
	case !ok:
		// What cannot be ordered is read again.
		s.forget(node, p)
	case cmp <= 0:
		return false
	case e.kept == nil:
		s.moves.own(node, key, false)
		delete(p.objects, key)
	default:
		s.moves.own(node, key, true)
		p.objects[key] = e
	}
	return true
}

func (s *shelf[T]) forget(node string, p *lot[T]) { s.hold(node, p, "", nil) }

// relisting begins a list of everything. Nodes that are followed later are not
// part of it.
func (s *shelf[T]) relisting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.nodes {
		p.relist = make(map[string]entry[T])
	}
	if s.moves != nil {
		s.moves.relist = make(map[string]string)
	}
}

// listed takes one object of a list of everything.
func (s *shelf[T]) listed(obj runtime.Object, gone bool) {
	node, key, version := s.place(obj)
	s.mu.Lock()
	s.relistedAt(node, key)
	p := s.nodes[node]
	if p == nil || p.relist == nil {
		s.mu.Unlock()
		return
	}
	was := p.objects[key].kept
	s.mu.Unlock()
	e := entry[T]{version: version}
	if !gone {
		var err error
		if e.kept, err = s.keep(obj, was); err != nil {
			s.failed(node, key, err)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.relist == nil:
	case gone:
		delete(p.relist, key)
	default:
		p.relist[key] = e
	}
}

// relisted ends a list of everything, as of version.
func (s *shelf[T]) relisted(version string, anew bool) {
	for _, node := range s.replace(version, anew) {
		s.changed(node)
	}
}

func (s *shelf[T]) replace(version string, anew bool) (changed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.floor = version, version
	if s.moves != nil {
		s.moves.relist = make(map[string]string)
		if anew && s.moves.passed != nil {
			s.moves.passed = make(map[string]passage)
		}
	}
	for node, p := range s.nodes {
		objects := p.relist
		p.relist = nil
		if anew {
			p.since = version
		} else if p.known && !older(p.version, version) {
			continue // loaded after the list was read, or from the same state
		}
		switch {
		case objects == nil && !p.known:
			continue // a load that runs, or is to come, must reach version
		case objects == nil:
			s.forget(node, p)
		default:
			same := !anew && p.known && equal(p.objects, objects)
			s.hold(node, p, version, objects)
			if same {
				continue
			}
		}
		changed = append(changed, node)
	}
	return changed
}

func equal[T any](a, b map[string]entry[T]) bool {
	if len(a) != len(b) {
		return false
	}
	for key, e := range a {
		if b[key].version != e.version {
			return false
		}
	}
	return true
}
