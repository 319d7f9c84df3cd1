// Package autonomy keeps the pods of edge nodes from being evicted because their
// node is not heard (keps/0004-autonomy-by-tolerations.md). It owns the
// tolerations of the two taints that the node lifecycle controller puts on
// silent nodes, and the annotation that remembers what they were.
// cloud/cmd/cloudcore runs it over what passes by in cloud/watch; among several
// hubs one does it for all nodes, and what else one does for all. It holds no pod, never touches a pod of a node
// that is no edge, and deletes nothing.
package autonomy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// Annotation on a node: "off" turns autonomy off for its pods.
const Annotation = "holdfast.io/autonomy"

// Cluster is what autonomy asks of cloud/watch.
type Cluster interface {
	OnPod(func(*corev1.Pod))
	OnNode(func(n *corev1.Node, gone bool))
	WaitSynced(ctx context.Context) error
}

// Options are what a Keeper needs.
type Options struct {
	Client  kubernetes.Interface // cloudcore's own identity
	Cluster Cluster
	Log     *slog.Logger
	Hub     string // name of this hub: two hubs of one name would both patch
	Timing  Timing
	// Also runs while this hub leads, until its context ends: what else one hub does
	// for all. nil: nothing.
	Also func(ctx context.Context)
}

// Keeper patches pods as long as it leads.
type Keeper struct {
	client  kubernetes.Interface
	cluster Cluster
	log     *slog.Logger
	hub     string
	timing  Timing
	also    func(ctx context.Context)

	leading          atomic.Bool
	patches, refused atomic.Uint64

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[task] // nil: another hub leads
	edges map[string]bool                            // edge nodes by name: whether autonomy is off
	jobs  map[types.NamespacedName][]byte            // patches that wait
}

// task is one thing to do: patch a pod, look at all pods of a node, or, with
// neither, look at everything.
type task struct {
	pod  types.NamespacedName
	node string
}

const (
	// workers is how many tasks run at a time.
	workers = 4
	// callTimeout bounds one request.
	callTimeout = 20 * time.Second
	// pageSize is how many objects one list brings: no more are held at a time.
	pageSize = 500
)

// New returns a Keeper. It is for use before cloud/watch runs.
func New(o Options) *Keeper {
	k := &Keeper{client: o.Client, cluster: o.Cluster, log: o.Log, hub: o.Hub, timing: o.Timing.withDefaults(), also: o.Also}
	o.Cluster.OnPod(k.look)
	o.Cluster.OnNode(k.lookAtNode)
	return k
}

// lead patches until ctx ends. What passes by is looked at from the first moment,
// then everything that was there before is listed once.
func (k *Keeper) lead(ctx context.Context) {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[task](50*time.Millisecond, time.Minute)
	queue := workqueue.NewTypedRateLimitingQueue(limiter)
	k.mu.Lock()
	k.queue, k.edges, k.jobs = queue, make(map[string]bool), make(map[types.NamespacedName][]byte)
	k.mu.Unlock()
	k.leading.Store(true)
	k.log.Info("this hub keeps the pods of silent nodes from now on")
	queue.Add(task{})
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for k.step(ctx, queue) {
			}
		})
	}
	if k.also != nil {
		all.Go(func() { k.also(ctx) })
	}
	<-ctx.Done()
	queue.ShutDown()
	all.Wait()
	k.leading.Store(false)
	k.mu.Lock()
	k.queue, k.edges, k.jobs = nil, nil, nil
	k.mu.Unlock()
	k.log.Info("this hub leaves the pods of silent nodes to others")
}

// look queues a pod that needs a patch.
func (k *Keeper) look(p *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue == nil {
		return
	}
	off, edge := k.edges[p.Spec.NodeName]
	if !edge {
		return
	}
	key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	body := k.body(p, off)
	if body == nil {
		delete(k.jobs, key)
		return
	}
	k.jobs[key] = body
	if mayWait(p) {
		k.queue.AddAfter(task{pod: key}, afterStart)
		return
	}
	k.queue.Add(task{pod: key})
}

// afterStart is how long the patch of a pod that starts may wait: a pod that is
// created with many others should first of all run.
const afterStart = 5 * time.Second

// mayWait says that a pod is starting and would stay for a while on a node that
// fell silent now.
func mayWait(p *corev1.Pod) bool {
	if p.Status.Phase != corev1.PodPending {
		return false
	}
	for _, key := range silentTaints() {
		if !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, key) }) {
			return false
		}
	}
	return !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool {
		return t.TolerationSeconds != nil && time.Duration(*t.TolerationSeconds)*time.Second < 12*afterStart
	})
}

// body is the patch that a pod needs, nil for none.
func (k *Keeper) body(p *corev1.Pod, off bool) []byte {
	c := needed(p, off)
	if c == nil {
		return nil
	}
	body, err := c.patch(p)
	if err != nil {
		k.log.Error("autonomy of a pod cannot be set", "pod", p.Namespace+"/"+p.Name, "uid", p.UID, "err", err)
	}
	return body
}

// lookAtNode keeps the names of edge nodes. All pods of a node are looked at when
// it has become an edge node, or its annotation has changed.
func (k *Keeper) lookAtNode(n *corev1.Node, gone bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue == nil {
		return
	}
	if gone || !isEdge(n) {
		delete(k.edges, n.Name)
		return
	}
	was, known := k.edges[n.Name]
	off := n.Annotations[Annotation] == "off"
	if k.edges[n.Name] = off; !known || was != off {
		k.queue.Add(task{node: n.Name})
	}
}

func isEdge(n *corev1.Node) bool {
	_, ok := n.Labels[roster.LabelEdge]
	return ok
}

// step does the next task; false when the queue has ended.
func (k *Keeper) step(ctx context.Context, queue workqueue.TypedRateLimitingInterface[task]) bool {
	t, stop := queue.Get()
	if stop {
		return false
	}
	defer queue.Done(t)
	if ctx.Err() != nil {
		return true
	}
	var err error
	switch {
	case t.node != "":
		err = k.listPods(ctx, fields.OneTermEqualSelector("spec.nodeName", t.node))
	case t.pod.Name != "":
		err = k.patch(ctx, t.pod)
	default:
		err = k.listAll(ctx)
	}
	if err == nil || ctx.Err() != nil {
		queue.Forget(t)
		return true
	}
	k.refused.Add(1)
	if queue.NumRequeues(t) == 0 {
		k.log.Warn("autonomy of pods cannot be set; trying again", "err", err)
	}
	queue.AddRateLimited(t)
	return true
}

// listAll looks at all edge nodes, then at all pods, page by page.
func (k *Keeper) listAll(ctx context.Context) error {
	found := false
	o := metav1.ListOptions{Limit: pageSize, LabelSelector: roster.LabelEdge}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*corev1.NodeList, error) { return k.client.CoreV1().Nodes().List(ctx, o) })
		if err != nil {
			return fmt.Errorf("list the edge nodes: %w", err)
		}
		for i := range page.Items {
			k.learn(&page.Items[i])
			found = true
		}
		o.Continue = page.Continue
	}
	if !found {
		return nil
	}
	return k.listPods(ctx, fields.OneTermNotEqualSelector("spec.nodeName", ""))
}

// learn takes a node from a list. What has passed by meanwhile is newer, or will
// be made right by what is still to pass.
func (k *Keeper) learn(n *corev1.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.edges[n.Name]; !known && k.queue != nil {
		k.edges[n.Name] = n.Annotations[Annotation] == "off"
	}
}

func (k *Keeper) listPods(ctx context.Context, which fields.Selector) error {
	o := metav1.ListOptions{Limit: pageSize, FieldSelector: which.String()}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*corev1.PodList, error) {
			return k.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, o)
		})
		if err != nil {
			return fmt.Errorf("list pods with %s: %w", which, err)
		}
		for i := range page.Items {
			k.look(&page.Items[i])
		}
		o.Continue = page.Continue
	}
	return nil
}

// patch brings one pod's tolerations to what they must be. The apiserver refuses
// a patch that would lose a toleration which somebody else added meanwhile; the
// next attempt reads the pod.
func (k *Keeper) patch(ctx context.Context, key types.NamespacedName) error {
	k.mu.Lock()
	body := k.jobs[key]
	delete(k.jobs, key)
	k.mu.Unlock()
	if body == nil {
		p, err := call(ctx, func(ctx context.Context) (*corev1.Pod, error) {
			return k.client.CoreV1().Pods(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read pod %s: %w", key, err)
		}
		k.mu.Lock()
		off, edge := k.edges[p.Spec.NodeName]
		k.mu.Unlock()
		if !edge {
			return nil
		}
		if body = k.body(p, off); body == nil {
			return nil
		}
	}
	_, err := call(ctx, func(ctx context.Context) (*corev1.Pod, error) {
		return k.client.CoreV1().Pods(key.Namespace).Patch(ctx, key.Name, types.MergePatchType, body, metav1.PatchOptions{})
	})
	// Gone, or another pod of that name: nothing is left to do.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("change the tolerations of pod %s: %w", key, err)
	}
	if err == nil {
		k.patches.Add(1)
	}
	return nil
}

func call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// needed is what must change of an edge node's pod, nil for nothing.
func needed(p *corev1.Pod, off bool) *change {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	if off {
		return restored(p)
	}
	return kept(p)
}

// change is a pod's new tolerations and annotation.
type change struct {
	tolerations []corev1.Toleration
	annotation  *string // nil: removed
}

func (c *change) patch(p *corev1.Pod) ([]byte, error) {
	b, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID, "annotations": map[string]any{roster.AnnotationTolerations: c.annotation}},
		"spec":     map[string]any{"tolerations": c.tolerations},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the tolerations of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return b, nil
}
