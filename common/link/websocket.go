package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Path is where the hub takes websocket connections.
const Path = "/v1/link"

// Sizes of a websocket connection, in bytes.
const (
	// A hub holds thousands of idle connections: what each keeps is small.
	hubBuffer  = 1 << 10
	edgeBuffer = 8 << 10
	// writeBuffer is lent for as long as a Write takes. It holds the largest frame of
	// a stream, which so becomes one record of TLS.
	writeBuffer = 16 << 10
	// chunk is what must get through within Timing.Write, so that a large
	// message may take its time on a thin line.
	chunk = 16 << 10
)

// closeWait bounds the best-effort close frame.
const closeWait = 200 * time.Millisecond

// websocketConn is one end of a connection. The goroutine in Recv owns the
// reading half; whoever holds writing owns the writing half; the rest is atomic
// or written once.
type websocketConn struct {
	ws     *websocket.Conn
	peer   peer
	remote string
	timing Timing
	// silent is after how long without a frame the peer counts as silent.
	silent time.Duration

	writing chan struct{} // capacity 1: held by a Send
	started time.Time     // base of heardAt and sentAt, with its monotonic clock
	heardAt atomic.Int64  // nanoseconds after started
	sentAt  atomic.Int64  // nanoseconds after started
	heard   chan struct{}
	touched int64 // nanoseconds after started: the last touch; of the goroutine in Recv

	manner    manner
	opensOnly bool        // the hub does not accept streams
	accepting atomic.Bool // AcceptStream was called

	ending  sync.Mutex
	cause   error       // why the connection ended; guarded by ending
	ended   atomic.Bool // cause is set
	alive   *time.Timer // guarded by ending
	streams *mux        // nil until there is a stream; guarded by ending
	moved   Traffic     // when the connection ended; guarded by ending
}

// manner is how a side keeps a connection alive.
type manner int

const (
	// ponging is the edge's: when nothing was sent for a while, a pong goes out,
	// which only TCP answers.
	ponging manner = iota
	// pinging is the edge's behind a proxy: when nothing was heard for a while, a
	// ping goes out, which the hub answers.
	pinging
	// hubPinging is the hub's: when nothing was sent for a long while, a ping.
	hubPinging
)

// newWebsocketConn starts the keepalive in that manner. It needs no goroutine
// while idle.
func newWebsocketConn(ws *websocket.Conn, peer peer, t Timing, silent, every time.Duration, how manner) *websocketConn {
	c := &websocketConn{
		manner: how, ws: ws, peer: peer, remote: ws.RemoteAddr().String(), timing: t, silent: silent,
		writing: make(chan struct{}, 1), heard: make(chan struct{}, 1), started: time.Now(),
	}
	ws.SetReadLimit(1 + wire.MaxMessage)
	ws.SetPongHandler(func(string) error { return c.touch() })
	ws.SetPingHandler(func(data string) error {
		if err := c.touch(); err != nil {
			return err
		}
		// A pong that cannot be sent shows in the next read; it ends nothing here.
		if c.ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(t.Write)) == nil {
			c.sent()
		}
		return nil
	})
	ws.SetCloseHandler(func(int, string) error { return nil })
	if err := c.touch(); err != nil {
		c.end(err)
	}
	c.ending.Lock()
	defer c.ending.Unlock()
	c.alive = time.AfterFunc(every, func() { c.keepAlive(every) })
	return c
}

// keepAlive runs in the timer's goroutine.
func (c *websocketConn) keepAlive(every time.Duration) {
	frame, last := websocket.PingMessage, &c.sentAt
	switch c.manner {
	case ponging:
		frame = websocket.PongMessage
	case pinging:
		last = &c.heardAt
	case hubPinging:
	}
	idle := time.Since(c.started) - time.Duration(last.Load())
	if idle >= every {
		if err := c.ws.WriteControl(frame, nil, time.Now().Add(c.timing.Write)); err != nil && !c.busy() {
			c.end(c.explain(err))
			return
		}
		c.sent()
		idle = 0
	}
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause == nil {
		c.alive.Reset(every - idle)
	}
}

// busy says whether a Send is under way: then a control frame that found no
// room is no sign of anything, and Send watches over its own progress.
func (c *websocketConn) busy() bool { return len(c.writing) > 0 }

func (c *websocketConn) sent() { c.sentAt.Store(int64(time.Since(c.started))) }

// touch notes that something arrived, and gives the peer another while.
func (c *websocketConn) touch() error {
	c.heardAt.Store(int64(time.Since(c.started)))
	select {
	case c.heard <- struct{}{}:
	default:
	}
	return c.ws.SetReadDeadline(time.Now().Add(c.silent))
}

// touchEvery is how often at most the frames of streams, of which there may be
// thousands a second, wake whoever waits for Heard.
const touchEvery = 100 * time.Millisecond

// touchLightly notes that part of a stream arrived.
func (c *websocketConn) touchLightly() error {
	now := int64(time.Since(c.started))
	if now-c.touched < int64(touchEvery) {
		c.heardAt.Store(now)
		return nil
	}
	c.touched = now
	return c.touch()
}

func (c *websocketConn) Send(ctx context.Context, message []byte) error {
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
func (c *websocketConn) closeWith(ctx context.Context) (stop func() bool) {
	if ctx.Done() == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(ctx, func() { c.end(ended(ctx)) })
}

// ended is why a connection is closed whose caller gave up.
func ended(ctx context.Context) error { return fmt.Errorf("%w: %w", ErrClosed, context.Cause(ctx)) }

func (c *websocketConn) write(message []byte) error {
	deadline := func() error { return c.ws.SetWriteDeadline(time.Now().Add(c.timing.Write)) }
	if err := deadline(); err != nil {
		return err
	}
	if len(message) < chunk {
		frame := append(make([]byte, 0, 1+len(message)), kindMessage)
		return c.ws.WriteMessage(websocket.BinaryMessage, append(frame, message...))
	}
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte{kindMessage}); err != nil {
		return err
	}
	for len(message) > 0 {
		n := min(chunk, len(message))
		if err := deadline(); err != nil {
			return err
		}
		if _, err := w.Write(message[:n]); err != nil {
			return err
		}
		message = message[n:]
	}
	return w.Close()
}

// writeFrame sends a frame that concerns streams. Frames and messages take turns
// in the order in which they asked, so a message waits for one frame at most.
func (c *websocketConn) writeFrame(frame []byte, done <-chan struct{}) error {
	select {
	case c.writing <- struct{}{}:
	case <-done:
		return c.why()
	}
	defer func() { <-c.writing }()
	if c.ended.Load() {
		return c.why()
	}
	err := c.ws.SetWriteDeadline(time.Now().Add(c.timing.Write))
	if err == nil {
		err = c.ws.WriteMessage(websocket.BinaryMessage, frame)
	}
	if err != nil {
		return c.end(c.explain(err))
	}
	c.sent()
	return nil
}

// Recv waits for a message. A ctx that ends while it waits ends the connection:
// a reader that was stopped half-way in a frame cannot go on.
func (c *websocketConn) Recv(ctx context.Context) ([]byte, error) {
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

// read serves streams until a message comes.
func (c *websocketConn) read() ([]byte, error) {
	// A reader that was busy elsewhere for long has still heard nothing new: the
	// while begins when it listens.
	if err := c.ws.SetReadDeadline(time.Now().Add(c.silent)); err != nil {
		return nil, err
	}
	for {
		kind, r, err := c.ws.NextReader()
		if err != nil {
			return nil, err
		}
		if kind != websocket.BinaryMessage {
			return nil, errors.New("a websocket frame of text, want binary")
		}
		var first [1]byte
		if _, err := io.ReadFull(r, first[:]); err != nil {
			return nil, fmt.Errorf("a websocket frame without its first byte: %w", err)
		}
		touch := c.touchLightly
		if first[0] == kindMessage {
			touch = c.touch
		}
		if err := touch(); err != nil {
			return nil, err
		}
		switch first[0] {
		case kindMessage:
			return c.readMessage(r)
		case kindStream:
			if err := c.readStream(r); err != nil {
				return nil, err
			}
		case kindStop:
			if err := c.readStop(r); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("a websocket frame of the unknown kind %d", first[0])
		}
	}
}

func (c *websocketConn) readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, 0, 512)
	for {
		if len(message) == cap(message) {
			message = append(message, 0)[:len(message)]
		}
		n, err := r.Read(message[len(message):cap(message)])
		message = message[:len(message)+n]
		if errors.Is(err, io.EOF) {
			return message, nil
		}
		if err != nil {
			return nil, err
		}
		if err := c.touch(); err != nil {
			return nil, err
		}
	}
}

func (c *websocketConn) readStop(r io.Reader) error {
	c.ending.Lock()
	m := c.streams
	c.ending.Unlock()
	b, err := io.ReadAll(io.LimitReader(r, 5))
	if err != nil || m == nil {
		return err
	}
	return m.stop(b)
}

// explain turns an error of the transport into one of this package's.
func (c *websocketConn) explain(err error) error {
	var closed *websocket.CloseError
	switch {
	case errors.Is(err, websocket.ErrReadLimit):
		return fmt.Errorf("from %s: %w of %d bytes", c.peer.name, ErrTooLarge, wire.MaxMessage)
	case errors.As(err, &closed) && closed.Code == websocket.CloseMessageTooBig:
		return fmt.Errorf("%s refused a message: %w", c.peer.name, ErrTooLarge)
	case errors.As(err, &closed):
		return fmt.Errorf("%w by %s", ErrClosed, c.peer.name)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fmt.Errorf("%s: %w", c.peer.name, ErrSilent)
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, websocket.ErrCloseSent):
		return fmt.Errorf("%w by %s", ErrClosed, c.peer.name)
	}
	return fmt.Errorf("%w: %s: %w", ErrClosed, c.peer.name, err)
}

// end closes the connection for that reason and returns the reason: the first
// one given counts.
func (c *websocketConn) end(cause error) error {
	c.ending.Lock()
	first := c.cause == nil
	if first {
		c.cause = cause
		c.ended.Store(true)
	}
	cause = c.cause
	if c.alive != nil {
		c.alive.Stop()
	}
	if first {
		c.moved = tcpTraffic(c.ws.NetConn())
	}
	streams := c.streams
	c.ending.Unlock()
	if first && streams != nil {
		streams.end()
	}
	if first {
		// Nobody is told but by best effort: the line may be the reason.
		_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeWait))
		_ = closeRaw(c.ws.NetConn())
	}
	return cause
}

// closeRaw closes the socket itself: a TLS connection's own Close waits for
// room to say goodbye, up to five seconds on a dead line.
func closeRaw(conn net.Conn) error {
	for {
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn.Close()
		}
		conn = layer.NetConn()
	}
}

func (c *websocketConn) why() error {
	c.ending.Lock()
	defer c.ending.Unlock()
	return c.cause
}

func (c *websocketConn) Close() error {
	c.end(ErrClosed)
	return nil
}

func (c *websocketConn) LastHeard() time.Time {
	return c.started.Add(time.Duration(c.heardAt.Load()))
}

func (c *websocketConn) Heard() <-chan struct{} { return c.heard }
func (c *websocketConn) Peer() string           { return c.peer.name }

// Traffic is what the kernel counted.
func (c *websocketConn) Traffic() Traffic {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause != nil {
		return c.moved
	}
	return tcpTraffic(c.ws.NetConn())
}

// RTT is the kernel's smoothed one.
func (c *websocketConn) RTT() time.Duration {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause != nil {
		return 0
	}
	return tcpRTT(c.ws.NetConn())
}

func (c *websocketConn) Issued() time.Time  { return c.peer.issued }
func (c *websocketConn) RemoteAddr() string { return c.remote }
func (c *websocketConn) Transport() string  { return "websocket" }
