package stream_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/moby/spdystream"
)

// forwarding is a client that forwards ports as kubectl does.
type forwarding struct {
	*spdystream.Connection
	t    *testing.T
	next int
}

// upgraded is a connection whose beginning was read with the answer.
type upgraded struct {
	net.Conn
	r *bufio.Reader
}

func (u upgraded) Read(b []byte) (int, error) { return u.r.Read(b) }

// spdy opens a session over a connection that the client may slow down; what the server
// says if it opens none.
func (a *api) spdy(path, protocol string, slow func(net.Conn) net.Conn) (*spdystream.Connection, string) {
	a.t.Helper()
	conn, err := a.client.Transport.(*http.Transport).DialContext(a.t.Context(), "tcp", "edge-1:80")
	must(a.t, err)
	a.t.Cleanup(func() { conn.Close() })
	request, err := http.NewRequest(http.MethodPost, "http://edge-1"+path, nil)
	must(a.t, err)
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol} {
		request.Header.Set(name, value)
	}
	must(a.t, request.Write(conn))
	r := bufio.NewReader(conn)
	response, err := http.ReadResponse(r, request)
	must(a.t, err)
	if response.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(response.Body)
		return nil, fmt.Sprintf("%d %s", response.StatusCode, body)
	}
	session, err := spdystream.NewConnection(slow(upgraded{conn, r}), false)
	must(a.t, err)
	go session.Serve(spdystream.NoOpStreamHandler)
	return session, ""
}

// forwardBy opens a session; what the server says if it does not.
func (a *api) forwardBy(path, protocol string) (*forwarding, string) {
	a.t.Helper()
	session, refused := a.spdy(path, protocol, func(c net.Conn) net.Conn { return c })
	return &forwarding{Connection: session, t: a.t}, refused
}

func (f *forwarding) stream(kind string, request, port int) *spdystream.Stream {
	f.t.Helper()
	s, err := f.CreateStream(http.Header{"Streamtype": {kind}, "Requestid": {fmt.Sprint(request)}, "Port": {fmt.Sprint(port)}}, nil, false)
	must(f.t, err)
	must(f.t, s.WaitTimeout(patience))
	return s
}

// open makes one forwarded connection.
func (f *forwarding) open(port int) (data, problems *spdystream.Stream) {
	f.t.Helper()
	f.next++
	problems = f.stream("error", f.next, port)
	must(f.t, problems.Close())
	return f.stream("data", f.next, port), problems
}

// forwardHalves: who has said all still hears the answer, both ways.
func forwardHalves(t *testing.T, n *node) {
	p := newPod("halves", shell("main", `nc -ll -p 9000 -e sh -c 'wc -c; echo counted' & nc -ll -p 9001 -e sh -c 'cat >/dev/null; touch /tmp/over' & `+
		`nc -ll -p 9002 -e cat & while [ $(netstat -ltn | grep -c :900) -lt 3 ]; do sleep 0.1; done; touch /tmp/listening; `+forever))
	n.apply(p)
	n.await(p, "it runs", running)
	there := func(file string) {
		t.Helper()
		eventually(t, file+" is there", func() error {
			if code, body := n.call(http.MethodPost, "/run/shop/halves/main?cmd=test+-e+"+file); code != http.StatusOK {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	}
	there("/tmp/listening")
	if _, refused := n.forwardBy("/portForward/shop/halves", "something.else"); !strings.HasPrefix(refused, "403") {
		t.Errorf("another protocol: %q", refused)
	}
	f, refused := n.forwardBy("/portForward/shop/halves", "portforward.k8s.io")
	if refused != "" {
		t.Fatal(refused)
	}

	data, problems := f.open(9000)
	_, err := io.Copy(data, io.LimitReader(endless{}, 1<<20))
	must(t, err)
	must(t, data.Close())
	if answer, err := io.ReadAll(data); err != nil || string(answer) != "1048576\ncounted\n" {
		t.Errorf("the answer to what ended: %q, %v", answer, err)
	}
	if said, err := io.ReadAll(problems); err != nil || len(said) > 0 {
		t.Errorf("nothing went wrong, and this is said: %q, %v", said, err)
	}

	data, problems = f.open(9999)
	if said, err := io.ReadAll(problems); err != nil || !strings.Contains(string(said), "port 9999 of pod shop/halves") || !strings.Contains(string(said), "refused") {
		t.Errorf("nobody listens: %q, %v", said, err)
	}
	if rest, err := io.ReadAll(data); err != nil || len(rest) > 0 {
		t.Errorf("nobody listens, and this comes: %q, %v", rest, err)
	}

	// The session goes on: many at once, each with its own bytes.
	var crowd sync.WaitGroup
	for i := range 50 {
		data, _ := f.open(9002)
		crowd.Go(func() {
			sent := bytes.Repeat([]byte{byte('a' + i%26)}, 100_000)
			go func() { _, _ = data.Write(sent) }() // what is not written does not come back
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(data, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("connection %d of 50: %v", i, err)
			}
			_ = data.Close()
		})
	}
	crowd.Wait()

	// Who breaks off leaves nobody waiting.
	data, _ = f.open(9001)
	_, err = data.Write([]byte("to be continued"))
	must(t, err)
	must(t, data.Reset())
	there("/tmp/over")
}

// endless is a reader of zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { clear(b); return len(b), nil }
