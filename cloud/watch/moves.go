package watch

import (
	"fmt"
	"slices"
)

// moves is the part of a shelf whose objects may move from one node to another, as
// devices do and pods never do. A change tells where an object is, not where it
// was.
type moves struct {
	owners  map[string][]string // by key: nodes whose known lots hold it; seldom more than one
	running int                 // loads
	passed  map[string]passage  // by key: what came by last while loads run
	relist  map[string]string   // by key: where a list of everything has it
}

// passage is where a change saw an object.
type passage struct{ node, version string }

// moving makes a shelf one whose objects move.
func (s *shelf[T]) moving() {
	s.moves = &moves{owners: make(map[string][]string), relist: make(map[string]string)}
}

// leave takes an object that was seen at a node from all others that hold it, and
// says which of them that is news to. The caller holds mu.
func (s *shelf[T]) leave(node, key, version string) (news []string) {
	m := s.moves
	if m == nil {
		return nil
	}
	if m.running > 0 {
		m.passed[key] = passage{node, version}
	}
	for _, other := range slices.Clone(m.owners[key]) {
		p := s.nodes[other]
		if other != node && p != nil && s.put(other, p, key, entry[T]{version: version}) {
			news = append(news, other)
		}
	}
	return news
}

// own notes that a known lot holds an object, or does no more.
func (m *moves) own(node, key string, does bool) {
	if m == nil {
		return
	}
	was := m.owners[key]
	i := slices.Index(was, node)
	switch {
	case does && i < 0:
		m.owners[key] = append(was, node)
	case !does && i >= 0 && len(was) == 1:
		delete(m.owners, key)
	case !does && i >= 0:
		m.owners[key] = slices.Delete(slices.Clone(was), i, i+1)
	}
}

// begun and ended count the loads.
func (m *moves) begun() {
	if m == nil {
		return
	}
	if m.running++; m.running == 1 {
		m.passed = make(map[string]passage)
	}
}

func (m *moves) ended() {
	if m == nil {
		return
	}
	if m.running--; m.running == 0 {
		m.passed = nil
	}
}

// moved takes from a list of a node what was seen elsewhere after it was read.
func (s *shelf[T]) moved(node, version string, objects map[string]entry[T]) error {
	if s.moves == nil {
		return nil
	}
	for key := range objects {
		seen, ok := s.moves.passed[key]
		if !ok || seen.node == node {
			continue
		}
		cmp, ok := order(seen.version, version)
		if !ok {
			return fmt.Errorf("%w: versions %q and %q have no order", errStale, seen.version, version)
		}
		if cmp > 0 {
			delete(objects, key)
		}
	}
	return nil
}

// hold makes objects what a lot holds; nil: nothing is known of it any more.
func (s *shelf[T]) hold(node string, p *lot[T], version string, objects map[string]entry[T]) {
	if s.moves != nil {
		for key := range p.objects {
			s.moves.own(node, key, false)
		}
		for key := range objects {
			s.moves.own(node, key, true)
		}
	}
	p.known, p.version, p.objects = objects != nil, version, objects
}

// relistedAt notes where a list of everything has an object, and takes it from
// where the same list had it before. The caller holds mu.
func (s *shelf[T]) relistedAt(node, key string) {
	if s.moves == nil {
		return
	}
	if was, ok := s.moves.relist[key]; ok && was != node {
		if p := s.nodes[was]; p != nil && p.relist != nil {
			delete(p.relist, key)
		}
	}
	s.moves.relist[key] = node
}
