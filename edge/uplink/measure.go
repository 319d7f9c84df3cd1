package uplink

import (
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Measure is what the line has cost and how far the hub is, for people.
type Measure struct {
	RTT time.Duration // of the open session's transport; 0: not known, or no session
	// Session is what the open session's connection has moved, with all that the
	// network adds.
	Session link.Traffic
	// Sent and Received are the messages' bytes since edgecore started.
	Sent, Received uint64
	Sessions       uint64 // opened since edgecore started
}

// Measure asks the open session's connection.
func (u *Uplink) Measure() Measure {
	u.mu.Lock()
	conn := u.conn
	u.mu.Unlock()
	m := Measure{Sessions: u.count.sessions.Load()}
	if conn != nil {
		m.RTT, m.Session = conn.RTT(), conn.Traffic()
	}
	u.count.meter.Each(func(_ wire.Class, sent, received uint64) {
		m.Sent += sent
		m.Received += received
	})
	return m
}

// carry notes by which connection the open session goes; nil: there is none.
func (u *Uplink) carry(conn link.Conn) {
	u.mu.Lock()
	u.conn = conn
	u.mu.Unlock()
}
