package uplink

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
)

// Timing is how patient the uplink is. Zero fields take the defaults.
type Timing struct {
	// BackoffBase and BackoffCap bound the pause between two attempts: at random
	// between nothing and a ceiling that doubles from base to cap ("full jitter"),
	// so that a thousand nodes do not return to a restarted hub in step.
	BackoffBase, BackoffCap time.Duration // 0.5 s, 30 s
	// RefusedCap is the cap while the hub says no to this very node: its
	// certificate is revoked or foreign, or another machine has its name. Only a
	// person can mend that.
	RefusedCap time.Duration // 10 min
	// Reconnect is the ceiling of the first pause after a lost session (BackoffCap
	// if that is shorter): another hub, or the same one restarted, may serve the
	// node at once, and all nodes of the lost hub come in this time.
	Reconnect time.Duration // 3 s
	// A session of LongSession ends the doubling.
	LongSession time.Duration // 10 s
	// Dial bounds one attempt to connect, Welcome the wait for the hub's first word.
	Dial, Welcome time.Duration // 30 s each
	// Token bounds the wait for the answer to a token request.
	Token time.Duration // 30 s
	// Certificate is how often a session looks whether the node's certificate is to
	// be renewed, CertificateRetry how soon again when the hub could not.
	Certificate, CertificateRetry time.Duration // 1 h, 10 min
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.BackoffBase, 500 * time.Millisecond}, {&t.BackoffCap, 30 * time.Second}, {&t.RefusedCap, 10 * time.Minute},
		{&t.Reconnect, 3 * time.Second}, {&t.LongSession, 10 * time.Second},
		{&t.Dial, 30 * time.Second}, {&t.Welcome, 30 * time.Second}, {&t.Token, 30 * time.Second},
		{&t.Certificate, time.Hour}, {&t.CertificateRetry, 10 * time.Minute},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}

// backoff counts the attempts that led to no lasting session.
type backoff struct {
	timing   Timing
	failures int
	refusals int // of the failures, those of late in which the hub said no
}

// ended is told how long a session lasted (0: there was none) and why it ended,
// and returns the longest that the next pause may take.
func (b *backoff) ended(lasted time.Duration, err error) (ceiling time.Duration) {
	if lasted >= b.timing.LongSession {
		b.failures, b.refusals = 0, 0
	} else {
		b.failures++
	}
	if refused(err) {
		// Counted by themselves: a hub that was away for hours and, just started,
		// is not ready to admit anybody must not be left alone for ten minutes.
		b.refusals++
		return double(b.timing.BackoffBase, b.refusals, b.timing.RefusedCap)
	}
	b.refusals = 0
	if b.failures == 0 {
		return min(b.timing.Reconnect, b.timing.BackoffCap)
	}
	return double(b.timing.BackoffBase, b.failures, b.timing.BackoffCap)
}

func double(base time.Duration, times int, most time.Duration) time.Duration {
	return min(most, base<<min(times, 20))
}

// refused says that a hub answered, and that it will give the same answer until
// somebody has done something about it.
func refused(err error) bool {
	var bye *resume.GoodbyeError
	if errors.As(err, &bye) {
		return bye.Reason == wire.Goodbye_REASON_REVOKED || bye.Reason == wire.Goodbye_REASON_DUPLICATE
	}
	return errors.Is(err, link.ErrRefused)
}

func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
