package resume

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func noJitter(time.Duration) time.Duration { return 0 }

// sendAll takes what the window lets go.
func sendAll(w *Window, now time.Time) (ids []uint64) {
	for r, ok := w.Next(now); ok; r, ok = w.Next(now) {
		ids = append(ids, r.ID)
	}
	return ids
}

func equal(a, b []uint64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestStatusesGoBeforeEvents(t *testing.T) {
	w := NewWindow(noJitter)
	w.Add([]Waiting{{ID: 1}, {ID: 2}, {ID: 4}})
	w.Add([]Waiting{{ID: 3, Key: "a"}, {ID: 5, Key: "b"}})
	if got := sendAll(w, time.Time{}); !equal(got, []uint64{3, 5, 1, 2, 4}) {
		t.Errorf("sent %v", got)
	}
}

func TestOneReportOfAnObjectIsUnderWay(t *testing.T) {
	w := NewWindow(noJitter)
	w.Add([]Waiting{{ID: 1, Key: "a"}, {ID: 2, Key: "a"}, {ID: 3, Key: "b"}})
	if got := sendAll(w, time.Time{}); !equal(got, []uint64{1, 3}) {
		t.Errorf("sent %v", got)
	}
	if !w.Answer(1, wire.ResultCode_RESULT_ACCEPTED, time.Time{}) {
		t.Error("an accepted report is not settled")
	}
	if got := sendAll(w, time.Time{}); !equal(got, []uint64{2}) {
		t.Errorf("then sent %v", got)
	}
	w.Gone(2) // replaced while it was read
	w.Add([]Waiting{{ID: 4, Key: "a"}})
	if got := sendAll(w, time.Time{}); !equal(got, []uint64{4}) {
		t.Errorf("after a replaced one sent %v", got)
	}
}

func TestWindowIsBounded(t *testing.T) {
	w := NewWindow(noJitter)
	for i := range uint64(100) {
		w.Add([]Waiting{{ID: i + 1}})
	}
	if got := sendAll(w, time.Time{}); len(got) != WindowSize {
		t.Errorf("%d under way", len(got))
	}
	w.Answer(5, wire.ResultCode_RESULT_REJECTED, time.Time{})
	if got := sendAll(w, time.Time{}); !equal(got, []uint64{WindowSize + 1}) {
		t.Errorf("then sent %v", got)
	}
}

func TestRetriedReportWaitsItsTurn(t *testing.T) {
	now := time.Unix(1000, 0)
	w := NewWindow(noJitter)
	w.Add([]Waiting{{ID: 1, Key: "a"}, {ID: 2, Key: "b"}})
	sendAll(w, now)
	if w.Answer(1, wire.ResultCode_RESULT_RETRY, now) || w.Answer(2, wire.ResultCode(99), now) {
		t.Error("a report to be sent again, or with an unknown answer, is settled")
	}
	if got := sendAll(w, now); len(got) != 0 {
		t.Errorf("sent %v at once", got)
	}
	due := w.Due()
	if !due.After(now) {
		t.Fatalf("due %v", due)
	}
	if got := sendAll(w, due); !equal(got, []uint64{1, 2}) {
		t.Errorf("when due sent %v", got)
	}
	// The waits grow, up to a ceiling.
	last, at := time.Duration(0), due
	for range 10 {
		w.Answer(1, wire.ResultCode_RESULT_RETRY, at)
		wait := w.Due().Sub(at)
		if wait < last || wait > retryCap {
			t.Errorf("waits %v after %v", wait, last)
		}
		last, at = wait, w.Due()
		sendAll(w, at)
	}
	if last < retryCap/2 {
		t.Errorf("waits only %v in the end", last)
	}
}

func TestEventsKeepTheirOrderWhenTheyMustWait(t *testing.T) {
	now := time.Unix(1000, 0)
	w := NewWindow(noJitter)
	for i := range uint64(40) {
		w.Add([]Waiting{{ID: i + 1}})
	}
	sent := sendAll(w, now)
	for _, id := range sent {
		w.Answer(id, wire.ResultCode_RESULT_RETRY, now)
	}
	w.Add([]Waiting{{ID: 50, Key: "status"}})
	if got := sendAll(w, now); !equal(got, []uint64{50}) {
		t.Errorf("while the events wait sent %v", got)
	}
	if l := w.lane(""); l.tries != 1 {
		t.Errorf("one refusal of a full window counts as %d", l.tries)
	}
	w.Answer(50, wire.ResultCode_RESULT_ACCEPTED, now)
	if got := sendAll(w, w.Due()); !equal(got, sent) {
		t.Errorf("then sent %v, want %v", got, sent)
	}
}

// TestWindowUnderRandomAnswers holds, for any order of what can happen: nothing is
// lost, nothing overtakes within a key, and no more than the window is under way.
func TestWindowUnderRandomAnswers(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := NewWindow(func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) })
		now := time.Unix(1000, 0)
		keys := []string{"", "a", "b", "c"}
		var nextID uint64
		underWay := map[uint64]string{}
		settled := map[string]uint64{} // highest of each key
		done := 0
		for done < 300 {
			if nextID < 300 && random.IntN(2) == 0 {
				nextID++
				w.Add([]Waiting{{ID: nextID, Key: keys[random.IntN(len(keys))]}})
			}
			for r, ok := w.Next(now); ok; r, ok = w.Next(now) {
				if r.Key != "" {
					for id, key := range underWay {
						if key == r.Key {
							t.Fatalf("seed %d: %d and %d of %q under way", seed, id, r.ID, key)
						}
					}
					if r.ID < settled[r.Key] {
						t.Fatalf("seed %d: %d of %q goes after %d", seed, r.ID, r.Key, settled[r.Key])
					}
				}
				if underWay[r.ID] = r.Key; len(underWay) > WindowSize {
					t.Fatalf("seed %d: %d under way", seed, len(underWay))
				}
			}
			if len(underWay) == 0 {
				due := w.Due()
				if due.IsZero() && nextID == 300 {
					t.Fatalf("seed %d: %d of 300 are done and nothing is due", seed, done)
				}
				if due.After(now) {
					now = due
				}
			}
			for id, key := range underWay {
				switch random.IntN(4) {
				case 0:
					if w.Answer(id, wire.ResultCode_RESULT_RETRY, now) {
						t.Fatalf("seed %d: a report to be sent again was settled", seed)
					}
				case 1:
					if !w.Answer(id, wire.ResultCode_RESULT_ACCEPTED, now) {
						t.Fatalf("seed %d: an accepted report was not settled", seed)
					}
					settled[key] = max(settled[key], id)
					done++
				default:
					continue
				}
				delete(underWay, id)
				if w.Answer(id, wire.ResultCode_RESULT_ACCEPTED, now) {
					t.Fatalf("seed %d: answered twice, settled twice", seed)
				}
			}
			now = now.Add(time.Duration(random.Int64N(int64(time.Second))))
		}
	}
}
