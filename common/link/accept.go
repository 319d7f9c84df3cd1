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
}

func (o AcceptOptions) complete() AcceptOptions {
	o.Timing = o.Timing.Complete()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// acceptor hands the connections of its HTTP handler to Accept.
type acceptor struct {
	timing   Timing
	log      *slog.Logger
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
		timing: o.Timing,
		log:    o.Log,
		upgrader: websocket.Upgrader{
			HandshakeTimeout: 10 * time.Second,
			ReadBufferSize:   hubBuffer,
			WriteBufferSize:  hubBuffer,
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
	name, err := clientName(r.TLS)
	if err != nil {
		a.log.Info("refused a connection", "remote", r.RemoteAddr, "err", err)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	ws, err := a.upgrader.Upgrade(w, r, nil)
	if err != nil {
		// Upgrade has answered the request.
		a.log.Info("refused a connection", "node", name, "remote", r.RemoteAddr, "err", err)
		return
	}
	if err := tune(ws.NetConn(), a.timing); err != nil {
		a.log.Warn("a connection without all its TCP options", "node", name, "err", err)
	}
	t := a.timing
	c := newWebsocketConn(ws, name, t, t.EdgeSilent, t.HubPing, websocket.PingMessage)
	wait := time.NewTimer(acceptWait)
	defer wait.Stop()
	select {
	case a.conns <- c:
	case <-a.closed:
		c.end(ErrClosed)
	case <-wait.C:
		a.log.Warn("the hub is too busy to take a connection", "node", name, "remote", r.RemoteAddr)
		c.end(ErrClosed)
	}
}

// clientName is the node's name from the verified certificate.
func clientName(state *tls.ConnectionState) (string, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return "", fmt.Errorf("a node needs a client certificate of this hub's CA to connect: join it with \"holdfast join\"")
	}
	return pki.NodeName(state.VerifiedChains[0][0])
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
