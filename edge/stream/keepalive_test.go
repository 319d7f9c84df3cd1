package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/spdy"
)

func pingFrame(id uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 3, 0, 6, 0, 0, 0, 4}, id)
}

// TestPingsAreAnsweredBetweenFrames: while frames go by in pieces, and when none does.
func TestPingsAreAnsweredBetweenFrames(t *testing.T) {
	const frames, pings = 300, 300
	var sent bytes.Buffer
	p := &pinged{client: &sent}
	w := &withoutPings{runtime: io.Discard, ping: p.ping}
	frame := append([]byte{0, 0, 0, 3, 0, 0, 0, 50}, bytes.Repeat([]byte{0xaa}, 50)...)
	var both sync.WaitGroup
	both.Go(func() {
		all := bytes.Repeat(frame, frames)
		for len(all) > 0 {
			n := min(7, len(all))
			if _, err := p.Write(all[:n]); err != nil {
				t.Error(err)
			}
			all = all[n:]
		}
	})
	both.Go(func() {
		for i := range uint32(pings) {
			if _, err := w.Write(pingFrame(2*i + 1)); err != nil {
				t.Error(err)
			}
			for p.waits() { // it says no more than is answered
				time.Sleep(time.Microsecond)
			}
		}
	})
	both.Wait()
	rest, next, whole := sent.Bytes(), uint32(1), 0
	for len(rest) > 0 {
		switch {
		case bytes.HasPrefix(rest, pingFrame(next)):
			rest, next = rest[spdy.PingSize:], next+2
		case bytes.HasPrefix(rest, frame):
			rest = rest[len(frame):]
			whole++
		default:
			t.Fatalf("after %d frames and %d answers: %x", whole, next/2, rest[:min(100, len(rest))])
		}
	}
	if whole != frames || next != 2*pings+1 {
		t.Errorf("%d frames and %d answers arrived, want %d and %d", whole, next/2, frames, pings)
	}
}

// TestWhoPingsAndReadsNothingHoldsLittle: and does not stop what it sends.
func TestWhoPingsAndReadsNothingHoldsLittle(t *testing.T) {
	client, other := net.Pipe() // of which nothing is read
	p := &pinged{client: client}
	writing := make(chan error, 1)
	go func() {
		_, err := p.Write(make([]byte, spdy.HeaderSize))
		writing <- err
	}()
	for p.turn.TryLock() { // until the write has its turn
		p.turn.Unlock()
		time.Sleep(time.Millisecond)
	}
	for i := range uint32(1000) {
		p.ping(pingFrame(2*i + 1))
	}
	if p.mu.Lock(); len(p.answers) > maxAnswers {
		t.Errorf("%d bytes of answers wait", len(p.answers))
	}
	p.mu.Unlock()
	other.Close()
	if err := <-writing; !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}
