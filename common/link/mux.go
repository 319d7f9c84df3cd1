package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// The first byte of a websocket frame says what follows.
const (
	kindMessage = 0 // a message
	kindStream  = 1 // part of the byte stream that yamux makes of all streams
	kindStop    = 2 // the number of a stream which the sender reads no more
)

// streamChunk is how much of a stream goes into one frame: so long a message may
// have to wait. With all headers it fills one record of TLS.
const streamChunk = 16<<10 - 64

// streamFrame is a frame of yamux (its spec.md): 12 bytes of header, then data.
// Each travels in a websocket frame of its own.
type streamFrame struct {
	kind   uint8 // 0 data, 1 window update; pings and farewells are not used here
	flags  uint16
	stream uint32
	length uint32 // of the data, or by how much the window grows
}

const (
	frameHeader = 12
	maxFrame    = frameHeader + 16<<10 // that is taken
	frameData   = 0
	frameWindow = 1
	flagSYN     = 1
	flagFIN     = 4
	flagRST     = 8
	allFlags    = 15
)

// parseStreamFrame refuses what neither side of this package sends.
func parseStreamFrame(b []byte) (streamFrame, error) {
	if len(b) < frameHeader || len(b) > maxFrame {
		return streamFrame{}, fmt.Errorf("a stream frame of %d bytes", len(b))
	}
	f := parseHeader(b)
	data := uint32(len(b) - frameHeader)
	switch {
	case b[0] != 0:
		return f, fmt.Errorf("a stream frame of version %d", b[0])
	case f.kind > frameWindow:
		return f, fmt.Errorf("a stream frame of type %d", f.kind)
	case f.flags > allFlags:
		return f, fmt.Errorf("a stream frame with flags %#x", f.flags)
	case f.stream == 0:
		return f, errors.New("a stream frame of no stream")
	case f.kind == frameData && f.length != data, f.kind == frameWindow && data != 0:
		return f, fmt.Errorf("a stream frame with %d bytes of data", data)
	}
	return f, nil
}

func parseHeader(b []byte) streamFrame {
	return streamFrame{
		kind: b[1], flags: binary.BigEndian.Uint16(b[2:]),
		stream: binary.BigEndian.Uint32(b[4:]), length: binary.BigEndian.Uint32(b[8:]),
	}
}

// appendTo appends the header.
func (f streamFrame) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(append(b, 0, f.kind), f.flags)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, f.stream), f.length)
}

// streamState is what is known of a stream that is open; guarded by mux.mu.
type streamState struct {
	peerEnded bool // its writing half; the session gets all that it wrote
	ended     bool // ours
	reset     bool // by the peer: both halves
	stopped   bool // the peer reads no more
	wrapped   *websocketStream
}

// mux makes the streams of a websocket connection out of one yamux session. It
// stands between the session and the socket, as the session's io.ReadWriteCloser,
// and judges every frame of the peer before the session sees it: yamux itself
// bounds neither the streams of a peer nor the goroutines for its pings.
type mux struct {
	c       *websocketConn
	session *yamux.Session
	done    chan struct{} // closed with the connection
	first   uint32        // parity of our own streams

	opening sync.Mutex
	next    uint32 // number of the stream that we open next; guarded by opening

	mu    sync.Mutex
	alive map[uint32]*streamState

	// arrived are frames on their way from who is in Recv to the session's reader, and
	// reading is what that has not read of the first.
	arrived chan *arrivedFrame
	reading *arrivedFrame

	// Of the session's writer: the header that waits for its data, and the bytes
	// that go out.
	held  streamFrame
	owing bool
	frame []byte
}

// muxed returns the connection's mux and makes it when it is first needed.
func (c *websocketConn) muxed() (*mux, error) {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.cause != nil {
		return nil, c.cause
	}
	if c.streams != nil {
		return c.streams, nil
	}
	m := &mux{c: c, done: make(chan struct{}), alive: make(map[uint32]*streamState), arrived: make(chan *arrivedFrame, maxArrived)}
	config := yamux.DefaultConfig()
	config.EnableKeepAlive = false
	config.AcceptBacklog = MaxStreams
	config.StreamOpenTimeout, config.StreamCloseTimeout = 0, 0
	// The link has its own idea of when a line is dead.
	config.ConnectionWriteTimeout = 24 * time.Hour
	config.LogOutput = io.Discard
	make, first := yamux.Client, uint32(1)
	if c.manner == hubPinging {
		make, first = yamux.Server, 2
	}
	m.first, m.next = first, first
	var err error
	if m.session, err = make(m, config); err != nil {
		return nil, fmt.Errorf("streams to %s: %w", c.peer.name, err)
	}
	c.streams = m
	return m, nil
}

// end is called when the connection has ended.
func (m *mux) end() {
	close(m.done)
	go func() { _ = m.session.Close() }() // waits for the session's writer
}

// Close is called by the session when it ends, by itself too: then the peer broke
// the rules of yamux.
func (m *mux) Close() error {
	m.c.end(fmt.Errorf("%w: %s broke the rules of streams", ErrClosed, m.c.peer.name))
	return nil
}

// maxArrived is how many frames may wait for the session, so that neither side of
// that hand-over wakes the other for each.
const maxArrived = 4

// arrivedFrame is a frame that has come.
type arrivedFrame struct {
	buffer [maxFrame]byte
	size   int
	at     int // what was read of it
}

var arrivedFrames = sync.Pool{New: func() any { return new(arrivedFrame) }}

// Read serves the session: all that has come, before it says that no more does.
func (m *mux) Read(b []byte) (int, error) {
	if m.reading == nil {
		select {
		case m.reading = <-m.arrived:
		case <-m.done:
			select {
			case m.reading = <-m.arrived:
			default:
				return 0, ErrClosed
			}
		}
	}
	f := m.reading
	n := copy(b, f.buffer[f.at:f.size])
	if f.at += n; f.at == f.size {
		m.reading = nil
		arrivedFrames.Put(f)
	}
	return n, nil
}

// Write serves the session, which hands over a header, then its data. Much data
// becomes several frames, so that a message need not wait for all of it.
func (m *mux) Write(b []byte) (int, error) {
	if !m.owing {
		m.held = parseHeader(b)
		m.owing = m.held.kind == frameData && m.held.length > 0
		if m.owing {
			return len(b), nil
		}
		return len(b), m.send(m.held, nil)
	}
	m.owing = false
	for rest := b; len(rest) > 0; {
		n := min(streamChunk, len(rest))
		m.held.length = uint32(n)
		if err := m.send(m.held, rest[:n]); err != nil {
			return 0, err
		}
		m.held.flags, rest = 0, rest[n:]
	}
	return len(b), nil
}

// send is for the session's writer.
func (m *mux) send(f streamFrame, data []byte) error {
	if f.flags&flagRST != 0 {
		m.forget(f.stream)
	}
	m.frame = append(f.appendTo(append(m.frame[:0], kindStream)), data...)
	return m.c.writeFrame(m.frame, m.done)
}

// readStreamFrame takes one frame from r; b has room for the largest.
func readStreamFrame(r io.Reader, b []byte) ([]byte, error) {
	n, err := io.ReadFull(r, b)
	switch {
	case err == nil: // the largest there is, and nothing may follow
		if extra, err := r.Read(make([]byte, 1)); extra > 0 || !errors.Is(err, io.EOF) {
			return nil, errors.Join(errors.New("a stream frame beyond the limit"), err)
		}
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	}
	return b[:n], nil
}

// readStream takes one frame that the peer sent for streams. Where there are none
// and nobody accepts any, it is answered without a session.
func (c *websocketConn) readStream(r io.Reader) error {
	c.ending.Lock()
	m := c.streams
	c.ending.Unlock()
	arrived := arrivedFrames.Get().(*arrivedFrame)
	kept := false
	defer func() {
		if !kept {
			arrivedFrames.Put(arrived)
		}
	}()
	b, err := readStreamFrame(r, arrived.buffer[:])
	if err != nil {
		return err
	}
	if m != nil {
		arrived.size, arrived.at = len(b), 0
		kept, err = m.take(arrived)
		return err
	}
	f, err := parseStreamFrame(b)
	if err != nil || f.flags&flagSYN == 0 {
		return err
	}
	return c.writeFrame(refusal(f), nil)
}

// refusal is the answer to the first frame of a stream that is not taken.
func refusal(f streamFrame) []byte {
	return streamFrame{kind: frameWindow, flags: flagRST, stream: f.stream}.appendTo([]byte{kindStream})
}

// take judges a frame, and keeps it where the session is to have it.
func (m *mux) take(arrived *arrivedFrame) (kept bool, err error) {
	f, err := parseStreamFrame(arrived.buffer[:arrived.size])
	if err != nil {
		return false, err
	}
	switch verdict, err := m.judge(f); {
	case err != nil:
		return false, err
	case verdict == refuse:
		return false, m.c.writeFrame(refusal(f), m.done)
	case verdict == drop:
		return false, nil
	}
	select {
	case m.arrived <- arrived:
		return true, nil
	case <-m.done:
		return false, m.c.why()
	}
}

// verdict is what becomes of a frame.
type verdict int

const (
	pass verdict = iota
	drop
	refuse
)

// judge keeps the list of streams. What concerns none of it is dropped: the peer
// may still speak of a stream that has ended here.
func (m *mux) judge(f streamFrame) (verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.alive[f.stream]
	if f.flags&flagSYN != 0 {
		if s != nil || f.stream%2 == m.first%2 {
			return drop, fmt.Errorf("stream %d begins twice", f.stream)
		}
		if !m.c.accepting.Load() || m.count(1-m.first%2) >= MaxStreams {
			return refuse, nil
		}
		s = new(streamState)
		m.alive[f.stream] = s
	}
	if s == nil {
		return drop, nil
	}
	if s.peerEnded && (f.flags&flagFIN != 0 || f.kind == frameData && f.length > 0) {
		return drop, fmt.Errorf("stream %d goes on after its end", f.stream)
	}
	s.reset = s.reset || f.flags&flagRST != 0
	s.peerEnded = s.peerEnded || f.flags&flagFIN != 0
	if s.reset || s.ended && s.peerEnded {
		delete(m.alive, f.stream)
	}
	return pass, nil
}

// count is how many streams of that parity are open; mu is held.
func (m *mux) count(parity uint32) int {
	n := 0
	for id := range m.alive {
		if id%2 == parity {
			n++
		}
	}
	return n
}

// stop handles the peer's word that it reads a stream no more.
func (m *mux) stop(b []byte) error {
	if len(b) != 4 {
		return fmt.Errorf("a stream is stopped with %d bytes", len(b))
	}
	m.mu.Lock()
	s := m.alive[binary.BigEndian.Uint32(b)]
	var wrapped *websocketStream
	if s != nil && !s.stopped {
		s.stopped = true
		wrapped = s.wrapped
	}
	m.mu.Unlock()
	if wrapped != nil {
		wrapped.stopWriting()
	}
	return nil
}

// ours notes that our writing half of a stream has ended.
func (m *mux) ours(id uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.alive[id]; s != nil {
		if s.ended = true; s.peerEnded {
			delete(m.alive, id)
		}
	}
}
