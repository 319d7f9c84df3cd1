package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// MaxStreams is how many streams of a connection each side may have opened at one
// time. What one stream holds that nobody reads is bounded by its window: a side
// whose every stream is left unread holds 32 MiB over websocket.
const MaxStreams = 128

// ErrNoStream is in the error of an OpenStream whose stream the other side did not
// take: nobody accepts streams there, or too many are open.
var ErrNoStream = errors.New("the other side takes no stream")

// errOpensOnly is for a hub that calls AcceptStream without AcceptOptions.Streams.
var errOpensOnly = fmt.Errorf("%w: this hub accepts none (AcceptOptions.Streams)", ErrNoStream)

// Stream is an ordered, reliable stream of bytes both ways beside the messages of
// a connection. One goroutine may read while another writes. Its errors are
// io.EOF once the other side has closed its writing half and all was read,
// os.ErrDeadlineExceeded, and otherwise this package's: ErrClosed, or why the
// connection ended.
type Stream interface {
	io.Reader
	io.Writer
	// Close ends both halves: what was written still arrives, what was not read is
	// thrown away, and the other side's writes fail. A Write that waits is cut off.
	io.Closer
	// CloseWrite ends the writing half: the other side reads io.EOF.
	CloseWrite() error
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// BegunStream is a stream that the other side may not have taken yet. What is written is
// on its way all the same; Read waits until it was taken, and fails with ErrNoStream where
// it was not.
type BegunStream interface {
	Stream
	// Taken waits until the other side has taken the stream, as Read does: for as long
	// as the deadline of reading allows, and in the same goroutine.
	Taken() error
}

// Traffic is what a connection has moved, in bytes: TLS and what was sent again
// included, and the headers of IP and TCP or UDP as far as the kernel counts them.
type Traffic struct{ Sent, Received uint64 }

// confirmation is what who accepts a stream sends first, so that who opened it
// knows.
const confirmation = 1

// begunStream is a BegunStream over any transport.
type begunStream struct {
	Stream
	taken bool // of the goroutine that reads
}

func (s *begunStream) Taken() error {
	if s.taken {
		return nil
	}
	answer := make([]byte, 1)
	_, err := io.ReadFull(s.Stream, answer)
	switch {
	case errors.Is(err, io.EOF):
		return ErrNoStream
	case err == nil && answer[0] != confirmation:
		return fmt.Errorf("%w: its answer is %d", ErrNoStream, answer[0])
	}
	s.taken = err == nil
	return err
}

func (s *begunStream) Read(b []byte) (int, error) {
	if err := s.Taken(); err != nil {
		return 0, err
	}
	return s.Stream.Read(b)
}

// openStream begins a stream to that peer and waits until it is taken.
func openStream(ctx context.Context, begin func(context.Context) (BegunStream, error), peer string) (Stream, error) {
	s, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	err = s.Taken()
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open a stream to %s: %w", peer, err)
	}
	return s.(*begunStream).Stream, nil
}
