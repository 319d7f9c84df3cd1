package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// Bounds of the server.
const (
	headerTimeout = 30 * time.Second
	// MaxHeader is room for the words of an exec's command, which are in its query.
	MaxHeader = 256 << 10
	// maxRequests is how many requests are served at one time: all streams that the hub
	// may open, and some on the local socket.
	maxRequests = link.MaxStreams + 64
)

// Runtime is what is asked of edge/runtime.
type Runtime interface {
	List(ctx context.Context) (map[string]*runtime.Pod, error)
	RunningContainer(ctx context.Context, podUID, name string) (id string, err error)
	ReadySandbox(ctx context.Context, podUID string) (id string, err error)
	Log(ctx context.Context, id string) (path string, running bool, err error)
	ExecURL(ctx context.Context, id string, cmd []string, s runtime.Streams) (*url.URL, error)
	AttachURL(ctx context.Context, id string, s runtime.Streams) (*url.URL, error)
	PortForwardURL(ctx context.Context, sandbox string, ports []int32) (*url.URL, error)
	Network(ctx context.Context, sandbox string) (path string, err error)
	Exec(ctx context.Context, id string, cmd []string, timeout time.Duration) (runtime.ExecResult, error)
}

// Options of New. Node, Pods, Runtime and PodLogsDir must be set.
type Options struct {
	Node    string
	Pods    func() []*corev1.Pod    // with their present status; for reading alone
	Runtime func() (Runtime, error) // an error as long as it has never answered
	// PodLogsDir is where logs lie that the runtime cannot tell of any more.
	PodLogsDir string
	LogsDir    string       // served at /logs/; empty: /var/log
	Config     any          // served at /configz; without what is secret
	Stats      http.Handler // /stats/... and /metrics/...; nil: not found
	Metrics    http.Handler // /metrics; nil: not found
	// NodeLog has edgecore's own log; nil: the journal has it.
	NodeLog *Ring
	// Journalctl is the command that reads the journal; empty: there is none.
	Journalctl string
	// Dial connects to the runtime's streaming server and to ports of the node's own
	// network; nil: from this process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger
}

// Server serves the node's API.
type Server struct {
	o        Options
	log      *slog.Logger
	handler  http.Handler
	http     *http.Server
	requests chan struct{} // holds one for each request
	buffers  sync.Pool     // *[largeBuffer]byte

	journalTimeout time.Duration // a test's is shorter
}

// New makes a server; it runs nothing by itself.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.LogsDir == "" {
		o.LogsDir = "/var/log"
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	s := &Server{o: o, log: o.Log, requests: make(chan struct{}, maxRequests), journalTimeout: journalTimeout}
	s.buffers.New = func() any { return new([largeBuffer]byte) }
	s.handler = s.bounded(s.routes())
	s.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    MaxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(l net.Listener) context.Context { return l.(*single).ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:         func(c net.Conn, state http.ConnState) { c.(*conn).enters(state) },
	}
	s.http.SetKeepAlivesEnabled(false)
	return s
}

// Handler serves the API. Requests run for as long as their contexts and connections:
// whoever serves it sets no deadline for writing.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for pattern, serve := range map[string]http.HandlerFunc{
		"/exec/{namespace}/{pod}/{container}":         s.exec,
		"/exec/{namespace}/{pod}/{uid}/{container}":   s.exec,
		"/attach/{namespace}/{pod}/{container}":       s.attach,
		"/attach/{namespace}/{pod}/{uid}/{container}": s.attach,
		"/portForward/{namespace}/{pod}":              s.portForward,
		"/portForward/{namespace}/{pod}/{uid}":        s.portForward,
	} {
		mux.HandleFunc("GET "+pattern, serve)
		mux.HandleFunc("POST "+pattern, serve)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/{$}", s.pods)
	mux.HandleFunc("GET /runningpods/{$}", s.runningPods)
	mux.HandleFunc("GET /runningpods", s.runningPods)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /healthz/ping", ok)
	mux.HandleFunc("GET /healthz/log", ok)
	mux.HandleFunc("GET /healthz/syncloop", s.healthz)
	mux.HandleFunc("GET /configz", s.configz)
	mux.HandleFunc("GET /logs", s.logs)
	mux.HandleFunc("GET /logs/", s.logs)
	if s.o.Metrics != nil {
		mux.Handle("GET /metrics", s.o.Metrics)
	}
	if s.o.Stats != nil {
		mux.Handle("GET /stats/", s.o.Stats)
		mux.Handle("GET /metrics/", s.o.Stats)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.notServed(mux, w, r) })
	return mux
}

// bounded refuses what is too much, and paths that are not what they seem: the mux would
// redirect them, to where the client's view of the node does not begin at "/".
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			defer c.handled()
		}
		if clean := path.Clean("/" + r.URL.Path); clean != r.URL.Path && clean != strings.TrimSuffix(r.URL.Path, "/") {
			http.Error(w, fmt.Sprintf("path %q has empty or relative parts", r.URL.Path), http.StatusBadRequest)
			return
		}
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil { // else what is not understood would be passed over
			http.Error(w, fmt.Sprintf("query of %s: %v", r.URL.Path, err), http.StatusBadRequest)
			return
		}
		select {
		case s.requests <- struct{}{}:
			defer func() { <-s.requests }()
		default:
			http.Error(w, fmt.Sprintf("node %s serves %d requests already: try again when some have ended", s.o.Node, maxRequests), http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Serve serves the one request of a stream, until the stream is done with or ctx ends,
// and closes it. For uplink.Options.Serve.
func (s *Server) Serve(ctx context.Context, st link.Stream) {
	c := &conn{Stream: st, done: make(chan struct{})}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	if err := s.http.Serve(&single{ctx: ctx, conn: c}); !errors.Is(err, net.ErrClosed) {
		s.log.Warn("a stream of the hub was not served", "err", err)
	}
}

// single is a listener to which one connection comes.
type single struct {
	ctx   context.Context
	conn  *conn
	taken bool // by the one goroutine that accepts
}

// Accept returns the connection, and an error when that is done with: so http.Server.Serve
// returns with it.
func (l *single) Accept() (net.Conn, error) {
	if l.taken {
		<-l.conn.done
		return nil, net.ErrClosed
	}
	l.taken = true
	return l.conn, nil
}

func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return address{} }

// address is of no use to anybody, but http.Server wants one.
type address struct{}

func (address) Network() string { return "link" }
func (address) String() string  { return "hub" }

type connKey struct{}

// conn is a stream as a net.Conn.
type conn struct {
	link.Stream
	hijacked atomic.Bool
	once     sync.Once
	done     chan struct{} // closed when nobody uses the connection any more
}

func (*conn) LocalAddr() net.Addr  { return address{} }
func (*conn) RemoteAddr() net.Addr { return address{} }

// enters notes what the HTTP server does with the connection. Once a handler has
// taken it over, it is done with when the handler is.
func (c *conn) enters(state http.ConnState) {
	switch state {
	case http.StateHijacked:
		c.hijacked.Store(true)
	case http.StateClosed:
		c.finish()
	}
}

func (c *conn) handled() {
	if c.hijacked.Load() {
		c.Close()
		c.finish()
	}
}

func (c *conn) finish() { c.once.Do(func() { close(c.done) }) }
