package uplink

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
)

func TestPausesFollowFromWhyThereIsNoSession(t *testing.T) {
	var (
		cut     = errors.New("cut")
		no      = fmt.Errorf("hub a: %w; hub b: %w", link.ErrRefused, cut)
		revoked = &resume.GoodbyeError{Reason: wire.Goodbye_REASON_REVOKED}
		second  = &resume.GoodbyeError{Reason: wire.Goodbye_REASON_DUPLICATE}
		stops   = &resume.GoodbyeError{Reason: wire.Goodbye_REASON_SHUTDOWN}
		busy    = &resume.GoodbyeError{Reason: wire.Goodbye_REASON_BUSY}
		moved   = &resume.GoodbyeError{Reason: wire.Goodbye_REASON_REPLACED}
	)
	defaults := Timing{}.withDefaults()
	for _, first := range []error{cut, stops, busy, moved} {
		b := backoff{timing: defaults}
		if got := b.ended(time.Hour, first); got != defaults.Reconnect {
			t.Errorf("after a long session that ended with %q the ceiling is %s", first, got)
		}
		last := time.Duration(0)
		for n := range 40 {
			got := b.ended(0, cut)
			if want := min(defaults.BackoffCap, defaults.BackoffBase<<min(n+1, 10)); got != want || got < last {
				t.Errorf("after %d attempts the ceiling is %s, want %s", n+1, got, want)
			}
			last = got
		}
		if got := b.ended(defaults.LongSession, first); got != defaults.Reconnect {
			t.Errorf("after a day without a hub and a session the ceiling is %s", got)
		}
	}
	for _, err := range []error{no, revoked, second} {
		b := backoff{timing: defaults}
		for range 40 { // a hub that was away for long
			b.ended(0, cut)
		}
		if got := b.ended(0, err); got != 2*defaults.BackoffBase {
			t.Errorf("%v: the first ceiling is %s", err, got)
		}
		var got time.Duration
		for range 40 {
			got = b.ended(0, err)
		}
		if got != 10*time.Minute {
			t.Errorf("%v: the last ceiling is %s", err, got)
		}
		if got = b.ended(0, cut); got != defaults.BackoffCap {
			t.Errorf("%v, then no hub: the ceiling is %s", err, got)
		}
	}
	short := backoff{timing: Timing{BackoffBase: time.Millisecond, BackoffCap: 4 * time.Millisecond}.withDefaults()}
	if got := short.ended(time.Hour, cut); got != 4*time.Millisecond {
		t.Errorf("the first ceiling is %s, beyond the cap", got)
	}
}

func TestPausesAreSpreadOverTheWholeCeiling(t *testing.T) {
	const ceiling = 3 * time.Second
	var quarters [4]int
	for range 4000 {
		d := upTo(ceiling)
		if d < 0 || d >= ceiling {
			t.Fatalf("a pause of %s, the ceiling is %s", d, ceiling)
		}
		quarters[d*4/ceiling]++
	}
	for _, n := range quarters {
		if n == 0 {
			t.Fatalf("4000 pauses by quarters of the ceiling: %v", quarters)
		}
	}
	if d := upTo(0); d != 0 {
		t.Errorf("up to nothing is %s", d)
	}
}

// TestANewNetworkCutsALongPauseShort: an hour is longer than the test may take.
func TestANewNetworkCutsALongPauseShort(t *testing.T) {
	wake := make(chan struct{}, 1)
	u := New(Options{Wake: wake, Timing: Timing{BackoffBase: time.Millisecond}})
	wake <- struct{}{}
	u.wait(context.Background(), time.Hour)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	u.wait(ctx, time.Hour)
}
