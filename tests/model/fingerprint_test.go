package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// fingerprint tells states apart. Two states with the same future have the same
// one where that is easy to see: of epochs only the order counts, of versions of
// the apiserver's only which are the latest, and connections have no order.
type fingerprint [16]byte

func (w *world) fingerprint() fingerprint {
	e := &encoder{objects: w.objects, epochs: w.epochs()}
	for s := range w.truth {
		e.slot(w.truth[s])
		e.b = append(e.b, w.edge.store[s][:]...)
	}
	l := w.left
	e.bytes(l.changes, l.statuses, l.blind, l.faults, l.mangled, l.retries)
	e.bytes(w.edge.status, w.edge.outbox.id, w.edge.outbox.status, w.edge.lastID, bit(w.edge.inventory), w.edge.committed)
	if w.edge.session != nil {
		e.value(reflect.ValueOf(w.edge.session).Elem())
		e.value(reflect.ValueOf(w.edge.window).Elem())
	}
	e.bytes(w.api.status, w.api.content, e.epoch(w.api.epoch), e.epoch(w.api.lease))
	e.sorted(len(w.api.orphans), func(i int) { e.put(w.api.orphans[i], w) })
	e.sorted(len(w.conns), func(i int) { e.conn(w.conns[i], w) })
	sum := sha256.Sum256(e.b)
	return fingerprint(sum[:16])
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// epochs lists the epochs that somebody knows, in order.
func (w *world) epochs() []uint8 {
	all := []uint8{0, w.api.epoch, w.api.lease}
	for _, c := range w.conns {
		all = append(all, c.epoch, c.put.epoch)
	}
	for _, p := range w.api.orphans {
		all = append(all, p.epoch)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

type encoder struct {
	b       []byte
	objects *objects
	epochs  []uint8
}

func (e *encoder) bytes(b ...byte) { e.b = append(e.b, b...) }

func (e *encoder) epoch(n uint8) byte { return byte(slices.Index(e.epochs, n)) }

func (e *encoder) slot(s slot) { e.bytes(s.uid, s.version, bit(s.ended)) }

func (e *encoder) put(p put, w *world) {
	e.bytes(p.status, e.epoch(p.epoch), bit(p.version == w.api.version))
}

// sorted encodes n things in the order of their encodings.
func (e *encoder) sorted(n int, encode func(i int)) {
	start := len(e.b)
	var parts [][]byte
	for i := range n {
		encode(i)
		parts = append(parts, bytes.Clone(e.b[start:]))
		e.b = e.b[:start]
	}
	slices.SortFunc(parts, bytes.Compare)
	e.bytes(byte(n))
	for _, p := range parts {
		e.b = binary.BigEndian.AppendUint16(e.b, uint16(len(p)))
		e.b = append(e.b, p...)
	}
}

func (e *encoder) conn(c *conn, w *world) {
	e.bytes(bit(c.edge), byte(c.hub), bit(c.looked), bit(c.welcomed), bit(c.mangled), e.epoch(c.epoch), byte(c.view.blind))
	if c.looked {
		for _, s := range c.view.truth {
			e.slot(s)
		}
	}
	e.put(c.put, w)
	e.bytes(byte(len(c.reports)))
	for _, r := range c.reports {
		e.bytes(byte(r.GetId()), r.GetPayload()[0])
	}
	e.bytes(byte(len(c.up)))
	for _, m := range c.up {
		e.edgeMessage(m)
	}
	e.bytes(byte(len(c.down)))
	for _, m := range c.down {
		e.hubMessage(m)
	}
	if c.delivery != nil {
		e.value(reflect.ValueOf(c.delivery).Elem())
	}
}

func (e *encoder) edgeMessage(m *wire.EdgeMessage) {
	switch body := m.GetBody().(type) {
	case *wire.EdgeMessage_Hello:
		e.bytes('h')
		e.b = append(e.b, body.Hello.GetDigest()...)
	case *wire.EdgeMessage_Inventory:
		e.bytes('i', byte(len(body.Inventory.GetItems())), bit(body.Inventory.GetLast()))
		for _, r := range body.Inventory.GetItems() {
			e.ref(r)
		}
	case *wire.EdgeMessage_Ack:
		e.bytes('a', byte(body.Ack.GetSeq()))
	case *wire.EdgeMessage_Report:
		e.bytes('r', byte(body.Report.GetId()), body.Report.GetPayload()[0])
	default:
		panic(fmt.Sprintf("%T", body))
	}
}

func (e *encoder) hubMessage(m *wire.HubMessage) {
	switch body := m.GetBody().(type) {
	case *wire.HubMessage_Welcome:
		e.bytes('w', bit(body.Welcome.GetInSync()), bit(body.Welcome.GetClaimFollows()))
	case *wire.HubMessage_InventoryAsk:
		e.bytes('q')
	case *wire.HubMessage_Changes:
		e.bytes('c', byte(body.Changes.GetSeq()), byte(len(body.Changes.GetUpserts())), byte(len(body.Changes.GetDeletes())))
		for _, o := range body.Changes.GetUpserts() {
			e.ref(o.GetRef())
		}
		for _, r := range body.Changes.GetDeletes() {
			e.ref(r)
		}
	case *wire.HubMessage_Synced:
		e.bytes('s')
		e.b = append(e.b, body.Synced.GetDigest()...)
	case *wire.HubMessage_Claimed:
		e.bytes('m')
	case *wire.HubMessage_ReportResult:
		e.bytes('r', byte(body.ReportResult.GetId()), byte(body.ReportResult.GetCode()))
	case *wire.HubMessage_Goodbye:
		e.bytes('g', byte(body.Goodbye.GetReason()))
	default:
		panic(fmt.Sprintf("%T", body))
	}
}

func (e *encoder) ref(r *wire.ObjectRef) {
	s, uid := place(r.GetUid())
	e.bytes(byte(s), uid, e.objects.versionOf(r))
}

// value encodes whatever a part under test keeps in its fields, so that a field
// which is added to it is a part of the state from then on.
func (e *encoder) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		e.bytes(bit(v.Bool()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.b = binary.AppendVarint(e.b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		e.b = binary.AppendUvarint(e.b, v.Uint())
	case reflect.String:
		e.b = binary.AppendUvarint(e.b, uint64(v.Len()))
		e.b = append(e.b, v.String()...)
	case reflect.Struct:
		for i := range v.NumField() {
			e.value(v.Field(i))
		}
	case reflect.Slice:
		e.b = binary.AppendUvarint(e.b, uint64(v.Len()))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			e.b = append(e.b, v.Bytes()...)
			return
		}
		for i := range v.Len() {
			e.value(v.Index(i))
		}
	case reflect.Map:
		entries := v.MapRange()
		e.sorted(v.Len(), func(int) {
			entries.Next()
			e.value(entries.Key())
			e.value(entries.Value())
		})
	case reflect.Pointer:
		e.pointer(v)
	case reflect.Func: // the same in all states
	default:
		panic(fmt.Sprintf("what is a %s in the state?", v.Type()))
	}
}

func (e *encoder) pointer(v reflect.Value) {
	if v.IsNil() {
		e.bytes(0)
		return
	}
	e.bytes(1)
	switch v.Type() {
	case reflect.TypeFor[*roster.Wanted]():
		// What is wanted is made once for each view, which is in the state.
	case reflect.TypeFor[*wire.ObjectRef]():
		e.ref((*wire.ObjectRef)(v.UnsafePointer()))
	default:
		e.value(v.Elem())
	}
}
