package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/link"
)

// Limits of the HTTP side. Answers have none: a log may be followed for days.
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10 // a command is in the URL
	// refusedTimeout is how long the rest of a request may take that was not passed on:
	// the server reads some of it before it answers.
	refusedTimeout = 5 * time.Second
	stopTimeout    = 5 * time.Second
)

// Access is what a Tunnel asks of cloud/access.
type Access interface {
	Authenticate(ctx context.Context, r *http.Request) (*authenticationv1.UserInfo, error)
	Authorize(ctx context.Context, user *authenticationv1.UserInfo, anyOf ...authorizationv1.ResourceAttributes) error
}

// Options are what a Tunnel needs.
type Options struct {
	// Address is the address of this hub that Nodes name, and Bind where the ports are
	// opened; First and Last are their range.
	Address, Bind netip.Addr
	First, Last   int
	// Begin begins a stream to a node (hub.BeginStream).
	Begin func(ctx context.Context, node string) (link.BegunStream, error)
	// Holds says that a node is connected to this hub (hub.Holds).
	Holds  func(node string) bool
	Access Access
	Client kubernetes.Interface // reads which Nodes there are
	// WaitSynced waits until OnNode misses nothing any more.
	WaitSynced func(context.Context) error
	// Serving is the certificate of the ports.
	Serving func() *tls.Certificate
	// Peers is how hubs know one another.
	Peers Peers
	// TakenWithin is how long a node may take to take a stream (15 s), and AnswerWithin
	// how long then to begin its answer (1 min).
	TakenWithin, AnswerWithin time.Duration
	Log                       *slog.Logger
	Now                       func() time.Time // nil: time.Now
}

// Peers are the hubs of one cluster. Each passes on what is for a node of another.
type Peers struct {
	CA         *x509.CertPool          // signs what hubs show one another
	Name       string                  // the name in the certificate that a hub serves to hubs
	Serving    func() *tls.Certificate // what this hub serves to them
	Client     func() *tls.Certificate // what it shows to them
	ClientName string                  // the name in that
}

// Tunnel serves the nodes' ports.
type Tunnel struct {
	o      Options
	ports  *ports
	nodes  directory
	known  atomic.Bool  // every Node has been seen
	near   http.Handler // to a node of this hub
	far    http.Handler // by another hub
	counts counts
}

// New opens nothing but what listens; a Tunnel serves in Run.
func New(o Options) (*Tunnel, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TakenWithin == 0 {
		o.TakenWithin = 15 * time.Second
	}
	if o.AnswerWithin == 0 {
		o.AnswerWithin = time.Minute
	}
	p, err := openPorts(o.Bind, o.First, o.Last, o.Log)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{o: o, ports: p, nodes: directory{address: o.Address, all: make(map[string]place), claims: make(map[int]string)}}
	p.claimed = t.nodes.claimed
	t.near = t.proxy(t.streams())
	t.far = t.proxy(t.hubs())
	return t, nil
}

// Endpoint is where a node is reached through this hub, for its Node; false: nowhere,
// or not yet. It opens the node's port.
func (t *Tunnel) Endpoint(node string) (address string, port int32, ok bool) {
	if !t.known.Load() { // a free port may be that of a node not seen yet
		return "", 0, false
	}
	if has := t.ports.of(node); has != 0 {
		return t.o.Address.String(), int32(has), true
	}
	wanted := 0
	if at, known := t.nodes.of(node); known && at.address == t.o.Address {
		wanted = at.port
	}
	given, err := t.ports.give(node, wanted)
	if err != nil {
		if t.counts.refusedPort.Add(1) == 1 {
			t.o.Log.Error("a node gets no port: kubectl logs, exec and top will not reach it; further ones are only counted", "node", node, "err", err)
		}
		return "", 0, false
	}
	return t.o.Address.String(), int32(given), true
}

// OnNode learns where a Node says that it is reached. A node that was last reached
// here keeps its port, also while it is away: whoever asks for it hears why.
func (t *Tunnel) OnNode(n *corev1.Node, gone bool) {
	if gone {
		t.nodes.forget(n.Name)
		t.ports.release(n.Name)
		return
	}
	at := placeOf(n)
	t.nodes.learn(n.Name, at)
	t.settle(n.Name, at)
}

// settle opens, keeps or gives up the port of a node that is reached there.
func (t *Tunnel) settle(node string, at place) {
	has := t.ports.of(node)
	switch {
	case has == 0 && at.port != 0 && at.address == t.o.Address:
		if !t.ports.keep(node, at.port) {
			t.o.Log.Debug("a node's port cannot be opened; it gets another when it connects", "node", node, "port", at.port)
		}
	case has != 0 && at.port != 0 && !t.isHere(at, has):
		// It went to another hub. Who looked it up before is passed on for a while.
		time.AfterFunc(handover, func() {
			now, known := t.nodes.of(node)
			if known && now.port != 0 && !t.isHere(now, t.ports.of(node)) && !t.o.Holds(node) {
				t.ports.release(node)
			}
		})
	}
}

// isHere says that a place is that port of this hub.
func (t *Tunnel) isHere(at place, port int) bool { return at.address == t.o.Address && at.port == port }

// handover is how long the port of a node stays open that went to another hub.
const handover = time.Minute

// Run serves until ctx ends.
func (t *Tunnel) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: http.HandlerFunc(t.serve), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnContext: withNode,
		ErrorLog:    slog.NewLogLogger(t.o.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	listing, listed := make(chan struct{}), context.CancelFunc(nil)
	ctx, listed = context.WithCancel(ctx)
	go func() {
		defer close(listing)
		t.list(ctx)
	}()
	defer func() { listed(); <-listing }()
	stop := context.AfterFunc(ctx, func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		_ = server.Shutdown(late)
		_ = server.Close() // what is upgraded is not waited for: its streams end with the hub's connections
	})
	defer stop()
	defer t.ports.Close()
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		// Certificates of either the cluster's CA or of hubs are judged in serve.
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == t.o.Peers.Name && t.o.Peers.Serving != nil {
				return t.o.Peers.Serving(), nil
			}
			return t.o.Serving(), nil
		},
	}
	if err := server.Serve(tls.NewListener(t.ports, config)); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve the nodes' kubelet API: %w", err)
	}
	return nil
}

// serve checks a request and passes it on.
func (t *Tunnel) serve(w http.ResponseWriter, r *http.Request) {
	node := nodeOf(r.Context())
	counted := &countedWriter{ResponseWriter: w}
	t.counts.begin()
	defer func() { t.counts.end(kind(r.URL.Path), counted.code) }()
	if t.ports.crowded() && r.Header.Get("Upgrade") == "" {
		w.Header().Set("Connection", "close")
	}
	fromHub, err := t.check(r, node)
	if err != nil {
		w.Header().Set("Connection", "close") // strangers keep nothing
		answer(counted, r, err)
		return
	}
	r.Header.Del("Authorization") // it is none of the edge's business
	if err := t.forward(counted, r, node, fromHub); err != nil {
		answer(counted, r, err)
	}
}

// check says whether a request may go on, and whether another hub sent it, which has
// checked it.
func (t *Tunnel) check(r *http.Request, node string) (fromHub bool, err error) {
	if node == "" {
		return false, fail(http.StatusMisdirectedRequest, "this port leads to no node")
	}
	// The right depends on the path, and the edge must not see another one.
	if clean := path.Clean(r.URL.Path); clean != r.URL.Path && clean+"/" != r.URL.Path {
		return false, fail(http.StatusBadRequest, "the path %.200q is not in its simplest form: write %.200q", r.URL.Path, clean)
	}
	if t.isHub(r) {
		// The other hub may know less of whose port this is by now.
		if named := r.Header.Get(nodeHeader); named != node {
			return true, fail(http.StatusMisdirectedRequest, "this port is node %s's by now, and a hub passed on what is for node %.253q: ask again", node, named)
		}
		return true, nil
	}
	user, err := t.o.Access.Authenticate(r.Context(), r)
	if err != nil {
		return false, err
	}
	// Not the node's name that an apiserver writes here alone: one that differs says
	// that the Node it read has a port which is another's by now.
	if named := nodeInURI(r.Header.Get("X-Forwarded-Uri")); named != "" && named != node {
		return false, fail(http.StatusMisdirectedRequest, "this port is node %s's, and node %s was asked for: ask again", node, named)
	}
	return false, t.o.Access.Authorize(r.Context(), user, attributes(r, node)...)
}

// nodeInURI is the node whose proxy an apiserver was asked for, as NODE, NODE:PORT or
// SCHEME:NODE:PORT.
func nodeInURI(uri string) string {
	rest, ok := strings.CutPrefix(uri, "/api/v1/nodes/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	if parts := strings.Split(name, ":"); len(parts) == 3 {
		return parts[1]
	}
	name, _, _ = strings.Cut(name, ":")
	return name
}

// forward hands a request to the node, or to the hub that has it.
func (t *Tunnel) forward(w http.ResponseWriter, r *http.Request, node string, fromHub bool) error {
	stream, err := t.o.Begin(r.Context(), node)
	if err == nil {
		defer stream.Close() // also where the proxy panics, as it does to cut an answer off
		t.near.ServeHTTP(w, r.WithContext(withStream(r.Context(), stream)))
		return nil
	}
	at, known := t.nodes.of(node)
	if notHere(err) && known && !fromHub && at.port != 0 && !t.isHere(at, t.ports.of(node)) {
		out := r.WithContext(withTarget(r.Context(), netip.AddrPortFrom(at.address, uint16(at.port))))
		t.far.ServeHTTP(w, out)
		return nil
	}
	return t.unreachable(node, at, err)
}

// placeOf reads where a Node says that it is reached, and since when it is not ready.
func placeOf(n *corev1.Node) place {
	var at place
	if i := slices.IndexFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP }); i >= 0 && n.Status.DaemonEndpoints.KubeletEndpoint.Port != 0 {
		at.address, _ = netip.ParseAddr(n.Status.Addresses[i].Address)
		at.port = int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
			at.silent = c.LastHeartbeatTime.Time
		}
	}
	return at
}
