package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// memory is a node's store without a disk (uplink.Store).
type memory struct {
	id      string
	applied func(*wire.Object, time.Time) // told of each object when it is committed; may be nil
	settled func(reports []row)           // told of each report that the hub has taken; may be nil
	changed chan struct{}

	mu      sync.Mutex
	objects []*wire.Object
	outbox  []row // by id
	last    uint64
	meta    map[string][]byte
}

// row is a report that waits.
type row struct {
	id      uint64
	kind    wire.ReportKind
	key     string
	payload []byte
}

func newMemory(id string) *memory { return &memory{id: id, changed: make(chan struct{}, 1)} }

// ID names the store.
func (m *memory) ID() string { return m.id }

// Digest is of what the store holds.
func (m *memory) Digest(ctx context.Context) ([]byte, error) {
	refs, err := m.Inventory(ctx)
	return wire.Digest(refs), err
}

// Inventory is what the store holds.
func (m *memory) Inventory(context.Context) ([]*wire.ObjectRef, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	refs := make([]*wire.ObjectRef, len(m.objects))
	for i, o := range m.objects {
		refs[i] = o.GetRef()
	}
	return refs, nil
}

// Apply commits changes.
func (m *memory) Apply(_ context.Context, upserts []*wire.Object, deletes []*wire.ObjectRef) error {
	m.mu.Lock()
	for _, ref := range deletes {
		if i := m.find(ref); i >= 0 {
			m.objects = slices.Delete(m.objects, i, i+1)
		}
	}
	for _, o := range upserts {
		if i := m.find(o.GetRef()); i >= 0 {
			m.objects[i] = o
		} else {
			m.objects = append(m.objects, o)
		}
	}
	m.mu.Unlock()
	if m.applied != nil {
		now := time.Now()
		for _, o := range upserts {
			m.applied(o, now)
		}
	}
	return nil
}

func (m *memory) find(ref *wire.ObjectRef) int {
	return slices.IndexFunc(m.objects, func(o *wire.Object) bool {
		return o.GetRef().GetUid() == ref.GetUid() && o.GetRef().GetKind() == ref.GetKind()
	})
}

// MarkSynced is part of uplink.Store.
func (m *memory) MarkSynced(context.Context) error { return nil }

// put writes a report into the outbox, in place of an earlier one of its key.
func (m *memory) put(r row) {
	m.mu.Lock()
	m.outbox = slices.DeleteFunc(m.outbox, func(o row) bool { return r.key != "" && o.kind == r.kind && o.key == r.key })
	m.last++
	r.id = m.last
	m.outbox = append(m.outbox, r)
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// OutboxChanged is signalled when a report was put.
func (m *memory) OutboxChanged() <-chan struct{} { return m.changed }

// OutboxIndex lists reports without their payloads.
func (m *memory) OutboxIndex(_ context.Context, keyed bool, after uint64, limit int) ([]store.Waiting, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var waiting []store.Waiting
	for _, r := range m.outbox {
		if r.id > after && (r.key != "") == keyed && len(waiting) != limit {
			waiting = append(waiting, store.Waiting{ID: r.id, Kind: r.kind, Key: r.key})
		}
	}
	return waiting, nil
}

// OutboxReport is one report.
func (m *memory) OutboxReport(_ context.Context, id uint64) (*wire.Report, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.outbox {
		if r.id == id {
			return &wire.Report{Id: r.id, Kind: r.kind, Payload: r.payload}, nil
		}
	}
	return nil, fmt.Errorf("report %d of %s: %w", id, m.id, store.ErrNotFound)
}

// OutboxLen is how many reports wait.
func (m *memory) OutboxLen(context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.outbox), nil
}

// Settle forgets reports that the hub has taken.
func (m *memory) Settle(_ context.Context, ids ...uint64) error {
	var done []row
	m.mu.Lock()
	m.outbox = slices.DeleteFunc(m.outbox, func(r row) bool {
		taken := slices.Contains(ids, r.id)
		if taken {
			done = append(done, r)
		}
		return taken
	})
	m.mu.Unlock()
	if m.settled != nil {
		m.settled(done)
	}
	return nil
}

// Meta is part of uplink.Store.
func (m *memory) Meta(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if value, ok := m.meta[key]; ok {
		return value, nil
	}
	return nil, fmt.Errorf("meta %s of %s: %w", key, m.id, store.ErrNotFound)
}

// SetMeta is part of uplink.Store.
func (m *memory) SetMeta(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.meta == nil {
		m.meta = make(map[string][]byte)
	}
	m.meta[key] = value
	return nil
}

// changeTime reads the time of a change out of a pod, without decoding all of it;
// zero: the pod has never been changed.
func changeTime(o *wire.Object) time.Time {
	_, rest, ok := bytes.Cut(o.GetPayload(), []byte(changedAt))
	if !ok || len(rest) < 2 {
		return time.Time{}
	}
	// The value follows as a field of its own: a tag and a length before the digits.
	digits := rest[2:]
	end := 0
	for end < len(digits) && digits[end] >= '0' && digits[end] <= '9' {
		end++
	}
	nanoseconds, err := strconv.ParseInt(string(digits[:min(end, int(rest[1]))]), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}
