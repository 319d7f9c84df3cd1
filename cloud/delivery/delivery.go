// Package delivery is the sending half of a session with an edge node: which
// messages bring the node from what it holds to what it must hold
// (keps/0001-protocol.md). cloud/hub drives it, one a session. It is pure: events
// go in by method calls, messages come out of Next. It never sends anything, and
// it never takes what is not known for absent.
package delivery

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Limits of one delivery.
const (
	// window is how many Changes may be unacknowledged.
	window = 32
	// windowBytes is how many bytes of Changes may be unacknowledged; a single
	// message may exceed it.
	windowBytes = 1 << 20
	// maxInventory is how many objects a node may hold.
	maxInventory = 50_000
)

// ErrProtocol marks what only a broken or hostile edge does.
var ErrProtocol = errors.New("protocol error")

// State is how far a delivery is, in the words of etcd's raft.
type State int

const (
	// Probe: what the edge holds, or what it must hold, is not known yet.
	Probe State = iota
	// Snapshot: what differs is on its way; Synced is still to come.
	Snapshot
	// Stream: the edge holds everything; changes are sent as they happen.
	Stream
)

// States is how many states there are.
const States = int(Stream) + 1

// String is the state's name in metrics.
func (s State) String() string { return [States]string{"probe", "snapshot", "stream"}[s] }

// phase is how far a session has come.
type phase int

const (
	phaseWaiting   phase = iota // for the first Wanted; nothing was said yet
	phaseAsk                    // welcomed, not in sync, what the edge holds is not asked for yet
	phaseInventory              // asked
	phaseSyncing                // sending what differs, Synced is still to come
	phaseLive                   // sending changes as they happen
)

// Delivery is one session's. There is no queue: what is not sent yet is the
// difference of two sets, so that an object which changes often while the line
// is slow is sent once.
type Delivery struct {
	phase  phase
	digest []byte         // of the Hello
	knows  wire.Kind      // the highest kind that the edge takes
	want   *roster.Wanted // nil: not known yet
	have   roster.Held    // what the edge holds once it has applied all that was sent
	gone   map[roster.ID]bool
	seq    uint64
	acked  uint64
	sizes  []int // bytes of each unacknowledged Changes, oldest first
	unsent int   // bytes of them together
	items  []*wire.ObjectRef
}

// New is a delivery to an edge whose Hello had that digest, and which knows the
// kinds of an edge that does not say which it knows.
func New(digest []byte) *Delivery {
	return &Delivery{digest: digest, knows: wire.Kind_KIND_NODE, gone: make(map[roster.ID]bool)}
}

// Knows says which is the highest kind that the edge knows, as its Hello has it; 0
// for none that it mentions. It is for use before anything else.
func (d *Delivery) Knows(highest uint32) {
	d.knows = wire.Kind(min(highest, uint32(wire.KindMax)))
	if highest == 0 {
		d.knows = wire.Kind_KIND_NODE
	}
}

// Welcome opens the delivery and returns whether the edge is in sync. It may be
// called before anything is known of what the edge must hold.
func (d *Delivery) Welcome() (inSync bool) {
	d.phase = phaseAsk
	if d.want == nil {
		return false
	}
	have, ok := d.want.Matches(d.digest)
	if ok {
		d.have, d.phase = have, phaseLive
	}
	return ok
}

// Wanted replaces what the edge must hold.
func (d *Delivery) Wanted(w *roster.Wanted) {
	w = w.UpTo(d.knows)
	d.want = w
	for id := range d.gone {
		if w.Items[id] != nil {
			delete(d.gone, id)
		}
	}
}

// Confirmed records that a live read found a pod gone.
func (d *Delivery) Confirmed(id roster.ID) { d.gone[id] = true }

// Inventory takes a part of what the edge holds.
func (d *Delivery) Inventory(m *wire.Inventory) error {
	if d.phase != phaseInventory {
		return fmt.Errorf("%w: an inventory that nobody asked for", ErrProtocol)
	}
	d.items = append(d.items, m.GetItems()...)
	if len(d.items) > maxInventory {
		return fmt.Errorf("%w: an inventory of more than %d objects", ErrProtocol, maxInventory)
	}
	if m.GetLast() {
		d.have, d.items, d.phase = roster.HeldOf(d.items), nil, phaseSyncing
	}
	return nil
}

// Ack takes the edge's word that all Changes up to seq are committed.
func (d *Delivery) Ack(seq uint64) error {
	if seq > d.seq || seq < d.acked {
		return fmt.Errorf("%w: acknowledgement of %d, sent were %d, acknowledged %d", ErrProtocol, seq, d.seq, d.acked)
	}
	for ; d.acked < seq; d.acked++ {
		d.unsent -= d.sizes[0]
		d.sizes = d.sizes[1:]
	}
	return nil
}

// Next returns the next message to send, or nil. unconfirmed are pods to look
// for with a live read; see roster.Change.
func (d *Delivery) Next() (m *wire.HubMessage, unconfirmed []*wire.ObjectRef, err error) {
	if d.want == nil {
		return nil, nil, nil
	}
	switch d.phase {
	case phaseAsk:
		d.phase = phaseInventory
		return &wire.HubMessage{Body: &wire.HubMessage_InventoryAsk{InventoryAsk: &wire.InventoryAsk{}}}, nil, nil
	case phaseSyncing, phaseLive:
	default:
		return nil, nil, nil
	}
	change := roster.Diff(d.want, d.have, d.gone)
	if !change.Empty() {
		if d.seq-d.acked >= window || d.unsent > 0 && d.unsent >= windowBytes {
			return nil, change.Unconfirmed, nil
		}
		m, err := d.batch(change)
		return m, change.Unconfirmed, err
	}
	if d.phase == phaseSyncing && len(change.Unconfirmed) == 0 && d.want.Complete() {
		d.phase = phaseLive
		return &wire.HubMessage{Body: &wire.HubMessage_Synced{Synced: &wire.Synced{Digest: d.have.Digest()}}}, nil, nil
	}
	return nil, change.Unconfirmed, nil
}

// batch makes one Changes of the beginning of a change and takes it for sent.
func (d *Delivery) batch(change roster.Change) (*wire.HubMessage, error) {
	out := &wire.Changes{Seq: d.seq + 1}
	size := 0
	for _, item := range change.Upserts {
		object, err := item.Object()
		if err != nil {
			return nil, err
		}
		n := len(object.GetPayload()) + refSize
		if size > 0 && size+n > wire.SoftMessage {
			break
		}
		out.Upserts = append(out.Upserts, object)
		size += n
	}
	if len(out.Upserts) == len(change.Upserts) {
		for _, ref := range change.Deletes {
			if size > 0 && size+refSize > wire.SoftMessage {
				break
			}
			out.Deletes = append(out.Deletes, ref)
			size += refSize
		}
	}
	for _, o := range out.Upserts {
		d.have[roster.IDOf(o.Ref)] = o.Ref
	}
	for _, ref := range out.Deletes {
		delete(d.have, roster.IDOf(ref))
		delete(d.gone, roster.IDOf(ref))
	}
	d.seq++
	d.sizes = append(d.sizes, size)
	d.unsent += size
	return &wire.HubMessage{Body: &wire.HubMessage_Changes{Changes: out}}, nil
}

// refSize is about what a reference takes on the line.
const refSize = 160

// Settled says that the edge holds what it must, as far as that is known.
func (d *Delivery) Settled() bool {
	return d.phase == phaseLive && d.acked == d.seq && roster.Diff(d.want, d.have, d.gone).Empty()
}

// State says how far the delivery is.
func (d *Delivery) State() State {
	switch d.phase {
	case phaseSyncing:
		return Snapshot
	case phaseLive:
		return Stream
	}
	return Probe
}

// Welcomed says whether Welcome was called.
func (d *Delivery) Welcomed() bool { return d.phase != phaseWaiting }

// Asked says whether it is known, or asked for, what the edge holds.
func (d *Delivery) Asked() bool { return d.phase >= phaseInventory }

// Complete says that all that the edge must hold is known.
func (d *Delivery) Complete() bool { return d.want != nil && d.want.Complete() }

// Sent is how many objects the edge holds once it has applied all that was sent,
// and in how many Changes.
func (d *Delivery) Sent() (objects int, changes uint64) { return len(d.have), d.seq }

// Clone is an independent copy that shares what never changes.
func (d *Delivery) Clone() *Delivery {
	c := *d
	c.have, c.gone = maps.Clone(d.have), maps.Clone(d.gone)
	c.sizes, c.items = slices.Clone(d.sizes), slices.Clone(d.items)
	return &c
}
