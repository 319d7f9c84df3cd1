package stream_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
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
	dialer := websocket.Dialer{Subprotocols: []string{protocol}, NetDialContext: a.client.Transport.(*http.Transport).DialContext}
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
			for rest := data; len(rest) > 0; rest = rest[min(len(rest), 30<<10):] {
				if err := s.WriteMessage(websocket.BinaryMessage, append([]byte{stdin}, rest[:min(len(rest), 30<<10)]...)); err != nil {
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
