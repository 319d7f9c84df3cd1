package link_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// times is how many lines hold that text.
func (l *logged) times(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// guarded is a hub at whose TCP port there may be few strangers, none of whom is
// kept by the kernel.
func guarded(t *testing.T, limit int) (*linktest.Hub, *link.Strangers, *logged) {
	t.Helper()
	log := new(logged)
	strangers := link.Hasty(link.NewStrangers(limit, slog.New(slog.NewTextHandler(log, nil))))
	hub := linktest.StartGuardedHub(t, linktest.NewCA(t), quiet(), strangers)
	return hub, strangers, log
}

// figures are the counters, by their labels.
func figures(s *link.Strangers) string {
	var b bytes.Buffer
	s.WriteMetrics(&b)
	return b.String()
}

func has(t *testing.T, s *link.Strangers, line string) bool {
	t.Helper()
	return strings.Contains("\n"+figures(s), "\n"+line+"\n")
}

// dialMany opens TCP connections and begins each with that.
func dialMany(t *testing.T, addr string, n int, begin []byte) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write(begin); err != nil && !errors.Is(err, net.ErrClosed) {
			continue // it was closed already
		}
		conns = append(conns, c)
	}
	return conns
}

func TestSilentConnectionsAreTheKernels(t *testing.T) {
	t.Parallel()
	hub, strangers, _ := guarded(t, 8)
	dialMany(t, hub.Addr, 200, nil)
	_, far := connect(t, hub.Dialer(t, "pi-1"), hub)
	if far.Peer() != "pi-1" {
		t.Fatalf("accepted %s", far.Peer())
	}
	if !has(t, strangers, `holdfast_hub_connections_total{transport="websocket",result="accepted"} 1`) {
		t.Fatalf("counted:\n%s", figures(strangers))
	}
}

// TestStalledHandshakesMakeRoom fills the hub with handshakes that go no further:
// each node comes through all the same.
func TestStalledHandshakesMakeRoom(t *testing.T) {
	t.Parallel()
	const limit, many = 8, 100
	hub, strangers, log := guarded(t, limit)
	// The beginning of a TLS record whose rest never comes.
	// Each is closed when the next one comes, in the end; the log has a line a minute.
	dialMany(t, hub.Addr, many, []byte{22, 3, 1, 2, 0, 1})
	for n := range 3 {
		name := fmt.Sprintf("pi-%d", n)
		_, far := connect(t, hub.Dialer(t, name), hub)
		if far.Peer() != name {
			t.Fatalf("accepted %s", far.Peer())
		}
	}
	if n := link.Count(strangers); n > limit {
		t.Errorf("%d strangers at one time", n)
	}
	if has(t, strangers, `holdfast_hub_connections_total{transport="websocket",result="crowded"} 0`) {
		t.Errorf("counted:\n%s", figures(strangers))
	}
	if n := log.times("closing the slowest"); n < 1 || n > 3 {
		t.Errorf("logged %d times", n)
	}
}

func TestRefusalsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	hub, strangers, log := guarded(t, 0)
	config := &tls.Config{RootCAs: hub.CA.Pool(), MinVersion: tls.VersionTLS13}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	const many = 20
	for range many {
		request, err := http.NewRequestWithContext(patient(t), http.MethodGet, "https://"+hub.Addr+link.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil || response.StatusCode != http.StatusUnauthorized {
			t.Fatalf("%s, %v", response.Status, err)
		}
	}
	if !has(t, strangers, fmt.Sprintf(`holdfast_hub_connections_total{transport="websocket",result="certificate"} %d`, many)) {
		t.Errorf("counted:\n%s", figures(strangers))
	}
	if n := log.times("without a node's certificate"); n < 1 || n > 3 {
		t.Errorf("logged %d times", n)
	}
	until(t, func() bool {
		return has(t, strangers, fmt.Sprintf(`holdfast_hub_connections_total{transport="websocket",result="left"} %d`, many))
	})
}

// TestQUICStrangersAreBounded lets clients shake hands and then say nothing.
func TestQUICStrangersAreBounded(t *testing.T) {
	t.Parallel()
	const limit = 4
	log := new(logged)
	strangers := link.NewStrangers(limit, slog.New(slog.NewTextHandler(log, nil)))
	ca := linktest.NewCA(t)
	hub := linktest.StartGuardedQUICHub(t, ca, quiet(), strangers)
	pair := linktest.NodeCert(t, ca, "pi-1")
	mute := func() (*quic.Conn, error) {
		return quic.DialAddr(patient(t), hub.Addr, &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: ca.Pool(), ServerName: "127.0.0.1",
			Certificates: []tls.Certificate{pair}, NextProtos: []string{link.QUICProtocol},
		}, nil)
	}
	var open []*quic.Conn
	for len(open) < limit {
		c, err := mute()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
		open = append(open, c)
	}
	for range 10 {
		var refused *quic.TransportError
		if _, err := mute(); !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
			t.Fatalf("one more: %v; want to be refused", err)
		}
	}
	if _, err := link.DialQUIC(hub.DialOptions(t, "pi-1")).Dial(patient(t)); err == nil || errors.Is(err, link.ErrRefused) {
		t.Fatalf("a node in the crowd: %v; want an error that is not final", err)
	}
	if n := log.times("new ones are refused"); n < 1 || n > 3 {
		t.Errorf("logged %d times", n)
	}
	for _, c := range open {
		_ = c.CloseWithError(0, "")
	}
	until(t, func() bool { return has(t, strangers, `holdfast_hub_strangers{transport="quic"} 0`) })
	connect(t, link.DialQUIC(hub.DialOptions(t, "pi-1")), hub.Hub)
}

// TestSlowReaderEndsItsOwnConnectionOnly fills what lies between the hub and an
// edge that reads nothing.
func TestSlowReaderEndsItsOwnConnectionOnly(t *testing.T) {
	t.Parallel()
	impatient := quiet()
	impatient.Write = 200 * time.Millisecond
	for name, start := range map[string]func() (*linktest.Hub, func(link.DialOptions) link.Dialer){
		"websocket": func() (*linktest.Hub, func(link.DialOptions) link.Dialer) {
			return linktest.StartHub(t, linktest.NewCA(t), impatient), link.DialWebsocket
		},
		"quic": func() (*linktest.Hub, func(link.DialOptions) link.Dialer) {
			return linktest.StartQUICHub(t, linktest.NewCA(t), impatient).Hub, link.DialQUIC
		},
	} {
		hub, dial := start()
		patiently := func(node string) link.DialOptions {
			o := hub.DialOptions(t, node)
			o.Timing = quiet()
			return o
		}
		_, slow := connect(t, dial(patiently("slow")), hub)
		edge, far := connect(t, dial(patiently("quick")), hub)
		var err error
		for err == nil {
			err = slow.Send(patient(t), make([]byte, wire.SoftMessage))
		}
		if !errors.Is(err, link.ErrSilent) {
			t.Fatalf("%s: send: %v, want ErrSilent", name, err)
		}
		if err := edge.Send(patient(t), []byte("here")); err != nil {
			t.Fatal(err)
		}
		if m, err := far.Recv(patient(t)); err != nil || string(m) != "here" {
			t.Fatalf("%s: received %q, %v", name, m, err)
		}
	}
}

func TestListenerThatClosesWakesWhoWaitsForRoom(t *testing.T) {
	t.Parallel()
	l, err := link.Listen(context.Background(), "127.0.0.1:0", link.NewStrangers(1, nil))
	if err != nil {
		t.Fatal(err)
	}
	dialMany(t, l.Addr().String(), 1, []byte("x"))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	waiting := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		waiting <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("accept: %v, want that the listener is closed", err)
	}
}

// TestHubThatOnlyOpensStreams refuses those of edges, over both transports.
func TestHubThatOnlyOpensStreams(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	acceptor, handler := link.AcceptWebsocket(link.AcceptOptions{Timing: quiet()})
	t.Cleanup(func() { _ = acceptor.Close() })
	for name, c := range map[string]struct {
		hub  *linktest.Hub
		dial func(link.DialOptions) link.Dialer
	}{
		"websocket": {&linktest.Hub{Acceptor: acceptor, CA: ca, Addr: linktest.ServeHTTP(t, ca, handler), Timing: quiet()}, link.DialWebsocket},
		"quic":      {linktest.StartGuardedQUICHub(t, ca, quiet(), nil).Hub, link.DialQUIC},
	} {
		edge, far := connect(t, c.dial(c.hub.DialOptions(t, "pi-1")), c.hub)
		listen(t, edge)
		listen(t, far)
		if _, err := edge.OpenStream(patient(t)); !errors.Is(err, link.ErrNoStream) {
			t.Fatalf("%s: the edge opens a stream: %v, want ErrNoStream", name, err)
		}
		if _, err := far.AcceptStream(patient(t)); !errors.Is(err, link.ErrNoStream) {
			t.Fatalf("%s: the hub accepts streams: %v, want ErrNoStream", name, err)
		}
		go func() {
			if s, err := edge.AcceptStream(patient(t)); err == nil {
				_, _ = io.Copy(s, s)
			}
		}()
		s, err := far.OpenStream(patient(t))
		for errors.Is(err, link.ErrNoStream) { // until the edge accepts
			s, err = far.OpenStream(patient(t))
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("down")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(s, got); err != nil || string(got) != "down" {
			t.Fatalf("%s: read %q, %v", name, got, err)
		}
		_ = s.Close()
	}
}
