package event

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/store"
)

func TestRepeatingEventBurnsNoTraffic(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(t, err)
	defer s.Close()
	clock := new(leapClock)
	e := New(s, clock, "edge-1", slog.New(slog.DiscardHandler), nil)
	about := corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "crash", UID: "u1", FieldPath: "spec.containers{main}"}
	read := func() []corev1.Event {
		e.flush()
		list, err := s.Outbox(t.Context(), 0, 1000)
		must(t, err)
		var out []corev1.Event
		for _, r := range list {
			ev := corev1.Event{}
			must(t, ev.Unmarshal(r.Payload))
			out = append(out, ev)
		}
		return out
	}
	sent := 0
	for range 500 { // a night of crashes, one a minute
		e.Put(about, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container")
		sent += len(e.order)
		if list := read(); len(list) != 1 {
			t.Fatalf("%d events in the outbox, want one that counts", len(list))
		}
		clock.leap.Add(int64(time.Minute))
	}
	if sent > 105 {
		t.Errorf("reported %d times in 500 minutes, want at most one in 5 minutes", sent)
	}
	clock.leap.Add(int64(time.Hour))
	e.Put(about, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container")
	if list := read(); list[0].Count != 501 || list[0].InvolvedObject.FieldPath != "spec.containers{main}" {
		t.Errorf("event: %+v, want a count of 501", list[0])
	}
	for i := range 100 {
		e.Put(about, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("Liveness probe failed: attempt %d", i))
	}
	if n := len(read()); n > 1+similarMost+1 {
		t.Errorf("%d events, want those that differ in a number combined", n)
	}
	e.Forget(string(about.UID))
	if len(e.series) != 0 {
		t.Error("series of a pod that is gone are kept")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leapClock stands but for the leaps that a test makes.
type leapClock struct{ leap atomic.Int64 }

func (c *leapClock) Mono() time.Duration { return time.Duration(c.leap.Load()) }
func (c *leapClock) Wall() time.Time     { return time.Unix(1_700_000_000, 0).Add(c.Mono()) }
