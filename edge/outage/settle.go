package outage

import "time"

// How long what a look found must last before the condition says it. A pod that was just
// bound lacks its image and its token for a while, and a restarted runtime is away for a
// moment; and what is mended may be amiss again at once, as the room on a disk that is
// about full. The condition is a report to the apiserver each time it changes.
const (
	settleFor = 30 * time.Second // until it is False
	readyFor  = 2 * time.Minute  // until it is True again
)

// settled holds the condition still. Its times are monotonic.
type settled struct {
	shown   Verdict
	known   bool      // shown is one
	waiting Verdict   // what shall be shown, if it lasts
	since   time.Time // since when it has lasted; zero: nothing waits
}

// see takes in what a look found and says whether the condition is another one now.
// What changes in a message alone is shown, and is no change. Asked: somebody waits for
// the look, and need not wait for what it says when all is well.
func (s *settled) see(v Verdict, now time.Time, asked bool) (changed bool) {
	if s.known && v.Ready == s.shown.Ready && v.Reason == s.shown.Reason {
		s.shown, s.since = v, time.Time{}
		return false
	}
	if v.Ready && (asked || !s.known) {
		s.shown, s.known, s.since = v, true, time.Time{}
		return true
	}
	if s.since.IsZero() || s.waiting.Reason != v.Reason && !s.shown.Ready && s.known {
		s.since = now
	}
	s.waiting = v
	if now.Sub(s.since) < v.lasts() {
		return false
	}
	s.shown, s.known, s.since = v, true, time.Time{}
	return true
}

// lasts is how long v must.
func (v Verdict) lasts() time.Duration {
	if v.Ready {
		return readyFor
	}
	return settleFor
}

// next is how long until something that waits is to be shown; false: nothing waits.
func (s *settled) next(now time.Time) (time.Duration, bool) {
	if s.since.IsZero() {
		return 0, false
	}
	return max(s.waiting.lasts()-now.Sub(s.since), time.Second), true
}
