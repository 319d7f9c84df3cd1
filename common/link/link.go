// Package link carries messages between an edge node and a hub over one
// authenticated connection that the edge dialled. It owns transports (TLS 1.3
// with client certificates, over websocket or over QUIC), keepalive, framing and size limits. cloud/hub accepts, edge/uplink
// dials. It never looks into a message and never decides when to reconnect.
package link

import (
	"context"
	"errors"
	"time"
)

// Conn is one connection: an ordered, reliable channel of messages (at most
// wire.MaxMessage bytes each). One goroutine may call Recv while others call Send.
type Conn interface {
	// Send queues nothing: it returns when the message is handed to the
	// transport, or when ctx ends. A ctx that ends in the middle of a write
	// closes the connection, because half a message is of no use.
	Send(ctx context.Context, message []byte) error
	// Recv returns the next message. After Close it returns ErrClosed; when the
	// peer fell silent for longer than the transport allows, ErrSilent. A ctx that
	// ends while Recv waits closes the connection.
	Recv(ctx context.Context) ([]byte, error)
	// Close ends the connection at once and frees everything; it may be called
	// at any time, any number of times.
	Close() error
	// LastHeard is when anything of the peer, keepalives included, last arrived.
	LastHeard() time.Time
	// Heard is signalled (never blocking, capacity 1) when something arrived.
	Heard() <-chan struct{}
	// Peer is the node's name from the verified client certificate at the hub's
	// end ("system:node:" removed), and the hub's address at the edge's end.
	Peer() string
	RemoteAddr() string
	// Issued is, at the hub's end, when the node's certificate was signed
	// (pki.IssuedAt); zero at the edge's end.
	Issued() time.Time
	// Transport names the transport: "websocket" or "quic".
	Transport() string
	// OpenStream opens a stream beside the messages and waits until the other side
	// has taken it. Streams cost nothing while there are none. Over websocket they
	// move only while somebody waits in Recv at both ends.
	OpenStream(ctx context.Context) (Stream, error)
	// BeginStream is OpenStream for who has something to say at once, and does not wait
	// a round trip for it.
	BeginStream(ctx context.Context) (BegunStream, error)
	// AcceptStream waits for a stream which the other side opens. Until it is first
	// called, and beyond MaxStreams, streams are refused (ErrNoStream).
	AcceptStream(ctx context.Context) (Stream, error)
	// Traffic is what the connection has moved so far.
	Traffic() Traffic
	// RTT is the round trip as the transport has measured it lately, on its own
	// packets; 0: not known (yet).
	RTT() time.Duration
}

// Dialer makes connections from the edge to the hub.
type Dialer interface {
	Dial(ctx context.Context) (Conn, error)
}

// Acceptor is the hub's end.
type Acceptor interface {
	// Accept returns the next authenticated connection.
	Accept(ctx context.Context) (Conn, error)
	Close() error
}

// Errors of a connection; test with errors.Is.
var (
	ErrClosed   = errors.New("link closed")
	ErrSilent   = errors.New("the other side fell silent")
	ErrTooLarge = errors.New("message exceeds the limit")
)
