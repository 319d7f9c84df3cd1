package stream_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/sys/unix"
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

// forwardToWeb opens a session to a pod in the network of this test.
func forwardToWeb(t *testing.T) *forwarding {
	t.Helper()
	f, refused := newAPI(t, &fake{running: []string{"sandbox"}}, nil).forwardBy("/portForward/shop/web", "portforward.k8s.io")
	if refused != "" {
		t.Fatal(refused)
	}
	return f
}

// TestClientOfAPodThatDoesNotReadIsLetGo: what the pod does not take waits, and must not
// hide that the client has gone.
func TestClientOfAPodThatDoesNotReadIsLetGo(t *testing.T) {
	pod, err := net.Listen("tcp", "127.0.0.1:0") // nobody reads what is sent there
	must(t, err)
	t.Cleanup(func() { pod.Close() })
	_, port, err := net.SplitHostPort(pod.Addr().String())
	must(t, err)
	number, err := strconv.Atoi(port)
	must(t, err)
	for name, leave := range map[string]func(*forwarding, *spdystream.Stream, net.Conn){
		"SomeWaits": func(_ *forwarding, data *spdystream.Stream, client net.Conn) {
			for range 20 {
				_, err := data.Write(make([]byte, 512<<10))
				must(t, err)
			}
			must(t, client.Close())
		},
		"NothingMoreIsRead": func(_ *forwarding, data *spdystream.Stream, client net.Conn) {
			must(t, client.SetWriteDeadline(time.Now().Add(2*time.Second)))
			for err = nil; err == nil; {
				_, err = data.Write(make([]byte, 512<<10))
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			must(t, client.(*net.TCPConn).SetLinger(0))
			must(t, client.Close())
		},
		"OnAStreamOfNoUse": func(f *forwarding, _ *spdystream.Stream, client net.Conn) {
			problems := f.stream("error", 100, number) // to which no other one belongs
			_, err := problems.Write([]byte("who reads this?"))
			must(t, err)
			must(t, client.Close())
		},
		"OnTheStreamOfProblems": func(f *forwarding, _ *spdystream.Stream, client net.Conn) {
			problems := f.stream("error", 100, number)
			f.stream("data", 100, number)
			_, err := problems.Write([]byte("who reads this?"))
			must(t, err)
			must(t, client.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, &fake{running: []string{"sandbox"}}, nil)
			var client net.Conn
			session, refused := a.spdy("/portForward/shop/web", "portforward.k8s.io", func(c net.Conn) net.Conn {
				client = c.(upgraded).Conn
				return c
			})
			if refused != "" {
				t.Fatal(refused)
			}
			f := &forwarding{Connection: session, t: t}
			data, _ := f.open(number)
			leave(f, data, client)
			eventually(t, "the stream is free", func() error {
				if n := a.serving.Load(); n > 0 {
					return fmt.Errorf("%d streams are served", n)
				}
				return nil
			})
		})
	}
}

// TestSlowPodGetsAllOfAClientThatHasGone: though it takes nothing for a while.
func TestSlowPodGetsAllOfAClientThatHasGone(t *testing.T) {
	pod, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { pod.Close() })
	f := forwardToWeb(t)
	data, _ := f.open(pod.Addr().(*net.TCPAddr).Port)
	conn, err := pod.Accept()
	must(t, err)
	defer conn.Close()
	const sent = 20 << 20
	for range 40 {
		_, err := data.Write(make([]byte, sent/40))
		must(t, err)
	}
	must(t, f.Close())
	time.Sleep(3 * time.Second) // the pod has other things to do
	if n, err := io.Copy(io.Discard, conn); n != sent || err != nil {
		t.Errorf("the pod got %d bytes of %d: %v", n, sent, err)
	}
}

// TestPodThatTakesNewConnectionsLate: while its queue is full the kernel throws attempts
// away and makes another after 1, 3, 7, 15, 31 s. An error on one connection makes kubectl
// end them all.
func TestPodThatTakesNewConnectionsLate(t *testing.T) {
	t.Parallel()
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	file := os.NewFile(uintptr(socket), "pod")
	defer file.Close()
	must(t, unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(socket, 0)) // one may wait
	pod, err := net.FileListener(file)
	must(t, err)
	defer pod.Close()
	waits, err := net.Dial("tcp", pod.Addr().String())
	must(t, err)
	defer waits.Close()

	f := forwardToWeb(t)
	data, problems := f.open(pod.Addr().(*net.TCPAddr).Port)
	time.Sleep(11 * time.Second) // past the attempts of the first 7 s
	must(t, pod.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
	for range 2 {
		conn, err := pod.Accept()
		must(t, err)
		_, err = conn.Write([]byte("late"))
		must(t, errors.Join(err, conn.Close()))
	}
	answer, err := io.ReadAll(data)
	said, _ := io.ReadAll(problems)
	if err != nil || string(answer) != "late" || len(said) > 0 {
		t.Errorf("%q, %v; of problems is said %q", answer, err, said)
	}
}

// TestPodThatResetsAConnection: the others go on, so kubectl must not hear of an error.
func TestPodThatResetsAConnection(t *testing.T) {
	pod, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer pod.Close()
	f := forwardToWeb(t)
	open := func() (data, problems *spdystream.Stream, conn *net.TCPConn) {
		t.Helper()
		data, problems = f.open(pod.Addr().(*net.TCPAddr).Port)
		c, err := pod.Accept()
		must(t, err)
		return data, problems, c.(*net.TCPConn)
	}
	other, _, otherEnd := open()
	defer otherEnd.Close()
	data, problems, conn := open()
	must(t, errors.Join(conn.SetLinger(0), conn.Close()))
	if rest, err := io.ReadAll(data); err != nil || len(rest) > 0 {
		t.Errorf("of the reset connection comes %q, %v", rest, err)
	}
	if said, err := io.ReadAll(problems); err != nil || len(said) > 0 {
		t.Errorf("of problems is said %q, %v", said, err)
	}
	_, err = otherEnd.Write([]byte("still here"))
	must(t, err)
	got := make([]byte, len("still here"))
	if _, err := io.ReadFull(other, got); err != nil || string(got) != "still here" {
		t.Errorf("of the other comes %q, %v", got, err)
	}
}

// endless is a reader of zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { clear(b); return len(b), nil }
