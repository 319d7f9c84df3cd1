package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/link"
)

// Cluster is what is asked of cloud/watch.
type Cluster interface {
	OnNode(func(n *corev1.Node, gone bool))
	WaitSynced(ctx context.Context) error
	PodCount(node string) (total, ready int, known bool)
	// Node and Pods are of connected nodes alone, and tell less than the apiserver.
	Node(name string) *corev1.Node
	Pods(node string) ([]*corev1.Pod, error)
}

// Sessions is what is asked of cloud/hub.
type Sessions interface {
	Session(node string) (hub.NodeInfo, bool)
	Each(func(hub.NodeInfo))
	OpenStream(ctx context.Context, node string) (link.Stream, error)
}

// Options are what a Fleet needs.
type Options struct {
	Client  kubernetes.Interface // cloudcore's own identity
	AsNode  kubernetes.Interface // acts as the node of the context (cloud/asnode)
	Cluster Cluster
	Hub     string // name of this hub, as cloud/report writes it
	Version string
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Fleet holds the records. Its methods may be called from many goroutines.
type Fleet struct {
	client, asNode kubernetes.Interface
	cluster        Cluster
	hub, version   string
	log            *slog.Logger
	now            func() time.Time
	started        time.Time
	looks          looks
	details        details

	ending context.Context // of logs that are followed: ends with Run
	end    context.CancelFunc
	relist chan struct{} // capacity 1: somebody looks, and the last list is old

	mu       sync.Mutex
	sessions Sessions
	records  map[string]*record
	day      int64 // of which the records count bytes, in days since 1970
	lists    uint32
	listed   time.Time // when the last list of all nodes was complete
}

// New returns a Fleet. It is for use before cloud/watch runs.
func New(o Options) *Fleet {
	if o.Now == nil {
		o.Now = time.Now
	}
	f := &Fleet{
		client: o.Client, asNode: o.AsNode, cluster: o.Cluster, hub: o.Hub, version: o.Version, log: o.Log, now: o.Now, started: o.Now(),
		looks: newLooks(), details: newDetails(), relist: make(chan struct{}, 1), records: make(map[string]*record),
	}
	f.ending, f.end = context.WithCancel(context.Background())
	f.day = dayOf(f.started)
	o.Cluster.OnNode(f.onNode)
	return f
}

// Follow says whose sessions OnSession will tell of. It is for use before the hub
// serves.
func (f *Fleet) Follow(s Sessions) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions = s
}

const (
	// tick is how often it is looked whether a day has begun.
	tick = 10 * time.Second
	// retryList is the wait after a list of all nodes that failed.
	retryList = 10 * time.Second
	// listAgain is how old a list may be when somebody looks: deletions that fell
	// into a break of the watch show in the next one.
	listAgain = 10 * time.Minute
	// pageSize is how many objects one list brings.
	pageSize = 500
	// callTimeout bounds one request to the apiserver.
	callTimeout = 10 * time.Second
)

// Run reads which nodes there are, and looks at the nodes that somebody looks at,
// until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.end()
	var all sync.WaitGroup
	defer all.Wait()
	for range lookers {
		all.Go(func() { f.look(ctx) })
	}
	all.Go(func() { f.list(ctx) })
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		select {
		case <-clock.C:
			f.mu.Lock()
			f.turn()
			f.mu.Unlock()
			f.details.forget(f.now())
		case <-ctx.Done():
			f.end()
			return nil
		}
	}
}

// list lists the edge nodes once the cluster is followed, and again when it must.
func (f *Fleet) list(ctx context.Context) {
	if f.cluster.WaitSynced(ctx) != nil {
		return
	}
	for told := false; ; {
		err := f.listAll(ctx)
		if ctx.Err() != nil {
			return
		}
		var retry <-chan time.Time
		if err != nil {
			if !told {
				f.log.Warn("which nodes there are cannot be read; trying again", "err", err)
			}
			retry = time.After(retryList)
		}
		told = err != nil
		select {
		case <-retry:
		case <-f.relist:
		case <-ctx.Done():
			return
		}
	}
}

// listAll makes the records those of the nodes that there are. What has passed by
// since it began is newer than the list.
func (f *Fleet) listAll(ctx context.Context) error {
	f.mu.Lock()
	f.lists++
	this := f.lists
	f.mu.Unlock()
	o := metav1.ListOptions{Limit: pageSize, LabelSelector: roster.LabelEdge}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*corev1.NodeList, error) { return f.client.CoreV1().Nodes().List(ctx, o) })
		if err != nil {
			return fmt.Errorf("list the edge nodes: %w", err)
		}
		f.mu.Lock()
		for i := range page.Items {
			n := &page.Items[i]
			if r := f.records[n.Name]; r == nil || r.list < this {
				f.take(n, this)
			}
		}
		f.mu.Unlock()
		o.Continue = page.Continue
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, r := range f.records {
		if r.list < this {
			f.drop(name, r)
		}
	}
	f.listed = f.now()
	return nil
}

// onNode takes what passes by.
func (f *Fleet) onNode(n *corev1.Node, gone bool) {
	_, edge := n.Labels[roster.LabelEdge]
	f.mu.Lock()
	defer f.mu.Unlock()
	if edge && !gone {
		f.take(n, f.lists)
	} else if r := f.records[n.Name]; r != nil {
		r.list = f.lists
		f.drop(n.Name, r)
	}
}

// take notes what a Node says; the caller holds mu.
func (f *Fleet) take(n *corev1.Node, list uint32) {
	r := f.record(n.Name)
	r.list = list
	r.node = said(n)
	if r.session == "" {
		f.settle(r)
	}
}

// settle notes the line of a node that is not connected here; the caller holds mu.
func (f *Fleet) settle(r *record) {
	at := f.now()
	if len(r.changes) == 0 && r.node.readySince != 0 {
		at = r.node.readySince.time() // nobody here has seen it otherwise
	}
	r.changed(at, f.stateOf(r))
}

// drop forgets a Node that is gone, and the record unless the node is connected; the
// caller holds mu.
func (f *Fleet) drop(name string, r *record) {
	r.node = nodeSaid{}
	if r.session == "" {
		delete(f.records, name)
	}
}

// record is that of a node, a new one if need be; the caller holds mu.
func (f *Fleet) record(name string) *record {
	r := f.records[name]
	if r == nil {
		r = new(record)
		f.records[name] = r
	}
	return r
}

// OnSession is for hub.Options.
func (f *Fleet) OnSession(n hub.NodeInfo, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn()
	r := f.record(n.Node)
	r.heard = stampOf(n.LastHeard)
	r.version = wordOf(n.Version)
	if !ended {
		r.session, r.remote, r.base = n.Session, n.Remote, link.Traffic{}
		r.counted, r.lease = 0, leaseSaid{} // what was read about a node of others
		r.changed(n.Since, transportOf(n.Transport))
		return
	}
	if r.session != n.Session {
		return
	}
	moved := since(n.Traffic, r.base)
	r.today.Sent += moved.Sent
	r.today.Received += moved.Received
	r.session = ""
	r.changed(f.now(), lineOff)
	if !r.node.there {
		delete(f.records, n.Node)
	}
}

// turn begins to count bytes anew when the day has changed; the caller holds mu.
func (f *Fleet) turn() {
	day := dayOf(f.now())
	if day == f.day {
		return
	}
	f.day = day
	for _, r := range f.records {
		r.today = link.Traffic{}
	}
	if f.sessions == nil {
		return
	}
	f.sessions.Each(func(n hub.NodeInfo) {
		if r := f.records[n.Node]; r != nil && r.session == n.Session {
			r.base = n.Traffic
		}
	})
}

// dayOf counts days of UTC.
func dayOf(t time.Time) int64 { return t.Unix() / (24 * 60 * 60) }

func since(now, then link.Traffic) link.Traffic {
	return link.Traffic{Sent: now.Sent - min(then.Sent, now.Sent), Received: now.Received - min(then.Received, now.Received)}
}

func call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}
