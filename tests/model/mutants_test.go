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
}

func mutants() []mutant {
	return []mutant{
		{"acknowledge, then commit", rules{ackFirst: true}, delivering, "acknowledged and not on the disk"},
		{"apply Changes whatever their number", rules{anyOrder: true}, mangling, "are applied where"},
		{"delete a pod that caches do not know", rules{believeCache: true}, delivering, "deleted at the edge, and it is in the cluster"},
		{"never look whether a pod is gone", rules{neverConfirm: true}, delivering, "from here nothing leads"},
		{"take what cannot be read for absent", rules{unknownIsNone: true}, delivering, "deleted at the edge, and it is in the cluster"},
		{"report before the hub has claimed the node", rules{noClaim: true}, reporting, "which is newer"},
		{"forget a report when it is sent", rules{settleEarly: true}, reporting, "is forgotten"},
		{"answer a report before it is written", rules{resultEarly: true}, reporting, "is forgotten"},
		{"write whatever the epoch", rules{noFence: true}, reporting, "which is newer"},
		{"take an equal status of an older session for written", rules{noStamp: true}, reporting, "which is newer"},
		{"write without the version that was read", rules{blindWrite: true}, reporting, "which is newer"},
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
