// Package localstatus is the word that edgecore has for people at the node
// itself: one JSON document over a unix socket in the run directory, and its
// metrics beside it. edgecore serves it, `holdfast status` and `holdfast join` read it. It works without a
// line to the hub, tells nothing secret, and changes nothing.
package localstatus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// SocketName is the socket's name in the run directory.
const SocketName = "edgecore.sock"

// Serve answers GET /status on the socket in runDir (mode 0600) until ctx ends,
// GET /metrics, what devices serves, and more. It takes the place of a socket that
// nobody listens on any more.
func Serve(ctx context.Context, runDir string, status func(context.Context) Status, metrics, devices http.Handler, more ...Route) error {
	path := filepath.Join(runDir, SocketName)
	listener, err := unixsocket.Listen(path, 0o600)
	if err != nil {
		return fmt.Errorf("serve the local status on %s: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status(r.Context())) // a reader that went away needs no answer
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	if devices != nil {
		mux.Handle(DevicesPath, devices)
		mux.Handle(DevicesPath+"/", devices)
	}
	for _, r := range more {
		mux.Handle(r.Pattern, r.Handler)
	}
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		MaxHeaderBytes: 256 << 10, // the command of an exec is in its query
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the local status on %s: %w", path, err)
	}
	return nil
}

// ErrNotRunning: no edgecore answers on the socket.
var ErrNotRunning = errors.New("edgecore is not running")

// Get asks the edgecore whose run directory it is.
func Get(ctx context.Context, runDir string) (s Status, err error) {
	return s, get(ctx, runDir, "/status", &s)
}

// get reads one JSON document from edgecore's socket.
func get(ctx context.Context, runDir, document string, into any) error {
	return call(ctx, runDir, http.MethodGet, document, into)
}

// call makes one request on edgecore's socket. into takes the answer, a JSON document;
// nil: none is expected.
func call(ctx context.Context, runDir, method, document string, into any) error {
	path := filepath.Join(runDir, SocketName)
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://edgecore"+document, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%w (nothing answers on %s): start it with `systemctl start edgecore`, or see why it stopped with `journalctl -u edgecore`", ErrNotRunning, path)
		}
		return fmt.Errorf("ask edgecore on %s: %w", path, err)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		why, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		if err != nil || len(why) == 0 {
			return fmt.Errorf("ask edgecore on %s: %s", path, response.Status)
		}
		return fmt.Errorf("ask edgecore on %s: %s", path, strings.TrimSpace(string(why)))
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read edgecore's answer on %s: %w", path, err)
	}
	return nil
}
