package model

import (
	"fmt"
	"slices"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
)

// world is one state of everything: the cluster, an edge, the connections between
// the edge and its hubs, and what is under way in each. Every connection has a hub
// of its own; two connections to one hub behave as if the hub ended the earlier
// one at some time, which is one of the things that a hub here may do.
//
// A state is never changed: a step clones it first.
type world struct {
	*setting
	left   budget
	truth  truth
	edge   edge
	conns  []*conn // at most one with the edge's end open
	api    apiserver
	broken string // what must never be, and is
}

// setting is what all states of one exploration share.
type setting struct {
	objects *objects
	rules   rules
	// deliveries is off where only reports are looked at: the hub learns what the
	// edge must hold in the moment in which it hears of the edge.
	deliveries bool
}

// budget bounds what may still happen of its own accord.
type budget struct {
	changes  uint8 // of the truth
	statuses uint8 // new statuses at the edge
	blind    uint8 // looks at the cluster which do not see everything
	faults   uint8 // cut lines, killed hubs, killed edges
	mangled  uint8 // messages down that are doubled or overtaken
	retries  uint8 // reports which the apiserver does not take now
}

// rules are broken by mutants; the zero value is the protocol.
type rules struct {
	ackFirst      bool // the edge acknowledges, then commits
	anyOrder      bool // the edge applies Changes whatever their number
	believeCache  bool // the hub deletes pods without a live read
	neverConfirm  bool // the hub never does that live read
	unknownIsNone bool // the hub takes what it cannot read for absent
	noClaim       bool // the edge reports before the hub has claimed it
	settleEarly   bool // the edge forgets a report that is sent
	resultEarly   bool // the hub answers a report before it is written
	noFence       bool // the hub writes without a look at the epoch
	noStamp       bool // the hub takes an equal status for written, whatever its epoch
	blindWrite    bool // the hub writes without the resourceVersion that it read
}

// edge is the node.
type edge struct {
	// On its disk.
	store  holding
	status uint8 // how often its status has changed
	outbox row   // the latest status, until settled
	lastID uint8 // the outbox's

	// In memory; session is nil when no connection is open.
	session   *resume.Session
	window    *resume.Window
	inventory bool  // the digests did not agree: the next Hello has none
	committed uint8 // number of the last Changes of this session that are on the disk
}

// row is a report in the outbox; none when id is 0.
type row struct{ id, status uint8 }

// conn is one connection. Messages are shared between states and never changed.
type conn struct {
	edge bool // the edge's end is open
	hub  hubState
	up   []*wire.EdgeMessage
	down []*wire.HubMessage

	delivery *delivery.Delivery // nil once the edge has gone: nobody is listening
	view     view               // the last look
	looked   bool
	welcomed bool
	mangled  bool
	epoch    uint8 // of the claim; 0: none yet
	reports  []*wire.Report
	put      put
}

type hubState uint8

const (
	hubWaits hubState = iota // for the Hello
	hubOpen
	hubEnded
)

// apiserver holds the status of the pod, and the node's Lease.
type apiserver struct {
	status  uint8 // the latest report that the status is, by the edge's count
	content uint8 // what it says: statuses repeat themselves
	epoch   uint8
	version uint8 // counts writes
	lease   uint8 // epoch of the last claim
	orphans []put // writes under way whose session is over
}

// put is a write under way: none when epoch is 0.
type put struct {
	status  uint8
	epoch   uint8
	version uint8 // that was read
}

// contentOf is what a status says: every second one says the same.
func contentOf(status uint8) uint8 { return status % 2 }

func (w *world) clone() *world {
	c := *w
	c.conns = slices.Clone(w.conns)
	c.api.orphans = slices.Clone(w.api.orphans)
	return &c
}

// own makes connection i changeable in w, which is a fresh clone.
func (w *world) own(i int) *conn {
	c := *w.conns[i]
	c.up, c.down, c.reports = slices.Clone(c.up), slices.Clone(c.down), slices.Clone(c.reports)
	if c.delivery != nil {
		c.delivery = c.delivery.Clone()
	}
	w.conns[i] = &c
	return &c
}

// attached is the connection on which the edge listens.
func (w *world) attached() int {
	return slices.IndexFunc(w.conns, func(c *conn) bool { return c.edge })
}

func (w *world) breaks(format string, args ...any) {
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
	}
}

// converged says that nothing is left to do.
func (w *world) converged() bool {
	at := w.attached()
	return at >= 0 && w.conns[at].hub == hubOpen && w.conns[at].welcomed && w.edge.outbox.id == 0 &&
		w.edge.store.meets(&w.truth) && w.api.content == contentOf(w.edge.status)
}

// step is one thing that can happen. Calm ones happen by themselves, sooner or
// later; the others are news or faults, and bounded by the budget.
type step struct {
	name string
	calm bool
	next *world
}

// steps are all things that can happen next.
func (w *world) steps() []step {
	var out []step
	add := func(name string, calm bool, next *world) {
		if next != nil {
			out = append(out, step{name, calm, next})
		}
	}
	w.news(add)
	w.edgeSteps(add)
	for i, c := range w.conns {
		if c.hub != hubEnded {
			w.hubSteps(i, add)
		}
	}
	for i := range w.api.orphans {
		n := w.clone()
		p := n.api.orphans[i]
		n.api.orphans = slices.Delete(n.api.orphans, i, i+1)
		lost := n.clone()
		n.land(p)
		add("a write of a session that is over reaches the apiserver", true, n)
		add("a write of a session that is over is lost", true, lost)
	}
	return out
}

type adder func(name string, calm bool, next *world)

// news is what the cluster and the node do of their own accord.
func (w *world) news(add adder) {
	if w.left.statuses > 0 {
		n := w.clone()
		n.left.statuses--
		n.edge.status++
		n.edge.lastID++
		n.edge.outbox = row{n.edge.lastID, n.edge.status}
		add("the node's status changes", false, n)
	}
	if w.left.changes == 0 {
		return
	}
	change := func(name string, s int, to slot) {
		n := w.clone()
		n.left.changes--
		n.truth[s] = to
		add(name, false, n)
	}
	for s, is := range w.truth {
		what := [slots]string{"the pod", "the ConfigMap"}[s]
		switch {
		case is.version == 0 && is.uid < maxUID:
			change(what+" is created", s, slot{uid: is.uid + 1, version: 1})
		case is.version > 0:
			change(what+" is deleted", s, slot{uid: is.uid})
			if is.version < versions {
				change(what+" is updated", s, slot{uid: is.uid, version: is.version + 1, ended: is.ended})
			}
			if s == podSlot && !is.ended && w.edge.store[s][is.uid] > 0 {
				change("the pod ends", s, slot{uid: is.uid, version: is.version, ended: true})
			}
		}
	}
}

// land brings a write to the apiserver.
func (w *world) land(p put) (written bool) {
	if p.version != w.api.version && !w.rules.blindWrite {
		return false
	}
	if p.status < w.api.status && contentOf(p.status) != w.api.content {
		w.breaks("status %d is written over status %d, which is newer", p.status, w.api.status)
	}
	w.api.status, w.api.content, w.api.epoch = p.status, contentOf(p.status), p.epoch
	w.api.version++
	return true
}
