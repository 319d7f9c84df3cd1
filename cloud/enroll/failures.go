package enroll

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of failed attempts.
const (
	// failuresAllowed within failureWindow from one address: enough for people
	// who mistype, and for a few machines behind one router.
	failuresAllowed = 20
	failureWindow   = time.Minute
	// maxSources bounds the memory. When more addresses than that failed within
	// a window, all are forgotten: a token has 82 bits, so that the limit saves
	// work rather than secrets.
	maxSources = 4096
)

// failures counts failed attempts by address.
type failures struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[netip.Prefix]source
}

type source struct {
	since time.Time
	count int
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, sources: make(map[netip.Prefix]source)}
}

// allow says whether that address may try.
func (f *failures) allow(remote string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sources[prefix(remote)]
	return !ok || s.count < failuresAllowed || f.over(s)
}

// count notes a failure.
func (f *failures) count(remote string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := prefix(remote)
	s, ok := f.sources[p]
	if !ok && len(f.sources) >= maxSources {
		for p, s := range f.sources {
			if f.over(s) {
				delete(f.sources, p)
			}
		}
		if len(f.sources) >= maxSources {
			clear(f.sources)
		}
	}
	if !ok || f.over(s) {
		s = source{since: f.now()}
	}
	s.count++
	f.sources[p] = s
}

// over says whether a window has passed, also when the clock was set back.
func (f *failures) over(s source) bool {
	age := f.now().Sub(s.since)
	return age >= failureWindow || age < 0
}

// prefix is the sender's network: one IPv4 address, or an IPv6 /64, which one
// machine may own whole. What cannot be read counts as one sender.
func prefix(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
