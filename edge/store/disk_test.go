package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func TestFullDiskLosesNothing(t *testing.T) {
	ctx := context.Background()
	dir := smallDisk(t, 4<<20)
	path := filepath.Join(dir, "store.db")
	s := openAt(t, path, Options{})
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "before")})
	must(t, s.SetPodState(ctx, "u1", []byte("before")))
	must(t, s.PutReport(ctx, Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: "u1", Payload: []byte("before")}))
	free := fill(t, dir)
	digest, err := s.Digest(ctx)
	must(t, err)

	big := string(bytes.Repeat([]byte("x"), 1<<20))
	if err := s.Apply(ctx, []*wire.Object{podObject(t, "a", "q", "u2", big)}, nil); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("on a full disk: %v", err)
	}
	if err := s.PutReport(ctx, Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: "u1", Payload: []byte(big)}); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a report on a full disk: %v", err)
	}
	if err := s.Copy(ctx); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a copy on a full disk: %v", err)
	}
	if after, err := s.Digest(ctx); err != nil || !bytes.Equal(after, digest) {
		t.Errorf("the store changed, %v", err)
	}
	if out, err := s.Outbox(ctx, 0, 10); err != nil || len(out) != 1 || string(out[0].Payload) != "before" {
		t.Errorf("outbox %v, %v", out, err)
	}
	free()
	apply(t, s, []*wire.Object{podObject(t, "a", "q", "u2", big)})
	must(t, s.Copy(ctx))
}

func TestRebootWithAFullDiskOpensTheDatabase(t *testing.T) {
	ctx := context.Background()
	dir := smallDisk(t, 8<<20)
	path := filepath.Join(dir, "store.db")
	s := openAt(t, path, Options{})
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	s.keepReserve()
	if sizeOf(s.reservePath()) != reserveBytes {
		t.Fatal("there is no reserve")
	}
	must(t, s.Close())
	fill(t, dir)
	s = openAt(t, path, Options{})
	if pods, err := s.Pods(ctx); err != nil || len(pods) != 1 || s.Opened().Recovery != nil {
		t.Errorf("pods %v, %v, %+v", pods, err, s.Opened())
	}
	if sizeOf(s.reservePath()) != 0 {
		t.Error("the reserve was not needed: this test shows nothing")
	}
	must(t, s.SetPodState(ctx, "u1", []byte("restarted")))
}

func TestOutboxKeepsTheLatestOfEachKeyAndTheOrderOfTheRest(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	status, event, gone := wire.ReportKind_REPORT_POD_STATUS, wire.ReportKind_REPORT_EVENT, wire.ReportKind_REPORT_POD_GONE
	for _, r := range []Report{{status, "u1", []byte("1")}, {event, "", []byte("2")}, {status, "u2", []byte("3")}, {status, "u1", []byte("4")},
		{event, "", []byte("5")}, {gone, "u1", nil}} {
		must(t, s.PutReport(ctx, r))
	}
	select {
	case <-s.OutboxChanged():
	default:
		t.Error("nobody is told")
	}
	out, err := s.Outbox(ctx, 0, 100)
	must(t, err)
	got := ""
	for i, r := range out {
		got += string(r.Payload) + ";"
		if i > 0 && r.Id <= out[i-1].Id {
			t.Errorf("ids are out of order: %v", out)
		}
	}
	if got != "2;3;4;5;;" {
		t.Errorf("outbox %q", got)
	}
	keyed, err := s.OutboxIndex(ctx, true, out[1].Id, 100)
	if err != nil || len(keyed) != 2 || keyed[0] != (Waiting{out[2].Id, status, "u1"}) || keyed[1] != (Waiting{out[4].Id, gone, "u1"}) {
		t.Errorf("keyed %v, %v", keyed, err)
	}
	events, err := s.OutboxIndex(ctx, false, 0, 1)
	if err != nil || len(events) != 1 || events[0].ID != out[0].Id {
		t.Errorf("events %v, %v", events, err)
	}
	if pending, err := s.Pending(ctx, status, "u2"); err != nil || !pending {
		t.Errorf("pending %v, %v", pending, err)
	}
	// A late answer about the first status of u1 settles nothing.
	must(t, s.Settle(ctx, 1))
	must(t, s.Settle(ctx, out[0].Id, out[1].Id))
	after, err := s.Outbox(ctx, 0, 100)
	if err != nil || len(after) != 3 || after[0].Id != out[2].Id {
		t.Errorf("afterwards %v, %v", after, err)
	}
	if pending, err := s.Pending(ctx, status, "u2"); err != nil || pending {
		t.Errorf("afterwards pending %v, %v", pending, err)
	}
	if _, err := s.OutboxReport(ctx, out[0].Id); !errors.Is(err, ErrNotFound) {
		t.Errorf("a settled report: %v", err)
	}
	if r, err := s.OutboxReport(ctx, out[2].Id); err != nil || string(r.Payload) != "4" || r.Kind != status {
		t.Errorf("report %v, %v", r, err)
	}
}

func TestOldestEventsAreDroppedAndCounted(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{MaxEvents: 10})
	must(t, s.PutReport(ctx, Report{wire.ReportKind_REPORT_POD_STATUS, "u1", []byte("status")}))
	done := make(chan error)
	for w := range 5 { // at once, so that writes share commits
		go func() {
			var err error
			for i := range 20 {
				err = errors.Join(err, s.PutReport(ctx, Report{wire.ReportKind_REPORT_EVENT, "", []byte(fmt.Sprint(w, i))}))
			}
			done <- err
		}()
	}
	for range 5 {
		must(t, <-done)
	}
	must(t, s.PutReport(ctx, Report{wire.ReportKind_REPORT_EVENT, "", []byte("last")}))
	out, err := s.Outbox(ctx, 0, 1000)
	if err != nil || len(out) != 11 || string(out[0].Payload) != "status" || string(out[10].Payload) != "last" {
		t.Fatalf("outbox %d, %v", len(out), err)
	}
	must(t, s.Close())
	s = openAt(t, path, Options{})
	if c, err := s.Counts(ctx); err != nil || c.EventsDropped != 91 || c.Outbox != 11 || c.Bytes == 0 {
		t.Errorf("counts %+v, %v", c, err)
	}
}

// TestEventsWithAKeyAreBoundedToo: a node that is offline for a month, with names that change at each restart of
// edgecore, must not fill its disk.
func TestEventsWithAKeyAreBoundedToo(t *testing.T) {
	ctx := context.Background()
	s := openAt(t, filepath.Join(t.TempDir(), "store.db"), Options{MaxEvents: 3})
	for _, key := range []string{"u1", "u2", "u3", "u4", "u5"} {
		must(t, s.PutReport(ctx, Report{wire.ReportKind_REPORT_POD_STATUS, key, []byte("status")}))
	}
	for _, key := range []string{"a", "b", "c", "a", "d", "d", "d"} { // each replaces its namesake
		must(t, s.PutReport(ctx, Report{wire.ReportKind_REPORT_EVENT, key, []byte(key)}))
	}
	out, err := s.Outbox(ctx, 5, 1000)
	must(t, err)
	kept := ""
	for _, r := range out {
		kept += string(r.Payload)
	}
	if c, err := s.Counts(ctx); err != nil || kept != "cad" || c.Outbox != 8 || c.EventsDropped != 1 {
		t.Errorf("events %q, counts %+v, %v; want the last three and every status", kept, c, err)
	}
}

func TestManyWritersAtOnce(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	const writers, each = 16, 15
	done := make(chan error)
	for w := range writers {
		go func() {
			var err error
			for i := range each {
				uid := fmt.Sprint(w, "-", i)
				err = errors.Join(err, s.SetPodState(ctx, uid, []byte(uid)))
				if b, e := s.PodState(ctx, uid); e != nil || string(b) != uid { // committed means there
					err = errors.Join(err, fmt.Errorf("%s: %q, %w", uid, b, e))
				}
				// One that fails takes nobody with it.
				bad := &wire.Object{Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Name: uid, Uid: uid}}
				if e := s.Apply(ctx, []*wire.Object{bad}, nil); e == nil {
					err = errors.Join(err, errors.New("an object without a version was stored"))
				}
				if e := s.SetPodState(cancelled, "never", nil); !errors.Is(e, context.Canceled) {
					err = errors.Join(err, fmt.Errorf("cancelled: %w", e))
				}
			}
			done <- err
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	states, err := s.PodStates(ctx)
	if err != nil || len(states) != writers*each {
		t.Errorf("%d states, %v", len(states), err)
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	changes, _ := s.Subscribe(1)
	must(t, s.Close())
	must(t, s.Close())
	for range changes {
	}
	_, err := s.Pods(ctx)
	if !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := s.SetPodState(ctx, "u", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("write: %v", err)
	}
}
