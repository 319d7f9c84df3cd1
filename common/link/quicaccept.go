package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

// handshakeWait bounds what comes before a node is known, over QUIC: half of it
// for a packet of its handshake, and as much again for its first byte.
const handshakeWait = 10 * time.Second

// wantedBuffer is what the hub wants of its socket's buffer: a burst of packets
// from thousands of edges.
const wantedBuffer = 4 << 20

// QUICOptions say how the hub takes QUIC connections.
type QUICOptions struct {
	AcceptOptions
	// TLS is the configuration of the hub's TCP port: client certificates that
	// are given are verified, and there are no session tickets.
	TLS *tls.Config
	// ResetKey lets a hub that was restarted with the same key tell edges that
	// their connection is no more. It must stay secret; zero: edges find out by
	// themselves.
	ResetKey [32]byte
}

type quicAcceptor struct {
	QUICOptions
	socket    net.PacketConn
	transport *quic.Transport
	listener  *quic.Listener
	conns     chan *quicConn
	closed    chan struct{}
	once      sync.Once
	open      sync.WaitGroup // the accept loop and each connection
}

// ListenUDP opens the hub's UDP port.
func ListenUDP(ctx context.Context, address string) (net.PacketConn, error) {
	socket, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the UDP port of %s is taken by another program: stop it, set another \"listen\" in the config file, or \"quic: false\": %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for edges over UDP: %w", err)
	}
	return socket, nil
}

// AcceptQUIC returns the hub's end of the QUIC transport on that socket, which it
// closes when it is closed itself and its last connection has ended.
func AcceptQUIC(socket net.PacketConn, o QUICOptions) (Acceptor, error) {
	o.AcceptOptions = o.complete()
	if err := hush(); err != nil {
		return nil, err
	}
	a := &quicAcceptor{QUICOptions: o, socket: socket, conns: make(chan *quicConn), closed: make(chan struct{})}
	a.transport = &quic.Transport{
		Conn:                socket,
		VerifySourceAddress: func(net.Addr) bool { return o.Strangers.crowdQUIC() },
		ConnContext: func(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
			over, ok := o.Strangers.comeQUIC()
			if !ok {
				return nil, errCrowded
			}
			context.AfterFunc(ctx, func() {
				if over() {
					o.Strangers.count(overQUIC, left)
				}
			})
			return context.WithValue(ctx, stranger{}, over), nil
		},
	}
	if o.ResetKey != [32]byte{} {
		key := quic.StatelessResetKey(o.ResetKey)
		a.transport.StatelessResetKey = &key
	}
	config := o.TLS.Clone()
	config.NextProtos = []string{QUICProtocol}
	var err error
	streams := int64(1)
	if o.Streams {
		streams += MaxStreams
	}
	shape := quicConfig(o.Timing, hubWindow, maxHubWindow, streams)
	shape.HandshakeIdleTimeout = min(handshakeWait/2, o.Timing.Dial) // quic-go allows twice that in all
	if a.listener, err = a.transport.Listen(config, shape); err != nil {
		return nil, fmt.Errorf("listen for edges over QUIC: %w", err)
	}
	a.adviseBuffer()
	a.open.Go(a.run)
	go func() {
		<-a.closed
		a.open.Wait()
		_ = a.transport.Close()
		_ = a.socket.Close()
	}()
	return a, nil
}

// stranger is the key of a function, in a connection's context, that notes that it
// is none any more.
type stranger struct{}

var errCrowded = errors.New("too many connections that have not authenticated")

// adviseBuffer says what to do about a socket with a small buffer.
func (a *quicAcceptor) adviseBuffer() {
	udp, ok := a.socket.(*net.UDPConn)
	if !ok {
		return
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if size, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil && size < wantedBuffer {
			a.Log.Info("the UDP socket's buffer is small: with thousands of edges, set net.core.rmem_max and net.core.wmem_max to 7500000", "bytes", size)
		}
	})
}

func (a *quicAcceptor) run() {
	for {
		conn, err := a.listener.Accept(context.Background())
		if err != nil {
			return // the listener is closed, and nothing else ends it
		}
		a.open.Add(1)
		context.AfterFunc(conn.Context(), a.open.Done)
		go a.serve(conn)
	}
}

// serve ends when the hub has the connection, or, where edges may open streams,
// with it.
func (a *quicAcceptor) serve(conn *quic.Conn) {
	c := a.take(conn)
	if over, ok := conn.Context().Value(stranger{}).(func() bool); ok {
		over()
	}
	if c == nil {
		return
	}
	wait := time.NewTimer(acceptWait)
	defer wait.Stop()
	select {
	case a.conns <- c:
		if a.Streams {
			go c.takeStreams() // a goroutine whose stack is still small
		}
	case <-a.closed:
		c.end(ErrClosed)
	case <-wait.C:
		a.Strangers.count(overQUIC, busy)
		a.Strangers.say(slog.LevelWarn, "the hub is too busy to take a connection", "node", c.peer.name, "remote", c.RemoteAddr())
		c.end(ErrClosed)
	}
}

// take welcomes one connection, or says in plain words why not and returns nil.
func (a *quicAcceptor) take(conn *quic.Conn) *quicConn {
	state, remote := conn.ConnectionState().TLS, conn.RemoteAddr().String()
	refuse := func(o outcome, why string) *quicConn {
		a.Strangers.count(overQUIC, o)
		_ = conn.CloseWithError(codeRefused, why)
		return nil
	}
	who, err := clientOf(&state)
	if err != nil {
		a.Strangers.say(slog.LevelInfo, "refused a connection without a node's certificate", "remote", remote, "err", err)
		return refuse(certificate, err.Error())
	}
	if err := a.Admit(who.name, who.issued); err != nil {
		a.Strangers.say(slog.LevelInfo, "refused a node", "node", who.name, "remote", remote, "err", err)
		return refuse(denied, err.Error())
	}
	t := a.Timing
	stream, err := receive(conn, min(handshakeWait, t.Dial))
	if err != nil {
		a.Strangers.say(slog.LevelInfo, "refused a connection over QUIC that does not begin as an edge's", "node", who.name, "remote", remote, "err", err)
		// No refusal, which an edge would take for a final word: in a crowd its hello
		// may only have come too late.
		a.Strangers.count(overQUIC, malformed)
		_ = conn.CloseWithError(codeClosed, "an edge opens one stream and says hello")
		return nil
	}
	a.Strangers.count(overQUIC, accepted)
	c := newQUICConn(conn, stream, who, t, t.EdgeSilent, t.HubPing, 1)
	c.opensOnly = !a.Streams
	return c
}

// receive takes the stream that the edge opens, and answers its hello.
func receive(conn *quic.Conn, within time.Duration) (*quic.Stream, error) {
	ctx, cancel := context.WithTimeout(conn.Context(), within)
	defer cancel()
	stream, err := conn.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.SetDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	first := make([]byte, 1)
	for n := 0; n == 0; {
		if n, err = stream.Read(first); err != nil && n == 0 {
			return nil, err
		}
	}
	if first[0] != hello {
		return nil, fmt.Errorf("it begins with %d", first[0])
	}
	_, err = stream.Write([]byte{welcome})
	return stream, err
}

func (a *quicAcceptor) Accept(ctx context.Context) (Conn, error) {
	select {
	case <-a.closed:
		return nil, ErrClosed
	default:
	}
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close refuses what comes from now on; connections that were accepted go on.
func (a *quicAcceptor) Close() error {
	var err error
	a.once.Do(func() {
		close(a.closed)
		err = a.listener.Close()
	})
	return err
}
