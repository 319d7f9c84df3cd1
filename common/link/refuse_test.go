package link_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// quiet is a timing in which nothing happens by itself while a test lasts.
func quiet() link.Timing {
	return link.Timing{KeepAlive: time.Hour, UserTimeout: linktest.Patience, Dial: linktest.Patience, Write: linktest.Patience}.Complete()
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), linktest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// connect dials and accepts.
func connect(t *testing.T, d link.Dialer, a link.Acceptor) (edge, hub link.Conn) {
	t.Helper()
	hubs := make(chan link.Conn, 1)
	go func() {
		c, err := a.Accept(patient(t))
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		hubs <- c
	}()
	edge, err := d.Dial(patient(t))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	hub = <-hubs
	if hub == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _, _ = edge.Close(), hub.Close() })
	return edge, hub
}

// rawWebsocket is a client that need not keep to the rules.
func rawWebsocket(t *testing.T, hub *linktest.Hub, node string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{TLSClientConfig: &tls.Config{
		RootCAs: hub.CA.Pool(), Certificates: []tls.Certificate{linktest.NodeCert(t, hub.CA, node)},
	}}
	ws, _, err := d.DialContext(patient(t), "wss://"+hub.Addr+link.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return ws
}

func TestHubEndsConnectionThatBreaksTheRules(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	for name, c := range map[string]struct {
		do   func(ws *websocket.Conn) error
		want error
	}{
		"a message beyond the limit": {func(ws *websocket.Conn) error {
			// The hub may hang up before all of it is written.
			_ = ws.WriteMessage(websocket.BinaryMessage, make([]byte, wire.MaxMessage+2))
			return nil
		}, link.ErrTooLarge},
		"a message beyond the limit in pieces": {func(ws *websocket.Conn) error {
			w, err := ws.NextWriter(websocket.BinaryMessage)
			if err != nil {
				return err
			}
			for range wire.MaxMessage/(1<<16) + 1 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return nil
				}
			}
			return nil
		}, link.ErrTooLarge},
		"text": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.TextMessage, []byte("hello"))
		}, link.ErrClosed},
		"a frame of no kind": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.BinaryMessage, nil)
		}, link.ErrClosed},
		"a frame of an unknown kind": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.BinaryMessage, []byte{9, 1, 2})
		}, link.ErrClosed},
		"a stream frame that is too short": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.BinaryMessage, []byte{1, 0, 0})
		}, link.ErrClosed},
		"a stream frame that is too long": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.BinaryMessage, append([]byte{1}, make([]byte, 20<<10)...))
		}, link.ErrClosed},
		"a ping of yamux": {func(ws *websocket.Conn) error {
			return ws.WriteMessage(websocket.BinaryMessage, []byte{1, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0})
		}, link.ErrClosed},
		"no websocket": {func(ws *websocket.Conn) error {
			_, err := ws.NetConn().Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			return err
		}, link.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			accepted := make(chan link.Conn, 1)
			go func() {
				c, err := hub.Accept(patient(t))
				if err != nil {
					t.Errorf("accept: %v", err)
				}
				accepted <- c
			}()
			ws := rawWebsocket(t, hub, "pi-1")
			conn := <-accepted
			if conn == nil {
				t.FailNow()
			}
			wrote := make(chan error, 1)
			go func() { wrote <- c.do(ws) }()
			_, err := conn.Recv(patient(t))
			if !errors.Is(err, c.want) {
				t.Fatalf("Recv: %v, want %v", err, c.want)
			}
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			if _, again := conn.Recv(patient(t)); again == nil || again.Error() != err.Error() {
				t.Fatalf("Recv again: %v, want what it said before", again)
			}
			if err := conn.Send(patient(t), []byte("x")); !errors.Is(err, c.want) {
				t.Fatalf("Send: %v, want %v", err, c.want)
			}
		})
	}
}

func TestEdgeEndsConnectionWithTooLargeMessage(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	up := websocket.Upgrader{}
	addr := linktest.ServeHTTP(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		_ = ws.WriteMessage(websocket.BinaryMessage, make([]byte, wire.MaxMessage+2))
		_, _, _ = ws.ReadMessage()
		_ = ws.Close()
	}))
	hub := &linktest.Hub{CA: ca, Addr: addr, Timing: quiet()}
	edge, err := hub.Dialer(t, "pi-1").Dial(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = edge.Close() }()
	if _, err := edge.Recv(patient(t)); !errors.Is(err, link.ErrTooLarge) {
		t.Fatalf("Recv: %v, want ErrTooLarge", err)
	}
}

func TestHandlerSaysWhyNot(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	node := []tls.Certificate{linktest.NodeCert(t, hub.CA, "pi-1")}
	for _, c := range []struct {
		name, path string
		certs      []tls.Certificate
		status     int
		text       string
	}{
		{"another path", "/v1/nothing", node, http.StatusNotFound, "edge nodes connect to /v1/link"},
		{"no certificate", link.Path, nil, http.StatusUnauthorized, "needs a client certificate of this hub's CA"},
		{"no websocket", link.Path, node, http.StatusBadRequest, "not using the websocket protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := &http.Client{Transport: &http.Transport{
				DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: hub.CA.Pool(), Certificates: c.certs},
			}}
			request, err := http.NewRequestWithContext(patient(t), http.MethodGet, "https://"+hub.Addr+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(response.Body)
			if err := errors.Join(err, response.Body.Close()); err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != c.status || !strings.Contains(string(text), c.text) {
				t.Fatalf("answered %s: %s", response.Status, text)
			}
		})
	}
}

// serveNothing answers every request with 404.
func serveNothing(t *testing.T, l net.Listener) {
	t.Helper()
	server := &http.Server{
		Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
}

func TestDialSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	ca := linktest.NewCA(t)
	hub := linktest.StartHub(t, ca, quiet())
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveNothing(t, plain)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := ca.SignServer([]string{"hub.example.test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	serveNothing(t, tls.NewListener(other, &tls.Config{Certificates: []tls.Certificate{elsewhere}}))
	noHub := linktest.ServeHTTP(t, ca, http.NotFoundHandler())
	for _, c := range []struct {
		name  string
		edit  func(*link.DialOptions)
		text  string
		final bool // ErrRefused
	}{
		{"no hub", func(o *link.DialOptions) { o.Hubs = nil }, `set "hub"`, false},
		{"no port", func(o *link.DialOptions) { o.Hubs = []string{"127.0.0.1"} }, "HOST:PORT", false},
		{"a name that the certificate lacks", func(o *link.DialOptions) { o.Hubs = []string{other.Addr().String()} }, "add it to advertiseAddresses", false},
		{"another CA", func(o *link.DialOptions) { o.RootCAs = linktest.NewCA(t).Pool() }, "another CA than the one this node joined", false},
		{"no TLS", func(o *link.DialOptions) { o.Hubs = []string{plain.Addr().String()} }, "does not speak TLS", true},
		{"no hub behind the port", func(o *link.DialOptions) { o.Hubs = []string{noHub} }, "404 Not Found", true},
		{"no client certificate", func(o *link.DialOptions) { o.Certificate = certificate(tls.Certificate{}) }, "needs a client certificate", true},
		{"a certificate of another CA", func(o *link.DialOptions) {
			o.Certificate = certificate(linktest.NodeCert(t, linktest.NewCA(t), "pi-1"))
		}, "does not accept this node's certificate", true},
		{"a certificate that cannot be read", func(o *link.DialOptions) {
			o.Certificate = func() (tls.Certificate, error) { return tls.Certificate{}, errors.New("disk on fire") }
		}, "disk on fire", false},
		{"two hubs", func(o *link.DialOptions) { o.Hubs = []string{noHub, plain.Addr().String()} }, "404 Not Found: 404 page not found; hub " + plain.Addr().String(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := hub.DialOptions(t, "pi-1")
			c.edit(&o)
			conn, err := link.DialWebsocket(o).Dial(patient(t))
			if err == nil {
				t.Fatalf("connected: %v", conn)
			}
			if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error reads %q, want one line with %q", err, c.text)
			}
			if errors.Is(err, link.ErrRefused) != c.final {
				t.Errorf("ErrRefused is %v for %q", !c.final, err)
			}
		})
	}
}

func TestListenNamesTheTakenPort(t *testing.T) {
	t.Parallel()
	l, err := link.Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = link.Listen(t.Context(), l.Addr().String(), nil)
	if err == nil || !strings.Contains(err.Error(), "taken by another program") {
		t.Fatalf("a second listener: %v", err)
	}
}

func TestBothEndsTuneTCP(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), link.DefaultTiming())
	a, b := connect(t, hub.Dialer(t, "pi-1"), hub)
	for name, c := range map[string]link.Conn{"edge": a, "hub": b} {
		conn := link.Socket(c)
		for {
			layer, ok := conn.(interface{ NetConn() net.Conn })
			if !ok {
				break
			}
			conn = layer.NetConn()
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			if ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || ms != 11_250 {
				t.Errorf("%s: TCP_USER_TIMEOUT is %d, %v", name, ms, err)
			}
			if on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on != 0 {
				t.Errorf("%s: SO_KEEPALIVE is %d, %v", name, on, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// connectProxy is a proxy that knows CONNECT and nothing else, as firewalls of
// companies have. It leads to target whatever it is asked for.
func connectProxy(t *testing.T, target string) (addr string, asked *atomic.Pointer[string]) {
	t.Helper()
	asked = new(atomic.Pointer[string])
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := proxy.Accept()
			if err != nil {
				return
			}
			serveConnect(t, c, target, asked)
		}
	}()
	t.Cleanup(func() {
		_ = proxy.Close()
		<-done
	})
	return proxy.Addr().String(), asked
}

func TestDialGoesThroughAnHTTPProxy(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	target := linktest.NewProxy(t, hub.Addr)
	proxy, asked := connectProxy(t, target.Addr())
	o := hub.DialOptions(t, "pi-1")
	o.Proxy = func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: proxy}, nil }
	edge, far := connect(t, link.DialWebsocket(o), hub)
	if got := asked.Load(); got == nil || *got != hub.Addr {
		t.Fatalf("the proxy was asked for %v, want %s", got, hub.Addr)
	}
	if err := edge.Send(patient(t), []byte("through")); err != nil {
		t.Fatal(err)
	}
	if got, err := far.Recv(patient(t)); err != nil || string(got) != "through" {
		t.Fatalf("received %q, %v", got, err)
	}
	if target.Bytes(linktest.Up) == 0 {
		t.Error("the connection did not go through the proxy")
	}
	// The clock is no obstacle here either, nor is another CA believed.
	o.Now = func() time.Time { return time.Unix(0, 0) }
	connect(t, link.DialWebsocket(o), hub)
	o.RootCAs = linktest.NewCA(t).Pool()
	var unknown x509.UnknownAuthorityError
	if _, err := link.DialWebsocket(o).Dial(patient(t)); !errors.As(err, &unknown) {
		t.Fatalf("dial: %v, want an unknown authority", err)
	}
}

// TestEdgeBehindAProxyHearsItsHub: the proxy's TCP answers for a hub that is gone,
// so there the edge asks the hub itself.
func TestEdgeBehindAProxyHearsItsHub(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	way := linktest.NewProxy(t, hub.Addr)
	proxy, _ := connectProxy(t, way.Addr())
	for silent := 200 * time.Millisecond; ; silent *= 2 {
		way.Mend()
		o := hub.DialOptions(t, "pi-1")
		o.Proxy = func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: proxy}, nil }
		o.Timing.KeepAlive, o.Timing.EdgeSilent = 20*time.Millisecond, silent
		edge, far := connect(t, link.DialWebsocket(o), hub)
		listen(t, far)
		ended := listen(t, edge)
		heard := 0
		for ctx := patient(t); heard < 5; heard++ {
			select {
			case <-edge.Heard():
				continue
			case <-ended: // this machine is slower than that
			case <-ctx.Done():
				t.Fatal("the edge hears nothing of its hub")
			}
			break
		}
		if heard < 5 {
			continue
		}
		way.Cut() // beyond the proxy
		if err := <-ended; !errors.Is(err, link.ErrSilent) {
			t.Fatalf("the edge's end: %v, want ErrSilent", err)
		}
		return
	}
}

// TestEnvironmentNamesTheProxy runs an edge as systemd would with HTTPS_PROXY. Only
// the proxy knows where the hub is.
func TestEnvironmentNamesTheProxy(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	proxy, asked := connectProxy(t, hub.Addr)
	for _, transport := range []string{"websocket", "auto"} {
		asked.Store(nil)
		const name = "hub.example.test:10350"
		child{Hub: name, Transport: transport, Times: 1}.start(t, hub.CA, "HTTPS_PROXY=http://"+proxy, "NO_PROXY=")
		far, err := hub.Accept(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = far.Close() })
		if got := asked.Load(); got == nil || *got != name || far.Transport() != "websocket" {
			t.Fatalf("%s: the proxy was asked for %v; connected over %s", transport, got, far.Transport())
		}
	}
}

// serveConnect answers one CONNECT, whatever it asks for, with a way to target.
func serveConnect(t *testing.T, c net.Conn, target string, asked *atomic.Pointer[string]) {
	request, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || request.Method != http.MethodConnect {
		t.Errorf("the proxy was asked %v, %v", request, err)
		_ = c.Close()
		return
	}
	asked.Store(&request.Host)
	far, err := net.Dial("tcp", target)
	if err != nil {
		t.Errorf("the proxy's target: %v", err)
		_ = c.Close()
		return
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		t.Errorf("the proxy's answer: %v", err)
	}
	for _, way := range [][2]net.Conn{{c, far}, {far, c}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].Close()
			_ = way[1].Close()
		}()
	}
}

func TestLineThatIsCutAndMendedLosesNothing(t *testing.T) {
	t.Parallel()
	hub := linktest.StartHub(t, linktest.NewCA(t), quiet())
	line := linktest.NewProxy(t, hub.Addr)
	edge, far := connect(t, hub.DialerVia(t, "pi-1", line), hub)
	line.Cut()
	line.Forget()
	for _, text := range []string{"one", "two", "three"} {
		if err := edge.Send(patient(t), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if n := line.Bytes(linktest.Up); n != 0 {
		t.Fatalf("%d bytes passed a cut line", n)
	}
	line.Delay(5 * time.Millisecond)
	line.Mend()
	for _, text := range []string{"one", "two", "three"} {
		if got, err := far.Recv(patient(t)); err != nil || string(got) != text {
			t.Fatalf("received %q, %v; want %q", got, err, text)
		}
	}
	line.Break()
	for name, c := range map[string]link.Conn{"edge": edge, "hub": far} {
		if _, err := c.Recv(patient(t)); !errors.Is(err, link.ErrClosed) {
			t.Errorf("%s: Recv: %v, want ErrClosed", name, err)
		}
	}
}
