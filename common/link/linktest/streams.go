package linktest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
)

// streams holds what every transport promises of the streams beside its messages.
func (c contract) streams(t *testing.T) {
	run(t, "many at once, from both sides, do not mix", c.manyStreams)
	run(t, "a half that is closed leaves the other one", c.halfClose)
	run(t, "one that nobody reads delays nothing", c.stoppedStream)
	run(t, "an end that closes ends the other's writing", c.streamClosed)
	run(t, "deadlines pass and can be set anew", c.streamDeadlines)
	run(t, "where nobody accepts they are refused", c.streamRefused)
	run(t, "one that has begun says at once what it has to say", c.streamBegun)
	run(t, "their number is bounded", c.streamsBounded)
	run(t, "who waits for one to be taken may give up", c.streamGivenUp)
	run(t, "they end with a connection that is closed", c.streamsOfClosed)
	run(t, "they end with a connection that fell silent", c.streamsOfSilent)
	run(t, "a large copy lets messages by", c.largeCopy)
}

// lively is a connection at both of whose ends somebody receives.
type lively struct {
	ends
	fromEdge, fromHub       <-chan []byte
	edgeReceive, hubReceive <-chan error // why each Recv ended
}

func (c contract) lively(t *testing.T, hub, edge link.Timing) lively {
	l := lively{ends: c.connect(t, hub, edge)}
	l.fromHub, l.edgeReceive = receive(t, l.edge)
	l.fromEdge, l.hubReceive = receive(t, l.hub)
	return l
}

// receive hands on what a connection receives until it ends.
func receive(t *testing.T, c link.Conn) (<-chan []byte, <-chan error) {
	messages, ended := make(chan []byte, 1024), make(chan error, 1)
	go func() {
		for {
			m, err := c.Recv(t.Context())
			if err != nil {
				ended <- err
				return
			}
			messages <- m
		}
	}()
	return messages, ended
}

// stream opens a stream from one side to the other.
func stream(t *testing.T, from, to link.Conn) (opened, accepted link.Stream) {
	t.Helper()
	ctx := patient(t)
	took := make(chan link.Stream, 1)
	go func() {
		s, err := to.AcceptStream(ctx)
		if err != nil {
			t.Errorf("accept a stream: %v", err)
		}
		took <- s
	}()
	for {
		// Until the other side's AcceptStream has begun, streams are refused.
		s, err := from.OpenStream(ctx)
		if errors.Is(err, link.ErrNoStream) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted = <-took
		if accepted == nil {
			t.FailNow()
		}
		t.Cleanup(func() { _, _ = s.Close(), accepted.Close() })
		return s, accepted
	}
}

// accepting lets a side accept until the test ends, and do that with each stream.
func accepting(t *testing.T, c link.Conn, do func(link.Stream)) {
	ctx := patient(t)
	go func() {
		for {
			s, err := c.AcceptStream(ctx)
			if err != nil {
				return
			}
			go do(s)
		}
	}()
}

// open opens a stream to a side that accepts, or is about to.
func open(t *testing.T, c link.Conn) link.Stream {
	t.Helper()
	s, err := tryOpen(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryOpen(t *testing.T, c link.Conn) (link.Stream, error) {
	ctx := patient(t)
	for {
		s, err := c.OpenStream(ctx)
		if !errors.Is(err, link.ErrNoStream) {
			return s, err
		}
	}
}

func random(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// echo sends everything back.
func echo(s link.Stream) {
	_, _ = io.Copy(s, s)
	_ = s.CloseWrite()
}

func (c contract) manyStreams(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	var all sync.WaitGroup
	for side, way := range [][2]link.Conn{{l.edge, l.hub}, {l.hub, l.edge}} {
		accepting(t, way[1], echo)
		for n := range link.MaxStreams {
			all.Go(func() {
				s, err := tryOpen(t, way[0])
				if err != nil {
					t.Error(err)
					return
				}
				want := random(byte(side*link.MaxStreams+n), 1000*n+n%7)
				go func() {
					_, _ = s.Write(want)
					_ = s.CloseWrite()
				}()
				got, err := io.ReadAll(s)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("side %d, stream %d: %d bytes came back of %d: %v", side, n, len(got), len(want), err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
	}
	all.Wait()
	exchangeLively(t, l, "after all")
}

// exchangeLively sends a message each way.
func exchangeLively(t *testing.T, l lively, text string) {
	t.Helper()
	ctx := patient(t)
	for _, way := range []struct {
		from link.Conn
		to   <-chan []byte
	}{{l.edge, l.fromEdge}, {l.hub, l.fromHub}} {
		if err := way.from.Send(ctx, []byte(text)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-way.to:
			if string(got) != text {
				t.Fatalf("received %q, want %q", got, text)
			}
		case <-ctx.Done():
			t.Fatal("a message did not arrive")
		}
	}
}

func (c contract) halfClose(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	ask, answer := stream(t, l.hub, l.edge)
	question, reply := random(1, 300<<10), random(2, 700<<10)
	go func() {
		_, _ = ask.Write(question)
		_ = ask.CloseWrite()
	}()
	if got, err := io.ReadAll(answer); err != nil || !bytes.Equal(got, question) {
		t.Fatalf("%d bytes of the question, %v", len(got), err)
	}
	if _, err := ask.Write([]byte("more")); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("a write after CloseWrite: %v, want ErrClosed", err)
	}
	go func() {
		_, _ = answer.Write(reply)
		_ = answer.Close()
	}()
	if got, err := io.ReadAll(ask); err != nil || !bytes.Equal(got, reply) {
		t.Fatalf("%d bytes of the answer, %v", len(got), err)
	}
}

// stoppedStream fills a stream until its writer must wait.
func (c contract) stoppedStream(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	for name, way := range map[string][2]link.Conn{"down": {l.hub, l.edge}, "up": {l.edge, l.hub}} {
		stuck, unread := stream(t, way[0], way[1])
		wrote := make(chan error, 1)
		go func() {
			var err error
			for err == nil {
				_, err = stuck.Write(make([]byte, 64<<10))
			}
			wrote <- err
		}()
		for range 20 {
			exchangeLively(t, l, name)
		}
		other, far := stream(t, way[0], way[1])
		want := random(3, 2<<20)
		go func() {
			_, _ = other.Write(want)
			_ = other.Close()
		}()
		if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes of another stream, %v", name, len(got), err)
		}
		exchangeLively(t, l, name)
		if err := unread.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; !errors.Is(err, link.ErrClosed) {
			t.Fatalf("%s: the writer of a stream that was closed: %v, want ErrClosed", name, err)
		}
	}
}

func (c contract) streamClosed(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	near, far := stream(t, l.hub, l.edge)
	waiting := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		waiting <- err
	}()
	if _, err := near.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := near.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	if err := <-waiting; !errors.Is(err, link.ErrClosed) {
		t.Fatalf("a Read during Close: %v, want ErrClosed", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("a Read after Close: %v, want ErrClosed", err)
	}
	if got, err := io.ReadAll(far); err != nil || string(got) != "last words" {
		t.Fatalf("the other side read %q, %v", got, err)
	}
	var err error
	for err == nil {
		_, err = far.Write(make([]byte, 1<<10))
	}
	if !errors.Is(err, link.ErrClosed) {
		t.Fatalf("the other side's Write: %v, want ErrClosed", err)
	}
	exchangeLively(t, l, "still here")
}

func (c contract) streamDeadlines(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	near, far := stream(t, l.edge, l.hub)
	if err := near.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v, want ErrDeadlineExceeded", err)
	}
	if err := near.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go echo(far)
	if _, err := near.Write([]byte("again")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(near, got); err != nil || string(got) != "again" {
		t.Fatalf("read %q, %v", got, err)
	}
	// A Write that waits for room is woken too.
	full, _ := stream(t, l.edge, l.hub)
	wrote := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			_, err = full.Write(make([]byte, 64<<10))
		}
		wrote <- err
	}()
	if err := full.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %v, want ErrDeadlineExceeded", err)
	}
}

func (c contract) streamRefused(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	for name, from := range map[string]link.Conn{"edge": l.edge, "hub": l.hub} {
		for range 3 * link.MaxStreams {
			if _, err := from.OpenStream(patient(t)); !errors.Is(err, link.ErrNoStream) {
				t.Fatalf("%s: open: %v, want ErrNoStream", name, err)
			}
		}
	}
	exchangeLively(t, l, "still here")
}

func (c contract) streamBegun(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	refused, err := l.hub.BeginStream(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, link.ErrNoStream) {
		t.Fatalf("a read where nobody accepts: %v, want ErrNoStream", err)
	}
	_ = refused.Close()
	accepting(t, l.edge, echo)
	open(t, l.hub)
	waits, err := l.hub.BeginStream(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := waits.Write([]byte("at once")); err != nil {
		t.Fatal(err)
	}
	if err := waits.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := waits.Taken(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(waits); err != nil || string(got) != "at once" {
		t.Fatalf("%q came back, %v", got, err)
	}
}

func (c contract) streamsBounded(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	accepting(t, l.edge, echo)
	var all []link.Stream
	for range link.MaxStreams {
		all = append(all, open(t, l.hub))
	}
	if _, err := l.hub.OpenStream(patient(t)); !errors.Is(err, link.ErrNoStream) {
		t.Fatalf("one stream more: %v, want ErrNoStream", err)
	}
	for range 6 {
		if err := all[0].Close(); err != nil {
			t.Fatal(err)
		}
		all = append(all[1:], open(t, l.hub)) // once the other side has closed, too
	}
	exchangeLively(t, l, "still here")
}

func (c contract) streamGivenUp(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	stream(t, l.hub, l.edge) // the edge accepts, and takes but this one
	for range 2 * link.MaxStreams {
		ctx, cancel := context.WithCancel(patient(t))
		done := make(chan error, 1)
		go func() {
			_, err := l.hub.OpenStream(ctx)
			done <- err
		}()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, link.ErrNoStream) {
			t.Fatalf("open: %v, want the context's error", err)
		}
	}
	// Those that were given up are in nobody's way.
	accepting(t, l.edge, echo)
	s := open(t, l.hub)
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := make([]byte, 1); true {
		if _, err := io.ReadFull(s, got); err != nil || got[0] != 'x' {
			t.Fatalf("read %q, %v", got, err)
		}
	}
}

func (c contract) streamsOfClosed(t *testing.T) {
	for _, edgeCloses := range []bool{true, false} {
		l := c.lively(t, quiet(), quiet())
		near, far := stream(t, l.hub, l.edge)
		ends := waitingOn(near, far)
		full := make(chan error, 1)
		go func() {
			var err error
			for err == nil {
				_, err = far.Write(make([]byte, 64<<10))
			}
			full <- err
		}()
		closer := l.hub
		if edgeCloses {
			closer = l.edge
		}
		_ = closer.Close()
		for range 2 {
			if err := <-ends; !errors.Is(err, link.ErrClosed) {
				t.Fatalf("a Read of a stream: %v, want ErrClosed", err)
			}
		}
		if err := <-full; !errors.Is(err, link.ErrClosed) {
			t.Fatalf("a Write of a stream: %v, want ErrClosed", err)
		}
		for name, conn := range map[string]link.Conn{"edge": l.edge, "hub": l.hub} {
			if _, err := conn.OpenStream(patient(t)); !errors.Is(err, link.ErrClosed) {
				t.Fatalf("%s: open: %v, want ErrClosed", name, err)
			}
			if _, err := conn.AcceptStream(patient(t)); !errors.Is(err, link.ErrClosed) {
				t.Fatalf("%s: accept: %v, want ErrClosed", name, err)
			}
		}
	}
}

// waitingOn reads from both streams, to their ends.
func waitingOn(near, far link.Stream) <-chan error {
	ended := make(chan error, 2)
	for _, s := range []link.Stream{near, far} {
		go func() {
			_, err := io.Copy(io.Discard, s)
			if err == nil {
				err = io.EOF
			}
			ended <- err
		}()
	}
	return ended
}

// streamsOfSilent gives the edge more and more time to open a stream before its
// silence is noticed, until that suffices.
func (c contract) streamsOfSilent(t *testing.T) {
	for strict := quiet(); ; strict.EdgeSilent *= 2 {
		if strict.EdgeSilent > time.Minute {
			strict.EdgeSilent = 200 * time.Millisecond
		}
		l := c.lively(t, strict, quiet())
		accepted := make(chan link.Stream, 1)
		accepting(t, l.edge, func(s link.Stream) { accepted <- s })
		near, err := tryOpen(t, l.hub)
		if errors.Is(err, link.ErrSilent) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		edges := make(chan error, 1)
		go func() {
			_, err := (<-accepted).Read(make([]byte, 1))
			edges <- err
		}()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, link.ErrSilent) {
			t.Fatalf("the hub's stream: %v, want ErrSilent", err)
		}
		if err := <-edges; !errors.Is(err, link.ErrClosed) {
			t.Fatalf("the edge's stream: %v, want ErrClosed", err)
		}
		if err := <-l.hubReceive; !errors.Is(err, link.ErrSilent) {
			t.Fatalf("the hub: %v, want ErrSilent", err)
		}
		return
	}
}

// largeCopy copies 64 MiB down. The reader stops in the middle until messages
// have gone by, with every buffer on the way full of the copy.
func (c contract) largeCopy(t *testing.T) {
	l := c.lively(t, quiet(), quiet())
	from, to := stream(t, l.hub, l.edge)
	const size, pieces = 64 << 20, 4
	piece := random(4, 1<<20)
	want := sha256.New()
	wrote := make(chan error, 1)
	go func() {
		for range size / len(piece) {
			want.Write(piece)
			if _, err := from.Write(piece); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- from.Close()
	}()
	got := sha256.New()
	for n := range pieces {
		if _, err := io.CopyN(got, to, size/pieces); err != nil {
			t.Fatalf("piece %d: %v", n, err)
		}
		for m := range 10 {
			exchangeLively(t, l, fmt.Sprintf("piece %d, message %d", n, m))
		}
	}
	if n, err := io.Copy(io.Discard, to); n != 0 || err != nil {
		t.Fatalf("%d bytes too many, %v", n, err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if !equal(got, want) {
		t.Fatal("the copy is another")
	}
	for name, conn := range map[string]link.Conn{"edge": l.edge, "hub": l.hub} {
		if moved := conn.Traffic(); max(moved.Sent, moved.Received) < size || min(moved.Sent, moved.Received) == 0 {
			t.Errorf("%s: traffic is %+v", name, moved)
		}
	}
}

func equal(a, b hash.Hash) bool { return bytes.Equal(a.Sum(nil), b.Sum(nil)) }
