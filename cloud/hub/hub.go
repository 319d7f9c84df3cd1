package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Cluster is what the hub asks of cloud/watch.
type Cluster interface {
	// Follow signals when what the node must hold may have changed.
	Follow(node string) (changed <-chan struct{}, stop func())
	// Resolver returns a function that works out what the node must hold; see
	// watch.Resolver.
	Resolver(node string) func(context.Context) (*roster.Wanted, error)
	// Gone asks the apiserver whether a pod is no longer meant for the node.
	Gone(ctx context.Context, node string, ref *wire.ObjectRef) (bool, error)
	// Node and Pods are what caches hold; neither may be changed.
	Node(name string) *corev1.Node
	Pods(node string) ([]*corev1.Pod, error)
}

// Reports is what the hub asks of cloud/report. What takes an epoch fails with
// report.ErrFenced once another session has claimed the node.
type Reports interface {
	Claim(ctx context.Context, node, store string) (report.Epoch, error)
	Renew(ctx context.Context, node string, epoch report.Epoch) error
	Write(ctx context.Context, node string, epoch report.Epoch, r *wire.Report) (*wire.ReportResult, error)
	Token(ctx context.Context, node string, ask *wire.TokenAsk) *wire.TokenAnswer
	RestoreNode(ctx context.Context, node string, epoch report.Epoch) error
	// NeedsEndpoint says whether a Node must be made to lead to this hub, which
	// RestoreNode does; known is false while it cannot be said.
	NeedsEndpoint(n *corev1.Node) (needs, known bool)
	RestoreReady(ctx context.Context, node string, epoch report.Epoch, pod *corev1.Pod) error
}

// Certificates is what the hub asks of cloud/enroll.
type Certificates interface {
	// Renew signs a further certificate for the node of a session, whose present
	// one was issued then.
	Renew(ctx context.Context, node string, issued time.Time, csrPEM []byte) *wire.CertificateAnswer
}

// Options are what a Hub needs.
type Options struct {
	Cluster Cluster
	Reports Reports
	// Devices and Routes carry what devices and routes of nodes say; nil: it stays at
	// the nodes.
	Devices, Routes Carrier
	// Certificates renews the nodes' certificates; nil: nobody does here.
	Certificates Certificates
	// Admit says why a node with a certificate of that time may not connect (any
	// more); nil: all may. It is asked again here, since a certificate may be
	// revoked between a connection's handshake and its session.
	Admit func(node string, issued time.Time) error
	// OnSession hears of every session that begins, and of its end before the next
	// of that node can begin; nil: nobody does. It must not block.
	OnSession func(n NodeInfo, ended bool)
	Log       *slog.Logger
	Version   string // of cloudcore, for people
	Timing    Timing
}

// Timing holds the hub's patience; zero values mean the defaults.
type Timing struct {
	Hello time.Duration // how long a new connection may be silent (10 s)
	Sync  time.Duration // how long a Welcome waits for what the node must hold (10 s)
	Renew time.Duration // at most one renewal of a lease in this time (20 s; keps/0012-cost-at-the-apiserver.md)
	Retry time.Duration // first wait after a failed read; doubles up to 30 s (100 ms)
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&t.Hello, 10*time.Second)
	set(&t.Sync, 10*time.Second)
	set(&t.Renew, 20*time.Second)
	set(&t.Retry, 100*time.Millisecond)
	return t
}

const maxRetry = 30 * time.Second

// Hub holds the sessions.
type Hub struct {
	cluster      Cluster
	reports      Reports
	devices      Carrier
	routes       Carrier
	certificates Certificates
	admit        func(node string, issued time.Time) error
	onSession    func(n NodeInfo, ended bool)
	log          *slog.Logger
	version      string
	timing       Timing
	counts       counts
	held         atomic.Int64 // bytes of reports that all sessions hold
	hush         hush

	mu       sync.Mutex
	sessions map[string]*session // by node
}

// New returns a Hub.
func New(o Options) *Hub {
	if o.Admit == nil {
		o.Admit = func(string, time.Time) error { return nil }
	}
	if o.OnSession == nil {
		o.OnSession = func(NodeInfo, bool) {}
	}
	return &Hub{cluster: o.Cluster, admit: o.Admit, onSession: o.OnSession, reports: o.Reports, devices: o.Devices, routes: o.Routes, certificates: o.Certificates, log: o.Log, version: o.Version,
		timing: o.Timing.withDefaults(), sessions: make(map[string]*session)}
}

// Connected is how many nodes have a session.
func (h *Hub) Connected() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// Serve accepts nodes until ctx ends, and returns when all sessions have. Each
// is told that the hub stops.
func (h *Hub) Serve(ctx context.Context, a link.Acceptor) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := a.Accept(ctx)
		if ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept nodes: %w", err)
		}
		all.Go(func() { h.serve(ctx, conn) })
	}
}

// goodbye ends a session with a reason that the edge is told.
type goodbye struct {
	reason  wire.Goodbye_Reason
	message string
}

func (g *goodbye) Error() string { return g.message }

// serve holds one connection from its first to its last byte.
func (h *Hub) serve(ctx context.Context, conn link.Conn) {
	defer conn.Close()
	s := h.begin(ctx, conn)
	if s == nil {
		return
	}
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		s.read()
	}()
	h.finish(s, s.run(), reading)
}

// begin makes a session of a connection; nil when the node is turned away.
func (h *Hub) begin(ctx context.Context, conn link.Conn) *session {
	log := h.log.With("node", conn.Peer(), "addr", conn.RemoteAddr())
	if conn.Peer() == "" {
		log.Error("a connection without a node's name was let in")
		return nil
	}
	var s *session
	hello, err := h.hello(ctx, conn)
	if err == nil {
		s = h.newSession(conn, hello)
		err = h.register(ctx, s)
	}
	if err != nil {
		h.tell(conn.Peer(), log, slog.LevelWarn, "a node was turned away", "err", err)
		h.counts.turnedAway.Add(1)
		h.turnAway(conn, err)
		return nil
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	h.counts.begun.Add(1)
	h.onSession(s.info(), false)
	h.tell(s.node, s.log(), slog.LevelInfo, "a node is connected", "version", hello.GetEdgeVersion(), "transport", conn.Transport())
	return s
}

// tell logs a node's coming or going, unless it did too often lately.
func (h *Hub) tell(node string, log *slog.Logger, level slog.Level, what string, args ...any) {
	ok, left := h.hush.mayTell(node, time.Now())
	if !ok {
		return
	}
	if left > 0 {
		args = append(args, "lines_left_out", left)
	}
	log.Log(context.Background(), level, what, args...)
}

// finish parts from the edge. reading is closed when nothing is read any more.
func (h *Hub) finish(s *session, why error, reading <-chan struct{}) {
	h.onSession(s.info(), true)
	h.unregister(s)
	h.counts.end(why)
	h.tell(s.node, s.log(), slog.LevelInfo, "a node is disconnected", "after", time.Since(s.began).Round(time.Millisecond), "rejected", s.rejected, "err", why)
	if h.part(s.conn, why) {
		select {
		case <-reading:
		case <-time.After(partTimeout):
		}
	}
	_ = s.conn.Close()
	<-reading
}

// hello reads the first message.
func (h *Hub) hello(ctx context.Context, conn link.Conn) (*wire.Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timing.Hello)
	defer cancel()
	b, err := conn.Recv(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for Hello: %w", err)
	}
	m, err := wire.DecodeEdge(b)
	if err != nil {
		return nil, protocolError(err)
	}
	hello := m.GetHello()
	if hello == nil {
		return nil, protocolError(errors.New("the first message is not Hello"))
	}
	if n := len(hello.GetStoreId()); n == 0 || n > maxWord {
		return nil, protocolError(fmt.Errorf("a hello with a store id of %d bytes: it has from 1 to %d", n, maxWord))
	}
	if n := len(hello.GetEdgeVersion()); n > maxWord {
		return nil, protocolError(fmt.Errorf("a hello with a version of %d bytes: it has at most %d", n, maxWord))
	}
	versions := hello.GetProtocolVersions()
	if slices.Contains(versions, wire.ProtocolVersion) {
		return hello, nil
	}
	return nil, &goodbye{wire.Goodbye_REASON_PROTOCOL_VERSION, fmt.Sprintf(
		"edgecore %s speaks protocol versions %v, this cloudcore (%s) speaks %d: upgrade the older of the two",
		hello.GetEdgeVersion(), versions[:min(len(versions), 8)], h.version, wire.ProtocolVersion)}
}

func protocolError(err error) *goodbye {
	return &goodbye{wire.Goodbye_REASON_PROTOCOL_ERROR, err.Error()}
}

// replaceTimeout is how long a new session waits for the end of the one that it
// replaces, so that no older report is written after a newer one.
const replaceTimeout = 15 * time.Second

// register makes s the session of its node, or says why it cannot be.
func (h *Hub) register(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, replaceTimeout)
	defer cancel()
	for {
		h.mu.Lock()
		was := h.sessions[s.node]
		if was == nil {
			h.sessions[s.node] = s
			h.mu.Unlock()
			// Only now: what is revoked from here on finds the session.
			if err := h.admit(s.node, s.conn.Issued()); err != nil {
				h.unregister(s)
				return &goodbye{wire.Goodbye_REASON_REVOKED, err.Error()}
			}
			return nil
		}
		h.mu.Unlock()
		if was.storeID != s.storeID {
			return &goodbye{wire.Goodbye_REASON_DUPLICATE, fmt.Sprintf(
				"node %s is connected from %s already; this connection from %s comes from another machine or another data directory. "+
					"If two machines were given one name, run \"holdfast reset\" on one and join it under another name; if this one replaces the other, stop the other",
				s.node, was.conn.RemoteAddr(), s.conn.RemoteAddr())}
		}
		was.end(&goodbye{wire.Goodbye_REASON_REPLACED, fmt.Sprintf("node %s connected again from %s", s.node, s.conn.RemoteAddr())})
		select {
		case <-was.ended:
		case <-ctx.Done():
			return &goodbye{wire.Goodbye_REASON_BUSY, fmt.Sprintf("the earlier session of node %s has not ended yet", s.node)}
		}
	}
}

// Revoke ends the node's session at once if its certificate was issued at or
// before that time. What keeps the node out is Options.Admit.
func (h *Hub) Revoke(node string, before time.Time) {
	h.mu.Lock()
	s := h.sessions[node]
	h.mu.Unlock()
	if s != nil && !s.conn.Issued().After(before) {
		s.end(&goodbye{wire.Goodbye_REASON_REVOKED, fmt.Sprintf("the certificates that node %s was given until %s are revoked", node, before.UTC().Format(time.RFC3339))})
	}
}

func (h *Hub) unregister(s *session) {
	h.mu.Lock()
	if h.sessions[s.node] == s {
		delete(h.sessions, s.node)
	}
	h.mu.Unlock()
	close(s.ended)
}

// partTimeout bounds a parting: the hub says why, then waits for the edge to
// hang up.
const partTimeout = 3 * time.Second

// turnAway ends a connection that has no session, with the reason.
func (h *Hub) turnAway(conn link.Conn, err error) {
	if !h.part(conn, err) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTimeout)
	defer cancel()
	for {
		if _, err := conn.Recv(ctx); err != nil {
			return
		}
	}
}

// part sends a Goodbye if err is one, and says whether it did.
func (h *Hub) part(conn link.Conn, err error) bool {
	var g *goodbye
	if !errors.As(err, &g) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTimeout)
	defer cancel()
	b, err := wire.Encode(&wire.HubMessage{Body: &wire.HubMessage_Goodbye{Goodbye: &wire.Goodbye{Reason: g.reason, Message: g.message}}})
	return err == nil && conn.Send(ctx, b) == nil
}
