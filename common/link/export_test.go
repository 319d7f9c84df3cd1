package link

import (
	"context"
	"net"
)

// DialWebsocketOver is DialWebsocket over connections that the test makes.
func DialWebsocketOver(o DialOptions, connect func(ctx context.Context, network, address string) (net.Conn, error)) Dialer {
	d := DialWebsocket(o).(*websocketDialer)
	d.connect = connect
	return d
}

// Socket is the connection under a Conn of the websocket transport.
func Socket(c Conn) net.Conn { return c.(*websocketConn).ws.NetConn() }
