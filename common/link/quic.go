package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// QUICProtocol is the protocol's name in the TLS handshake (ALPN) of QUIC.
const QUICProtocol = "holdfast/1"

// Windows of a QUIC stream, in bytes: how much one side sends before the other has
// read. A hub holds thousands of connections, an edge one. A connection's window
// has room for all streams, so that one which nobody reads delays no other.
const (
	hubWindow    = 32 << 10
	maxHubWindow = 256 << 10
	edgeWindow   = 256 << 10
	maxWindow    = 512 << 10
)

// lingerWait is how long a closed connection waits for the other side to have
// read its last messages; Close itself waits for closeWait of it.
const lingerWait = 5 * time.Second

// Codes with which a QUIC connection is closed.
const (
	codeClosed quic.ApplicationErrorCode = iota
	codeRefused
	codeSilent
	codeTooLarge
)

// hello is the edge's first byte on the stream and welcome the hub's answer: it
// tells the edge that its certificate was accepted, which TLS 1.3 does not.
const (
	hello   = 1
	welcome = 1
)

// keepAliveSize is how many zeros an edge's keepalive has: with fewer, its packet
// would be so small that a hub that was restarted may not answer with a stateless
// reset, which must be smaller than what it answers (RFC 9000, section 10.3).
const keepAliveSize = 17

// quicConfig is the transport's configuration, nearly the same at both ends. Its
// idle timeout is but the last resort, and wide, since the shorter of both sides
// counts; quicConn notices a dead line and a silent peer itself. Without path
// MTU discovery no large probes are spent on a metered line.
func quicConfig(t Timing, window, maxWindow uint64, streams int64) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           t.Dial,
		MaxIdleTimeout:                 max(t.EdgeSilent, t.KeepAlive+t.UserTimeout) + time.Second,
		InitialStreamReceiveWindow:     window,
		InitialConnectionReceiveWindow: (MaxStreams + 1) * maxWindow,
		MaxStreamReceiveWindow:         maxWindow,
		MaxConnectionReceiveWindow:     (MaxStreams + 1) * maxWindow,
		MaxIncomingStreams:             streams,
		MaxIncomingUniStreams:          -1,
		DisablePathMTUDiscovery:        true,
	}
}

// quicConn is one end of a connection: one stream, on which each message follows
// its length plus one as a varint, and a zero in its place is a keepalive. The goroutine in Recv owns the reading half;
// whoever holds writing owns the writing half; the rest is atomic or written once.
type quicConn struct {
	conn   *quic.Conn
	stream *quic.Stream
	peer   peer
	timing Timing
	// silent is after how long without a byte on the stream the peer counts as
	// silent.
	silent time.Duration
	onEnd  func(cause error, age time.Duration) // may be nil
	// keepalive is what goes out when nothing was sent for a while.
	keepalive []byte

	buffer [keepAliveSize]byte // for the reader: a keepalive is read at once
	ahead  []byte              // the part of buffer that is read ahead

	writing chan struct{} // capacity 1: held by a Send
	started time.Time     // base of heardAt and sentAt, with its monotonic clock
	heardAt atomic.Int64  // nanoseconds after started
	sentAt  atomic.Int64  // nanoseconds after started
	heard   chan struct{}

	opensOnly bool // the hub does not accept streams
	streams   quicStreams
	gone      chan struct{} // closed when cause is set

	ending sync.Mutex
	cause  error       // why the connection ended; guarded by ending
	ended  atomic.Bool // cause is set
	alive  *time.Timer // guarded by ending
	// answer fires when what was sent at unanswered should have been answered, and
	// packets is how many had come by then; all guarded by ending. awaited says
	// whether answer is running.
	answer     *time.Timer
	awaited    bool
	unanswered time.Time
	packets    uint64
}

// newQUICConn starts the keepalive: when nothing was sent for every, that many
// zeros go out. It needs no goroutine of its own while idle.
func newQUICConn(conn *quic.Conn, stream *quic.Stream, peer peer, t Timing, silent, every time.Duration, zeros int) *quicConn {
	c := &quicConn{
		conn: conn, stream: stream, peer: peer, timing: t, silent: silent, keepalive: make([]byte, zeros), gone: make(chan struct{}),
		writing: make(chan struct{}, 1), heard: make(chan struct{}, 1), started: time.Now(),
	}
	c.touch()
	c.ending.Lock()
	defer c.ending.Unlock()
	c.alive = time.AfterFunc(every, func() { c.keepAlive(every) })
	return c
}

// keepAlive runs in the timer's goroutine.
func (c *quicConn) keepAlive(every time.Duration) {
	idle := time.Since(c.started) - time.Duration(c.sentAt.Load())
	if idle >= every {
		idle = 0
		select {
		case c.writing <- struct{}{}:
			err := c.writeChunk(c.keepalive)
			<-c.writing
			if err != nil {
				c.end(c.explain(err))
				return
			}
			c.sent()
		default: // a Send is under way, and watches over its own progress
		}
	}
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause == nil {
		c.alive.Reset(every - idle)
	}
}

// sent notes that something was handed to the transport, and waits for the other
// side's QUIC to answer it, as TCP_USER_TIMEOUT does for TCP.
func (c *quicConn) sent() {
	c.sentAt.Store(int64(time.Since(c.started)))
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause != nil {
		return
	}
	if came := c.conn.ConnectionStats().PacketsReceived; !c.awaited || came != c.packets {
		c.packets, c.unanswered = came, time.Now()
	}
	if c.awaited {
		return
	}
	c.awaited = true
	if c.answer == nil {
		c.answer = time.AfterFunc(c.timing.UserTimeout, c.answerDue)
		return
	}
	c.answer.Reset(c.timing.UserTimeout)
}

// answerDue ends the connection when no packet at all has come for UserTimeout
// after something was sent.
func (c *quicConn) answerDue() {
	c.ending.Lock()
	c.awaited = c.cause == nil && c.conn.ConnectionStats().PacketsReceived == c.packets
	left := c.timing.UserTimeout - time.Since(c.unanswered)
	if c.awaited && left > 0 {
		c.answer.Reset(left)
	}
	dead := c.awaited && left <= 0
	c.ending.Unlock()
	if dead {
		c.end(fmt.Errorf("%s: %w", c.peer.name, ErrSilent))
	}
}

// touch notes that something arrived.
func (c *quicConn) touch() {
	c.heardAt.Store(int64(time.Since(c.started)))
	select {
	case c.heard <- struct{}{}:
	default:
	}
}

func (c *quicConn) Send(ctx context.Context, message []byte) error {
	if len(message) > wire.MaxMessage {
		return fmt.Errorf("send %d bytes to %s: %w", len(message), c.peer.name, ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.writing }()
	if c.ended.Load() {
		return c.why()
	}
	stop := c.closeWith(ctx)
	err := c.write(message)
	if !stop() {
		// ctx ended: the message may be half written, and nobody waits for it.
		c.end(ended(ctx))
		return ctx.Err()
	}
	if err != nil {
		return c.end(c.explain(err))
	}
	c.sent()
	return nil
}

// closeWith ends the connection when ctx ends. The function that it returns
// undoes that, and says false when it was too late.
func (c *quicConn) closeWith(ctx context.Context) (stop func() bool) {
	if ctx.Done() == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(ctx, func() { c.end(ended(ctx)) })
}

func (c *quicConn) write(message []byte) error {
	first := min(chunk, len(message))
	b := make([]byte, 0, binary.MaxVarintLen32+first)
	b = appendLength(b, len(message))
	if err := c.writeChunk(append(b, message[:first]...)); err != nil {
		return err
	}
	for message = message[first:]; len(message) > 0; {
		n := min(chunk, len(message))
		if err := c.writeChunk(message[:n]); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

func (c *quicConn) writeChunk(b []byte) error {
	if err := c.stream.SetWriteDeadline(time.Now().Add(c.timing.Write)); err != nil {
		return err
	}
	_, err := c.stream.Write(b)
	return err
}

// Recv waits for a message. A ctx that ends while it waits ends the connection:
// a reader that was stopped half-way in a message cannot go on.
func (c *quicConn) Recv(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.ended.Load() {
		return nil, c.why()
	}
	stop := c.closeWith(ctx)
	message, err := c.read()
	if !stop() {
		c.end(ended(ctx))
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, c.end(c.explain(err))
	}
	return message, nil
}

func (c *quicConn) read() ([]byte, error) { return readFramed(c, c.readSome) }

// ReadByte serves readFramed.
func (c *quicConn) ReadByte() (byte, error) {
	for len(c.ahead) == 0 {
		n, err := c.receive(c.buffer[:])
		c.ahead = c.buffer[:n]
		if n == 0 && err != nil {
			return 0, err
		}
	}
	b := c.ahead[0]
	c.ahead = c.ahead[1:]
	return b, nil
}

// readSome reads what was read ahead, or from the stream.
func (c *quicConn) readSome(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.receive(b)
}

func (c *quicConn) receive(b []byte) (int, error) {
	if err := c.stream.SetReadDeadline(time.Now().Add(c.silent)); err != nil {
		return 0, err
	}
	if c.ended.Load() {
		// The deadline above may have undone the one with which Close wakes us.
		return 0, net.ErrClosed
	}
	n, err := c.stream.Read(b)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// explain turns an error of the transport into one of this package's.
func (c *quicConn) explain(err error) error {
	var (
		closed  *quic.ApplicationError
		idle    *quic.IdleTimeoutError
		dropped *quic.StreamError
	)
	switch {
	case errors.Is(err, ErrTooLarge):
		return fmt.Errorf("from %s: %w of %d bytes", c.peer.name, ErrTooLarge, wire.MaxMessage)
	case errors.As(err, &closed) && closed.Remote && closed.ErrorCode == codeTooLarge:
		return fmt.Errorf("%s refused a message: %w", c.peer.name, ErrTooLarge)
	case errors.As(err, &closed), errors.As(err, &dropped):
		return fmt.Errorf("%w by %s", ErrClosed, c.peer.name)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &idle):
		return fmt.Errorf("%s: %w", c.peer.name, ErrSilent)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w by %s", ErrClosed, c.peer.name)
	}
	return fmt.Errorf("%w: %s: %w", ErrClosed, c.peer.name, err)
}

// end closes the connection for that reason and returns the reason: the first
// one given counts.
func (c *quicConn) end(cause error) error {
	if first, why := c.stop(cause); !first {
		return why
	}
	code := codeClosed
	switch {
	case errors.Is(cause, ErrSilent):
		code = codeSilent
	case errors.Is(cause, ErrTooLarge):
		code = codeTooLarge
	}
	_ = c.conn.CloseWithError(code, "") // the line may be the reason
	return cause
}

// stop notes the reason and stops the timers.
func (c *quicConn) stop(cause error) (first bool, why error) {
	c.ending.Lock()
	first = c.cause == nil
	if first {
		c.cause = cause
		c.ended.Store(true)
	}
	why = c.cause
	for _, timer := range []*time.Timer{c.alive, c.answer} {
		if timer != nil {
			timer.Stop()
		}
	}
	c.ending.Unlock()
	if first {
		close(c.gone)
		c.endStreams()
	}
	if first && c.onEnd != nil {
		c.onEnd(why, time.Since(c.started))
	}
	return first, why
}

func (c *quicConn) why() error {
	c.ending.Lock()
	defer c.ending.Unlock()
	return c.cause
}

// Close ends the stream, so that the other side still reads what was sent, finds
// the end and closes. QUIC's own close would throw away what is under way. On a
// dead line the rest of the waiting is done behind the caller's back.
func (c *quicConn) Close() error {
	if first, _ := c.stop(ErrClosed); !first {
		return nil
	}
	_ = c.stream.SetReadDeadline(time.Now()) // wakes a Recv
	select {
	case c.writing <- struct{}{}:
	default:
		// In the middle of a message there is nothing to say goodbye with.
		_ = c.conn.CloseWithError(codeClosed, "")
		return nil
	}
	_ = c.stream.Close()
	<-c.writing
	left := make(chan struct{})
	go func() {
		defer close(left)
		select {
		case <-c.conn.Context().Done():
		case <-time.After(lingerWait):
		}
		_ = c.conn.CloseWithError(codeClosed, "")
	}()
	select {
	case <-left:
	case <-time.After(closeWait):
	}
	return nil
}

func (c *quicConn) LastHeard() time.Time {
	return c.started.Add(time.Duration(c.heardAt.Load()))
}

func (c *quicConn) Heard() <-chan struct{} { return c.heard }
func (c *quicConn) Peer() string           { return c.peer.name }

// Traffic is what the transport counted.
func (c *quicConn) Traffic() Traffic {
	s := c.conn.ConnectionStats()
	header := headerUDP + headerIP(c.conn.RemoteAddr())
	return Traffic{Sent: s.BytesSent + s.PacketsSent*header, Received: s.BytesReceived + s.PacketsReceived*header}
}

// RTT is QUIC's smoothed one.
func (c *quicConn) RTT() time.Duration { return c.conn.ConnectionStats().SmoothedRTT }

func (c *quicConn) Issued() time.Time  { return c.peer.issued }
func (c *quicConn) RemoteAddr() string { return c.conn.RemoteAddr().String() }
func (c *quicConn) Transport() string  { return "quic" }
