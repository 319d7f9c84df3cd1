package device

import "time"

// limit is a bucket of tokens: it fills with rate a second, up to twice that.
type limit struct {
	tokens float64
	at     time.Duration
	begun  bool
}

// take says whether one more is allowed now.
func (l *limit) take(now time.Duration, rate float64) bool {
	if !l.begun {
		l.begun, l.tokens = true, 2*rate
	} else {
		l.tokens = min(2*rate, l.tokens+rate*(now-l.at).Seconds())
	}
	l.at = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
