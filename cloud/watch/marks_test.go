package watch

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// readers drives marks with a truth, whose pods stand for ConfigMaps: nodes refer
// to some, read them live, and read again what the marks say has changed.
type readers struct {
	r      *rand.Rand
	truth  *truth
	marks  *marks
	told   map[string]bool
	refs   map[string]map[roster.Key]bool
	read   map[string]map[roster.Key]*reading
	reads  int
	stream int
	broken bool
	left   []change // of a list of everything; nil: none runs
	listed int      // its version
	lost   bool     // the cluster was restored, and the stream does not know
}

func newReaders(seed uint64) *readers {
	p := &readers{
		r: rand.New(rand.NewPCG(seed, 3)), truth: newTruth(2), told: map[string]bool{},
		refs: map[string]map[roster.Key]bool{}, read: map[string]map[roster.Key]*reading{},
	}
	p.marks = newMarks(wire.Kind_KIND_CONFIG_MAP, func(node string) { p.told[node] = true }, func(roster.Key) {})
	p.stream = p.truth.version
	return p
}

func keyOf(key string) roster.Key {
	namespace, name, _ := strings.Cut(key, "/")
	return roster.Key{Kind: wire.Kind_KIND_CONFIG_MAP, Namespace: namespace, Name: name}
}

func metaOf(c change) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: c.pod.Namespace, Name: c.pod.Name, UID: c.pod.UID, ResourceVersion: c.pod.ResourceVersion}}
}

func (p *readers) act() {
	node := p.truth.nodes[p.r.IntN(2)]
	switch n := p.r.IntN(20); {
	case n < 5 && (!p.lost || p.truth.version+1 < p.stream):
		p.truth.step(p.r)
	case n < 10 && !p.broken:
		if p.stream < p.truth.version {
			c := p.truth.history[p.stream-p.truth.first]
			p.stream++
			p.marks.event(metaOf(c), c.gone)
		}
	case n < 13 && p.broken:
		p.relist()
	case n < 15:
		// Other references, or none: the node is not followed any more.
		p.refs[node] = map[roster.Key]bool{}
		for i := range 8 {
			if p.r.IntN(2) == 0 {
				p.refs[node][keyOf(fmt.Sprint("shop/pod-", i))] = true
			}
		}
		p.resolve(node)
	case n < 18:
		if p.told[node] {
			p.resolve(node)
		}
	case n < 19 && p.r.IntN(3) == 0:
		p.broken = true
	case p.r.IntN(40) == 0 && p.stream == p.truth.version && p.truth.version > p.truth.first+3:
		p.truth.restore(p.truth.version - 3)
		p.broken, p.lost, p.left = true, true, nil
	}
}

func (p *readers) relist() {
	switch {
	case p.left == nil || p.r.IntN(12) == 0:
		p.left, p.listed = []change{}, p.truth.version
		for key, pod := range p.truth.at(p.listed) {
			p.left = append(p.left, change{key: key, pod: pod})
		}
		p.marks.relisting()
	case len(p.left) > 0:
		p.marks.listed(metaOf(p.left[0]), false)
		p.left = p.left[1:]
	case p.listed < p.truth.version && p.r.IntN(2) == 0:
		c := p.truth.history[p.listed-p.truth.first]
		p.listed++
		p.marks.listed(metaOf(c), c.gone)
	case p.r.IntN(4) == 0:
		p.marks.relisted(say(p.listed), p.lost)
		p.stream, p.broken, p.lost, p.left = p.listed, false, false, nil
	}
}

// resolve does as a resolver: it marks first, and reads live afterwards what is
// not current. Time passes between the two.
func (p *readers) resolve(node string) {
	delete(p.told, node)
	seen := map[roster.Key]string{}
	p.marks.refer(node, p.refs[node], seen)
	if p.read[node] == nil {
		p.read[node] = map[roster.Key]*reading{}
	}
	for k := range p.read[node] {
		if !p.refs[node][k] {
			delete(p.read[node], k)
		}
	}
	for k := range p.refs[node] {
		was := p.read[node][k]
		if was == nil {
			was = &reading{}
			p.read[node][k] = was
		}
		if was.current(seen[k]) {
			continue
		}
		if !p.lost && p.r.IntN(3) == 0 {
			p.truth.step(p.r)
		}
		p.reads++
		*was = reading{known: true, seen: seen[k]}
		if now := p.truth.at(p.truth.version)[k.Namespace+"/"+k.Name]; now != nil {
			was.version = now.ResourceVersion
		}
	}
}

// settle lets everything come to rest and says what somebody has read wrongly.
func (p *readers) settle() error {
	for p.broken {
		p.relist()
	}
	for p.stream < p.truth.version {
		c := p.truth.history[p.stream-p.truth.first]
		p.stream++
		p.marks.event(metaOf(c), c.gone)
	}
	// A resolve changes the truth at random: this one must not.
	now := p.truth.at(p.truth.version)
	for _, node := range p.truth.nodes {
		seen := map[roster.Key]string{}
		p.marks.refer(node, p.refs[node], seen)
		for k := range p.refs[node] {
			was := p.read[node][k]
			var want string
			if pod := now[k.Namespace+"/"+k.Name]; pod != nil {
				want = pod.ResourceVersion
			}
			if was.version != want && was.current(seen[k]) {
				return fmt.Errorf("%s read %s at %q, it is at %q, and nothing says so (seen %q)", node, k, was.version, want, seen[k])
			}
			if was.version != want && !p.told[node] {
				return fmt.Errorf("%s is not told that %s has changed", node, k)
			}
		}
	}
	return nil
}

// TestNoChangeOfWhatWasReadIsMissed: what a node has read is current, or the node
// is told to read it again, whatever the order of marks, reads, changes and breaks.
func TestNoChangeOfWhatWasReadIsMissed(t *testing.T) {
	for seed := range uint64(1200) {
		p := newReaders(seed)
		for range 150 {
			p.act()
		}
		if err := p.settle(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, node := range p.truth.nodes {
			p.marks.drop(node)
		}
		if n := p.marks.size() + len(p.marks.nodes); n != 0 {
			t.Fatalf("seed %d: %d marks remain", seed, n)
		}
	}
}

// TestAnObjectIsReadOnceWhileNothingChanges: many nodes that come and go do not
// make each other read.
func TestAnObjectIsReadOnceWhileNothingChanges(t *testing.T) {
	p := newReaders(1)
	for range 20 {
		p.truth.step(p.r)
	}
	p.stream = p.truth.version
	p.lost = true // nothing changes beside the reads
	for _, node := range p.truth.nodes {
		p.refs[node] = map[roster.Key]bool{keyOf("shop/pod-1"): true, keyOf("shop/pod-2"): true}
		for range 5 {
			p.resolve(node)
		}
	}
	if p.reads != 4 {
		t.Errorf("two nodes read two objects with %d reads", p.reads)
	}
}
