package model

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/uplink"
)

// disk is an edge's store that can lose its power.
type disk interface {
	uplink.Store
	PutReport(context.Context, store.Report) error
	// powerCut is the store as it is found after the power went.
	powerCut(t *testing.T) disk
	// lost is an empty one, as after a new SD card.
	lost(t *testing.T) disk
	close(t *testing.T)
}

// memory is a disk without one: what is in it is on it.
type memory struct {
	objects map[roster.ID]*wire.ObjectRef
	outbox  []memoryReport // by id
	lastID  uint64
	meta    map[string][]byte
	changed chan struct{}
}

type memoryReport struct {
	id uint64
	store.Report
}

func newMemory() *memory {
	return &memory{objects: make(map[roster.ID]*wire.ObjectRef), meta: make(map[string][]byte), changed: make(chan struct{}, 1)}
}

func (m *memory) powerCut(*testing.T) disk { return m }
func (m *memory) lost(*testing.T) disk     { return newMemory() }
func (m *memory) close(*testing.T)         {}

func (m *memory) ID() string { return "memory" }

func (m *memory) Digest(ctx context.Context) ([]byte, error) {
	refs, err := m.Inventory(ctx)
	return wire.Digest(refs), err
}

func (m *memory) Inventory(context.Context) ([]*wire.ObjectRef, error) {
	return slices.SortedFunc(maps.Values(m.objects), wire.CompareRefs), nil
}

func (m *memory) Apply(_ context.Context, upserts []*wire.Object, deletes []*wire.ObjectRef) error {
	for _, r := range deletes {
		delete(m.objects, roster.IDOf(r))
	}
	for _, o := range upserts {
		m.objects[roster.IDOf(o.GetRef())] = o.GetRef()
	}
	return nil
}

func (m *memory) MarkSynced(context.Context) error { return nil }

func (m *memory) PutReport(_ context.Context, r store.Report) error {
	if r.Key != "" {
		m.outbox = slices.DeleteFunc(m.outbox, func(o memoryReport) bool { return o.Key == r.Key && o.Kind == r.Kind })
	}
	m.lastID++
	m.outbox = append(m.outbox, memoryReport{m.lastID, r})
	return nil
}

func (m *memory) OutboxChanged() <-chan struct{} { return m.changed }

func (m *memory) OutboxIndex(_ context.Context, keyed bool, after uint64, limit int) ([]store.Waiting, error) {
	var out []store.Waiting
	for _, r := range m.outbox {
		if r.id > after && (r.Key != "") == keyed && (limit < 0 || len(out) < limit) {
			out = append(out, store.Waiting{ID: r.id, Kind: r.Kind, Key: r.Key})
		}
	}
	return out, nil
}

func (m *memory) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(m.outbox, id, func(r memoryReport, id uint64) int { return cmp.Compare(r.id, id) })
}

func (m *memory) OutboxReport(_ context.Context, id uint64) (*wire.Report, error) {
	i, ok := m.find(id)
	if !ok {
		return nil, fmt.Errorf("report %d: %w", id, store.ErrNotFound)
	}
	return &wire.Report{Id: id, Kind: m.outbox[i].Kind, Payload: m.outbox[i].Payload}, nil
}

func (m *memory) OutboxLen(context.Context) (int, error) { return len(m.outbox), nil }

func (m *memory) Settle(_ context.Context, ids ...uint64) error {
	for _, id := range ids {
		if i, ok := m.find(id); ok {
			m.outbox = slices.Delete(m.outbox, i, i+1)
		}
	}
	return nil
}

func (m *memory) Meta(_ context.Context, key string) ([]byte, error) {
	if b, ok := m.meta[key]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("setting %s: %w", key, store.ErrNotFound)
}

func (m *memory) SetMeta(_ context.Context, key string, value []byte) error {
	m.meta[key] = value
	return nil
}

// sqlite is the real store.
type sqlite struct {
	*store.Store
	path string
	dir  string // of all of a test
}

func newSQLite(t *testing.T, dir string) *sqlite {
	t.Helper()
	own, err := os.MkdirTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return openSQLite(t, dir, filepath.Join(own, "store.db"))
}

func openSQLite(t *testing.T, dir, path string) *sqlite {
	t.Helper()
	s, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Opened().Recovery; r != nil {
		t.Fatalf("the store was found damaged: %+v", r)
	}
	return &sqlite{Store: s, path: path, dir: dir}
}

// powerCut opens what lies on the disk while the store still runs: the file and
// its log, which nobody had the time to write into it.
func (s *sqlite) powerCut(t *testing.T) disk {
	t.Helper()
	own, err := os.MkdirTemp(s.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(own, "store.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.path + suffix)
		if err == nil {
			err = os.WriteFile(path+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.close(t)
	return openSQLite(t, s.dir, path)
}

func (s *sqlite) lost(t *testing.T) disk {
	s.close(t)
	return newSQLite(t, s.dir)
}

func (s *sqlite) close(t *testing.T) {
	t.Helper()
	if err := s.Store.Close(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Dir(s.path)); err != nil {
		t.Error(err)
	}
}
