package link_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
)

func TestQUICHoldsTheContract(t *testing.T) {
	t.Parallel()
	linktest.Contract(t, linktest.Transport{
		Name: "quic",
		Listen: func(t testing.TB, ca *pki.CA, timing link.Timing) (string, link.Acceptor) {
			hub := linktest.StartQUICHub(t, ca, timing)
			return hub.Addr, hub.Acceptor
		},
		Dialer: link.DialQUIC,
	})
}

func TestQUICConnectionOutlivesAnotherAddressOfTheEdge(t *testing.T) {
	t.Parallel()
	hub := linktest.StartQUICHub(t, linktest.NewCA(t), quiet())
	way := linktest.NewUDPProxy(t, hub.Addr)
	o := hub.DialOptions(t, "pi-1")
	o.Hubs = []string{way.Addr()}
	edge, far := connect(t, link.DialQUIC(o), hub.Hub)
	for range 3 {
		before := far.RemoteAddr()
		now := way.Rebind(t)
		if now == before {
			t.Fatal("the address is the same")
		}
		// Upwards first: the hub learns the new address from the edge alone.
		for _, c := range [][2]link.Conn{{edge, far}, {far, edge}} {
			if err := c[0].Send(patient(t), []byte("here")); err != nil {
				t.Fatal(err)
			}
			if got, err := c[1].Recv(patient(t)); err != nil || string(got) != "here" {
				t.Fatalf("received %q, %v", got, err)
			}
		}
		if got := far.RemoteAddr(); got != now {
			t.Fatalf("the hub's edge is at %s, want %s", got, now)
		}
	}
}

func TestRestartedHubEndsOldQUICConnectionsAndTakesNewOnes(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	old := linktest.StartQUICHub(t, ca, quiet())
	o := old.DialOptions(t, "pi-1")
	o.Timing.KeepAlive = 50 * time.Millisecond
	dialer := link.DialQUIC(o)
	edge, _ := connect(t, dialer, old.Hub)
	old.Kill()
	var hub *linktest.QUICHub
	until(t, func() bool {
		socket, err := net.ListenPacket("udp", old.Addr)
		if err != nil {
			return false // the kernel has not let go of the port
		}
		_ = socket.Close()
		hub = linktest.StartQUICHubAt(t, ca, quiet(), old.Addr)
		return true
	})
	// The edge's next keepalive is answered by a reset: with these timings it would
	// find out in two minutes otherwise.
	if _, err := edge.Recv(patient(t)); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("Recv: %v, want ErrClosed", err)
	}
	again, far := connect(t, dialer, hub.Hub)
	if err := again.Send(patient(t), []byte("again")); err != nil {
		t.Fatal(err)
	}
	if got, err := far.Recv(patient(t)); err != nil || string(got) != "again" {
		t.Fatalf("received %q, %v", got, err)
	}
}

// until polls a condition.
func until(t *testing.T, condition func() bool) {
	t.Helper()
	ctx := patient(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}

func TestQUICNoticesALineThatIsCut(t *testing.T) {
	t.Parallel()
	timing := quiet()
	timing.UserTimeout = 300 * time.Millisecond
	hub := linktest.StartQUICHub(t, linktest.NewCA(t), timing)
	way := linktest.NewUDPProxy(t, hub.Addr)
	o := hub.DialOptions(t, "pi-1")
	o.Hubs = []string{way.Addr()}
	edge, far := connect(t, link.DialQUIC(o), hub.Hub)
	way.Cut()
	for name, c := range map[string]link.Conn{"edge": edge, "hub": far} {
		ended := make(chan error, 1)
		go func() {
			_, err := c.Recv(patient(t))
			ended <- err
		}()
		// A packet that had passed before the cut may still count as the answer to
		// what is sent first: a line is watched from each thing that is sent.
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for waiting := true; waiting; {
			select {
			case err := <-ended:
				if waiting = false; !errors.Is(err, link.ErrSilent) {
					t.Errorf("%s: Recv: %v, want ErrSilent", name, err)
				}
			case <-tick.C:
				// What ended the line, Recv says.
				_ = c.Send(patient(t), []byte("into the dark"))
			}
		}
	}
}

// TestHubBoundsWhatAQUICPeerMaySay speaks to the hub in ways that no edge does.
func TestHubBoundsWhatAQUICPeerMaySay(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	hub := linktest.StartQUICHub(t, ca, quiet())
	pair := linktest.NodeCert(t, ca, "pi-1")
	raw := func(t *testing.T) *quic.Conn {
		c, err := quic.DialAddr(patient(t), hub.Addr, &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: ca.Pool(), ServerName: "127.0.0.1",
			Certificates: []tls.Certificate{pair}, NextProtos: []string{link.QUICProtocol},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
		return c
	}
	begin := func(t *testing.T, first byte) (*quic.Conn, *quic.Stream) {
		c := raw(t)
		s, err := c.OpenStreamSync(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte{first}); err != nil {
			t.Fatal(err)
		}
		return c, s
	}
	t.Run("another first byte", func(t *testing.T) {
		c, _ := begin(t, 9)
		<-c.Context().Done()
	})
	t.Run("more streams than there may be", func(t *testing.T) {
		c, _ := begin(t, 1)
		for range link.MaxStreams {
			if _, err := c.OpenStream(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.OpenStream(); err == nil {
			t.Fatalf("the hub lets an edge open %d streams beside the first", link.MaxStreams+1)
		}
	})
	for name, header := range map[string][]byte{
		"a length beyond the limit": binary.AppendUvarint(nil, wire.MaxMessage+2),
		"a length of 64 bits":       binary.AppendUvarint(nil, 1<<63),
		"a length without an end":   {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := begin(t, 1)
			far, err := hub.Accept(patient(t))
			for err == nil && far.RemoteAddr() != c.LocalAddr().String() && portOf(t, far.RemoteAddr()) != portOf(t, c.LocalAddr().String()) {
				_ = far.Close() // of an earlier case
				far, err = hub.Accept(patient(t))
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(header); err != nil {
				t.Fatal(err)
			}
			if m, err := far.Recv(patient(t)); err == nil {
				t.Fatalf("received %d bytes", len(m))
			}
			<-c.Context().Done()
		})
	}
	// The hub still serves.
	edge, far := connect(t, link.DialQUIC(hub.DialOptions(t, "pi-2")), hub.Hub)
	if far.Peer() != "pi-2" || edge.Transport() != "quic" {
		t.Fatalf("accepted %s", far.Peer())
	}
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}
