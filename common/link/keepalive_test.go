package link_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// pipe is an in-memory line, on which a day of made-up time costs nothing. Each
// write stands for a packet.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	up     traffic
	down   traffic
}

type traffic struct{ writes, bytes atomic.Int64 }

func (f *traffic) reset() { f.writes.Store(0); f.bytes.Store(0) }

type countedConn struct {
	net.Conn
	*traffic
}

func (c countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	c.bytes.Add(int64(len(b)))
	return c.Conn.Write(b)
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error   { close(p.closed); return nil }
func (p *pipe) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 10350} }

func (p *pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	edge, hub := net.Pipe()
	select {
	case p.conns <- countedConn{hub, &p.down}:
		return countedConn{edge, &p.up}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// overPipe runs test with a connection whose edge and hub have those timings.
func overPipe(t *testing.T, hubTiming, edgeTiming link.Timing, test func(t *testing.T, p *pipe, edge, hub link.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := pki.NewCA("hub")
		if err != nil {
			t.Fatal(err)
		}
		p := &pipe{conns: make(chan net.Conn), closed: make(chan struct{})}
		acceptor, handler := link.AcceptWebsocket(link.AcceptOptions{Timing: hubTiming})
		server := &http.Server{Handler: handler, TLSConfig: linktest.ServerTLS(t, ca), ReadHeaderTimeout: time.Hour}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.ServeTLS(p, "", "")
		}()
		pair := linktest.NodeCert(t, ca, "pi-1")
		hubs := make(chan link.Conn, 1)
		go func() {
			c, err := acceptor.Accept(t.Context())
			if err != nil {
				t.Errorf("accept: %v", err)
			}
			hubs <- c
		}()
		edge, err := link.DialWebsocketOver(link.DialOptions{
			Hubs: []string{"127.0.0.1:10350"}, RootCAs: ca.Pool(), Timing: edgeTiming,
			Certificate: certificate(pair),
		}, p.dial).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		hub := <-hubs
		p.up.reset()
		p.down.reset()
		test(t, p, edge, hub)
		_ = edge.Close()
		_ = hub.Close()
		_ = server.Close()
		<-done
	})
}

// never is for what one side must not do in a test.
const never = 1000 * time.Hour

// listen receives until the connection ends and says why it did.
func listen(t *testing.T, c link.Conn) <-chan error {
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Recv(t.Context()); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

func TestIdleConnectionLastsAndCostsLittle(t *testing.T) {
	overPipe(t, link.DefaultTiming(), link.DefaultTiming(), func(t *testing.T, p *pipe, edge, hub link.Conn) {
		edgeEnded, hubEnded := listen(t, edge), listen(t, hub)
		select {
		case err := <-edgeEnded:
			t.Fatalf("the edge's end: %v", err)
		case err := <-hubEnded:
			t.Fatalf("the hub's end: %v", err)
		case <-time.After(24 * time.Hour):
		}
		// On a line each write is a packet of 52 bytes of headers, and is answered
		// by one.
		packets := p.up.writes.Load() + p.down.writes.Load()
		total := p.up.bytes.Load() + p.down.bytes.Load() + packets*2*52
		t.Logf("a day: %d packets, %d bytes", packets, total)
		if total > 700_000 {
			t.Errorf("an idle day costs %d bytes", total)
		}
		if age := time.Since(hub.LastHeard()); age > link.DefaultKeepAlive {
			t.Errorf("the hub last heard the edge %s ago", age)
		}
	})
}

func TestHubNoticesSilentEdgeWithinFortySeconds(t *testing.T) {
	mute := link.Timing{KeepAlive: never}.Complete()
	overPipe(t, link.DefaultTiming(), mute, func(t *testing.T, _ *pipe, edge, hub link.Conn) {
		start := time.Now()
		listen(t, edge)
		if err := <-listen(t, hub); !errors.Is(err, link.ErrSilent) {
			t.Fatalf("the hub's end: %v, want ErrSilent", err)
		}
		if after := time.Since(start); after != 40*time.Second {
			t.Errorf("noticed after %s", after)
		}
	})
}

func TestEdgeNoticesSilentHubAfterTwentyFiveIntervals(t *testing.T) {
	mute := link.Timing{HubPing: never}.Complete()
	overPipe(t, mute, link.DefaultTiming(), func(t *testing.T, _ *pipe, edge, hub link.Conn) {
		start := time.Now()
		listen(t, hub)
		if err := <-listen(t, edge); !errors.Is(err, link.ErrSilent) {
			t.Fatalf("the edge's end: %v, want ErrSilent", err)
		}
		if after := time.Since(start); after != 25*link.DefaultKeepAlive {
			t.Errorf("noticed after %s", after)
		}
	})
}

func TestBusyEdgeSendsNoKeepalives(t *testing.T) {
	overPipe(t, link.Timing{HubPing: never}.Complete(), link.DefaultTiming(), func(t *testing.T, p *pipe, edge, hub link.Conn) {
		listen(t, hub)
		const messages = 30
		for range messages {
			<-time.After(20 * time.Second) // of made-up time
			if err := edge.Send(t.Context(), []byte("status")); err != nil {
				t.Fatal(err)
			}
		}
		if writes := p.up.writes.Load(); writes != messages {
			t.Errorf("%d messages took %d packets", messages, writes)
		}
	})
}

func TestDataCountsAsHearing(t *testing.T) {
	mute := link.Timing{KeepAlive: never}.Complete()
	overPipe(t, link.DefaultTiming(), mute, func(t *testing.T, _ *pipe, edge, hub link.Conn) {
		listen(t, edge)
		ended := listen(t, hub)
		for range 20 {
			<-time.After(39 * time.Second) // of made-up time, just within EdgeSilent
			if err := edge.Send(t.Context(), []byte("status")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("the hub's end: %v", err)
		default:
		}
		if age := time.Since(hub.LastHeard()); age != 0 {
			t.Errorf("the hub last heard the edge %s ago", age)
		}
	})
}

func TestSendToAStuckPeerGivesUp(t *testing.T) {
	overPipe(t, link.DefaultTiming(), link.DefaultTiming(), func(t *testing.T, _ *pipe, edge, hub link.Conn) {
		start := time.Now()
		// The hub reads nothing, and a pipe holds nothing.
		err := edge.Send(t.Context(), []byte("anybody?"))
		if !errors.Is(err, link.ErrSilent) {
			t.Fatalf("send: %v, want ErrSilent", err)
		}
		if after := time.Since(start); after < 30*time.Second || after > 31*time.Second {
			t.Errorf("gave up after %s", after)
		}
		if err := edge.Send(t.Context(), []byte("anybody?")); !errors.Is(err, link.ErrSilent) {
			t.Errorf("a send after that: %v, want ErrSilent", err)
		}
	})
}
