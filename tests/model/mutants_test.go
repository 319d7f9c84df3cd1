package model

import (
	"slices"
	"strings"
	"testing"
)

// mutant is the protocol with one rule broken, and what must come of it.
type mutant struct {
	name  string
	rules rules
	in    string // the exploration that finds it
	want  string // in what is found
	rare  bool   // it needs more luck than some thousand random histories have
}

func mutants() []mutant {
	return []mutant{
		{"acknowledge, then commit", rules{ackFirst: true}, delivering, "acknowledged and not on the disk", false},
		{"apply Changes whatever their number", rules{anyOrder: true}, mangling, "are applied where", false},
		{"delete a pod that caches do not know", rules{believeCache: true}, blindly, "deleted at the edge, and it is in the cluster", false},
		{"never look whether a pod is gone", rules{neverConfirm: true}, delivering, "from here nothing leads", false},
		{"take what cannot be read for absent", rules{unknownIsNone: true}, blindly, "deleted at the edge, and it is in the cluster", false},
		{"report before the hub has claimed the node", rules{noClaim: true}, reporting, "which is newer", false},
		{"forget a report when it is sent", rules{settleEarly: true}, reporting, "is forgotten", false},
		{"answer a report before it is written", rules{resultEarly: true}, reporting, "is forgotten", false},
		{"write whatever the epoch", rules{noFence: true}, reporting, "which is newer", true},
		{"take an equal status of an older session for written", rules{noStamp: true}, reporting, "which is newer", true},
		{"write without the version that was read", rules{blindWrite: true}, reporting, "which is newer", true},
	}
}

// TestMutantsAreCaught: an exploration that finds nothing shows something only if
// it finds each of these.
func TestMutantsAreCaught(t *testing.T) {
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			all := explorations()
			x := all[slices.IndexFunc(all, func(x exploration) bool { return x.name == m.in })]
			result := explore(x.begin(newObjects(t), m.rules))
			if !strings.Contains(result.broken, m.want) {
				t.Fatalf("looked for %q, found: %s", m.want, result)
			}
			t.Logf("after %d states: %s", result.states, result)
		})
	}
}

// TestRandomHistoriesCatchMutants: so do the random ones, but for a few mutants,
// within the seeds that are run.
func TestRandomHistoriesCatchMutants(t *testing.T) {
	for _, m := range mutants() {
		if m.rare {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(memorySeeds) {
				if err := playHistory(t, seed, m.rules, memoryEvents, newMemory()); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("%d seeds found nothing", memorySeeds)
		})
	}
}
