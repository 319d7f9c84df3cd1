package link

import (
	"bytes"
	"context"
	"net"
	"time"
)

// DialWebsocketOver is DialWebsocket over connections that the test makes.
func DialWebsocketOver(o DialOptions, connect func(ctx context.Context, network, address string) (net.Conn, error)) Dialer {
	d := DialWebsocket(o).(*websocketDialer)
	d.connect = connect
	return d
}

// Socket is the connection under a Conn of the websocket transport.
func Socket(c Conn) net.Conn { return c.(*websocketConn).ws.NetConn() }

// TryQUICAgain ends a DialAuto's rest from QUIC, as ten minutes do, and says
// whether there was one.
func TryQUICAgain(d Dialer) bool {
	auto := d.(*autoDialer)
	auto.mu.Lock()
	defer auto.mu.Unlock()
	rested := len(auto.again) > 0
	clear(auto.again)
	return rested
}

// WithoutHaste lets a DialAuto wait for QUIC as long as its Timing says.
func WithoutHaste(d Dialer) Dialer {
	auto := d.(*autoDialer)
	auto.quic.Timing.Dial = auto.Timing.Dial
	return d
}

// JudgeFrames takes frames of a peer's streams out of b, as a connection does, and
// says how many bytes it would have answered with and how many of the peer's
// streams are open in the end.
func JudgeFrames(b []byte, accepting bool) (sent, open int, err error) {
	m := &mux{c: new(websocketConn), first: 2, alive: make(map[uint32]*streamState)}
	m.c.accepting.Store(accepting)
	for len(b) > 0 {
		n := min(len(b), frameHeader)
		if n == frameHeader && b[1] == frameData {
			n = int(min(uint64(len(b)), frameHeader+uint64(parseHeader(b).length)))
		}
		f, err := parseStreamFrame(b[:n])
		if err != nil {
			return sent, m.count(1), err
		}
		switch verdict, err := m.judge(f); {
		case err != nil:
			return sent, m.count(1), err
		case verdict == refuse:
			sent += len(refusal(f)) - 1
		}
		b = b[n:]
	}
	return sent, m.count(1), nil
}

// ReadQUICMessages is what a connection over QUIC receives from that stream.
func ReadQUICMessages(stream []byte) (messages [][]byte) {
	r := bytes.NewReader(stream)
	for {
		m, err := readFramed(r, r.Read)
		if err != nil {
			return messages
		}
		messages = append(messages, m)
	}
}

// AppendQUICMessage is what a connection over QUIC sends.
func AppendQUICMessage(b, message []byte) []byte {
	return append(appendLength(b, len(message)), message...)
}

// Order is in which order a dialer tries its hubs next.
func Order(d Dialer) []string {
	switch d := d.(type) {
	case *autoDialer:
		return d.hubs.order()
	case *quicDialer:
		return d.hubs.order()
	}
	return d.(*websocketDialer).hubs.order()
}

// Hasty lets strangers make room as soon as the hub waits for them.
func Hasty(s *Strangers) *Strangers {
	s.grace = time.Millisecond
	return s
}

// Count is how many strangers there are over TCP.
func Count(s *Strangers) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tcp.Len()
}
