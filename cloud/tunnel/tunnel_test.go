package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
)

// everybody may do everything: what an apiserver says is tested with a real one, in
// cloud/cmd/cloudcore.
type everybody struct{}

func (everybody) Authenticate(context.Context, *http.Request) (*authenticationv1.UserInfo, error) {
	return &authenticationv1.UserInfo{Username: "anybody"}, nil
}

func (everybody) Authorize(context.Context, *authenticationv1.UserInfo, ...authorizationv1.ResourceAttributes) error {
	return nil
}

// connect connects a node over a real websocket.
func connect(t *testing.T) (edge, conn link.Conn) {
	t.Helper()
	h := linktest.StartHub(t, linktest.NewCA(t), link.Timing{})
	accepted := make(chan link.Conn, 1)
	go func() {
		if c, err := h.Acceptor.Accept(t.Context()); err == nil {
			accepted <- c
		}
	}()
	edge, err := h.Dialer(t, "till-1").Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn = <-accepted
	t.Cleanup(func() { edge.Close(); conn.Close() })
	for _, c := range []link.Conn{edge, conn} { // streams move while somebody receives
		go func() {
			for {
				if _, err := c.Recv(context.Background()); err != nil {
					return
				}
			}
		}()
	}
	return edge, conn
}

// beginning begins streams to till-1 alone.
func beginning(conn link.Conn) func(context.Context, string) (link.BegunStream, error) {
	return func(ctx context.Context, name string) (link.BegunStream, error) {
		if name != "till-1" {
			return nil, hub.ErrNotConnected
		}
		return conn.BeginStream(ctx)
	}
}

// node connects a node; serve has each stream that it takes, and nil takes none.
func node(t *testing.T, serve func(link.Stream)) (begin func(context.Context, string) (link.BegunStream, error), end func()) {
	t.Helper()
	edge, conn := connect(t)
	if serve != nil {
		go func() {
			for {
				s, err := edge.AcceptStream(context.Background())
				if err != nil {
					return
				}
				go serve(s)
			}
		}()
		firstStream(t, conn).Close()
	}
	return beginning(conn), func() { edge.Close() }
}

// firstStream opens a stream as soon as the node takes any.
func firstStream(t *testing.T, conn link.Conn) link.Stream {
	t.Helper()
	for {
		s, err := conn.OpenStream(t.Context())
		if err == nil {
			return s
		}
		if !errors.Is(err, link.ErrNoStream) {
			t.Fatal(err)
		}
	}
}

func tunnel(t *testing.T, begin func(context.Context, string) (link.BegunStream, error)) *Tunnel {
	t.Helper()
	tun, err := New(Options{
		Address: loopback, Bind: loopback, First: 20000, Last: 20001, Begin: begin, Access: everybody{},
		TakenWithin: time.Second, AnswerWithin: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.ports.Close() })
	return tun
}

// ask sends a request for the node as its port does.
func ask(t *testing.T, tun *Tunnel, name, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(context.WithValue(t.Context(), nodeKey{}, name), http.MethodGet, path, nil)
	tun.serve(w, r)
	return w
}

func TestANodeThatDoesNotAnswerCostsBoundedTime(t *testing.T) {
	silent := func(s link.Stream) { _, _ = io.Copy(io.Discard, s) }
	garbage := func(s link.Stream) { fmt.Fprint(s, "\x00\x01 no HTTP at all\r\n\r\n") }
	gone := func(s link.Stream) { s.Close() }
	endless := func(s link.Stream) {
		if _, err := http.ReadRequest(bufio.NewReader(s)); err != nil {
			return
		}
		fmt.Fprint(s, "HTTP/1.1 200 OK\r\nX: ")
		for {
			if _, err := s.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}
	for _, c := range []struct {
		name  string
		serve func(link.Stream)
		ask   string
		says  string
	}{
		{"it never answers", silent, "till-1", "did not begin to answer within 300ms"},
		{"it answers something else", garbage, "till-1", "node till-1 did not answer"},
		{"it hangs up", gone, "till-1", "node till-1 did not answer"},
		{"its headers have no end", endless, "till-1", "node till-1 "},
		{"it takes no stream", nil, "till-1", "takes no more requests"},
		{"it is not there", silent, "till-2", "node till-2 is not connected"},
	} {
		begin, _ := node(t, c.serve)
		w := ask(t, tunnel(t, begin), c.ask, "/pods")
		if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: %d %q, want %q", c.name, w.Code, w.Body.String(), c.says)
		}
	}
}

// TestANodeThatTakesNoRequestInTime: it is connected, and busy with itself.
func TestANodeThatTakesNoRequestInTime(t *testing.T) {
	edge, conn := connect(t)
	go func() { _, _ = edge.AcceptStream(context.Background()) }() // the first, and no other
	defer firstStream(t, conn).Close()
	tun := tunnel(t, beginning(conn))
	tun.o.TakenWithin = 100 * time.Millisecond
	w := ask(t, tun, "till-1", "/pods")
	if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "node till-1 did not take the request within 100ms") {
		t.Errorf("%d %q", w.Code, w.Body.String())
	}
}

func TestANodeThatIsAwayIsSaidSinceWhen(t *testing.T) {
	begin, _ := node(t, nil)
	tun := tunnel(t, begin)
	tun.OnNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "till-2"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastHeartbeatTime: metav1.NewTime(time.Now().Add(-2 * time.Hour))},
	}}}, false)
	if w := ask(t, tun, "till-2", "/pods"); !strings.Contains(w.Body.String(), "(2h0m") {
		t.Errorf("%q", w.Body.String())
	}
}

// TestWhoNeverReadsHoldsAWindow: the node stops sending when nobody reads.
func TestWhoNeverReadsHoldsAWindow(t *testing.T) {
	// The kernel's buffers of one loopback connection hold some MiB, the stream a window.
	const most = 64 << 20
	type end struct {
		sent int
		err  error // of the write that was not taken; nil: all were
	}
	ended := make(chan end, 1)
	begin, _ := node(t, func(s link.Stream) {
		r := bufio.NewReader(s)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		fmt.Fprint(s, "HTTP/1.1 200 OK\r\n\r\n")
		var e end
		for block := make([]byte, 16<<10); e.sent < most && e.err == nil; {
			_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second))
			var n int
			n, e.err = s.Write(block)
			e.sent += n
		}
		ended <- e
	})
	tun := tunnel(t, begin)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tun.serve(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, "till-1")))
	}))
	server.Start()
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /containerLogs/a/b/c HTTP/1.1\r\nHost: x\r\n\r\n")
	if e := <-ended; !errors.Is(e.err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes are on their way to somebody who does not read: %v", e.sent, e.err)
	}
	if w := ask(t, tun, "till-2", "/pods"); w.Code != http.StatusBadGateway {
		t.Errorf("another request meanwhile: %d", w.Code)
	}
}

func TestALogEndsWithTheReason(t *testing.T) {
	var end func()
	begin, end := node(t, func(s link.Stream) {
		if _, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
			fmt.Fprint(s, "HTTP/1.1 200 OK\r\n\r\nfirst\n")
		}
	})
	tun := tunnel(t, begin)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tun.serve(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, "till-1")))
	}))
	defer server.Close()
	response, err := http.Get(server.URL + "/containerLogs/default/till/main?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	r := bufio.NewReader(response.Body)
	if line, err := r.ReadString('\n'); line != "first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	end()
	rest, err := io.ReadAll(r)
	if !strings.Contains(string(rest), "the line to node till-1 was cut") || err == nil {
		t.Errorf("the log ends with %q, %v; want a reason and an error", rest, err)
	}
}

// TestThePathThatIsCheckedIsTheOneThatIsServed: the right depends on the path.
func TestThePathThatIsCheckedIsTheOneThatIsServed(t *testing.T) {
	begin, _ := node(t, func(s link.Stream) {
		if r, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
			body := r.URL.EscapedPath()
			fmt.Fprintf(s, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	tun := tunnel(t, begin)
	for path, code := range map[string]int{
		"/stats/summary": 200, "/logs/": 200, "/containerLogs/ns/p/c": 200,
		"/stats/../exec/ns/p/c": 400, "/stats/%2e%2e/exec/ns/p/c": 400, "//exec/ns/p/c": 400, "/stats//summary": 400, "/./pods": 400, "/pods/.": 400,
	} {
		w := ask(t, tun, "till-1", path)
		if w.Code != code || code == 200 && w.Body.String() != path {
			t.Errorf("%s: %d %q, want %d", path, w.Code, w.Body.String(), code)
		}
	}
}

func TestRightsAreThoseOfAKubelet(t *testing.T) {
	for path, want := range map[string]string{
		"/stats/summary": "stats", "/stats": "stats", "/statsx": "proxy",
		"/metrics": "metrics", "/metrics/resource": "metrics", "/metrics/cadvisor": "metrics",
		"/logs/": "log", "/logs/edgecore.log": "log", "/logsx": "proxy",
		"/checkpoint/a/b/c": "checkpoint", "/statusz": "statusz", "/flagz": "configz",
		"/pods": "pods proxy", "/pods/": "pods proxy", "/runningpods/": "pods proxy",
		"/healthz": "healthz proxy", "/healthz/ping": "healthz proxy", "/configz": "configz proxy",
		"/exec/ns/p/c": "proxy", "/attach/ns/p/c": "proxy", "/portForward/ns/p": "proxy", "/run/ns/p/c": "proxy",
		"/containerLogs/ns/p/c": "proxy", "/": "proxy", "/podsx": "proxy", "/spec": "proxy",
	} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		var got []string
		for _, a := range attributes(r, "till-1") {
			if a.Resource != "nodes" || a.Name != "till-1" || a.Verb != "create" {
				t.Errorf("%s: %+v", path, a)
			}
			got = append(got, a.Subresource)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", path, got, want)
		}
	}
}

// pieces is a connection that gives its bytes in pieces of that size, and then ends.
type pieces struct {
	rest []byte
	size int
	end  error
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, p.end
	}
	n := copy(b, p.rest[:min(p.size, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}
func (p *pieces) Write([]byte) (int, error) { return 0, p.end }
func (p *pieces) Close() error              { return nil }

// TestACommandEndsWithTheReason: between two frames, or after one that is cut off.
func TestACommandEndsWithTheReason(t *testing.T) {
	const why = "the line was cut"
	open, output := "\x80\x03\x00\x02\x00\x00\x00\x05reply", "\x00\x00\x00\x03\x00\x00\x00\x02hi"
	status := string(lastFrame("exit 3"))
	frames := []string{open, output, "\x00\x00\x00\x03\x01\x00\x00\x00", status, "\x80\x03\x00\x03\x00\x00\x00\x08reset it"}
	all := strings.Join(frames, "")
	for _, end := range []error{io.EOF, link.ErrSilent} {
		for size := 1; size <= len(all); size++ {
			for cut := range len(all) + 1 {
				want, rest, told := "", cut, false
				for _, frame := range frames {
					if rest -= len(frame); rest < 0 {
						break
					}
					want, told = want+frame, told || frame == status
				}
				if !told {
					want += string(lastFrame(why))
				}
				c := newCommand(&pieces{[]byte(all[:cut]), size, end}, func(error) string { return why })
				close(c.left)
				var got strings.Builder
				if _, err := io.Copy(&got, c); got.String() != want || err != nil {
					t.Fatalf("pieces of %d, %v after %d: %q, %v, want %q", size, end, cut, got.String(), err, want)
				}
			}
		}
	}
}

// TestACommandEndsAfterItsClient: its streams end with the node's last word, and the
// connection when the client leaves, or has not in a long while.
func TestACommandEndsAfterItsClient(t *testing.T) {
	status := string(lastFrame("exit 3"))
	opens := "\x80\x03\x00\x01\x00\x00\x00\x04" // as far as is looked at
	for _, leaves := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newCommand(&pieces{[]byte(status), 7, io.EOF}, func(error) string { return "" })
			client, hub := net.Pipe()
			gone := make(chan error, 2)
			go func() {
				_, err := io.Copy(c, hub)
				gone <- err
			}()
			if _, err := io.WriteString(client, opens+"1234"+opens+"1234"+"\x00\x00\x00\x03\x00\x00\x00\x02in"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			var got strings.Builder
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(&got, c)
				ended <- err
			}()
			synctest.Wait()
			if want := status + "\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x03\x01\x00\x00\x00"; got.String() != want {
				t.Errorf("it ends with %q, want %q", got.String(), want)
			}
			began := time.Now()
			if leaves {
				client.Close()
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if took := time.Since(began); leaves && took > 0 || !leaves && took != lingerFor {
				t.Errorf("the client leaves: %v; the end after %s", leaves, took)
			}
			client.Close()
			if err := <-gone; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestALargeFrameIsNotKept: it passes in parts, and nothing is put into it.
func TestALargeFrameIsNotKept(t *testing.T) {
	large := append([]byte{0, 0, 0, 3, 0, 4, 0, 0}, make([]byte, 4<<16)...)
	for _, c := range []struct {
		cut  int
		said bool
	}{{len(large), true}, {len(large) - 1, false}, {frameBuffer + 1, false}, {frameBuffer - 1, true}} {
		var got bytes.Buffer
		node := newCommand(&pieces{large[:c.cut], 1 << 15, link.ErrSilent}, func(error) string { return "why" })
		close(node.left)
		_, err := io.Copy(&got, node)
		if said := bytes.HasSuffix(got.Bytes(), lastFrame("why")); said != c.said || said != (err == nil) {
			t.Errorf("cut after %d of %d: %d bytes, reason %v, %v", c.cut, len(large), got.Len(), said, err)
		}
	}
}

// TestWhatWasSaidArrives: a node ends and closes while much of what it said is on its way
// to a slow reader, which says something itself meanwhile.
func TestWhatWasSaidArrives(t *testing.T) {
	const size = 12 << 20
	begin, _ := node(t, func(s link.Stream) {
		r := bufio.NewReader(s)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		fmt.Fprint(s, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\n")
		if _, err := s.Write(make([]byte, size)); err != nil {
			t.Error(err)
		}
		s.Close()
	})
	server := secure(t, tunnel(t, begin), "till-1")
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig
	conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{RootCAs: trusted.RootCAs, ServerName: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /exec/a/b/c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\n")
	r := bufio.NewReader(conn)
	if response, err := http.ReadResponse(r, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v", response, err)
	}
	got := 0
	for b := make([]byte, 256<<10); ; {
		n, err := r.Read(b)
		got += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("after %d bytes: %v", got, err)
			break
		}
		if _, err := conn.Write([]byte("still here")); err != nil {
			t.Errorf("after %d bytes the reader is not listened to: %v", got, err)
			break
		}
		time.Sleep(time.Millisecond) // this is a slow reader
	}
	if got != size {
		t.Errorf("%d bytes of %d arrived", got, size)
	}
}
