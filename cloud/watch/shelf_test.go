package watch

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
)

// play drives a shelf with a truth: its stream, which lags and breaks, loads,
// which take their time, and followers, who come and go.
type play struct {
	r     *rand.Rand
	truth *truth
	shelf *shelf[keptPod]
	told  map[string]bool // nodes that were signalled since they were last looked at

	stream int // version that the stream has told
	broken bool
	lost   int        // the version that the stream had told when the cluster was restored
	lists  []*listing // of everything; one at a time, the last counts
	loads  []*running
	seen   map[string]map[string]string // what each followed node last looked like, by node
}

// listing is a list of everything under way, of one version.
type listing struct {
	version int
	left    []change
}

// running is a load under way.
type running struct {
	node    string
	load    *lot[keptPod]
	began   int // version of the truth when it began
	version int // of the list; 0 before it was read
	items   []runtime.Object
}

func newPlay(seed uint64, moves bool) *play {
	p := &play{r: rand.New(rand.NewPCG(seed, 7)), truth: newTruth(3), told: map[string]bool{}, seen: map[string]map[string]string{}}
	p.shelf = &shelf[keptPod]{
		kind: "pods", place: placePod, keep: keepPod, nodes: make(map[string]*lot[keptPod]),
		changed: func(node string) { p.told[node] = true },
		failed:  func(node, key string, err error) { panic(fmt.Sprint(node, key, err)) },
	}
	if moves {
		p.truth.moves = true
		p.shelf.moving()
	}
	p.stream = p.truth.version
	p.shelf.started(say(p.stream))
	return p
}

func (p *play) node() string { return p.truth.nodes[p.r.IntN(len(p.truth.nodes))] }

func (p *play) follows(node string) bool { return p.shelf.nodes[node] != nil }

// act does one thing of many.
func (p *play) act() error {
	switch n := p.r.IntN(20); {
	case n < 6:
		// A cluster that was restored is noticed before it is as far as it was:
		// nothing could tell it apart later, and no client of Kubernetes can.
		if p.lost == 0 || p.truth.version+1 < p.lost {
			p.truth.step(p.r)
		}
	case n < 11 && p.broken:
		p.relist()
	case n < 11:
		p.tell()
	case n < 12:
		if node := p.node(); p.follows(node) {
			p.shelf.drop(node)
			delete(p.seen, node)
		} else {
			p.shelf.follow(node)
		}
	case n < 14:
		return p.begin()
	case n < 17:
		return p.proceed()
	case n < 18:
		if !p.broken && p.r.IntN(4) == 0 {
			p.broken = true // and what it would have told is lost
		}
	case p.r.IntN(60) == 0:
		p.restore()
	default:
		p.relist()
	}
	return nil
}

// tell lets the stream tell the next change, or that there is none.
func (p *play) tell() {
	switch {
	case p.broken:
	case p.stream < p.truth.version:
		c := p.truth.history[p.stream-p.truth.first]
		p.stream++
		p.shelf.event(c.pod, c.gone)
	default:
		p.shelf.reached(say(p.stream))
	}
}

func (p *play) begin() error {
	node := p.node()
	l, err := p.shelf.begin(node)
	switch {
	case errors.Is(err, errNotFollowed) && !p.follows(node):
		return nil
	case err != nil:
		return err
	case l == nil:
		return nil
	}
	p.loads = append(p.loads, &running{node: node, load: l, began: p.truth.version})
	return nil
}

// proceed reads a load's list, at any version since the load began, or finishes
// one that was read, or gives one up.
func (p *play) proceed() error {
	if len(p.loads) == 0 {
		return nil
	}
	i := p.r.IntN(len(p.loads))
	l := p.loads[i]
	if l.version == 0 && p.r.IntN(8) > 0 {
		if l.began > p.truth.version {
			l.began = p.truth.version // the cluster was restored meanwhile
		}
		l.version = l.began + p.r.IntN(p.truth.version-l.began+1)
		for _, pod := range p.truth.at(l.version) {
			if pod.Spec.NodeName == l.node {
				l.items = append(l.items, pod)
			}
		}
		return nil
	}
	p.loads = append(p.loads[:i], p.loads[i+1:]...)
	if l.version == 0 {
		p.shelf.abandon(l.load)
		return nil
	}
	objects, err := p.shelf.entries(l.node, l.items)
	if err == nil {
		err = p.shelf.finish(l.node, l.load, say(l.version), objects)
	}
	if errors.Is(err, errStale) || errors.Is(err, errNotFollowed) {
		return nil
	}
	return err
}

// relist begins a list of everything, tells a part of it, or ends it.
func (p *play) relist() {
	if !p.broken {
		return
	}
	if len(p.lists) == 0 || p.r.IntN(12) == 0 {
		l := &listing{version: p.truth.version}
		for key, pod := range p.truth.at(l.version) {
			l.left = append(l.left, change{key: key, pod: pod})
		}
		p.lists = []*listing{l}
		p.shelf.relisting()
		return
	}
	l := p.lists[0]
	switch {
	case len(l.left) > 0:
		p.shelf.listed(l.left[0].pod, false)
		l.left = l.left[1:]
		return
	case l.version < p.truth.version && p.r.IntN(2) == 0:
		// A streamed list may go on with what changes meanwhile.
		c := p.truth.history[l.version-p.truth.first]
		l.version++
		p.shelf.listed(c.pod, c.gone)
		return
	case p.r.IntN(5) > 0:
		return
	}
	p.shelf.relisted(say(l.version), l.version < p.stream)
	p.stream, p.broken, p.lists, p.lost = l.version, false, nil, 0
}

// restore takes the cluster back; the stream learns of it some time.
func (p *play) restore() {
	if p.truth.version-p.truth.first < 3 || p.lost != 0 {
		return
	}
	back := p.truth.version - 1 - p.r.IntN(3)
	if back >= p.stream {
		return // nobody has seen what is undone
	}
	p.truth.restore(back)
	p.broken, p.lists, p.lost = true, nil, p.stream
}

// right says whether what the shelf knows is the truth of one moment: that of the
// stream, or of the list if that is newer.
func (p *play) right() error {
	for _, node := range p.truth.nodes {
		kept, ok := p.shelf.get(node)
		if !ok {
			delete(p.seen, node)
			continue
		}
		if p.broken && p.stream > p.truth.version {
			continue // restored, and nobody knows yet
		}
		has := versions(kept)
		as := max(p.stream, number(p.shelf.nodes[node].version))
		if as > p.truth.version {
			continue // the same, of a load that was faster than the restoration
		}
		if want := p.truth.of(node, as); !maps.Equal(has, want) {
			return fmt.Errorf("%s has %v, at version %d it was %v", node, has, as, want)
		}
		if was := p.seen[node]; was != nil && !maps.Equal(was, has) && !p.told[node] {
			return fmt.Errorf("%s changed from %v to %v and nobody was told", node, was, has)
		}
		p.seen[node] = has
		delete(p.told, node)
	}
	return nil
}

// settle lets everything come to rest, with all nodes known.
func (p *play) settle() error {
	for len(p.loads) > 0 {
		if err := p.proceed(); err != nil {
			return err
		}
	}
	for p.broken {
		p.relist()
	}
	for p.stream < p.truth.version {
		p.tell()
	}
	for _, node := range p.truth.nodes {
		if !p.follows(node) {
			continue
		}
		if l, err := p.shelf.begin(node); err != nil {
			return err
		} else if l != nil {
			var items []runtime.Object
			for _, pod := range p.truth.at(p.truth.version) {
				items = append(items, pod) // also those of others: they are not taken
			}
			objects, err := p.shelf.entries(node, items)
			if err == nil {
				err = p.shelf.finish(node, l, say(p.truth.version), objects)
			}
			if err != nil {
				return fmt.Errorf("load %s at rest: %w", node, err)
			}
		}
		if _, ok := p.shelf.get(node); !ok {
			return fmt.Errorf("%s is unknown at rest", node)
		}
	}
	return p.right()
}

// TestAShelfIsTheTruthOfAMoment: whatever the order of changes, lists, breaks and
// followers, what is known of a node is what the cluster was at one moment, never
// a mixture, never the past after the present; and what is not known is unknown.
func TestAShelfIsTheTruthOfAMoment(t *testing.T) {
	for seed := range uint64(3000) {
		p := newPlay(seed, seed%2 > 0)
		for i := range 120 {
			err := p.act()
			if err == nil {
				err = p.right()
			}
			if err != nil {
				t.Fatalf("seed %d, act %d: %v", seed, i, err)
			}
		}
		if err := p.settle(); err != nil {
			t.Fatalf("seed %d, at rest: %v", seed, err)
		}
		for _, node := range p.truth.nodes {
			p.shelf.drop(node)
		}
		if m := p.shelf.moves; m != nil && len(m.owners)+m.running+len(m.passed) > 0 {
			t.Fatalf("seed %d: %d owners, %d loads and %d passages remain", seed, len(m.owners), m.running, len(m.passed))
		}
		if nodes, _, objects := p.shelf.size(); nodes+objects > 0 {
			t.Fatalf("seed %d: %d nodes and %d objects remain of what nobody follows", seed, nodes, objects)
		}
	}
}
