package uplink

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

const (
	windowSize = 32 // reports sent and not answered
	// RETRY answers are tried again after 1 s, 2 s, 4 s ... 30 s, halved at random.
	retryBase = time.Second
	retryCap  = 30 * time.Second
)

// window decides which report goes out next, without I/O and without a clock of
// its own. Statuses (reports with a key) go before events; of one key at most one
// is under way, so nothing overtakes; events go in their order.
type window struct {
	jitter func(time.Duration) time.Duration // at random in [0, d)

	keyed, events []store.Waiting // not sent, by id
	flying        map[uint64]store.Waiting
	lanes         map[string]*lane // by key; "" is the events'

	// Highest ids taken over from the outbox.
	keyedUpTo, eventsUpTo uint64
}

// lane is what one object's reports have met so far.
type lane struct {
	flying int
	tries  int
	until  time.Time // not before
}

func newWindow(jitter func(time.Duration) time.Duration) *window {
	return &window{jitter: jitter, flying: make(map[uint64]store.Waiting), lanes: make(map[string]*lane)}
}

func (w *window) lane(key string) *lane {
	l := w.lanes[key]
	if l == nil {
		l = new(lane)
		w.lanes[key] = l
	}
	return l
}

// add takes over reports from the outbox, in the order of their ids.
func (w *window) add(rows []store.Waiting) {
	for _, r := range rows {
		if r.Key == "" {
			w.events = append(w.events, r)
			w.eventsUpTo = max(w.eventsUpTo, r.ID)
			continue
		}
		w.keyed = append(w.keyed, r)
		w.keyedUpTo = max(w.keyedUpTo, r.ID)
	}
}

// next returns the report to send now and counts it as sent, or false when the
// window is full or nothing may go yet.
func (w *window) next(now time.Time) (store.Waiting, bool) {
	if len(w.flying) >= windowSize {
		return store.Waiting{}, false
	}
	for i, r := range w.keyed {
		if l := w.lane(r.Key); l.flying == 0 && !l.until.After(now) {
			w.keyed = slices.Delete(w.keyed, i, i+1)
			return w.launch(r), true
		}
	}
	if len(w.events) > 0 && !w.lane("").until.After(now) {
		r := w.events[0]
		w.events = w.events[1:]
		return w.launch(r), true
	}
	return store.Waiting{}, false
}

func (w *window) launch(r store.Waiting) store.Waiting {
	w.flying[r.ID] = r
	w.lane(r.Key).flying++
	return r
}

// land takes a report out of the window: it was answered, or is no more.
func (w *window) land(id uint64) (store.Waiting, bool) {
	r, ok := w.flying[id]
	if !ok {
		return r, false
	}
	delete(w.flying, id)
	w.lane(r.Key).flying--
	return r, true
}

// gone says that the report which next returned is not in the outbox any more: a
// later one replaced it.
func (w *window) gone(id uint64) {
	if r, ok := w.land(id); ok {
		w.tidy(r.Key)
	}
}

// answer takes the hub's answer and says whether the report is done with. An
// answer to something that is not under way changes nothing.
func (w *window) answer(id uint64, code wire.ResultCode, now time.Time) (settle bool) {
	r, ok := w.land(id)
	if !ok {
		return false
	}
	l := w.lane(r.Key)
	if code == wire.ResultCode_RESULT_ACCEPTED || code == wire.ResultCode_RESULT_REJECTED {
		l.tries = 0
		w.tidy(r.Key)
		return true
	}
	if !l.until.After(now) { // else it waits already: several events were under way
		wait := min(retryCap, retryBase<<min(l.tries, 10))
		l.tries++
		l.until = now.Add(wait/2 + w.jitter(wait/2))
	}
	list := &w.keyed
	if r.Key == "" {
		list = &w.events
	}
	i, _ := slices.BinarySearchFunc(*list, r, func(a, b store.Waiting) int { return cmp.Compare(a.ID, b.ID) })
	*list = slices.Insert(*list, i, r)
	return false
}

// tidy forgets a lane with nothing under way and nothing to wait for.
func (w *window) tidy(key string) {
	if l := w.lanes[key]; l != nil && l.flying == 0 && l.tries == 0 {
		delete(w.lanes, key)
	}
}

// due is when next may return something that it does not return now, of what
// waits for its time; zero when nothing does.
func (w *window) due() time.Time {
	var at time.Time
	if len(w.flying) >= windowSize {
		return at
	}
	consider := func(r store.Waiting) {
		if l := w.lane(r.Key); l.flying == 0 || r.Key == "" {
			if at.IsZero() || l.until.Before(at) {
				at = l.until
			}
		}
	}
	for _, r := range w.keyed {
		consider(r)
	}
	if len(w.events) > 0 {
		consider(w.events[0])
	}
	return at
}
