package link

import "time"

// Timing is how a connection notices that the other side is gone. Both sides
// need the same KeepAlive; the other values follow from it.
type Timing struct {
	// KeepAlive is how long the edge sends nothing before it shows the hub that
	// it is there: one unsolicited pong, which nothing answers but TCP.
	KeepAlive time.Duration
	// EdgeSilent is when the hub takes an edge for silent: after KeepAlive and
	// UserTimeout together.
	EdgeSilent time.Duration
	// HubPing is how long the hub sends nothing before it pings.
	HubPing time.Duration
	// HubSilent is when the edge takes the hub for silent. It is long, because
	// the hub's TCP answers every keepalive, and what it does not answer for
	// UserTimeout ends the connection: only a hub that hangs, or a proxy between
	// the two that the edge does not know of, comes to this.
	HubSilent time.Duration
	// UserTimeout is how long sent bytes may stay unacknowledged by the other
	// side's TCP (TCP_USER_TIMEOUT) or QUIC: what finds a line that was cut. An
	// edge notices a dead line after KeepAlive and UserTimeout together at most,
	// as the hub does.
	UserTimeout time.Duration
	// Write bounds how long the transport may take for each 16 KiB of a message.
	Write time.Duration
	// Dial bounds one attempt to connect, handshakes included.
	Dial time.Duration
	// HeadStart is how long a hub may take to answer before the next one is tried
	// beside it.
	HeadStart time.Duration
}

// The usual timing keeps an idle edge under 0.5 MB a day, within what NAT
// gateways remember (30 s for UDP), and finds a dead line within 40 s.
const (
	DefaultKeepAlive   = 28 * time.Second
	DefaultUserTimeout = 12 * time.Second
)

// DefaultTiming is the timing for DefaultKeepAlive.
func DefaultTiming() Timing { return Timing{}.Complete() }

// TimingFor is the timing for that keepalive.
func TimingFor(keepAlive time.Duration) Timing { return Timing{KeepAlive: keepAlive}.Complete() }

// Complete fills in every value that is zero.
func (t Timing) Complete() Timing {
	fill := func(value *time.Duration, usual time.Duration) {
		if *value <= 0 {
			*value = usual
		}
	}
	fill(&t.KeepAlive, DefaultKeepAlive)
	fill(&t.UserTimeout, DefaultUserTimeout)
	fill(&t.EdgeSilent, t.KeepAlive+t.UserTimeout)
	fill(&t.HubPing, t.KeepAlive*10)
	fill(&t.HubSilent, t.KeepAlive*25)
	fill(&t.Write, 30*time.Second)
	fill(&t.Dial, 30*time.Second)
	fill(&t.HeadStart, 3*time.Second)
	return t
}
