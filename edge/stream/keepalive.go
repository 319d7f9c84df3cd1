package stream

import (
	"io"
	"sync"

	"github.com/holdfast-edge/holdfast/common/spdy"
)

// pinged is a SPDY client whose pings are answered here. The runtime must see none: it
// closes as soon as a command has ended, and when a ping reaches what is closed, the kernel
// throws away all that the command said and the client has not read yet. A client takes
// that for the end, and for success.
type pinged struct {
	client io.Writer

	turn   sync.Mutex // held by who writes to the client
	frames spdy.Frames

	mu      sync.Mutex
	answers []byte // that wait until a frame has ended
}

// maxAnswers bounds a client that pings and does not read: it gets no further answers.
const maxAnswers = 16 * spdy.PingSize

// Write sends to the client what the runtime says.
func (p *pinged) Write(b []byte) (n int, err error) {
	p.turn.Lock()
	if p.waits() {
		if !p.frames.Between() {
			n, err = p.client.Write(b[:p.frames.Next(b)])
		}
		if err == nil {
			err = p.answer()
		}
	}
	if err == nil && n < len(b) {
		p.frames.Follow(b[n:])
		var more int
		more, err = p.client.Write(b[n:])
		n += more
	}
	p.turn.Unlock()
	p.settle()
	return n, err
}

// ping takes a ping, whose answer is the same bytes.
func (p *pinged) ping(frame []byte) {
	p.mu.Lock()
	if len(p.answers) < maxAnswers {
		p.answers = append(p.answers, frame...)
	}
	p.mu.Unlock()
	p.settle()
}

func (p *pinged) waits() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.answers) > 0
}

// answer sends what waits, if a frame has ended. The turn is the caller's.
func (p *pinged) answer() error {
	if !p.frames.Between() {
		return nil
	}
	p.mu.Lock()
	answers := p.answers
	p.answers = nil
	p.mu.Unlock()
	_, err := p.client.Write(answers)
	return err
}

// settle answers at once where nobody writes; who writes does it when he has done.
func (p *pinged) settle() {
	for p.waits() && p.turn.TryLock() {
		between := p.frames.Between()
		_ = p.answer() // the next Write fails too
		p.turn.Unlock()
		if !between {
			return // the next Write does it
		}
	}
}

// withoutPings is what goes up from a client whose pings are answered.
type withoutPings struct {
	runtime io.Writer
	pings   spdy.Pings
	ping    func([]byte)
}

func (w *withoutPings) Write(b []byte) (int, error) {
	err := w.pings.Take(b, func(b []byte) error {
		_, err := w.runtime.Write(b)
		return err
	}, w.ping)
	if err != nil {
		return 0, err
	}
	return len(b), nil
}
