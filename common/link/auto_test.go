package link_test

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// startBoth is a hub that takes websocket and QUIC at one port.
func startBoth(t testing.TB, ca *pki.CA, timing link.Timing) *linktest.Hub {
	t.Helper()
	for range 20 {
		hub := linktest.StartHub(t, ca, timing)
		socket, err := net.ListenPacket("udp", hub.Addr)
		if err != nil {
			continue // the port's twin is somebody else's
		}
		quic, err := link.AcceptQUIC(socket, link.QUICOptions{
			AcceptOptions: link.AcceptOptions{Timing: timing, Log: slog.New(slog.DiscardHandler)}, TLS: linktest.ServerTLS(t, ca),
		})
		if err != nil {
			t.Fatal(err)
		}
		hub.Acceptor = link.AcceptBoth(hub.Acceptor, quic)
		t.Cleanup(func() {
			_ = hub.Close()
			_ = socket.Close()
		})
		return hub
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil
}

func TestAutoUsesQUICWhereItGetsThrough(t *testing.T) {
	t.Parallel()
	hub := startBoth(t, linktest.NewCA(t), quiet())
	edge, far := connect(t, link.WithoutHaste(link.DialAuto(hub.DialOptions(t, "pi-1"))), hub)
	if edge.Transport() != "quic" || far.Transport() != "quic" {
		t.Fatalf("connected over %s and %s", edge.Transport(), far.Transport())
	}
}

func TestAutoFallsBackWhereUDPIsBlockedAndReturns(t *testing.T) {
	t.Parallel()
	hub := startBoth(t, linktest.NewCA(t), quiet())
	// The way to the hub: TCP passes, UDP at the same port is dropped.
	var (
		tcp *linktest.Proxy
		udp *linktest.UDPProxy
	)
	for range 20 {
		var err error
		tcp = linktest.NewProxy(t, hub.Addr)
		if udp, err = linktest.UDPProxyAt(t, tcp.Addr(), hub.Addr); err == nil {
			break
		}
	}
	if udp == nil {
		t.Fatal("no port is free for both TCP and UDP")
	}
	udp.Cut()
	o := hub.DialOptions(t, "pi-1")
	o.Hubs = []string{tcp.Addr()}
	dialer := link.DialAuto(o)
	for range 2 { // the second one does not even try
		edge, _ := connect(t, dialer, hub)
		if edge.Transport() != "websocket" {
			t.Fatalf("connected over %s", edge.Transport())
		}
	}
	udp.Mend()
	edge, _ := connect(t, dialer, hub)
	if edge.Transport() != "websocket" {
		t.Fatalf("connected over %s while QUIC rests", edge.Transport())
	}
	if !link.TryQUICAgain(dialer) {
		t.Fatal("QUIC did not rest")
	}
	edge, _ = connect(t, link.WithoutHaste(dialer), hub)
	if edge.Transport() != "quic" {
		t.Fatalf("connected over %s once UDP passes", edge.Transport())
	}
}

func TestAutoTakesTheProxy(t *testing.T) {
	t.Parallel()
	hub := startBoth(t, linktest.NewCA(t), quiet())
	o := hub.DialOptions(t, "pi-1")
	o.Proxy = func(*http.Request) (*url.URL, error) {
		return &url.URL{Scheme: "broken", Host: "127.0.0.1:1"}, nil
	}
	if c, err := link.DialAuto(o).Dial(patient(t)); err == nil {
		t.Fatalf("connected over %s past the proxy", c.Transport())
	}
}

func TestAutoSaysWhatCameOfBoth(t *testing.T) {
	t.Parallel()
	hub := startBoth(t, linktest.NewCA(t), quiet())
	o := hub.DialOptions(t, "pi-1")
	o.Certificate = certificate(linktest.NodeCert(t, linktest.NewCA(t), "pi-1"))
	if _, err := link.DialAuto(o).Dial(patient(t)); !errors.Is(err, link.ErrRefused) {
		t.Fatalf("dial: %v, want ErrRefused", err)
	}
}

func TestJoinedAcceptorsTakeBoth(t *testing.T) {
	t.Parallel()
	hub := startBoth(t, linktest.NewCA(t), quiet())
	for name, dial := range map[string]func(link.DialOptions) link.Dialer{"websocket": link.DialWebsocket, "quic": link.DialQUIC} {
		_, far := connect(t, dial(hub.DialOptions(t, "pi-"+name)), hub)
		if far.Transport() != name || far.Peer() != "pi-"+name {
			t.Errorf("accepted %s over %s", far.Peer(), far.Transport())
		}
	}
	if err := hub.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := hub.Accept(patient(t)); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("accept: %v, want ErrClosed", err)
	}
}
