package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens for edges. The kernel sends no keepalives of its own on the
// connections: they would cost an idle edge half a megabyte a day and find
// nothing that the link's own keepalive does not. Who connects and says nothing is
// the kernel's for ten seconds and then a stranger; nil: those are not bounded.
func Listen(ctx context.Context, address string, strangers *Strangers) (net.Listener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			return setOption(raw, "TCP_DEFER_ACCEPT", unix.TCP_DEFER_ACCEPT, int(deferAccept.Seconds()))
		},
	}
	l, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the port of %s is taken by another program: stop it, or set another \"listen\" in the config file: %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for edges: %w", err)
	}
	if strangers == nil {
		return l, nil
	}
	return &strangerListener{Listener: l, strangers: strangers, closed: make(chan struct{})}, nil
}

// dialer makes TCP connections with the link's options.
func dialer(t Timing) *net.Dialer {
	return &net.Dialer{
		KeepAlive:       -1,
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		Control: func(_, _ string, raw syscall.RawConn) error {
			return setOptions(raw, t)
		},
	}
}

// lowWater is how much a socket takes that it has not sent yet (TCP_NOTSENT_LOWAT):
// more would only stand in the way of the next message.
const lowWater = 16 << 10

// tune sets the link's TCP options on an accepted connection, under however
// many layers it is.
func tune(conn net.Conn, t Timing) error {
	tcp := tcpOf(conn)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(tcp.SetKeepAlive(false), setOptions(raw, t))
}

// tcpOf is the TCP connection under however many layers; nil: there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	for {
		if tcp, ok := conn.(*net.TCPConn); ok {
			return tcp
		}
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = layer.NetConn()
	}
}

// Sizes of headers, in bytes; that of TCP with its usual timestamps.
const (
	headerTCP  = 32
	headerUDP  = 8
	headerIPv4 = 20
	headerIPv6 = 40
)

// headerIP is the size of the IP header of packets to that address.
func headerIP(a net.Addr) uint64 {
	var ip net.IP
	switch a := a.(type) {
	case *net.TCPAddr:
		ip = a.IP
	case *net.UDPAddr:
		ip = a.IP
	}
	if ip.To4() != nil {
		return headerIPv4
	}
	return headerIPv6
}

// tcpTraffic asks the kernel what a connection has moved.
func tcpTraffic(conn net.Conn) Traffic {
	info := tcpInfo(conn)
	if info == nil {
		return Traffic{}
	}
	header := headerTCP + headerIP(conn.RemoteAddr())
	return Traffic{
		Sent:     info.Bytes_sent + uint64(info.Segs_out)*header,
		Received: info.Bytes_received + uint64(info.Segs_in)*header,
	}
}

// tcpRTT asks the kernel how long a connection's round trip is.
func tcpRTT(conn net.Conn) time.Duration {
	info := tcpInfo(conn)
	if info == nil {
		return 0
	}
	return time.Duration(info.Rtt) * time.Microsecond
}

// tcpInfo is what the kernel knows of a connection; nil: nothing.
func tcpInfo(conn net.Conn) *unix.TCPInfo {
	tcp := tcpOf(conn)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	var info *unix.TCPInfo
	if err := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		return nil
	}
	return info
}

// setOptions leaves the kernel a sixteenth of UserTimeout, because it notices the
// end of it half a second late.
func setOptions(raw syscall.RawConn, t Timing) error {
	return errors.Join(
		setOption(raw, "TCP_NOTSENT_LOWAT", unix.TCP_NOTSENT_LOWAT, lowWater),
		setOption(raw, "TCP_USER_TIMEOUT", unix.TCP_USER_TIMEOUT, int((t.UserTimeout-t.UserTimeout/16).Milliseconds())))
}

func setOption(raw syscall.RawConn, name string, option, value int) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) })
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
