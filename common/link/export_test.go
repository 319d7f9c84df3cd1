package link

import (
	"context"
	"net"
	"time"
)

// DialWebsocketOver is DialWebsocket over connections that the test makes.
func DialWebsocketOver(o DialOptions, connect func(ctx context.Context, network, address string) (net.Conn, error)) Dialer {
	d := DialWebsocket(o).(*websocketDialer)
	d.connect = connect
	return d
}

// Socket is the connection under a Conn of the websocket transport.
func Socket(c Conn) net.Conn { return c.(*websocketConn).ws.NetConn() }

// TryQUICAgain ends a DialAuto's rest from QUIC, as ten minutes do, and says
// whether there was one.
func TryQUICAgain(d Dialer) bool {
	auto := d.(*autoDialer)
	auto.mu.Lock()
	defer auto.mu.Unlock()
	rested := time.Now().Before(auto.again)
	auto.again = time.Time{}
	return rested
}

// WithoutHaste lets a DialAuto wait for QUIC as long as its Timing says.
func WithoutHaste(d Dialer) Dialer {
	auto := d.(*autoDialer)
	auto.quic.(*quicDialer).Timing.Dial = auto.Timing.Dial
	return d
}
