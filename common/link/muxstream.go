package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)

// websocketStream is one stream of a mux.
type websocketStream struct {
	mux    *mux
	state  *streamState // guarded by mux.mu
	stream *yamux.Stream

	writing sync.Mutex // held by a Write: nothing may follow the end of the half

	mu     sync.Mutex
	closed bool // by Close: nothing is read or written any more
	mute   bool // nothing is written any more
}

// OpenStream waits until the other side has taken the stream.
func (c *websocketConn) OpenStream(ctx context.Context) (Stream, error) {
	return openStream(ctx, c.BeginStream, c.peer.name)
}

// BeginStream does not wait.
func (c *websocketConn) BeginStream(ctx context.Context) (BegunStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := c.muxed()
	if err != nil {
		return nil, err
	}
	s, err := m.open()
	if err != nil {
		return nil, fmt.Errorf("open a stream to %s: %w", c.peer.name, err)
	}
	return &begunStream{Stream: s}, nil
}

func (m *mux) open() (*websocketStream, error) {
	m.opening.Lock()
	defer m.opening.Unlock()
	// The answer may come before the session's OpenStream has returned, so the
	// stream is listed before: nobody else opens streams, so its number is known.
	id := m.next
	state := new(streamState)
	m.mu.Lock()
	full := m.count(m.first%2) >= MaxStreams
	if !full {
		m.alive[id] = state
	}
	m.mu.Unlock()
	if full {
		return nil, fmt.Errorf("%w: %d are open", ErrNoStream, MaxStreams)
	}
	stream, err := m.session.OpenStream()
	if err != nil {
		m.forget(id)
		return nil, m.explain(err)
	}
	m.next += 2
	return m.wrap(stream, state), nil
}

func (m *mux) forget(id uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.alive, id)
}

func (m *mux) wrap(stream *yamux.Stream, state *streamState) *websocketStream {
	s := &websocketStream{mux: m, state: state, stream: stream}
	m.mu.Lock()
	state.wrapped = s
	stopped := state.stopped
	m.mu.Unlock()
	if stopped {
		s.stopWriting()
	}
	return s
}

// AcceptStream takes the next stream of the other side.
func (c *websocketConn) AcceptStream(ctx context.Context) (Stream, error) {
	if c.opensOnly {
		return nil, errOpensOnly
	}
	m, err := c.muxed()
	if err != nil {
		return nil, err
	}
	c.accepting.Store(true)
	for {
		stream, err := m.session.AcceptStreamWithContext(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, m.explain(err)
		}
		m.mu.Lock()
		state := m.alive[stream.StreamID()]
		m.mu.Unlock()
		if state == nil {
			continue // it was given up while it waited
		}
		s := m.wrap(stream, state)
		if _, err := s.Write([]byte{confirmation}); err != nil {
			_ = s.Close()
			continue
		}
		return s, nil
	}
}

// explain turns an error of yamux into one of this package's.
func (m *mux) explain(err error) error {
	if m.c.ended.Load() {
		return m.c.why()
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

func (s *websocketStream) Read(b []byte) (int, error) {
	if s.isClosed() {
		return 0, ErrClosed
	}
	n, err := s.stream.Read(b)
	switch {
	case err == nil || n > 0:
		return n, nil
	case errors.Is(err, yamux.ErrTimeout) && !s.isClosed():
		return 0, os.ErrDeadlineExceeded
	case errors.Is(err, io.EOF) && (!s.mux.c.ended.Load() || s.peerEnded()):
		return 0, io.EOF // else it is the session's end
	case errors.Is(err, yamux.ErrConnectionReset):
		return 0, fmt.Errorf("%w: %w", ErrClosed, ErrNoStream)
	}
	return 0, s.mux.explain(err)
}

func (s *websocketStream) peerEnded() bool {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	return s.state.peerEnded
}

func (s *websocketStream) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *websocketStream) isMute() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute
}

// writePiece is how much of a Write goes out before it looks whether it is to end.
const writePiece = 64 << 10

func (s *websocketStream) Write(b []byte) (written int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for {
		if s.isMute() {
			return written, s.mux.explain(yamux.ErrStreamClosed)
		}
		n, err := s.stream.Write(b[written:min(len(b), written+writePiece)])
		written += n
		switch {
		case err == nil && written == len(b):
			return written, nil
		case err == nil:
		case errors.Is(err, yamux.ErrTimeout) && !s.isMute():
			return written, os.ErrDeadlineExceeded
		default:
			return written, s.mux.explain(err)
		}
	}
}

// silence lets nothing more be written, and wakes a Write that waits; false when
// that was done before.
func (s *websocketStream) silence() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mute {
		return false
	}
	s.mute = true
	_ = s.stream.SetWriteDeadline(past)
	return true
}

func (s *websocketStream) CloseWrite() error {
	if !s.silence() {
		return nil
	}
	return s.endWriting()
}

func (s *websocketStream) endWriting() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.stream.Close()
	s.mux.ours(s.stream.StreamID())
	return err
}

// stopWriting does what CloseWrite does, without keeping the caller.
func (s *websocketStream) stopWriting() {
	if s.silence() {
		go func() { _ = s.endWriting() }()
	}
}

func (s *websocketStream) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	_ = s.stream.SetReadDeadline(past)
	s.mu.Unlock()
	err := s.CloseWrite()
	s.mux.mu.Lock()
	over := s.state.peerEnded || s.state.reset
	s.mux.mu.Unlock()
	if !first || over || s.mux.c.ended.Load() {
		return err
	}
	stop := binary.BigEndian.AppendUint32([]byte{kindStop}, s.stream.StreamID())
	if failed := s.mux.c.writeFrame(stop, s.mux.done); failed != nil && !s.mux.c.ended.Load() {
		err = errors.Join(err, failed)
	}
	return err
}

func (s *websocketStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *websocketStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.stream.SetReadDeadline(t)
}

func (s *websocketStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mute {
		return nil
	}
	return s.stream.SetWriteDeadline(t)
}
