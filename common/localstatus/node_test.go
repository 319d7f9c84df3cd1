package localstatus

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestNodeAPIIsServedBelowItsPath(t *testing.T) {
	dir := t.TempDir()
	ended := make(chan struct{})
	api := http.NewServeMux()
	api.HandleFunc("GET /pods/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.PathValue("name"), r.URL.Query().Get("command"))
	})
	api.HandleFunc("POST /exec", func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = rw.WriteString("taken over\n")
		_ = rw.Flush()
		<-r.Context().Done() // what was taken over is not closed by the server: its handler is told
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, dir, func(context.Context) Status { return Status{} }, nil, nil, NodeRoute(api))
	}()
	deadline := time.After(2 * time.Minute)
	for {
		if _, err := Get(ctx, dir); err == nil {
			break
		}
		select {
		case <-deadline:
			t.Fatal("no answer")
		case <-time.After(time.Millisecond):
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, SocketName))
	}}}
	long := strings.Repeat("x", 100<<10) // words of a command
	response, err := client.Get("http://edgecore" + NodePath + "/pods/web?command=" + long)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || string(body) != "web"+long {
		t.Errorf("%s, %d bytes, %v", response.Status, len(body), err)
	}

	c, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s/exec HTTP/1.1\r\nHost: edgecore\r\n\r\n", NodePath)
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "taken over\n" {
		t.Fatalf("%q, %v", line, err)
	}
	cancel()
	<-ended
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNodeStreamsOutlastTheServersDeadline: a followed log goes on for longer than any
// other answer may take.
func TestNodeStreamsOutlastTheServersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := NodeRoute(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for range 3 {
				time.Sleep(time.Minute) // of the bubble's clock
				fmt.Fprintln(w, "line")
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
			}
		}))
		mine, theirs := net.Pipe()
		l := make(pipes, 1)
		l <- theirs
		server := &http.Server{Handler: route.Handler, WriteTimeout: 30 * time.Second}
		go func() { _ = server.Serve(l) }()
		go fmt.Fprintf(mine, "GET %s/log HTTP/1.1\r\nHost: edgecore\r\nConnection: close\r\n\r\n", NodePath)
		response, err := http.ReadResponse(bufio.NewReader(mine), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); string(body) != "line\nline\nline\n" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
		mine.Close()
		server.Close()
	})
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
