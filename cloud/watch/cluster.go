// Package watch follows the apiserver: pods that are bound to nodes, nodes, and
// the mere existence and versions of ConfigMaps and Secrets. It owns the
// informers, tells a follower when something of its node has changed, and works
// out what that node must hold (with cloud/roster), reading referenced objects
// in the node's own name. cloud/hub, cloud/report and cloud/autonomy read from
// it. It never writes, and it never takes a failed read for an absence.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"weak"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Options are what a Cluster needs.
type Options struct {
	Client   kubernetes.Interface // cloudcore's own identity
	AsNode   kubernetes.Interface // acts as the node of the context (cloud/asnode)
	Metadata metadata.Interface   // cloudcore's own identity
	Log      *slog.Logger
}

// Cluster is the informers.
type Cluster struct {
	client, asNode kubernetes.Interface
	log            *slog.Logger
	pods, nodes    cache.SharedIndexInformer
	metas          map[wire.Kind]cache.SharedIndexInformer
	reads          chan struct{} // one slot for each read that may run at a time

	mu        sync.Mutex
	followers map[string][]chan struct{}
	failing   map[string]bool                          // informers that cannot reach the apiserver
	shared    map[roster.Key]weak.Pointer[roster.Item] // what some node holds of an object
}

// Indexes of the pod informer.
const (
	byNode      = "node"
	byReference = "reference"
)

// maxReads bounds the live reads of all nodes together.
const maxReads = 32

// New makes the informers; Run starts them.
func New(o Options) (*Cluster, error) {
	c := &Cluster{
		client: o.Client, asNode: o.AsNode, log: o.Log,
		reads:     make(chan struct{}, maxReads),
		followers: make(map[string][]chan struct{}),
		failing:   make(map[string]bool),
		shared:    make(map[roster.Key]weak.Pointer[roster.Item]),
	}
	indexers := cache.Indexers{byNode: podNode, byReference: podReferences}
	c.pods = coreinformers.NewFilteredPodInformer(o.Client, metav1.NamespaceAll, 0, indexers, bound())
	c.nodes = coreinformers.NewNodeInformer(o.Client, 0, cache.Indexers{})
	c.metas = map[wire.Kind]cache.SharedIndexInformer{
		wire.Kind_KIND_CONFIG_MAP: metadatainformer.NewFilteredMetadataInformer(o.Metadata,
			corev1.SchemeGroupVersion.WithResource("configmaps"), metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer(),
		wire.Kind_KIND_SECRET: metadatainformer.NewFilteredMetadataInformer(o.Metadata,
			corev1.SchemeGroupVersion.WithResource("secrets"), metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer(),
	}
	setup := []struct {
		name      string
		informer  cache.SharedIndexInformer
		transform cache.TransformFunc
		changed   func(obj any)
	}{
		{"pods", c.pods, trimPod, c.podChanged},
		{"nodes", c.nodes, trimNode, c.nodeChanged},
		{"configmaps", c.metas[wire.Kind_KIND_CONFIG_MAP], trimMetadata, c.metaChanged(wire.Kind_KIND_CONFIG_MAP)},
		{"secrets", c.metas[wire.Kind_KIND_SECRET], trimMetadata, c.metaChanged(wire.Kind_KIND_SECRET)},
	}
	for _, s := range setup {
		if err := errors.Join(s.informer.SetTransform(s.transform), s.informer.SetWatchErrorHandlerWithContext(c.watchFailed(s.name))); err != nil {
			return nil, fmt.Errorf("set up the informer of %s: %w", s.name, err)
		}
		recovered := func() { c.watchRecovered(s.name) }
		if _, err := s.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { recovered(); s.changed(obj) },
			UpdateFunc: func(_, obj any) { recovered(); s.changed(obj) },
			DeleteFunc: func(obj any) {
				if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = gone.Obj
				}
				s.changed(obj)
			},
		}); err != nil {
			return nil, fmt.Errorf("set up the informer of %s: %w", s.name, err)
		}
	}
	return c, nil
}

func bound() internalinterfaces.TweakListOptionsFunc {
	selector := fields.OneTermNotEqualSelector("spec.nodeName", "").String()
	return func(o *metav1.ListOptions) { o.FieldSelector = selector }
}

// Run runs the informers until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, i := range c.informers() {
		all.Go(func() { i.RunWithContext(ctx) })
	}
	all.Go(func() {
		if c.WaitSynced(ctx) == nil {
			c.log.Info("the cluster's objects are known", "pods", len(c.pods.GetStore().ListKeys()), "nodes", len(c.nodes.GetStore().ListKeys()))
		}
	})
	all.Wait()
	return nil
}

func (c *Cluster) informers() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{c.pods, c.nodes, c.metas[wire.Kind_KIND_CONFIG_MAP], c.metas[wire.Kind_KIND_SECRET]}
}

// Synced says that every informer has read everything once.
func (c *Cluster) Synced() bool {
	for _, i := range c.informers() {
		if !i.HasSynced() {
			return false
		}
	}
	return true
}

// WaitSynced waits for Synced.
func (c *Cluster) WaitSynced(ctx context.Context) error {
	for _, i := range c.informers() {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return fmt.Errorf("wait for the cluster's objects: %w", context.Cause(ctx))
		}
	}
	return nil
}

// Pods returns the pods bound to a node, terminal ones too. They are the
// informer's and must not be changed; their status is trimmed (see trimPod).
func (c *Cluster) Pods(node string) ([]*corev1.Pod, error) {
	objs, err := c.pods.GetIndexer().ByIndex(byNode, node)
	if err != nil {
		return nil, fmt.Errorf("look up the pods of node %s: %w", node, err)
	}
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, o := range objs {
		if p, ok := o.(*corev1.Pod); ok {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

// Pod returns a pod of the informer, or nil.
func (c *Cluster) Pod(namespace, name string) *corev1.Pod {
	obj, _, _ := c.pods.GetStore().GetByKey(namespace + "/" + name)
	p, _ := obj.(*corev1.Pod)
	return p
}

// Node returns a node of the informer, or nil. Its status is trimmed.
func (c *Cluster) Node(name string) *corev1.Node {
	obj, _, _ := c.nodes.GetStore().GetByKey(name)
	n, _ := obj.(*corev1.Node)
	return n
}

// OnPod calls f for every pod that appears or changes; f must not block.
func (c *Cluster) OnPod(f func(*corev1.Pod)) error {
	_, err := c.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { call(o, f) },
		UpdateFunc: func(_, o any) { call(o, f) },
	})
	return err
}

// OnNode calls f for every node that appears or changes; f must not block.
func (c *Cluster) OnNode(f func(*corev1.Node)) error {
	_, err := c.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { call(o, f) },
		UpdateFunc: func(_, o any) { call(o, f) },
	})
	return err
}

func call[T any](obj any, f func(T)) {
	if t, ok := obj.(T); ok {
		f(t)
	}
}

// Follow returns a channel (capacity 1) that is signalled when something that
// a node must hold may have changed, and a function that ends it. A node that
// nobody follows costs nothing but its objects.
func (c *Cluster) Follow(node string) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.followers[node] = append(c.followers[node], ch)
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		var rest []chan struct{}
		for _, f := range c.followers[node] {
			if f != ch {
				rest = append(rest, f)
			}
		}
		if c.followers[node] = rest; len(rest) == 0 {
			delete(c.followers, node)
		}
	}
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

func (c *Cluster) podChanged(obj any) {
	call(obj, func(p *corev1.Pod) { c.signal(p.Spec.NodeName) })
}

func (c *Cluster) nodeChanged(obj any) {
	call(obj, func(n *corev1.Node) { c.signal(n.Name) })
}

func (c *Cluster) metaChanged(kind wire.Kind) func(any) {
	return func(obj any) {
		call(obj, func(m *metav1.PartialObjectMetadata) {
			key := roster.Key{Kind: kind, Namespace: m.Namespace, Name: m.Name}
			pods, err := c.pods.GetIndexer().ByIndex(byReference, key.String())
			if err != nil {
				c.log.Error("look up the pods that refer to an object", "object", key.String(), "err", err)
			}
			for _, p := range pods {
				c.podChanged(p)
			}
			if len(pods) == 0 {
				c.forget(key)
			}
		})
	}
}

// watchFailed and watchRecovered log the transitions of each informer.
func (c *Cluster) watchFailed(name string) cache.WatchErrorHandlerWithContext {
	return func(ctx context.Context, r *cache.Reflector, err error) {
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		was := c.failing[name]
		c.failing[name] = true
		c.mu.Unlock()
		if !was {
			c.log.Warn("cannot follow the cluster; what nodes hold stays as it is", "objects", name, "err", err)
		}
	}
}

func (c *Cluster) watchRecovered(name string) {
	c.mu.Lock()
	was := c.failing[name]
	delete(c.failing, name)
	c.mu.Unlock()
	if was {
		c.log.Info("following the cluster again", "objects", name)
	}
}

// readTimeout bounds one live read.
const readTimeout = 10 * time.Second

// acquire takes a slot for a live read.
func (c *Cluster) acquire(ctx context.Context) (release func(), err error) {
	select {
	case c.reads <- struct{}{}:
		return func() { <-c.reads }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
