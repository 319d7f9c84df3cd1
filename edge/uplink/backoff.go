package uplink

import "time"

// Timing is how patient the uplink is. Zero fields take the defaults.
type Timing struct {
	// BackoffBase and BackoffCap bound the pause between two attempts: at random
	// between nothing and a ceiling that doubles from base to cap ("full jitter"),
	// so that a thousand nodes do not return to a restarted hub in step.
	BackoffBase, BackoffCap time.Duration // 0.5 s, 30 s
	// After a session of LongSession the ceiling begins at BackoffBase again.
	LongSession time.Duration // 1 min
	// Dial bounds one attempt to connect, Welcome the wait for the hub's first word.
	Dial, Welcome time.Duration // 30 s each
	// Token bounds the wait for the answer to a token request.
	Token time.Duration // 30 s
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.BackoffBase, 500 * time.Millisecond}, {&t.BackoffCap, 30 * time.Second}, {&t.LongSession, time.Minute},
		{&t.Dial, 30 * time.Second}, {&t.Welcome, 30 * time.Second}, {&t.Token, 30 * time.Second},
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
}

// ended is told how long a session lasted (0: there was none).
func (b *backoff) ended(lasted time.Duration) {
	if lasted >= b.timing.LongSession {
		b.failures = 0
		return
	}
	b.failures++
}

// ceiling is the longest that the next pause may take.
func (b *backoff) ceiling() time.Duration {
	return min(b.timing.BackoffCap, b.timing.BackoffBase<<min(b.failures, 20))
}
