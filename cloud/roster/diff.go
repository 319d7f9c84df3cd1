package roster

import (
	"maps"
	"slices"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Wanted is what a node must hold, as far as the cloud knows.
type Wanted struct {
	Items map[ID]*Item
	// Terminal are the pods among Items that have run to their end: a node
	// which holds one keeps it, a node which does not is not given it.
	Terminal map[ID]bool
	// Unknown are objects that some pod refers to and that could not be read:
	// whatever the node holds of them stays.
	Unknown map[Key]bool
	// Held are pods that wait a little for what they refer to: they are not
	// sent to a node that does not hold them yet, and deleted from none.
	Held map[ID]bool
	// DevicesUnknown says that nothing is known of the kinds of devices.holdfast.io:
	// whatever the node holds of them stays. It is not a lack that anything else
	// waits for.
	DevicesUnknown bool
}

// Complete says that nothing is unknown.
func (w *Wanted) Complete() bool { return len(w.Unknown) == 0 && len(w.Held) == 0 }

// UpTo is w without what a node that knows kinds up to highest only cannot take.
// What such a node holds of it all the same stays.
func (w *Wanted) UpTo(highest wire.Kind) *Wanted {
	if highest >= wire.KindMax {
		return w
	}
	out := *w
	out.DevicesUnknown = true
	for id := range w.Items {
		if id.Kind > highest {
			out.Items = maps.Clone(w.Items)
			maps.DeleteFunc(out.Items, func(id ID, _ *Item) bool { return id.Kind > highest })
			break
		}
	}
	return &out
}

// Matches says that the digest is one of a node which needs nothing: it holds
// all items, with or without the pods that have ended.
func (w *Wanted) Matches(digest []byte) (have Held, ok bool) {
	if !w.Complete() {
		return nil, false
	}
	for _, withTerminal := range []bool{true, false} {
		refs := make([]*wire.ObjectRef, 0, len(w.Items))
		for id, item := range w.Items {
			if withTerminal || !w.Terminal[id] {
				refs = append(refs, item.Ref)
			}
		}
		if slices.Equal(wire.Digest(refs), digest) {
			return HeldOf(refs), true
		}
	}
	return nil, false
}

// Held is what a node holds, or will hold once it has applied all that was
// sent: references with versions.
type Held map[ID]*wire.ObjectRef

// HeldOf makes a set of an inventory.
func HeldOf(refs []*wire.ObjectRef) Held {
	h := make(Held, len(refs))
	for _, r := range refs {
		h[IDOf(r)] = r
	}
	return h
}

// Digest is wire.Digest of the set.
func (h Held) Digest() []byte {
	refs := make([]*wire.ObjectRef, 0, len(h))
	for _, r := range h {
		refs = append(refs, r)
	}
	return wire.Digest(refs)
}

// Change is what brings a node from what it holds to what is wanted.
type Change struct {
	// Upserts come in the order of sending: ConfigMaps, Secrets and the Node before
	// the pods, models before devices, so that each finds what it refers to.
	Upserts []*Item
	// Deletes come in the order of sending: pods and devices first.
	Deletes []*wire.ObjectRef
	// Unconfirmed are pods that the node holds and that nobody wants, as far as
	// caches know. A live read must confirm each (gone, or another uid) before
	// it may be deleted; until then nothing but confirmed pods is deleted,
	// because an unconfirmed pod's references are not known.
	Unconfirmed []*wire.ObjectRef
}

// Empty says that nothing need be sent.
func (c Change) Empty() bool { return len(c.Upserts) == 0 && len(c.Deletes) == 0 }

// Diff works out the change. gone holds the pods whose absence a live read has
// confirmed.
func Diff(want *Wanted, have Held, gone map[ID]bool) Change {
	var c Change
	for id, item := range want.Items {
		held, ok := have[id]
		switch {
		case ok && slices.Equal(held.GetVersion(), item.Ref.GetVersion()):
		case !ok && (want.Terminal[id] || want.Held[id]):
		default:
			c.Upserts = append(c.Upserts, item)
		}
	}
	var others []*wire.ObjectRef
	for id, ref := range have {
		if want.Items[id] != nil || want.Held[id] {
			continue
		}
		switch {
		case id.Kind == wire.Kind_KIND_POD && gone[id]:
			c.Deletes = append(c.Deletes, withoutVersion(ref))
		case id.Kind == wire.Kind_KIND_POD:
			c.Unconfirmed = append(c.Unconfirmed, ref)
		case ofDevices(id.Kind):
			if !want.DevicesUnknown {
				c.Deletes = append(c.Deletes, withoutVersion(ref))
			}
		case !want.Unknown[KeyOf(ref)]:
			others = append(others, withoutVersion(ref))
		}
	}
	if len(c.Unconfirmed) == 0 {
		c.Deletes = append(c.Deletes, others...)
	}
	slices.SortFunc(c.Upserts, func(a, b *Item) int { return inOrder(a.Ref, b.Ref, rank) })
	slices.SortFunc(c.Deletes, func(a, b *wire.ObjectRef) int { return -inOrder(a, b, rank) })
	slices.SortFunc(c.Unconfirmed, wire.CompareRefs)
	return c
}

// rank puts what pods and devices need before them.
func rank(k wire.Kind) int {
	if k == wire.Kind_KIND_POD || k == wire.Kind_KIND_DEVICE {
		return 1
	}
	return 0
}

// ofDevices says that a kind is of devices.holdfast.io. No pod refers to one.
func ofDevices(k wire.Kind) bool {
	return k == wire.Kind_KIND_DEVICE_MODEL || k == wire.Kind_KIND_DEVICE || k == wire.Kind_KIND_ROUTE
}

func inOrder(a, b *wire.ObjectRef, rank func(wire.Kind) int) int {
	if d := rank(a.GetKind()) - rank(b.GetKind()); d != 0 {
		return d
	}
	return wire.CompareRefs(a, b)
}

func withoutVersion(r *wire.ObjectRef) *wire.ObjectRef {
	return &wire.ObjectRef{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName(), Uid: r.GetUid()}
}
