package stream_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Channels of v4.channel.k8s.io, the first byte of each message.
const (
	stdin, stdout, stderr, problem = 0, 1, 2, 3
	resize                         = 4
)

// socket is a client of the protocol by which old clients exec, attach and forward.
type socket struct {
	*websocket.Conn
	t   *testing.T
	got [3]bytes.Buffer
}

// dial upgrades to websocket; what the server says if it does not.
func (a *api) dial(path, protocol string) (*socket, string) {
	a.t.Helper()
	// The buffer holds a message: containerd takes no fragments.
	dialer := websocket.Dialer{WriteBufferSize: 64 << 10, Subprotocols: []string{protocol}, NetDialContext: a.client.Transport.(*http.Transport).DialContext}
	c, response, err := dialer.DialContext(a.t.Context(), "ws://edge-1"+path, nil)
	if err != nil {
		if response == nil {
			a.t.Fatalf("%s: %v", path, err)
		}
		body, _ := io.ReadAll(response.Body)
		return nil, fmt.Sprintf("%d %s", response.StatusCode, body)
	}
	a.t.Cleanup(func() { c.Close() })
	return &socket{Conn: c, t: a.t}, ""
}

func (a *api) open(path string) *socket {
	a.t.Helper()
	s, refused := a.dial(path, "v4.channel.k8s.io")
	if refused != "" {
		a.t.Fatalf("%s: %s", path, refused)
	}
	return s
}

func (s *socket) send(channel byte, data []byte) {
	s.t.Helper()
	must(s.t, s.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...)))
}

// await reads until what came on a channel has the text in it.
func (s *socket) await(channel int, text string) {
	s.t.Helper()
	for !strings.Contains(s.got[channel].String(), text) {
		s.read()
	}
}

// read takes one message, and what it says of the end if it is that.
func (s *socket) read() *metav1.Status {
	s.t.Helper()
	_, message, err := s.ReadMessage()
	if err != nil {
		s.t.Fatalf("after %q and %q: %v", s.got[stdout].String(), s.got[stderr].String(), err)
	}
	if len(message) == 0 {
		return nil
	}
	if message[0] == problem {
		var status metav1.Status
		must(s.t, json.Unmarshal(message[1:], &status))
		return &status
	}
	s.got[message[0]].Write(message[1:])
	return nil
}

// end reads until the command has ended, and then until the connection has.
func (s *socket) end() *metav1.Status {
	s.t.Helper()
	for {
		status := s.read()
		if status == nil {
			continue
		}
		for {
			if _, _, err := s.ReadMessage(); err != nil {
				return status
			}
		}
	}
}

func exitCode(s *metav1.Status) string {
	if s.Status == metav1.StatusSuccess {
		return "0"
	}
	if s.Details != nil {
		for _, c := range s.Details.Causes {
			if c.Type == "ExitCode" {
				return c.Message
			}
		}
	}
	return fmt.Sprint(s)
}

func execInAContainer(t *testing.T, n *node) {
	const exec = "/exec/shop/web/main?output=1&error=1"
	t.Run("OutputAndExitCode", func(t *testing.T) {
		s := n.open(exec + "&command=sh&command=-c&command=echo+out%3B+echo+err+%3E%262%3B+exit+42")
		if code := exitCode(s.end()); code != "42" || s.got[stdout].String() != "out\n" || s.got[stderr].String() != "err\n" {
			t.Errorf("exit code %s, stdout %q, stderr %q", code, s.got[stdout].String(), s.got[stderr].String())
		}
		s = n.open("/exec/shop/web/uid-web/main?stdout=true&command=true")
		if code := exitCode(s.end()); code != "0" {
			t.Errorf("exit code of true: %s", code)
		}
	})
	t.Run("LargeInputAndOutput", func(t *testing.T) {
		s := n.open(exec + "&input=1&command=cat")
		data := bytes.Repeat([]byte("0123456789abcde\n"), 256<<10) // 4 MiB
		sent := make(chan error, 1)
		go func() {
			const most = 30 << 10
			for at := 0; at < len(data); at += most {
				if err := s.WriteMessage(websocket.BinaryMessage, append([]byte{stdin}, data[at:min(at+most, len(data))]...)); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for s.got[stdout].Len() < len(data) {
			s.read()
		}
		must(t, <-sent)
		if !bytes.Equal(s.got[stdout].Bytes(), data) {
			t.Error("what came back is not what was sent")
		}
	})
	t.Run("SlowReader", func(t *testing.T) { slowReader(t, n) })
	t.Run("Terminal", func(t *testing.T) {
		s := n.open("/exec/shop/web/main?input=1&output=1&tty=1&command=sh")
		s.send(resize, []byte(`{"Width":97,"Height":31}`))
		s.send(stdin, []byte("until [ \"$(stty size)\" = '31 97' ]; do :; done; echo resi''zed\n"))
		s.await(stdout, "resized")
		s.send(stdin, []byte("exit 7\n"))
		if code := exitCode(s.end()); code != "7" {
			t.Errorf("exit code %s", code)
		}
	})
	t.Run("ClientGoesAway", func(t *testing.T) {
		s := n.open("/exec/shop/web/main?input=1&output=1&tty=1&command=sh")
		s.send(stdin, []byte("echo rea''dy\n"))
		s.await(stdout, "ready")
		s.Close() // the end of the stream is awaited by serve's cleanup
	})
	t.Run("LineIsCut", func(t *testing.T) {
		other := serve(t, n.options)
		s := other.open("/exec/shop/web/main?input=1&output=1&tty=1&command=sh")
		s.send(stdin, []byte("echo rea''dy\n"))
		s.await(stdout, "ready")
		other.cut()
		for {
			if _, _, err := s.ReadMessage(); err != nil {
				var closed *websocket.CloseError
				if errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure {
					t.Error("the cut line looked like an orderly end")
				}
				return
			}
		}
	})
}

func attachToAContainer(t *testing.T, n *node) {
	tty := shell("main", "while read line; do echo got $line; done")
	tty.Stdin, tty.TTY = true, true
	p := newPod("console", tty)
	n.apply(p)
	n.await(p, "console runs", running)
	s := n.open("/attach/shop/console/main?input=1&output=1") // tty is as the container has it
	s.send(stdin, []byte("hello\n"))
	s.await(stdout, "got hello\r\n")
	s.Close()
	again := n.open("/attach/shop/console/uid-console/main?input=1&output=1&tty=1")
	again.send(stdin, []byte("again\n"))
	again.await(stdout, "got again\r\n")
}

// forwarded sends a line to a port over one websocket and reads what comes back.
func (a *api) forwarded(path, send string) string {
	a.t.Helper()
	s, refused := a.dial(path, "v4.channel.k8s.io")
	if refused != "" {
		a.t.Fatalf("%s: %s", path, refused)
	}
	s.send(0, []byte(send)) // channel 0 is data, 1 errors; each begins with the port's number
	var data []byte
	for begun := 0; ; {
		_, message, err := s.ReadMessage()
		if err != nil {
			a.t.Fatalf("%s: after %q: %v", path, data, err)
		}
		switch {
		case len(message) == 0:
		case begun < 2:
			begun++
		case message[0] == 1:
			a.t.Fatalf("%s: %s", path, message[1:])
		default:
			if data = append(data, message[1:]...); bytes.HasSuffix(data, []byte("\n")) {
				return string(data)
			}
		}
	}
}

func forwardPorts(t *testing.T, n *node) {
	const server = "exec nc -ll -p %d -e sh -c 'read line; echo %s $line'"
	cni := newPod("cni", shell("main", fmt.Sprintf(server, 8080, "cni")))
	host := newPod("host", shell("main", fmt.Sprintf(server, 18080, "host")))
	host.Spec.HostNetwork = true
	n.apply(cni)
	n.apply(host)
	n.await(cni, "cni runs", running)
	n.await(host, "host runs", running)
	listens := func(pod, port string) {
		eventually(t, pod+" listens", func() error {
			code, body := n.call(http.MethodPost, "/run/shop/"+pod+"/main?cmd=grep+-q+:"+port+"+/proc/net/tcp+/proc/net/tcp6")
			if code != http.StatusOK {
				return errors.New(body)
			}
			return nil
		})
	}
	listens("cni", fmt.Sprintf("%04X", 8080))
	listens("host", fmt.Sprintf("%04X", 18080))
	if got := n.forwarded("/portForward/shop/cni?port=8080", "one\n"); got != "cni one\n" {
		t.Errorf("from the pod with its own network: %q", got)
	}
	if got := n.forwarded("/portForward/shop/host/uid-host?port=18080", "two\n"); got != "host two\n" {
		t.Errorf("from the pod in the node's network: %q", got)
	}
}

// gate is a connection that is not read while it is shut.
type gate struct {
	net.Conn
	shut sync.RWMutex
}

func (g *gate) Read(b []byte) (int, error) {
	g.shut.RLock()
	defer g.shut.RUnlock()
	return g.Conn.Read(b)
}

// slowReader: all that a command said arrives, also where it has ended and the runtime
// has closed while it was on its way, and where the client has said something since: its
// keep-alive.
func slowReader(t *testing.T, n *node) {
	const size = 6 << 20
	var g *gate
	session, refused := n.spdy("/exec/shop/web/main?output=1&command=head&command=-c&command="+strconv.Itoa(size)+"&command=/dev/zero",
		"v4.channel.k8s.io", func(c net.Conn) net.Conn { g = &gate{Conn: c}; return g })
	if refused != "" {
		t.Fatal(refused)
	}
	open := func(kind string) *spdystream.Stream {
		s, err := session.CreateStream(http.Header{"Streamtype": {kind}}, nil, false)
		must(t, err)
		must(t, s.WaitTimeout(patience))
		return s
	}
	problems, out := open("error"), open("stdout")
	said := make(chan int64, 1)
	go func() {
		size, _ := io.Copy(io.Discard, out) // what is missing is seen by its size
		said <- size
	}()
	first := make(chan struct{})
	go func() {
		for range 50 {
			g.shut.Lock()
			time.Sleep(20 * time.Millisecond) // this is a slow reader
			g.shut.Unlock()
		}
		close(first)
	}()
	go func() {
		for {
			if _, err := session.Ping(); err != nil {
				return
			}
		}
	}()
	if got := <-said; got != size {
		t.Errorf("%d bytes of %d arrived", got, size)
	}
	status, err := io.ReadAll(problems)
	if err != nil || !strings.Contains(string(status), "Success") {
		t.Errorf("how it ended: %q, %v", status, err)
	}
	<-first
}
