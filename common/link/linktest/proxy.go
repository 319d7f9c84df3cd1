package linktest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Direction is one way through a Proxy.
type Direction int

// The two ways: from who dialled towards the target, and back.
const (
	Up Direction = iota
	Down
)

// Proxy passes TCP connections on to a target, as well or badly as it is told.
type Proxy struct {
	target   string
	listener net.Listener
	closed   chan struct{}
	running  sync.WaitGroup
	gates    [2]*gate
	bytes    [2]atomic.Int64
	accepted atomic.Int64
	delay    atomic.Int64 // nanoseconds

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{}
}

// NewProxy opens a proxy on loopback; the test's end closes it.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		target: target, listener: l, closed: make(chan struct{}),
		gates: [2]*gate{newGate(), newGate()}, conns: make(map[*net.TCPConn]struct{}),
	}
	p.running.Add(1)
	go p.accept()
	t.Cleanup(p.close)
	return p
}

// Addr is where to dial.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut stops every byte, as a line that went dead does: connections stay open and
// hear nothing; new ones are made and hear nothing. What was sent waits, as it
// would in TCP's retransmissions.
func (p *Proxy) Cut() { p.Hold(Up); p.Hold(Down) }

// Mend lets the bytes go on.
func (p *Proxy) Mend() { p.Release(Up); p.Release(Down) }

// Hold stops one direction.
func (p *Proxy) Hold(d Direction) { p.gates[d].shut() }

// Release lets one direction go on.
func (p *Proxy) Release(d Direction) { p.gates[d].open() }

// Delay lets every byte arrive that much later, in order.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Break resets every connection that is open.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// Bytes is how many bytes passed that way since the start or the last Forget.
func (p *Proxy) Bytes(d Direction) int64 { return p.bytes[d].Load() }

// Forget sets the counts of bytes to zero.
func (p *Proxy) Forget() { p.bytes[Up].Store(0); p.bytes[Down].Store(0) }

// Accepted is how many connections were ever made to the proxy.
func (p *Proxy) Accepted() int64 { return p.accepted.Load() }

func (p *Proxy) close() {
	close(p.closed)
	_ = p.listener.Close()
	p.Break()
	p.running.Wait()
}

func (p *Proxy) accept() {
	defer p.running.Done()
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		p.running.Add(1)
		go p.serve(c.(*net.TCPConn))
	}
}

// keep notes an open connection; false when the proxy is closing.
func (p *Proxy) keep(c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		_ = c.Close()
		return false
	default:
		p.conns[c] = struct{}{}
		return true
	}
}

func (p *Proxy) drop(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *Proxy) serve(edge *net.TCPConn) {
	defer p.running.Done()
	if !p.keep(edge) {
		return
	}
	defer p.drop(edge)
	c, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	hub := c.(*net.TCPConn)
	if !p.keep(hub) {
		return
	}
	defer p.drop(hub)
	var both sync.WaitGroup
	both.Go(func() { p.pass(hub, edge, Up) })
	both.Go(func() { p.pass(edge, hub, Down) })
	both.Wait()
}

// parcel is some bytes, and when they may arrive; none at all: the end.
type parcel struct {
	bytes []byte
	due   time.Time
}

// pass carries bytes until one side ends. It reads on while earlier bytes are
// delayed, so that a delay does not narrow the line.
func (p *Proxy) pass(to, from *net.TCPConn, d Direction) {
	parcels := make(chan parcel, 256)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(parcels)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case parcels <- parcel{b[:n], time.Now().Add(time.Duration(p.delay.Load()))}:
				case <-stop:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	p.deliver(to, parcels, d)
	close(stop)
	// The end of one direction is the end of both: whoever still reads from the
	// other one is told by the closed socket.
	_ = to.Close()
	_ = from.Close()
	reader.Wait()
}

func (p *Proxy) deliver(to *net.TCPConn, parcels <-chan parcel, d Direction) {
	for next := range parcels {
		timer := time.NewTimer(time.Until(next.due))
		select {
		case <-timer.C:
		case <-p.closed:
			timer.Stop()
			return
		}
		if !p.gates[d].pass(p.closed) {
			return
		}
		if _, err := to.Write(next.bytes); err != nil {
			return
		}
		p.bytes[d].Add(int64(len(next.bytes)))
	}
	// The end travels the same way as the bytes: a cut line does not tell that
	// the other side hung up.
	p.gates[d].pass(p.closed)
}

// gate is open or shut.
type gate struct {
	mu   sync.Mutex
	free chan struct{} // closed while the gate is open
	isUp bool
}

func newGate() *gate {
	g := &gate{free: make(chan struct{}), isUp: true}
	close(g.free)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isUp {
		g.isUp, g.free = false, make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isUp {
		g.isUp = true
		close(g.free)
	}
}

// pass waits until the gate is open; false when done ends first.
func (g *gate) pass(done <-chan struct{}) bool {
	g.mu.Lock()
	free := g.free
	g.mu.Unlock()
	select {
	case <-free:
		return true
	case <-done:
		return false
	}
}
