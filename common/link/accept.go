package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// acceptWait is how long a connection waits for the hub to take it.
const acceptWait = 30 * time.Second

// AcceptOptions say how the hub takes connections.
type AcceptOptions struct {
	Timing Timing // zero values are filled in
	Log    *slog.Logger
	// Admit is asked about each connection whose certificate is good; its error
	// turns the node away and is told to it. nil: all may connect.
	Admit func(node string, issued time.Time) error
	// Streams lets edges open streams, for AcceptStream; without it they are refused
	// (a hub opens streams in either case). Over QUIC it costs a goroutine an edge.
	Streams bool
	// Strangers bounds and counts the connections that have not authenticated; nil:
	// the acceptor has its own.
	Strangers *Strangers
}

func (o AcceptOptions) complete() AcceptOptions {
	o.Timing = o.Timing.Complete()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Strangers == nil {
		o.Strangers = NewStrangers(0, o.Log)
	}
	if o.Admit == nil {
		o.Admit = func(string, time.Time) error { return nil }
	}
	return o
}

// acceptor hands the connections of its HTTP handler to Accept.
type acceptor struct {
	AcceptOptions
	upgrader websocket.Upgrader
	conns    chan *websocketConn
	closed   chan struct{}
	once     sync.Once
}

// AcceptWebsocket returns the hub's end of the websocket transport, and the
// handler that feeds it, for Path of a TLS server. The server's TLS
// configuration must verify client certificates that are given
// (tls.VerifyClientCertIfGiven) on every connection (no session tickets); the
// handler refuses requests without one.
func AcceptWebsocket(o AcceptOptions) (Acceptor, http.Handler) {
	o = o.complete()
	a := &acceptor{
		AcceptOptions: o,
		upgrader: websocket.Upgrader{
			HandshakeTimeout: 10 * time.Second,
			ReadBufferSize:   hubBuffer,
			WriteBufferSize:  writeBuffer,
			WriteBufferPool:  new(sync.Pool),
			Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
				http.Error(w, reason.Error(), status)
			},
		},
		conns:  make(chan *websocketConn),
		closed: make(chan struct{}),
	}
	return a, a
}

// ServeHTTP takes one connection, or says in plain words why not.
func (a *acceptor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != Path {
		http.Error(w, fmt.Sprintf("nothing at %s: edge nodes connect to %s", r.URL.Path, Path), http.StatusNotFound)
		return
	}
	who, err := clientOf(r.TLS)
	if err != nil {
		a.Strangers.count(overWebsocket, certificate)
		a.Strangers.say(slog.LevelInfo, "refused a connection without a node's certificate", "remote", r.RemoteAddr, "err", err)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	if err := a.Admit(who.name, who.issued); err != nil {
		a.Strangers.count(overWebsocket, denied)
		a.Strangers.say(slog.LevelInfo, "refused a node", "node", who.name, "remote", r.RemoteAddr, "err", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	ws, err := a.upgrader.Upgrade(w, r, nil)
	if err != nil {
		// Upgrade has answered the request.
		a.Strangers.count(overWebsocket, malformed)
		a.Strangers.say(slog.LevelInfo, "refused a connection that is no websocket", "node", who.name, "remote", r.RemoteAddr, "err", err)
		return
	}
	a.Strangers.settle(ws.NetConn(), accepted)
	if err := tune(ws.NetConn(), a.Timing); err != nil {
		a.Log.Warn("a connection without all its TCP options", "node", who.name, "err", err)
	}
	t := a.Timing
	c := newWebsocketConn(ws, who, t, t.EdgeSilent, t.HubPing, hubPinging)
	c.opensOnly = !a.Streams
	wait := time.NewTimer(acceptWait)
	defer wait.Stop()
	select {
	case a.conns <- c:
	case <-a.closed:
		c.end(ErrClosed)
	case <-wait.C:
		a.Strangers.count(overWebsocket, busy)
		a.Strangers.say(slog.LevelWarn, "the hub is too busy to take a connection", "node", who.name, "remote", r.RemoteAddr)
		c.end(ErrClosed)
	}
}

// peer is who is at the other end.
type peer struct {
	name   string    // the node's, or the hub's address
	issued time.Time // of the node's certificate
}

// clientOf is the node of the verified certificate.
func clientOf(state *tls.ConnectionState) (peer, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return peer{}, fmt.Errorf("a node needs a client certificate of this hub's CA to connect: join it with \"holdfast join\"")
	}
	cert := state.VerifiedChains[0][0]
	name, err := pki.NodeName(cert)
	return peer{name: name, issued: pki.IssuedAt(cert)}, err
}

func (a *acceptor) Accept(ctx context.Context) (Conn, error) {
	select {
	case <-a.closed:
		return nil, ErrClosed
	default:
	}
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close refuses what comes from now on; connections that were accepted go on.
func (a *acceptor) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}
