package uplink

import (
	"testing"
)

func TestMeasureIsOfTheOpenSession(t *testing.T) {
	r := newRig(t)
	r.start(t)
	p := r.accept(t)
	p.hello()
	if m := r.uplink.Measure(); m.Sessions != 0 || m.RTT != 0 || m.Session.Sent != 0 {
		t.Errorf("before there is a session: %+v", m)
	}
	p.send(welcome(true))
	r.eventually(t, "a session with a round trip", func() bool {
		m := r.uplink.Measure()
		return m.Sessions == 1 && m.RTT > 0 && m.Session.Sent > m.Sent && m.Sent > 0 && m.Received > 0
	})
	r.proxy.Cut()
	p.conn.Close()
	r.stop()
	if m := r.uplink.Measure(); m.RTT != 0 || m.Session.Sent != 0 || m.Sent == 0 {
		t.Errorf("after the session: %+v", m)
	}
}
