package linktest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Transport is one implementation of the link.
type Transport struct {
	Name string
	// Listen opens a hub's port on loopback (HOST:PORT) for nodes of that CA; its
	// certificate is for 127.0.0.1. The test's end closes it.
	Listen func(t testing.TB, ca *pki.CA, timing link.Timing) (string, link.Acceptor)
	// Dialer makes an edge's end.
	Dialer func(link.DialOptions) link.Dialer
}

// Contract holds what every transport promises, whatever it is made of.
func Contract(t *testing.T, transport Transport) {
	c := contract{transport}
	run(t, "messages arrive whole, in order, both ways", c.messages)
	run(t, "concurrent senders do not mix", c.concurrent)
	run(t, "a message beyond the limit is refused and the connection goes on", c.tooLarge)
	run(t, "both sides know each other", c.names)
	run(t, "close ends both sides", c.closing)
	run(t, "a reader that gives up ends the connection", c.recvCancelled)
	run(t, "a sender that gives up leaves no half message", c.sendCancelled)
	run(t, "an idle edge is heard", c.keepAlive)
	run(t, "the hub notices a silent edge", c.silentEdge)
	run(t, "the edge notices a silent hub", c.silentHub)
	run(t, "an edge without a good certificate stays outside", c.strangers)
	run(t, "an edge is told that its certificate has ended", c.expired)
	run(t, "an edge believes only the hub of its CA", c.falseHub)
	run(t, "a wrong clock keeps nobody out", c.wrongClock)
	run(t, "a second address is tried", c.secondAddress)
	run(t, "a dial ends with its context", c.dialCancelled)
	t.Run("streams", c.streams)
	run(t, "a closed acceptor takes nobody and keeps who is there", c.acceptorClosed)
}

// run runs a test beside others: most of them wait.
func run(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		test(t)
	})
}

type contract struct{ Transport }

// quiet is a timing in which nothing happens by itself while a test lasts.
func quiet() link.Timing {
	return link.Timing{KeepAlive: time.Hour, UserTimeout: Patience, Write: Patience, Dial: Patience}.Complete()
}

type ends struct {
	ca        *pki.CA
	addr      string
	acceptor  link.Acceptor
	edge, hub link.Conn
}

func (c contract) options(t *testing.T, ca *pki.CA, addr string, timing link.Timing) link.DialOptions {
	t.Helper()
	pair := NodeCert(t, ca, "pi-1.shop")
	return link.DialOptions{
		Hubs: []string{addr}, RootCAs: ca.Pool(), Timing: timing,
		Certificate: func() (tls.Certificate, error) { return pair, nil },
	}
}

// connect makes a hub, an edge, and a connection between them.
func (c contract) connect(t *testing.T, hub, edge link.Timing) ends {
	t.Helper()
	e := ends{ca: NewCA(t)}
	e.addr, e.acceptor = c.Listen(t, e.ca, hub)
	e.edge, e.hub = c.pair(t, c.Dialer(c.options(t, e.ca, e.addr, edge)), e.acceptor)
	return e
}

// pair dials and accepts.
func (c contract) pair(t *testing.T, d link.Dialer, a link.Acceptor) (edge, hub link.Conn) {
	t.Helper()
	ctx := patient(t)
	type result struct {
		conn link.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := a.Accept(ctx)
		accepted <- result{conn, err}
	}()
	edge, err := d.Dial(ctx)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = edge.Close() })
	r := <-accepted
	if r.err != nil {
		t.Fatalf("accept: %v", r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return edge, r.conn
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

func (c contract) messages(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	random := rand.NewChaCha8([32]byte{1})
	var messages [][]byte
	for _, size := range []int{0, 1, 125, 126, 1023, 1024, 1025, 16 << 10, 16<<10 + 1, 65535, 65536, wire.SoftMessage, wire.MaxMessage, 3} {
		b := make([]byte, size)
		if _, err := random.Read(b); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, b)
	}
	for _, way := range []struct {
		name     string
		from, to link.Conn
	}{{"up", e.edge, e.hub}, {"down", e.hub, e.edge}} {
		ctx := patient(t)
		sent := make(chan error, 1)
		go func() {
			for _, m := range messages {
				if err := way.from.Send(ctx, m); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for i, want := range messages {
			got, err := way.to.Recv(ctx)
			if err != nil {
				t.Fatalf("%s: message %d: %v", way.name, i, err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: message %d of %d bytes came as another of %d", way.name, i, len(want), len(got))
			}
		}
		if err := <-sent; err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
	}
}

func (c contract) concurrent(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	const senders, each = 8, 40
	ctx := patient(t)
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for n := range each {
				m := bytes.Repeat([]byte{byte(s)}, 1+(s*each+n)*97%40000)
				m = append(m, byte(n))
				if err := e.edge.Send(ctx, m); err != nil {
					t.Errorf("sender %d: %v", s, err)
					return
				}
			}
		})
	}
	next := make(map[byte]int)
	for range senders * each {
		m, err := e.hub.Recv(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s, n := m[0], m[len(m)-1]
		if rest := bytes.Trim(m[:len(m)-1], string(s)); s != 0 && len(rest) > 0 {
			t.Fatalf("a message of sender %d holds another's bytes", s)
		}
		if int(n) != next[s] {
			t.Fatalf("sender %d: message %d where %d was due", s, n, next[s])
		}
		next[s]++
	}
	all.Wait()
}

func (c contract) tooLarge(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	ctx := patient(t)
	if err := e.edge.Send(ctx, make([]byte, wire.MaxMessage+1)); !errors.Is(err, link.ErrTooLarge) {
		t.Fatalf("send: %v, want ErrTooLarge", err)
	}
	exchange(t, e.edge, e.hub, "after all")
}

func exchange(t *testing.T, from, to link.Conn, text string) {
	t.Helper()
	ctx := patient(t)
	if err := from.Send(ctx, []byte(text)); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
	if got, err := to.Recv(ctx); err != nil || string(got) != text {
		t.Fatalf("received %q, %v; want %q", got, err, text)
	}
}

func (c contract) names(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	if got := e.hub.Peer(); got != "pi-1.shop" {
		t.Errorf("the hub's peer is %q", got)
	}
	if got := e.edge.Peer(); got != e.addr {
		t.Errorf("the edge's peer is %q, want %q", got, e.addr)
	}
	for _, conn := range []link.Conn{e.edge, e.hub} {
		if conn.Transport() != c.Name || conn.RemoteAddr() == "" {
			t.Errorf("transport %q, remote address %q", conn.Transport(), conn.RemoteAddr())
		}
	}
}

func (c contract) closing(t *testing.T) {
	for _, edgeCloses := range []bool{true, false} {
		e := c.connect(t, quiet(), quiet())
		closer, other := e.hub, e.edge
		if edgeCloses {
			closer, other = e.edge, e.hub
		}
		ctx := patient(t)
		exchange(t, other, closer, "hello")
		waiting := make(chan error, 1)
		go func() {
			_, err := closer.Recv(ctx)
			waiting <- err
		}()
		if err := closer.Send(ctx, []byte("last words")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := closer.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
		}
		if err := <-waiting; !errors.Is(err, link.ErrClosed) {
			t.Fatalf("a Recv during Close: %v, want ErrClosed", err)
		}
		if got, err := other.Recv(ctx); err != nil || string(got) != "last words" {
			t.Fatalf("the last message came as %q, %v", got, err)
		}
		if _, err := other.Recv(ctx); !errors.Is(err, link.ErrClosed) {
			t.Fatalf("the other side's Recv: %v, want ErrClosed", err)
		}
		if _, err := closer.Recv(ctx); !errors.Is(err, link.ErrClosed) {
			t.Fatalf("a Recv after Close: %v, want ErrClosed", err)
		}
		if err := closer.Send(ctx, []byte("x")); !errors.Is(err, link.ErrClosed) {
			t.Fatalf("a Send after Close: %v, want ErrClosed", err)
		}
		if err := other.Send(ctx, []byte("x")); !errors.Is(err, link.ErrClosed) {
			t.Fatalf("a Send of the other side: %v, want ErrClosed", err)
		}
	}
}

func (c contract) recvCancelled(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	go func() {
		_, err := e.hub.Recv(ctx)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Recv: %v, want the context's error", err)
	}
	// Whether Recv had begun to wait is for the scheduler: the next one must fail
	// in either case, once the context is over and somebody has waited with it.
	if _, err := e.hub.Recv(ctx); err == nil {
		t.Fatal("a Recv with an ended context succeeded")
	}
}

// sendCancelled fills the line until a Send must wait, then takes its context:
// half a message must never look like one.
func (c contract) sendCancelled(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	progress := make(chan struct{}, 1)
	go func() {
		for {
			if err := e.edge.Send(ctx, make([]byte, wire.MaxMessage)); err != nil {
				done <- err
				return
			}
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	}()
	// The hub reads nothing: sooner or later the buffers between are full, and a
	// Send is in the middle of its message. Which one does not matter.
	go func() {
		for {
			idle := time.NewTimer(100 * time.Millisecond)
			select {
			case <-progress:
				idle.Stop()
			case <-idle.C:
				cancel()
				return
			}
		}
	}()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Send: %v, want the context's error", err)
	}
	cancel()
	if err := e.edge.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := e.hub.Recv(patient(t))
		if errors.Is(err, link.ErrClosed) {
			return
		}
		if err != nil || len(m) != wire.MaxMessage {
			t.Fatalf("after a send that was given up the hub received %d bytes, %v", len(m), err)
		}
	}
}

func (c contract) keepAlive(t *testing.T) {
	lively := quiet()
	lively.KeepAlive = 20 * time.Millisecond
	e := c.connect(t, quiet(), lively)
	ctx := patient(t)
	go func() { _, _ = e.hub.Recv(ctx) }() // a hub always listens
	before := e.hub.LastHeard()
	for n := 0; n < 3; {
		select {
		case <-e.hub.Heard():
		case <-ctx.Done():
			t.Fatalf("heard the idle edge %d times", n)
		}
		if heard := e.hub.LastHeard(); heard.After(before) {
			before = heard
			n++
		}
	}
}

func (c contract) silentEdge(t *testing.T) {
	strict := quiet()
	strict.EdgeSilent = 50 * time.Millisecond
	e := c.connect(t, strict, quiet())
	if _, err := e.hub.Recv(patient(t)); !errors.Is(err, link.ErrSilent) {
		t.Fatalf("Recv: %v, want ErrSilent", err)
	}
	if _, err := e.edge.Recv(patient(t)); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("the edge's Recv: %v, want ErrClosed", err)
	}
}

func (c contract) silentHub(t *testing.T) {
	strict := quiet()
	strict.HubSilent = 50 * time.Millisecond
	e := c.connect(t, quiet(), strict)
	if _, err := e.edge.Recv(patient(t)); !errors.Is(err, link.ErrSilent) {
		t.Fatalf("Recv: %v, want ErrSilent", err)
	}
	if _, err := e.hub.Recv(patient(t)); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("the hub's Recv: %v, want ErrClosed", err)
	}
}

func (c contract) strangers(t *testing.T) {
	ca, other := NewCA(t), NewCA(t)
	addr, acceptor := c.Listen(t, ca, quiet())
	server, err := ca.SignServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string]tls.Certificate{
		"none":               {},
		"of another CA":      NodeCert(t, other, "pi-1.shop"),
		"of a server":        server,
		"of no node":         clientCert(t, ca, "admin", pki.NodesGroup),
		"of no group":        clientCert(t, ca, pki.NodeUserPrefix+"pi-1", "people"),
		"with a bad name":    clientCert(t, ca, pki.NodeUserPrefix+"../etc", pki.NodesGroup),
		"with an empty name": clientCert(t, ca, pki.NodeUserPrefix, pki.NodesGroup),
	} {
		t.Run("certificate "+name, func(t *testing.T) {
			o := c.options(t, ca, addr, quiet())
			o.Certificate = func() (tls.Certificate, error) { return pair, nil }
			conn, err := c.Dialer(o).Dial(patient(t))
			if !errors.Is(err, link.ErrRefused) {
				t.Fatalf("dial: %v, %v; want ErrRefused", conn, err)
			}
		})
	}
	// Nobody but the honest node, who comes last, was let in.
	_, hub := c.pair(t, c.Dialer(c.options(t, ca, addr, quiet())), acceptor)
	if hub.Peer() != "pi-1.shop" {
		t.Fatalf("accepted %q", hub.Peer())
	}
}

func (c contract) expired(t *testing.T) {
	ca := NewCA(t)
	addr, _ := c.Listen(t, ca, quiet())
	keyPEM, csrPEM, err := pki.NewKeyAndCSR("pi-1.shop")
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.SignNode(csrPEM, "pi-1.shop", time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	o := c.options(t, ca, addr, quiet())
	o.Certificate = func() (tls.Certificate, error) { return pair, nil }
	if _, err := c.Dialer(o).Dial(patient(t)); !errors.Is(err, link.ErrExpired) || !errors.Is(err, link.ErrRefused) {
		t.Fatalf("dial: %v; want ErrExpired and ErrRefused", err)
	}
	// Any other reason to refuse is not that one.
	o.Certificate = func() (tls.Certificate, error) { return NodeCert(t, NewCA(t), "pi-1.shop"), nil }
	if _, err := c.Dialer(o).Dial(patient(t)); errors.Is(err, link.ErrExpired) || !errors.Is(err, link.ErrRefused) {
		t.Fatalf("dial with a foreign certificate: %v; want ErrRefused alone", err)
	}
}

func (c contract) falseHub(t *testing.T) {
	ca, other := NewCA(t), NewCA(t)
	addr, _ := c.Listen(t, other, quiet())
	for name, now := range clocks(other) {
		o := c.options(t, ca, addr, quiet())
		o.Now = now
		_, err := c.Dialer(o).Dial(patient(t))
		if err == nil {
			t.Fatalf("by a clock of %s the edge believed a hub of another CA", name)
		}
	}
	o := c.options(t, ca, addr, quiet())
	_, err := c.Dialer(o).Dial(patient(t))
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Fatalf("dial: %v, want an unknown authority", err)
	}
}

// clocks are wall clocks around the life of the certificates of a CA.
func clocks(ca *pki.CA) map[string]func() time.Time {
	at := func(t time.Time) func() time.Time { return func() time.Time { return t } }
	return map[string]func() time.Time{
		"1970":                at(time.Unix(0, 0)),
		"a day before the CA": at(ca.Cert.NotBefore.AddDate(0, 0, -1)),
		"a year ahead":        at(time.Now().AddDate(1, 0, 0)),
		"after the CA's end":  at(ca.Cert.NotAfter.AddDate(5, 0, 0)),
	}
}

func (c contract) wrongClock(t *testing.T) {
	ca := NewCA(t)
	addr, acceptor := c.Listen(t, ca, quiet())
	for name, now := range clocks(ca) {
		t.Run(name, func(t *testing.T) {
			o := c.options(t, ca, addr, quiet())
			o.Now = now
			edge, hub := c.pair(t, c.Dialer(o), acceptor)
			exchange(t, edge, hub, fmt.Sprint("the year is ", now().Year()))
		})
	}
}

func (c contract) secondAddress(t *testing.T) {
	ca := NewCA(t)
	good, acceptor := c.Listen(t, ca, quiet())
	bad, _ := c.Listen(t, NewCA(t), quiet())
	o := c.options(t, ca, good, quiet())
	o.Hubs = []string{bad, good}
	edge, _ := c.pair(t, c.Dialer(o), acceptor)
	if edge.Peer() != good {
		t.Fatalf("connected to %s, want %s", edge.Peer(), good)
	}
}

func (c contract) dialCancelled(t *testing.T) {
	ca := NewCA(t)
	addr, _ := c.Listen(t, ca, quiet())
	line := NewProxy(t, addr)
	line.Cut() // a port that answers nothing
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	go func() {
		_, err := c.Dialer(c.options(t, ca, line.Addr(), quiet())).Dial(ctx)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("dial: %v, want the context's error", err)
	}
}

func (c contract) acceptorClosed(t *testing.T) {
	e := c.connect(t, quiet(), quiet())
	waiting := make(chan error, 1)
	go func() {
		_, err := e.acceptor.Accept(patient(t))
		waiting <- err
	}()
	if err := e.acceptor.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, link.ErrClosed) {
		t.Fatalf("accept: %v, want ErrClosed", err)
	}
	exchange(t, e.edge, e.hub, "still here")
	if err := e.acceptor.Close(); err != nil {
		t.Fatalf("close again: %v", err)
	}
}
