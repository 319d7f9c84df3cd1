package link_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// kind is a transport of hubs and edges; auto's hubs take both.
type kind struct {
	start func(t *testing.T, ca *pki.CA) *linktest.Hub
	dial  func(link.DialOptions) link.Dialer
}

func kinds() map[string]kind {
	return map[string]kind{
		"websocket": {func(t *testing.T, ca *pki.CA) *linktest.Hub { return linktest.StartHub(t, ca, quiet()) }, link.DialWebsocket},
		"quic":      {func(t *testing.T, ca *pki.CA) *linktest.Hub { return linktest.StartQUICHub(t, ca, quiet()).Hub }, link.DialQUIC},
		"auto":      {func(t *testing.T, ca *pki.CA) *linktest.Hub { return startBoth(t, ca, quiet()) }, link.DialAuto},
	}
}

// blackHole is an address that takes packets of either kind and answers nothing.
func blackHole(t *testing.T) string {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err != nil {
			_ = tcp.Close()
			continue
		}
		t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
		return tcp.Addr().String()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

// options are those of an edge that knows those hubs, and does not wait long for
// any of them.
func options(t *testing.T, ca *pki.CA, hubs ...string) link.DialOptions {
	o := (&linktest.Hub{CA: ca, Timing: quiet()}).DialOptions(t, "pi-1")
	o.Hubs, o.Timing.HeadStart = hubs, 20*time.Millisecond
	return o
}

func TestSecondHubIsTriedBesideOneThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := linktest.NewCA(t)
			hub := k.start(t, ca)
			edge, _ := connect(t, k.dial(options(t, ca, blackHole(t), hub.Addr)), hub)
			if edge.Peer() != hub.Addr {
				t.Fatalf("connected to %s", edge.Peer())
			}
		})
	}
}

func TestThirdHubIsTriedAtOnceWhenTheOthersFail(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := linktest.NewCA(t)
			hub, strange := k.start(t, ca), k.start(t, linktest.NewCA(t))
			o := options(t, ca, "no port", strange.Addr, hub.Addr)
			o.Timing.HeadStart = time.Hour // only failures bring the next one on
			edge, _ := connect(t, k.dial(o), hub)
			if edge.Peer() != hub.Addr {
				t.Fatalf("connected to %s", edge.Peer())
			}
		})
	}
}

func TestLastGoodHubComesFirst(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := linktest.NewCA(t)
			hub := k.start(t, ca)
			first := blackHole(t)
			dialer := k.dial(options(t, ca, first, hub.Addr))
			connect(t, dialer, hub)
			if order := link.Order(dialer); len(order) != 2 || order[0] != hub.Addr || order[1] != first {
				t.Fatalf("the next dial tries %v", order)
			}
			connect(t, dialer, hub)
		})
	}
}

// TestLosersAreClosed lets both hubs answer, at whatever moment: what the edge does
// not use must end at the hub that took it.
func TestLosersAreClosed(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := linktest.NewCA(t)
			a, b := k.start(t, ca), k.start(t, ca)
			o := options(t, ca, a.Addr, b.Addr)
			o.Timing.HeadStart = time.Nanosecond
			accepted := make(chan link.Conn, 100)
			for _, hub := range []*linktest.Hub{a, b} {
				go func() {
					for {
						c, err := hub.Accept(patient(t))
						if err != nil {
							return
						}
						accepted <- c
					}
				}()
			}
			dialer := k.dial(o)
			for range 5 {
				edge, err := dialer.Dial(patient(t))
				if err != nil {
					t.Fatal(err)
				}
				if err := edge.Send(patient(t), []byte("here")); err != nil {
					t.Fatal(err)
				}
				for {
					c := <-accepted
					m, err := c.Recv(patient(t))
					if err == nil && string(m) == "here" {
						break
					}
					if !errors.Is(err, link.ErrClosed) {
						t.Fatalf("a connection that lost: %q, %v; want ErrClosed", m, err)
					}
				}
				if err := edge.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestRefusalByOneHubIsNotTheLastWord(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	hub := linktest.StartHub(t, ca, quiet())
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(t, ca, hub.Addr, gone.Addr().String())
	o.Certificate = certificate(linktest.NodeCert(t, linktest.NewCA(t), "pi-1"))
	_, err = link.DialWebsocket(o).Dial(patient(t))
	if err == nil || errors.Is(err, link.ErrRefused) || !strings.Contains(err.Error(), "does not accept this node's certificate") {
		t.Fatalf("dial: %v; want what both said, and not ErrRefused", err)
	}
}

func TestDialOfSeveralHubsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(patient(t))
			done := make(chan error, 1)
			go func() {
				_, err := k.dial(options(t, linktest.NewCA(t), blackHole(t), blackHole(t))).Dial(ctx)
				done <- err
			}()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatalf("dial: %v, want the context's error", err)
			}
		})
	}
}
