package uplink

import (
	"context"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
)

// TestAStreamThatDoesNotEndKeepsNoNodeOffTheLine: who serves it may wait for a disk that
// does not answer, and nothing ends that.
func TestAStreamThatDoesNotEndKeepsNoNodeOffTheLine(t *testing.T) {
	r := newRig(t)
	begun, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	r.serve = func(_ context.Context, s link.Stream) {
		close(begun)
		<-release
		s.Close()
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	r.eventually(t, "a session", func() bool { return r.uplink.State().Connected })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	received := make(chan struct{})
	go func() { // streams move while somebody receives
		defer close(received)
		for {
			if _, err := p.conn.Recv(ctx); err != nil {
				return
			}
		}
	}()
	r.eventually(t, "a stream is taken", func() bool {
		_, err := p.conn.OpenStream(ctx)
		return err == nil
	})
	<-begun
	p.conn.Close()
	<-received
	r.eventually(t, "the end is said", func() bool {
		s := r.uplink.State()
		return !s.Connected && s.LastError != ""
	})
	again := r.accept(t)
	again.hello()
	again.send(welcome(true))
	r.eventually(t, "a session again", func() bool { return r.uplink.State().Connected })
}
