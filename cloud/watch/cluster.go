// Package watch follows the apiserver: pods that are bound to nodes, nodes,
// devices with their models and routes, and the versions of ConfigMaps and
// Secrets. It owns one watch of each for all nodes
// of this hub, keeps only what belongs to nodes that somebody follows
// (keps/0012-cost-at-the-apiserver.md), tells a follower when something of its
// node has changed, and works out what that node must hold (with cloud/roster),
// reading referenced objects in the node's own name. cloud/hub reads from it;
// cloud/autonomy looks at what passes by. It never writes, and it never takes a
// failed read, or what it has not read yet, for an absence.
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Options are what a Cluster needs.
type Options struct {
	Client   kubernetes.Interface // cloudcore's own identity
	AsNode   kubernetes.Interface // acts as the node of the context (cloud/asnode)
	Metadata metadata.Interface   // cloudcore's own identity
	Devices  *crd.Client          // cloudcore's own identity; nil: nothing is known of devices
	Log      *slog.Logger
}

// Cluster is what is known of the cluster.
type Cluster struct {
	client, asNode kubernetes.Interface
	log            *slog.Logger
	pods           *shelved[keptPod]
	nodes          *shelved[keptNode]
	configMaps     *marks
	secrets        *marks
	devices        *devices // nil: nothing is known of them
	streams        []*stream
	acquired       chan struct{} // one slot for each read that may run at a time
	loads, reads   atomic.Uint64

	onPod  []func(*corev1.Pod) // set before Run
	onNode []func(n *corev1.Node, gone bool)

	onDevice []onDevice

	mu        sync.Mutex
	followers map[string][]chan struct{}

	sharing sync.Mutex
	shared  map[roster.Key]weak.Pointer[roster.Item] // what some node holds of an object
}

// maxReads bounds the live reads of all nodes together.
const maxReads = 32

// New makes a Cluster; Run starts it.
func New(o Options) (*Cluster, error) {
	c := &Cluster{
		client: o.Client, asNode: o.AsNode, log: o.Log,
		acquired:  make(chan struct{}, maxReads),
		followers: make(map[string][]chan struct{}),
		shared:    make(map[roster.Key]weak.Pointer[roster.Item]),
	}
	c.pods = shelve(c, "pods", placePod, keepPod, func(node string) string {
		return fields.OneTermEqualSelector("spec.nodeName", node).String()
	})
	c.nodes = shelve(c, "nodes", placeNode, keepNode, func(node string) string {
		return fields.OneTermEqualSelector(metav1.ObjectNameField, node).String()
	})
	c.configMaps = newMarks(wire.Kind_KIND_CONFIG_MAP, c.signal, c.forget)
	c.secrets = newMarks(wire.Kind_KIND_SECRET, c.signal, c.forget)
	c.pods.stream = c.follow("pods", podSource(o.Client), passing{c.pods, c.podPasses})
	c.nodes.stream = c.follow("nodes", nodeSource(o.Client), passing{c.nodes, c.nodePasses})
	c.pods.tide, c.nodes.tide = newTide(c.pods.stream.source), newTide(c.nodes.stream.source)
	c.follow("configmaps", metadataSource(o.Metadata, "configmaps"), c.configMaps)
	c.follow("secrets", metadataSource(o.Metadata, "secrets"), c.secrets)
	if o.Devices != nil {
		c.followDevices(o.Devices)
	}
	return c, nil
}

func shelve[T any](c *Cluster, kind string, place func(runtime.Object) (string, string, string), keep func(runtime.Object, *T) (*T, error), selector func(string) string) *shelved[T] {
	failed := func(node, key string, err error) {
		c.log.Error("an object cannot be kept", "node", node, "object", key, "err", err)
	}
	return &shelved[T]{cluster: c, selector: selector, crowd: crowd, waiting: make(map[*ask[T]]struct{}), shelf: &shelf[T]{
		kind: kind, place: place, keep: keep, changed: c.signal, failed: failed, nodes: make(map[string]*lot[T]),
	}}
}

func (c *Cluster) follow(name string, from source, to sink) *stream {
	s := &stream{name: name, source: from, sink: to, log: c.log, wait: firstWait}
	c.streams = append(c.streams, s)
	return s
}

// podSource lists and watches the pods that are bound to nodes.
func podSource(client kubernetes.Interface) source {
	pods, bound := client.CoreV1().Pods(metav1.NamespaceAll), fields.OneTermNotEqualSelector("spec.nodeName", "").String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.FieldSelector == "" {
				o.FieldSelector = bound
			}
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = bound
			return pods.Watch(ctx, o)
		},
	}
}

func nodeSource(client kubernetes.Interface) source {
	nodes := client.CoreV1().Nodes()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return nodes.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return nodes.Watch(ctx, o)
		},
	}
}

func metadataSource(client metadata.Interface, resource string) source {
	all := client.Resource(corev1.SchemeGroupVersion.WithResource(resource))
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return all.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return all.Watch(ctx, o)
		},
	}
}

// total is about how many nodes the cluster has, 0 if the apiserver does not say.
func (c *Cluster) total() int64 { return c.nodes.tide.total.Load() }

// passing lets somebody see what comes by before it is kept or dropped.
type passing struct {
	sink
	pass func(obj runtime.Object, gone bool)
}

func (p passing) event(obj runtime.Object, gone bool) {
	p.pass(obj, gone)
	p.sink.event(obj, gone)
}

func (p passing) listed(obj runtime.Object, gone bool) {
	p.pass(obj, gone)
	p.sink.listed(obj, gone)
}

// Run follows the cluster until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, s := range c.streams {
		all.Go(func() { s.run(ctx) })
	}
	all.Wait()
	return nil
}

// Synced says that nothing which changes from now on is missed.
func (c *Cluster) Synced() bool {
	for _, s := range c.streams {
		if !s.synced.Load() {
			return false
		}
	}
	return true
}

// WaitSynced waits for Synced.
func (c *Cluster) WaitSynced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.Synced) {
		return fmt.Errorf("wait until the cluster is followed: %w", context.Cause(ctx))
	}
	return nil
}

// Pods returns the pods bound to a followed node, terminal ones too, as far as
// they are known. They are without what roster.Pod leaves out; of the status
// there are phase and conditions.
func (c *Cluster) Pods(node string) ([]*corev1.Pod, error) {
	kept, _ := c.pods.get(node)
	pods := make([]*corev1.Pod, 0, len(kept))
	for _, k := range kept {
		p, err := k.pod()
		if err != nil {
			return nil, fmt.Errorf("pods of node %s: %w", node, err)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// PodCount counts a followed node's pods that have not ended, and those of them that
// are ready; false where they are not known.
func (c *Cluster) PodCount(node string) (total, ready int, known bool) {
	kept, known := c.pods.get(node)
	for _, k := range kept {
		if k.terminal {
			continue
		}
		total++
		if k.ready {
			ready++
		}
	}
	return total, ready, known
}

// Node returns the Node of a followed node, or nil. Of its status there are the
// conditions and where it is reached.
func (c *Cluster) Node(name string) *corev1.Node {
	kept, _ := c.nodes.get(name)
	for _, k := range kept {
		n, err := k.node()
		if err == nil {
			return n
		}
		c.log.Error("a node that is kept cannot be read", "node", name, "err", err)
	}
	return nil
}

// OnPod calls f for every bound pod of the cluster that appears or changes, or is
// listed after a break. f must not block; what it is given is its own. It is for
// use before Run.
func (c *Cluster) OnPod(f func(*corev1.Pod)) { c.onPod = append(c.onPod, f) }

// OnNode is OnPod for nodes; it tells of deletions, too, but for those in a break.
func (c *Cluster) OnNode(f func(n *corev1.Node, gone bool)) { c.onNode = append(c.onNode, f) }

func (c *Cluster) podPasses(obj runtime.Object, gone bool) {
	if p, ok := obj.(*corev1.Pod); ok && !gone {
		for _, f := range c.onPod {
			f(p)
		}
	}
}

func (c *Cluster) nodePasses(obj runtime.Object, gone bool) {
	if n, ok := obj.(*corev1.Node); ok {
		for _, f := range c.onNode {
			f(n, gone)
		}
	}
}

// Follow returns a channel (capacity 1) that is signalled when something that
// a node must hold may have changed, and a function that ends it. What is known
// of a node is kept as long as somebody follows it; its Resolver reads it first.
func (c *Cluster) Follow(node string) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.followers[node]) == 0 {
		c.pods.follow(node)
		c.nodes.follow(node)
		if c.devices != nil {
			c.devices.shelf.follow(node)
		}
	}
	c.followers[node] = append(c.followers[node], ch)
	return ch, sync.OnceFunc(func() { c.unfollow(node, ch) })
}

func (c *Cluster) unfollow(node string, ch chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rest []chan struct{}
	for _, f := range c.followers[node] {
		if f != ch {
			rest = append(rest, f)
		}
	}
	if c.followers[node] = rest; len(rest) > 0 {
		return
	}
	delete(c.followers, node)
	c.pods.drop(node)
	c.nodes.drop(node)
	c.configMaps.drop(node)
	c.secrets.drop(node)
	if c.devices != nil {
		c.devices.shelf.drop(node)
	}
}

// refer marks what a followed node refers to, and returns what was last seen of
// each object.
func (c *Cluster) refer(node string, keys map[roster.Key]bool) (seen map[roster.Key]string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.followers[node]) == 0 {
		return nil, errNotFollowed
	}
	seen = make(map[roster.Key]string, len(keys))
	c.configMaps.refer(node, keys, seen)
	c.secrets.refer(node, keys, seen)
	return seen, nil
}

func (c *Cluster) signal(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.followers[node] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// readTimeout bounds one live read.
const readTimeout = 10 * time.Second

// acquire takes a slot for a live read.
func (c *Cluster) acquire(ctx context.Context) (release func(), err error) {
	select {
	case c.acquired <- struct{}{}:
		c.reads.Add(1)
		return func() { <-c.acquired }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
