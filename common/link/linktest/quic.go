package linktest

import (
	"net"
	"sync"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// QUICHub is a QUIC hub's port on loopback.
type QUICHub struct {
	*Hub
	socket net.PacketConn
}

// StartQUICHub opens a QUIC hub's port; the test's end closes it, with the
// connections that are still open.
func StartQUICHub(t testing.TB, ca *pki.CA, timing link.Timing) *QUICHub {
	t.Helper()
	return StartQUICHubAt(t, ca, timing, "127.0.0.1:0")
}

// StartQUICHubAt is StartQUICHub at that address. Every hub of one CA has the
// same key for resets, as one that was restarted has.
func StartQUICHubAt(t testing.TB, ca *pki.CA, timing link.Timing, address string) *QUICHub {
	t.Helper()
	return startQUIC(t, ca, address, link.AcceptOptions{Timing: timing, Streams: true})
}

// StartGuardedQUICHub is StartQUICHub with a bound on strangers.
func StartGuardedQUICHub(t testing.TB, ca *pki.CA, timing link.Timing, strangers *link.Strangers) *QUICHub {
	t.Helper()
	return startQUIC(t, ca, "127.0.0.1:0", link.AcceptOptions{Timing: timing, Strangers: strangers})
}

func startQUIC(t testing.TB, ca *pki.CA, address string, o link.AcceptOptions) *QUICHub {
	t.Helper()
	socket, err := link.ListenUDP(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	acceptor, err := link.AcceptQUIC(socket, link.QUICOptions{AcceptOptions: o, TLS: ServerTLS(t, ca), ResetKey: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	h := &QUICHub{Hub: &Hub{Acceptor: acceptor, CA: ca, Addr: socket.LocalAddr().String(), Timing: o.Timing}, socket: socket}
	t.Cleanup(func() {
		_ = acceptor.Close()
		h.Kill()
	})
	return h
}

// Kill ends the hub as kill -9 does: its port is free at once, and nobody is
// told.
func (h *QUICHub) Kill() { _ = h.socket.Close() }

// UDPProxy forwards the packets of one client at a time to a target.
type UDPProxy struct {
	front  *net.UDPConn
	target *net.UDPAddr

	mu     sync.Mutex
	client *net.UDPAddr
	back   *net.UDPConn // towards the target
	cut    bool
	traffic
	readers sync.WaitGroup
}

type traffic struct{ packets, bytes int64 }

// NewUDPProxy starts a proxy on loopback; the test's end stops it.
func NewUDPProxy(t testing.TB, target string) *UDPProxy {
	t.Helper()
	p, err := UDPProxyAt(t, "127.0.0.1:0", target)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// UDPProxyAt is NewUDPProxy at that address, which may be taken.
func UDPProxyAt(t testing.TB, address, target string) (*UDPProxy, error) {
	t.Helper()
	at, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	to, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		return nil, err
	}
	front, err := net.ListenUDP("udp4", at)
	if err != nil {
		return nil, err
	}
	p := &UDPProxy{front: front, target: to}
	p.Rebind(t)
	p.readers.Go(p.up)
	t.Cleanup(func() {
		_ = front.Close()
		p.mu.Lock()
		_ = p.back.Close()
		p.mu.Unlock()
		p.readers.Wait()
	})
	return p, nil
}

// Addr is where clients send to.
func (p *UDPProxy) Addr() string { return p.front.LocalAddr().String() }

// Cut drops every packet from now on; Mend ends that.
func (p *UDPProxy) Cut() { p.setCut(true) }

// Mend forwards again.
func (p *UDPProxy) Mend() { p.setCut(false) }

func (p *UDPProxy) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
}

// Count is how many packets were forwarded both ways, and their bytes without
// headers.
func (p *UDPProxy) Count() (packets, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.packets, p.bytes
}

// Rebind gives the client another address in the target's eyes, as a NAT gateway
// does that has forgotten it. It returns the new one.
func (p *UDPProxy) Rebind(t testing.TB) string {
	t.Helper()
	back, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	old := p.back
	p.back = back
	p.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	p.readers.Go(func() { p.down(back) })
	return back.LocalAddr().String()
}

func (p *UDPProxy) up() {
	b := make([]byte, 64<<10)
	for {
		n, from, err := p.front.ReadFromUDP(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.client = from
		if !p.cut {
			p.count(n)
			_, _ = p.back.WriteToUDP(b[:n], p.target) // a packet may be lost
		}
		p.mu.Unlock()
	}
}

func (p *UDPProxy) down(back *net.UDPConn) {
	b := make([]byte, 64<<10)
	for {
		n, _, err := back.ReadFromUDP(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		if !p.cut {
			p.count(n)
			_, _ = p.front.WriteToUDP(b[:n], p.client)
		}
		p.mu.Unlock()
	}
}

// count is called with mu held.
func (p *UDPProxy) count(n int) {
	p.packets++
	p.bytes += int64(n)
}
