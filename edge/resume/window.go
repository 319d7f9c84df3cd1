package resume

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
)

const (
	// WindowSize is how many reports may be sent and not answered.
	WindowSize = 32
	// SourceSize is how many of them may be of one source: however many devices have
	// something to say, and however many messages wait for an endpoint that hangs, pods
	// are heard, and so is the other source.
	SourceSize = WindowSize / 4
	// FirstSourced is the first id that the outbox never gives: from here on are
	// reports of sources, which go after the outbox's statuses.
	FirstSourced = uint64(1) << 63
	sourceShift  = 56
)

// SourcedID is the id of a source's nth report in a session; source counts from 0.
func SourcedID(source int, nth uint64) uint64 {
	return FirstSourced | uint64(source)<<sourceShift | nth
}

const (
	// RETRY answers are tried again after 1 s, 2 s, 4 s ... 30 s, halved at random.
	retryBase = time.Second
	retryCap  = 30 * time.Second
)

// Waiting names an unsettled report of the outbox.
type Waiting struct {
	ID  uint64
	Key string // what it is about; empty for an event
}

// Window decides which report goes out next, without I/O and without a clock of
// its own. Statuses (reports with a key) go before events; of one key at most one
// is under way, so nothing overtakes; events go in their order.
type Window struct {
	jitter func(time.Duration) time.Duration // at random in [0, d)

	keyed, events []Waiting // not sent, by id
	flying        map[uint64]Waiting
	sourced       map[uint64]int   // of flying, by source
	lanes         map[string]*lane // by key; "" is the events'

	// Highest ids taken over from the outbox.
	keyedUpTo, eventsUpTo uint64
}

// UpTo is how far the outbox was taken over: the highest ids that Add was given,
// of reports with a key and of events.
func (w *Window) UpTo() (keyed, events uint64) { return w.keyedUpTo, w.eventsUpTo }

// Events is how many events were taken over and not sent.
func (w *Window) Events() int { return len(w.events) }

// Clone returns a copy that shares nothing with w but the jitter.
func (w *Window) Clone() *Window {
	c := *w
	c.keyed, c.events, c.flying = slices.Clone(w.keyed), slices.Clone(w.events), maps.Clone(w.flying)
	c.lanes, c.sourced = make(map[string]*lane, len(w.lanes)), maps.Clone(w.sourced)
	for key, l := range w.lanes {
		own := *l
		c.lanes[key] = &own
	}
	return &c
}

// lane is what one object's reports have met so far.
type lane struct {
	flying int
	tries  int
	until  time.Time // not before
}

// NewWindow returns an empty window. jitter picks at random in [0, d).
func NewWindow(jitter func(time.Duration) time.Duration) *Window {
	return &Window{jitter: jitter, flying: make(map[uint64]Waiting), sourced: make(map[uint64]int), lanes: make(map[string]*lane)}
}

func (w *Window) lane(key string) *lane {
	l := w.lanes[key]
	if l == nil {
		l = new(lane)
		w.lanes[key] = l
	}
	return l
}

// Add takes over reports from the outbox, in the order of their ids.
func (w *Window) Add(rows []Waiting) {
	for _, r := range rows {
		if r.Key == "" {
			w.events = append(w.events, r)
			w.eventsUpTo = max(w.eventsUpTo, r.ID)
			continue
		}
		w.queue(&w.keyed, r)
		if r.ID < FirstSourced {
			w.keyedUpTo = max(w.keyedUpTo, r.ID)
		}
	}
}

// Next returns the report to send now and counts it as sent, or false when the
// window is full or nothing may go yet.
func (w *Window) Next(now time.Time) (Waiting, bool) {
	if len(w.flying) >= WindowSize {
		return Waiting{}, false
	}
	for i, r := range w.keyed {
		if w.full(r.ID) {
			continue
		}
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
	return Waiting{}, false
}

// full says that a report is of a source that has enough under way.
func (w *Window) full(id uint64) bool {
	return id >= FirstSourced && w.sourced[id>>sourceShift] >= SourceSize
}

func (w *Window) launch(r Waiting) Waiting {
	w.flying[r.ID] = r
	if r.ID >= FirstSourced {
		w.sourced[r.ID>>sourceShift]++
	}
	w.lane(r.Key).flying++
	return r
}

// land takes a report out of the window: it was answered, or is no more.
func (w *Window) land(id uint64) (Waiting, bool) {
	r, ok := w.flying[id]
	if !ok {
		return r, false
	}
	delete(w.flying, id)
	if id >= FirstSourced {
		w.sourced[id>>sourceShift]--
	}
	w.lane(r.Key).flying--
	return r, true
}

// Gone says that the report which Next returned is not in the outbox any more: a
// later one replaced it.
func (w *Window) Gone(id uint64) {
	if r, ok := w.land(id); ok {
		w.tidy(r.Key)
	}
}

// Answer takes the hub's answer and says whether the report is done with. An
// Answer to something that is not under way changes nothing.
func (w *Window) Answer(id uint64, code wire.ResultCode, now time.Time) (settle bool) {
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
	w.queue(list, r)
	return false
}

// queue puts a report where it belongs by its id.
func (w *Window) queue(list *[]Waiting, r Waiting) {
	i, _ := slices.BinarySearchFunc(*list, r, func(a, b Waiting) int { return cmp.Compare(a.ID, b.ID) })
	*list = slices.Insert(*list, i, r)
}

// tidy forgets a lane with nothing under way and nothing to wait for.
func (w *Window) tidy(key string) {
	if l := w.lanes[key]; l != nil && l.flying == 0 && l.tries == 0 {
		delete(w.lanes, key)
	}
}

// Due is when Next may return something that it does not return now, of what
// waits for its time; zero when nothing does.
func (w *Window) Due() time.Time {
	var at time.Time
	if len(w.flying) >= WindowSize {
		return at
	}
	consider := func(r Waiting) {
		if l := w.lane(r.Key); l.flying == 0 || r.Key == "" {
			if at.IsZero() || l.until.Before(at) {
				at = l.until
			}
		}
	}
	for _, r := range w.keyed {
		if !w.full(r.ID) {
			consider(r)
		}
	}
	if len(w.events) > 0 {
		consider(w.events[0])
	}
	return at
}
