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
// nothing that the link's own keepalive does not.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1}
	l, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the port of %s is taken by another program: stop it, or set another \"listen\" in the config file: %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for edges: %w", err)
	}
	return l, nil
}

// dialer makes TCP connections with the link's options.
func dialer(t Timing) *net.Dialer {
	return &net.Dialer{
		KeepAlive:       -1,
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		Control: func(_, _ string, raw syscall.RawConn) error {
			return setUserTimeout(raw, t.UserTimeout)
		},
	}
}

// tune sets the link's TCP options on an accepted connection, under however
// many layers it is.
func tune(conn net.Conn, t Timing) error {
	for {
		if tcp, ok := conn.(*net.TCPConn); ok {
			raw, err := tcp.SyscallConn()
			if err != nil {
				return err
			}
			return errors.Join(tcp.SetKeepAlive(false), setUserTimeout(raw, t.UserTimeout))
		}
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = layer.NetConn()
	}
}

func setUserTimeout(raw syscall.RawConn, after time.Duration) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}
