package hub

import (
	"errors"
	"fmt"

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

// errProtocol marks what only a broken or hostile edge does.
var errProtocol = errors.New("protocol error")

// phase is how far a session has come.
type phase int

const (
	phaseWaiting   phase = iota // for the first Wanted; nothing was said yet
	phaseAsk                    // welcomed, not in sync, what the edge holds is not asked for yet
	phaseInventory              // asked
	phaseSyncing                // sending what differs, Synced is still to come
	phaseLive                   // sending changes as they happen
)

// delivery is the sending half of a session: which messages bring the edge from
// what it holds to what is wanted. It is pure: events go in by method calls,
// messages come out of next. There is no queue: what is not sent yet is the
// difference of two sets, so that an object which changes often while the line
// is slow is sent once.
type delivery struct {
	phase  phase
	digest []byte         // of the Hello
	want   *roster.Wanted // nil: not known yet
	have   roster.Held    // what the edge holds once it has applied all that was sent
	gone   map[roster.ID]bool
	seq    uint64
	acked  uint64
	sizes  []int // bytes of each unacknowledged Changes, oldest first
	unsent int   // bytes of them together
	items  []*wire.ObjectRef
}

func newDelivery(digest []byte) *delivery {
	return &delivery{digest: digest, gone: make(map[roster.ID]bool)}
}

// welcome opens the delivery and returns whether the edge is in sync. It may be
// called before anything is known of what the edge must hold.
func (d *delivery) welcome() (inSync bool) {
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

// wanted replaces what the edge must hold.
func (d *delivery) wanted(w *roster.Wanted) {
	d.want = w
	for id := range d.gone {
		if w.Items[id] != nil {
			delete(d.gone, id)
		}
	}
}

// confirmed records that a live read found a pod gone.
func (d *delivery) confirmed(id roster.ID) { d.gone[id] = true }

// inventory takes a part of what the edge holds.
func (d *delivery) inventory(m *wire.Inventory) error {
	if d.phase != phaseInventory {
		return fmt.Errorf("%w: an inventory that nobody asked for", errProtocol)
	}
	d.items = append(d.items, m.GetItems()...)
	if len(d.items) > maxInventory {
		return fmt.Errorf("%w: an inventory of more than %d objects", errProtocol, maxInventory)
	}
	if m.GetLast() {
		d.have, d.items, d.phase = roster.HeldOf(d.items), nil, phaseSyncing
	}
	return nil
}

// ack takes the edge's word that all Changes up to seq are committed.
func (d *delivery) ack(seq uint64) error {
	if seq > d.seq || seq < d.acked {
		return fmt.Errorf("%w: acknowledgement of %d, sent were %d, acknowledged %d", errProtocol, seq, d.seq, d.acked)
	}
	for ; d.acked < seq; d.acked++ {
		d.unsent -= d.sizes[0]
		d.sizes = d.sizes[1:]
	}
	return nil
}

// next returns the next message to send, or nil. unconfirmed are pods to look
// for with a live read; see roster.Change.
func (d *delivery) next() (m *wire.HubMessage, unconfirmed []*wire.ObjectRef, err error) {
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
func (d *delivery) batch(change roster.Change) (*wire.HubMessage, error) {
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

// settled says that the edge holds what it must, as far as that is known.
func (d *delivery) settled() bool {
	return d.phase == phaseLive && d.acked == d.seq && roster.Diff(d.want, d.have, d.gone).Empty()
}
