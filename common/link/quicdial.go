package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/quic-go/quic-go"
)

// TLS's alerts as QUIC carries them (RFC 9001, section 4.8).
const (
	cryptoError           = 0x100
	noApplicationProtocol = cryptoError + 120
)

type quicDialer struct {
	hubDialer
	onEnd func(hub string, cause error, age time.Duration) // may be nil
}

// DialQUIC returns the edge's end of the QUIC transport. It knows no proxy. It
// never sends anything before the handshake is done (0-RTT), since that could be
// replayed. The edge's address may change while a connection lasts.
func DialQUIC(o DialOptions) Dialer { return newQUICDialer(o, nil) }

func newQUICDialer(o DialOptions, onEnd func(string, error, time.Duration)) *quicDialer {
	d := &quicDialer{hubDialer: newHubDialer(o.complete(), QUICProtocol), onEnd: onEnd}
	d.attempt = d.attemptQUIC
	return d
}

// attemptQUIC makes one connection with that TLS configuration, to the first of
// the host's addresses that answers; each gets its share of the time.
func (d *quicDialer) attemptQUIC(ctx context.Context, hub string, config *tls.Config) (Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.Timing.Dial, fmt.Errorf("no answer within %s", d.Timing.Dial))
	defer cancel()
	addresses, err := lookUp(ctx, hub)
	if err != nil {
		return nil, err
	}
	var failed error
	for i, address := range addresses {
		share := d.Timing.Dial
		if deadline, ok := ctx.Deadline(); ok {
			share = time.Until(deadline) / time.Duration(len(addresses)-i)
		}
		one, cancel := context.WithTimeoutCause(ctx, share, fmt.Errorf("no answer over UDP within %s", share.Round(time.Millisecond)))
		c, err := d.dialAddress(one, hub, address, config)
		cancel()
		if err == nil {
			return c, nil
		}
		if failed = errors.Join(failed, err); ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// lookUp resolves HOST:PORT.
func lookUp(ctx context.Context, hub string) ([]netip.AddrPort, error) {
	host, text, err := net.SplitHostPort(hub)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is not a port: %w", text, err)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var addresses []netip.AddrPort
	for _, ip := range found {
		addresses = append(addresses, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return addresses, nil
}

// dialAddress uses a socket of its own, bound to no address, so that packets go
// out by whatever way the machine has at the time.
func (d *quicDialer) dialAddress(ctx context.Context, hub string, address netip.AddrPort, config *tls.Config) (Conn, error) {
	network := "udp6"
	if address.Addr().Is4() {
		network = "udp4"
	}
	socket, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	if err := hush(); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	transport := &quic.Transport{Conn: socket}
	shut := func() {
		_ = transport.Close()
		_ = socket.Close()
	}
	t := d.Timing
	conn, err := transport.Dial(ctx, net.UDPAddrFromAddrPort(address), config, quicConfig(t, edgeWindow, maxWindow, MaxStreams))
	if err != nil {
		shut()
		return nil, explainQUIC(ctx, err)
	}
	// quic-go sends its last packet after the connection's context has ended, and
	// Transport.Close waits for that.
	context.AfterFunc(conn.Context(), shut)
	stream, err := enter(ctx, conn)
	if err != nil {
		_ = conn.CloseWithError(codeClosed, "")
		return nil, explainQUIC(ctx, err)
	}
	c := newQUICConn(conn, stream, peer{name: hub}, t, t.HubSilent, t.KeepAlive, keepAliveSize)
	if d.onEnd != nil {
		c.onEnd = func(cause error, age time.Duration) { d.onEnd(hub, cause, age) }
	}
	go c.takeStreams() // ends with the connection
	return c, nil
}

// enter opens the stream and waits until the hub has accepted the node.
func enter(ctx context.Context, conn *quic.Conn) (*quic.Stream, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWithError(codeClosed, "") })
	defer stop()
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := stream.Write([]byte{hello}); err != nil {
		return nil, err
	}
	answer := make([]byte, 1)
	for n := 0; n == 0; {
		if n, err = stream.Read(answer); err != nil && n == 0 {
			return nil, err
		}
	}
	if answer[0] != welcome {
		return nil, fmt.Errorf("%w: it speaks another version of %s", ErrRefused, QUICProtocol)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return stream, nil
}

// explainQUIC tells a refusal from a line that does not work.
func explainQUIC(ctx context.Context, err error) error {
	var (
		refused *quic.ApplicationError
		alert   *quic.TransportError
		slow    *quic.HandshakeTimeoutError
	)
	switch {
	case errors.As(err, &refused) && refused.Remote && refused.ErrorCode == codeRefused:
		return fmt.Errorf("%w: %s", ErrRefused, refused.ErrorMessage)
	case errors.As(err, &alert) && alert.Remote && alert.ErrorCode == noApplicationProtocol:
		return fmt.Errorf("%w: what answers there over UDP is no hub; is it the hub's port? %w", ErrRefused, err)
	case errors.As(err, &alert) && alert.Remote && alert.ErrorCode == cryptoError+quic.TransportErrorCode(certificateExpired):
		return fmt.Errorf("%w: %w by the hub's clock: %w", ErrRefused, ErrExpired, err)
	case errors.As(err, &alert) && alert.Remote && alert.ErrorCode.IsCryptoError():
		return fmt.Errorf("%w: it does not accept this node's certificate; join the node again with \"holdfast join\": %w", ErrRefused, err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &slow):
		return fmt.Errorf("no answer over UDP: %w", err)
	}
	return err
}

// hush keeps quic-go from writing its advice about socket buffers to the log of
// the whole process: the hub gives its own, and an edge needs none.
func hush() error { return os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true") }
