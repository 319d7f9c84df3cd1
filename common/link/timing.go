package link

import "time"

// Timing is how a connection notices that the other side is gone. Both sides
// need the same KeepAlive; the other values follow from it.
type Timing struct {
	// KeepAlive is how long the edge sends nothing before it shows the hub that
	// it is there: one unsolicited pong, which nothing answers but TCP.
	KeepAlive time.Duration
	// EdgeSilent is when the hub takes an edge for silent.
	EdgeSilent time.Duration
	// HubPing is how long the hub sends nothing before it pings.
	HubPing time.Duration
	// HubSilent is when the edge takes the hub for silent. It is long, because
	// the hub's TCP answers every keepalive: only a proxy between the two, or a
	// hub that hangs, comes to this.
	HubSilent time.Duration
	// UserTimeout is how long sent bytes may stay unacknowledged by the other
	// side's TCP (TCP_USER_TIMEOUT): what finds a line that was cut.
	UserTimeout time.Duration
	// Write bounds how long the transport may take for each 16 KiB of a message.
	Write time.Duration
	// Dial bounds one attempt to connect, handshakes included.
	Dial time.Duration
}

// DefaultKeepAlive keeps an idle edge under 0.6 MB a day and within what NAT
// gateways remember.
const DefaultKeepAlive = 25 * time.Second

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
	fill(&t.EdgeSilent, t.KeepAlive*5/2)
	fill(&t.HubPing, t.KeepAlive*10)
	fill(&t.HubSilent, t.KeepAlive*25)
	fill(&t.UserTimeout, 30*time.Second)
	fill(&t.Write, 30*time.Second)
	fill(&t.Dial, 30*time.Second)
	return t
}
