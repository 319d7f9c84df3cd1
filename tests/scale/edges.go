package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/uplink"
)

// edgesSetup is what a process of edges is told first.
type edgesSetup struct {
	CACert, CAKey []byte // PEM: the process signs its edges' certificates itself
	Hub           string // HOST:PORT
	Transport     string // websocket or quic
	First, Count  int    // numbers of its nodes
	Pods          int    // of each node
	KeepAlive     time.Duration
	Register      bool // each node reports itself, as one must to a real apiserver
}

// edgesProcess holds many edges: real uplinks, each with a certificate, a
// connection and a store of its own.
type edgesProcess struct {
	setup edgesSetup
	ca    *pki.CA
	log   *slog.Logger
	ctx   context.Context
	group *errgroup.Group

	edges []*edge // those that were started

	sent, received atomic.Uint64 // messages' bytes on all connections
	sessions       atomic.Uint64 // connections made
	acknowledged   atomic.Uint64 // reports that the hub has taken
	applied        atomic.Uint64 // objects committed
	busy           atomic.Bool   // status reports are to follow each other

	mu        sync.Mutex
	latencies []time.Duration // of changed objects, since the last reading
}

// edge is one node.
type edge struct {
	process  *edgesProcess
	name     string
	store    *memory
	uplink   *uplink.Uplink
	current  atomic.Pointer[counted] // the connection, or the last one
	restarts atomic.Int32            // for statuses that differ
}

// playEdges is the role of a process of edges.
func playEdges(ctx context.Context, in io.Reader, out io.Writer) error {
	// The memory of the load's generator is not measured; its CPU time is short.
	debug.SetGCPercent(400)
	ctx, cancel := context.WithCancel(ctx)
	p := &edgesProcess{log: quietLog()}
	p.group, p.ctx = errgroup.WithContext(ctx)
	err := obey(ctx, in, out, methods{
		"setup":     method(p.setUp),
		"start":     method(p.start),
		"state":     method(p.state),
		"latencies": method(p.takeLatencies),
		"report":    method(p.report),
	})
	cancel()
	return errors.Join(err, p.group.Wait())
}

func (p *edgesProcess) setUp(_ context.Context, s edgesSetup) (none, error) {
	var err error
	p.setup = s
	p.ca, err = pki.ParseCA(s.CACert, s.CAKey)
	return none{}, err
}

// startArgs say how many edges shall run in all, and how long to wait for them.
type startArgs struct {
	Edges  int
	Within time.Duration
}

// inFlight is how many edges of a process connect at a time at its start; when a
// hub comes back they all do.
const inFlight = 64

// start starts further edges and returns when each holds what it must.
func (p *edgesProcess) start(ctx context.Context, a startArgs) (none, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.Within, fmt.Errorf("%s are over", a.Within))
	defer cancel()
	var group errgroup.Group
	group.SetLimit(inFlight)
	for n := len(p.edges); n < a.Edges; n++ {
		e, err := p.newEdge(p.setup.First + n)
		if err != nil {
			return none{}, err
		}
		p.edges = append(p.edges, e)
		group.Go(func() error {
			p.group.Go(func() error { return e.uplink.Run(p.ctx) })
			return e.waitSynced(ctx)
		})
	}
	return none{}, group.Wait()
}

func (p *edgesProcess) newEdge(number int) (*edge, error) {
	e := &edge{process: p, name: nodeName(number), store: newMemory("store-" + nodeName(number))}
	e.store.applied, e.store.settled = e.objectApplied, e.reportsSettled
	pair, err := p.certificate(e.name)
	if err != nil {
		return nil, err
	}
	dial := link.DialWebsocket
	if p.setup.Transport == "quic" {
		dial = link.DialQUIC
	}
	dialer := dial(link.DialOptions{
		Hubs: []string{p.setup.Hub}, RootCAs: p.ca.Pool(), Timing: link.TimingFor(p.setup.KeepAlive), Log: p.log,
		Certificate: func() (tls.Certificate, error) { return pair, nil },
	})
	e.uplink = uplink.New(uplink.Options{Dialer: &countingDialer{dialer, e}, Store: e.store, Log: p.log, Version: "scale"})
	if p.setup.Register {
		if err := e.register(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (p *edgesProcess) certificate(name string) (tls.Certificate, error) {
	key, csr, err := pki.NewKeyAndCSR(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := p.ca.SignNode(csr, name, pki.NodeTTL)
	if err != nil {
		return tls.Certificate{}, err
	}
	return pki.KeyPair(cert, key)
}

func (e *edge) waitSynced(ctx context.Context) error {
	for {
		changed := e.uplink.Changed()
		if s := e.uplink.State(); s.Connected && s.Synced {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("node %s is not in sync (%s): %w", e.name, e.uplink.State().LastError, context.Cause(ctx))
		}
	}
}

// edgesState sums up what a process's edges know.
type edgesState struct {
	Synced         int // have a session, and hold what they must
	Sessions       uint64
	Sent, Received uint64    // bytes of messages on all connections so far
	Acknowledged   uint64    // reports
	Applied        uint64    // objects
	LastSynced     time.Time // when the last session began
	Heaviest       uint64    // the most bytes of messages, both ways, on a connection that is open
	Trouble        string    // what an edge without a session says
}

func (p *edgesProcess) state(context.Context, none) (edgesState, error) {
	s := edgesState{
		Sessions: p.sessions.Load(), Sent: p.sent.Load(), Received: p.received.Load(),
		Acknowledged: p.acknowledged.Load(), Applied: p.applied.Load(),
	}
	for _, e := range p.edges {
		line := e.uplink.State()
		if !line.Connected || !line.Synced {
			s.Trouble = fmt.Sprintf("%s: %s", e.name, line.LastError)
			continue
		}
		s.Synced++
		if line.Since.After(s.LastSynced) {
			s.LastSynced = line.Since
		}
		if c := e.current.Load(); c != nil {
			s.Heaviest = max(s.Heaviest, c.bytes.Load())
		}
	}
	return s, nil
}

// objectApplied is called when an object is committed. The fake runtime runs a new
// pod at once, and says so.
func (e *edge) objectApplied(o *wire.Object, now time.Time) {
	e.process.applied.Add(1)
	if o.GetRef().GetKind() != wire.Kind_KIND_POD {
		return
	}
	if changed := changeTime(o); !changed.IsZero() {
		e.process.mu.Lock()
		e.process.latencies = append(e.process.latencies, now.Sub(changed))
		e.process.mu.Unlock()
		return
	}
	e.say(o.GetRef())
}

// say reports a pod's status.
func (e *edge) say(ref *wire.ObjectRef) {
	payload, err := (&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ref.GetNamespace(), Name: ref.GetName(), UID: types.UID(ref.GetUid())},
		Status:     runningStatus(e.restarts.Add(1)),
	}).Marshal()
	if err != nil {
		e.process.log.Error("a status cannot be encoded", "node", e.name, "err", err)
		return
	}
	e.store.put(row{kind: wire.ReportKind_REPORT_POD_STATUS, key: ref.GetUid(), payload: payload})
}

func runningStatus(restarts int32) corev1.PodStatus {
	started := metav1.NewTime(time.Unix(1_700_000_100, 0))
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "192.0.2.7", PodIP: "10.1.0.5", PodIPs: []corev1.PodIP{{IP: "10.1.0.5"}}, StartTime: &started,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "main", Ready: true, Image: "registry.example.test/shop/till:1.4.2", RestartCount: restarts,
			ContainerID: "containerd://0e1f8b0fdc0d4be3a5b8b4a9b5d0a7f1c2d3e4f5061728394a5b6c7d8e9f0a1b",
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}},
		}},
	}
	for _, c := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: started})
	}
	return status
}

// register reports the node itself.
func (e *edge) register() error {
	payload, err := (&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: e.name, Labels: map[string]string{"kubernetes.io/hostname": e.name, "kubernetes.io/os": "linux"}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "EdgeReady", Message: "all is well"}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3-holdfast", OperatingSystem: "linux"},
		},
	}).Marshal()
	if err != nil {
		return fmt.Errorf("encode node %s: %w", e.name, err)
	}
	e.store.put(row{kind: wire.ReportKind_REPORT_NODE, key: "node", payload: payload})
	return nil
}

// reportsSettled is called when the hub has taken reports. While the process is
// busy, the next status of the same pod follows.
func (e *edge) reportsSettled(done []row) {
	e.process.acknowledged.Add(uint64(len(done)))
	if !e.process.busy.Load() {
		return
	}
	for _, r := range done {
		if r.kind == wire.ReportKind_REPORT_POD_STATUS {
			e.again(r)
		}
	}
}

// again reports the status of a pod once more, with another number of restarts.
func (e *edge) again(r row) {
	pod := new(corev1.Pod)
	if err := pod.Unmarshal(r.payload); err != nil {
		e.process.log.Error("a status cannot be decoded", "node", e.name, "err", err)
		return
	}
	e.say(&wire.ObjectRef{Namespace: pod.Namespace, Name: pod.Name, Uid: string(pod.UID)})
}

// reportArgs say how many edges keep a report of each pod under way for a while.
type reportArgs struct {
	Edges  int
	During time.Duration
}

// reported is how many reports were acknowledged in that time.
type reported struct {
	Acknowledged uint64
	Took         time.Duration
}

func (p *edgesProcess) report(ctx context.Context, a reportArgs) (reported, error) {
	p.busy.Store(true)
	defer p.busy.Store(false)
	for _, e := range p.edges[:min(a.Edges, len(p.edges))] {
		refs, err := e.store.Inventory(ctx)
		if err != nil {
			return reported{}, err
		}
		for _, ref := range refs {
			if ref.GetKind() == wire.Kind_KIND_POD {
				e.say(ref)
			}
		}
	}
	began, before := time.Now(), p.acknowledged.Load()
	if err := pause(ctx, a.During); err != nil {
		return reported{}, err
	}
	return reported{p.acknowledged.Load() - before, time.Since(began)}, nil
}

// takeLatencies returns how long changed objects took since the last call.
func (p *edgesProcess) takeLatencies(context.Context, none) ([]time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.latencies
	p.latencies = nil
	return taken, nil
}

// countingDialer counts the bytes of an edge's messages.
type countingDialer struct {
	link.Dialer
	edge *edge
}

// Dial dials.
func (d *countingDialer) Dial(ctx context.Context) (link.Conn, error) {
	conn, err := d.Dialer.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &counted{Conn: conn, process: d.edge.process}
	d.edge.current.Store(c)
	d.edge.process.sessions.Add(1)
	return c, nil
}

type counted struct {
	link.Conn
	process *edgesProcess
	bytes   atomic.Uint64 // both ways
}

// Send counts.
func (c *counted) Send(ctx context.Context, message []byte) error {
	c.process.sent.Add(uint64(len(message)))
	c.bytes.Add(uint64(len(message)))
	return c.Conn.Send(ctx, message)
}

// Recv counts.
func (c *counted) Recv(ctx context.Context) ([]byte, error) {
	b, err := c.Conn.Recv(ctx)
	c.process.received.Add(uint64(len(b)))
	c.bytes.Add(uint64(len(b)))
	return b, err
}
