package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// Why a stream ends before its time.
const (
	codeNoStream quic.StreamErrorCode = 1 // it is refused
	codeStop     quic.StreamErrorCode = 2 // it is read no more
)

// opening is the first byte on a stream: QUIC tells the other side of a stream
// with its first byte.
const opening = 1

// quicStreams are the streams of a connection beside that of its messages.
type quicStreams struct {
	mu        sync.Mutex
	accepting bool
	arrived   chan *quic.Stream // made with the first AcceptStream
	open      map[*quicStream]struct{}
	ended     bool
}

// quicStream is one of them.
type quicStream struct {
	c       *quicConn
	stream  *quic.Stream
	writing sync.Mutex // held by a Write: QUIC allows no Close during it

	mu       sync.Mutex
	opened   bool // the opening byte was read, or there is none
	readDone bool // io.EOF came
	closed   bool
	mute     bool
}

// OpenStream waits until the other side has taken the stream.
func (c *quicConn) OpenStream(ctx context.Context) (Stream, error) {
	return openStream(ctx, c.BeginStream, c.peer.name)
}

// BeginStream does not wait.
func (c *quicConn) BeginStream(ctx context.Context) (BegunStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := c.open()
	if err != nil {
		return nil, fmt.Errorf("open a stream to %s: %w", c.peer.name, err)
	}
	return &begunStream{Stream: s}, nil
}

func (c *quicConn) open() (*quicStream, error) {
	if c.ended.Load() {
		return nil, c.why()
	}
	stream, err := c.conn.OpenStream()
	var full *quic.StreamLimitReachedError
	if errors.As(err, &full) {
		return nil, fmt.Errorf("%w: %d are open", ErrNoStream, MaxStreams)
	}
	if err != nil {
		return nil, c.explainStream(err)
	}
	s, err := c.wrap(stream, true)
	if err != nil {
		return nil, err
	}
	if _, err := s.Write([]byte{opening}); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// wrap lists a stream, so that it ends with the connection.
func (c *quicConn) wrap(stream *quic.Stream, ours bool) (*quicStream, error) {
	s := &quicStream{c: c, stream: stream, opened: ours}
	c.streams.mu.Lock()
	defer c.streams.mu.Unlock()
	if c.streams.ended {
		refuseStream(stream)
		return nil, c.why()
	}
	if c.streams.open == nil {
		c.streams.open = make(map[*quicStream]struct{})
	}
	c.streams.open[s] = struct{}{}
	return s, nil
}

func refuseStream(stream *quic.Stream) {
	stream.CancelRead(codeNoStream)
	stream.CancelWrite(codeNoStream)
}

// takeStreams takes what the peer opens until the connection has ended: QUIC
// would let it wait for ever, rather than refuse it.
func (c *quicConn) takeStreams() {
	for {
		stream, err := c.conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		if !c.arrive(stream) {
			refuseStream(stream)
		}
	}
}

func (c *quicConn) arrive(stream *quic.Stream) bool {
	c.streams.mu.Lock()
	defer c.streams.mu.Unlock()
	if !c.streams.accepting {
		return false
	}
	select {
	case c.streams.arrived <- stream:
		return true
	default:
		return false
	}
}

// AcceptStream takes the next stream of the other side.
func (c *quicConn) AcceptStream(ctx context.Context) (Stream, error) {
	if c.opensOnly {
		return nil, errOpensOnly
	}
	c.streams.mu.Lock()
	if !c.streams.accepting {
		c.streams.accepting = true
		c.streams.arrived = make(chan *quic.Stream, MaxStreams)
	}
	arrived := c.streams.arrived
	c.streams.mu.Unlock()
	for {
		if c.ended.Load() {
			return nil, c.why()
		}
		select {
		case stream := <-arrived:
			s, err := c.wrap(stream, false)
			if err != nil {
				return nil, err
			}
			if _, err := s.Write([]byte{confirmation}); err != nil {
				_ = s.Close() // it was given up while it waited
				continue
			}
			return s, nil
		case <-c.gone:
			return nil, c.why()
		case <-c.conn.Context().Done():
			return nil, c.explainStream(context.Cause(c.conn.Context()))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// endStreams is called when the connection has ended.
func (c *quicConn) endStreams() {
	c.streams.mu.Lock()
	defer c.streams.mu.Unlock()
	c.streams.ended = true
	for s := range c.streams.open {
		_ = s.stream.SetDeadline(past)
	}
}

// explainStream turns an error of a stream into one of this package's.
func (c *quicConn) explainStream(err error) error {
	if c.ended.Load() {
		return c.why()
	}
	return c.explain(err)
}

func (s *quicStream) Read(b []byte) (int, error) {
	if s.is(&s.closed) {
		return 0, s.c.explainStream(ErrClosed)
	}
	if !s.is(&s.opened) {
		if _, err := io.ReadFull(s.stream, make([]byte, 1)); err != nil {
			return 0, s.readError(err)
		}
		s.set(&s.opened)
	}
	n, err := s.stream.Read(b)
	if errors.Is(err, io.EOF) {
		s.set(&s.readDone)
	}
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, s.readError(err)
}

func (s *quicStream) readError(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded) && !s.is(&s.closed) && !s.c.ended.Load():
		return os.ErrDeadlineExceeded
	}
	return s.streamError(err)
}

// streamError adds that a stream was refused, where it was.
func (s *quicStream) streamError(err error) error {
	var ended *quic.StreamError
	switch {
	case s.c.ended.Load():
	case errors.As(err, &ended) && ended.Remote && ended.ErrorCode == codeNoStream:
		return fmt.Errorf("%w: %w", ErrClosed, ErrNoStream)
	case s.is(&s.closed):
		return ErrClosed
	}
	return s.c.explainStream(err)
}

func (s *quicStream) is(flag *bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *flag
}

func (s *quicStream) set(flag *bool) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = !*flag
	*flag = true
	return first
}

func (s *quicStream) Write(b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.is(&s.mute) {
		return 0, s.c.explainStream(ErrClosed)
	}
	n, err := s.stream.Write(b)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded) && !s.is(&s.mute) && !s.c.ended.Load():
		return n, os.ErrDeadlineExceeded
	}
	return n, s.streamError(err)
}

func (s *quicStream) CloseWrite() error {
	s.mu.Lock()
	first := !s.mute
	s.mute = true
	_ = s.stream.SetWriteDeadline(past)
	s.mu.Unlock()
	if !first {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.stream.Close()
}

func (s *quicStream) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	over := s.readDone
	s.mu.Unlock()
	err := s.CloseWrite()
	if !first {
		return err
	}
	if !over {
		s.stream.CancelRead(codeStop)
	}
	s.c.streams.mu.Lock()
	delete(s.c.streams.open, s)
	s.c.streams.mu.Unlock()
	return err
}

func (s *quicStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline leaves alone what the connection's end has woken.
func (s *quicStream) SetReadDeadline(t time.Time) error {
	s.c.streams.mu.Lock()
	defer s.c.streams.mu.Unlock()
	if s.c.streams.ended {
		return nil
	}
	return s.stream.SetReadDeadline(t)
}

func (s *quicStream) SetWriteDeadline(t time.Time) error {
	s.c.streams.mu.Lock()
	defer s.c.streams.mu.Unlock()
	if s.c.streams.ended || s.is(&s.mute) {
		return nil
	}
	return s.stream.SetWriteDeadline(t)
}
