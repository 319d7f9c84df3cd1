package model

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
)

// seedEnv runs one seed alone; TestAnyHistoryEndsInTheTruth says which after a failure.
const seedEnv = "HOLDFAST_MODEL_SEED"

// How many seeds there are with each kind of store, and how many things happen in
// each history.
const (
	memorySeeds, memoryEvents = 2000, 300
	sqliteSeeds, sqliteEvents = 200, 100
)

// TestAnyHistoryEndsInTheTruth runs random histories: objects and statuses change,
// lines break, messages are lost, doubled, swapped and cut short, hubs are killed,
// the edge loses its power or its disk, and sessions that the edge has left go on
// at their hubs. At each step it holds what explore holds; at the end, when
// nothing breaks any more, edge and cluster must come to agree.
func TestAnyHistoryEndsInTheTruth(t *testing.T) {
	run := func(seed uint64, events int, open func() disk) {
		if err := playHistory(t, seed, rules{}, events, open()); err != nil {
			t.Fatalf("seed %d: %v\nrun it alone: %s=%d go test -run '%s' ./tests/model", seed, err, seedEnv, seed, t.Name())
		}
	}
	first, count := uint64(0), uint64(0)
	if only := os.Getenv(seedEnv); only != "" {
		var err error
		if first, err = strconv.ParseUint(only, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		count = 1
	}
	seeds := func(n uint64) (from, to uint64) {
		if count > 0 {
			return first, first + 1
		}
		return 0, n
	}
	t.Run("memory", func(t *testing.T) {
		from, to := seeds(memorySeeds)
		for seed := from; seed < to; seed++ {
			run(seed, memoryEvents, func() disk { return newMemory() })
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		dir := t.TempDir()
		from, to := seeds(sqliteSeeds)
		for seed := from; seed < to; seed++ {
			run(seed, sqliteEvents, func() disk { return newSQLite(t, dir) })
		}
	})
}

// playHistory lets so many things happen, then lets all come to rest.
func playHistory(t *testing.T, seed uint64, r rules, events int, d disk) error {
	h := newHistory(t, seed, d)
	h.rules = r
	defer func() { h.disk.close(t) }()
	for range events {
		if h.happen(); h.fail != "" {
			return fmt.Errorf("%s", h.fail)
		}
	}
	h.calm = true
	if h.line != nil && h.line.mangled { // whatever it did to what is on its way
		h.leave()
	}
	const rest = 5_000
	for range rest {
		if h.step(); h.fail != "" {
			return fmt.Errorf("after the last fault: %s", h.fail)
		}
		if h.settled() {
			return h.again()
		}
	}
	return fmt.Errorf("after %d quiet steps all is not at rest: %v", rest, h.agreement())
}

// again connects once more, when nothing has changed: that must cost nothing.
func (h *history) again() error {
	h.leave()
	h.connect()
	l := h.line
	for !l.welcomed && h.fail == "" {
		h.hubStep(l)
	}
	if h.fail == "" && l.delivery.State() != delivery.Stream && !h.partlyEnded() {
		return fmt.Errorf("a reconnect in which nothing changed is not in sync")
	}
	return nil
}
