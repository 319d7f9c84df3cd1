package model

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// deepEnv, when set, explores worlds in which more happens: some millions of
// states, some minutes.
const deepEnv = "HOLDFAST_MODEL_DEEP"

// exploration is a small world to be explored: what it begins with and what may
// happen in it.
type exploration struct {
	name       string
	deliveries bool
	truth      truth
	left, deep budget
}

// Names of the explorations.
const (
	delivering = "delivery"
	blindly    = "delivery by a hub that does not see everything"
	mangling   = "delivery over a line that doubles and swaps"
	reporting  = "reports through several hubs"
	together   = "deliveries and reports"
)

func explorations() []exploration {
	both := truth{{uid: 1, version: 1}, {uid: 1, version: 1}}
	return []exploration{
		{
			name: delivering, deliveries: true, truth: both,
			left: budget{changes: 1, faults: 1}, deep: budget{changes: 2, blind: 1, faults: 1},
		},
		{
			name: blindly, deliveries: true, truth: both,
			left: budget{changes: 1, blind: 1}, deep: budget{changes: 2, blind: 2},
		},
		{
			name: mangling, deliveries: true, truth: both,
			left: budget{changes: 1, mangled: 1}, deep: budget{changes: 1, faults: 1, mangled: 2},
		},
		{
			name: reporting,
			left: budget{statuses: 2, faults: 2, retries: 1}, deep: budget{statuses: 3, faults: 3, retries: 1},
		},
		{
			name: together, deliveries: true, truth: truth{{uid: 1, version: 1}},
			left: budget{changes: 1, statuses: 1, faults: 1}, deep: budget{changes: 1, statuses: 2, faults: 1},
		},
	}
}

// begin is the first state.
func (x exploration) begin(o *objects, r rules) *world {
	return &world{
		setting: &setting{objects: o, rules: r, deliveries: x.deliveries},
		left:    x.left, truth: x.truth,
	}
}

// explored is what was found.
type explored struct {
	states, steps, depth int
	// broken is the first thing that must not be, with the shortest way to it.
	broken string
	way    []string
}

// graph is the states seen so far, by number in the order of their discovery.
type graph struct {
	numbers map[fingerprint]int32
	from    []int32  // the state from which it was first reached
	by      []string // and by what
	good    []bool   // it has converged
	calm    [][2]int32
}

func (g *graph) add(f fingerprint, from int32, by string, good bool) (number int32, isNew bool) {
	if n, ok := g.numbers[f]; ok {
		return n, false
	}
	n := int32(len(g.from))
	g.numbers[f] = n
	g.from, g.by, g.good = append(g.from, from), append(g.by, by), append(g.good, good)
	return n, true
}

func (g *graph) way(n int32) []string {
	var way []string
	for ; g.from[n] >= 0; n = g.from[n] {
		way = append(way, g.by[n])
	}
	slices.Reverse(way)
	return way
}

// explore visits every state that can be reached, nearest first, and ends at the
// first that is broken. Then it looks for states from which no number of calm
// steps leads to one that has converged.
func explore(begin *world) explored {
	g := &graph{numbers: make(map[fingerprint]int32)}
	var result explored
	g.add(begin.fingerprint(), -1, "", begin.converged())
	level, numbers := []*world{begin}, []int32{0}
	for len(level) > 0 {
		var next []*world
		var nextNumbers []int32
		for i, w := range level {
			for _, s := range w.steps() {
				result.steps++
				if s.next.broken != "" {
					result.states, result.broken = len(g.from), s.next.broken
					result.way = append(g.way(numbers[i]), s.name)
					return result
				}
				n, isNew := g.add(s.next.fingerprint(), numbers[i], s.name, s.next.converged())
				if isNew {
					next, nextNumbers = append(next, s.next), append(nextNumbers, n)
				}
				if s.calm && n != numbers[i] {
					g.calm = append(g.calm, [2]int32{numbers[i], n})
				}
			}
			level[i] = nil
		}
		level, numbers = next, nextNumbers
		if len(level) > 0 {
			result.depth++
		}
	}
	result.states = len(g.from)
	if stuck := g.stuck(); stuck >= 0 {
		result.broken, result.way = "from here nothing leads to an edge that holds the truth and an apiserver that knows its status", g.way(stuck)
	}
	return result
}

// stuck is a state from which no calm way leads to a good one, or -1.
func (g *graph) stuck() int32 {
	first := make([]int32, len(g.from)+1) // of the edges into each state
	for _, e := range g.calm {
		first[e[1]+1]++
	}
	for i := range g.from {
		first[i+1] += first[i]
	}
	into := make([]int32, len(g.calm))
	fill := slices.Clone(first)
	for _, e := range g.calm {
		into[fill[e[1]]] = e[0]
		fill[e[1]]++
	}
	reaches := slices.Clone(g.good)
	var queue []int32
	for n, good := range g.good {
		if good {
			queue = append(queue, int32(n))
		}
	}
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, m := range into[first[n]:first[n+1]] {
			if !reaches[m] {
				reaches[m] = true
				queue = append(queue, m)
			}
		}
	}
	return int32(slices.Index(reaches, false))
}

func (x explored) String() string {
	if x.broken == "" {
		return fmt.Sprintf("%d states, %d steps, depth %d", x.states, x.steps, x.depth)
	}
	return fmt.Sprintf("%s, after\n  %s", x.broken, strings.Join(x.way, "\n  "))
}

// TestEveryOrderOfEventsKeepsTheProtocol looks at all states of several small
// worlds. In each it holds that nothing is deleted at the edge which the cluster
// has, that nothing is acknowledged which is not on the disk, that Changes are
// applied in their order, that no older status replaces a newer one, that no
// report is forgotten before the apiserver has it or a newer one, and that without
// further faults all ends in agreement.
func TestEveryOrderOfEventsKeepsTheProtocol(t *testing.T) {
	for _, x := range explorations() {
		t.Run(x.name, func(t *testing.T) {
			if os.Getenv(deepEnv) != "" {
				x.left = x.deep
			}
			result := explore(x.begin(newObjects(t), rules{}))
			if result.broken != "" {
				t.Fatal(result)
			}
			if result.states < 1000 {
				t.Errorf("only %d states: the world is too small to say anything", result.states)
			}
			t.Log(result)
		})
	}
}
