// Package autonomy keeps the pods of edge nodes from being evicted because their
// node is not heard (keps/0004-autonomy-by-tolerations.md). It owns the
// tolerations of the two taints that the node lifecycle controller puts on
// silent nodes, and the annotation that remembers what they were.
// cloud/cmd/cloudcore runs it over cloud/watch's informers. It never touches a
// pod of a node that is no edge, and deletes nothing.
package autonomy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// Annotation on a node: "off" turns autonomy off for its pods.
const Annotation = "holdfast.io/autonomy"

// Cluster is what autonomy asks of cloud/watch.
type Cluster interface {
	OnPod(func(*corev1.Pod)) error
	OnNode(func(*corev1.Node)) error
	Pod(namespace, name string) *corev1.Pod
	Node(name string) *corev1.Node
	Pods(node string) ([]*corev1.Pod, error)
	WaitSynced(ctx context.Context) error
}

// Keeper patches pods.
type Keeper struct {
	client  kubernetes.Interface
	cluster Cluster
	log     *slog.Logger
	queue   workqueue.TypedRateLimitingInterface[types.NamespacedName]
}

// workers is how many pods are patched at a time.
const workers = 4

// patchTimeout bounds one patch.
const patchTimeout = 10 * time.Second

// New returns a Keeper; client is cloudcore's own identity.
func New(client kubernetes.Interface, cluster Cluster, log *slog.Logger) *Keeper {
	return &Keeper{
		client: client, cluster: cluster, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](50*time.Millisecond, time.Minute)),
	}
}

// Run watches and patches until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.queue.ShutDown()
	if err := k.cluster.OnPod(k.addPod); err != nil {
		return fmt.Errorf("follow pods for autonomy: %w", err)
	}
	if err := k.cluster.OnNode(k.addNode); err != nil {
		return fmt.Errorf("follow nodes for autonomy: %w", err)
	}
	if k.cluster.WaitSynced(ctx) != nil {
		return nil // ctx has ended
	}
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for k.step(ctx) {
			}
		})
	}
	<-ctx.Done()
	k.queue.ShutDown()
	all.Wait()
	return nil
}

func (k *Keeper) addPod(p *corev1.Pod) {
	if k.change(p) != nil {
		k.queue.Add(types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
	}
}

// addNode looks at all pods of a node: it may have become an edge node, or its
// annotation may have changed.
func (k *Keeper) addNode(n *corev1.Node) {
	if !isEdge(n) {
		return
	}
	pods, err := k.cluster.Pods(n.Name)
	if err != nil {
		k.log.Error("pods cannot be looked up", "node", n.Name, "err", err)
	}
	for _, p := range pods {
		k.addPod(p)
	}
}

func isEdge(n *corev1.Node) bool {
	_, ok := n.Labels[roster.LabelEdge]
	return ok
}

// step patches the next pod; false when the queue has ended.
func (k *Keeper) step(ctx context.Context) bool {
	key, stop := k.queue.Get()
	if stop {
		return false
	}
	defer k.queue.Done(key)
	if ctx.Err() != nil {
		return false
	}
	if err := k.patch(ctx, key); err != nil {
		if k.queue.NumRequeues(key) == 0 {
			k.log.Warn("autonomy of a pod cannot be set; trying again", "pod", key.String(), "err", err)
		}
		k.queue.AddRateLimited(key)
		return true
	}
	k.queue.Forget(key)
	return true
}

// patch brings one pod's tolerations to what they must be. The apiserver refuses
// a patch that would lose a toleration which somebody else added meanwhile.
func (k *Keeper) patch(ctx context.Context, key types.NamespacedName) error {
	p := k.cluster.Pod(key.Namespace, key.Name)
	if p == nil {
		return nil
	}
	c := k.change(p)
	if c == nil {
		return nil
	}
	body, err := c.patch(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	_, err = k.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, body, metav1.PatchOptions{})
	// Gone, or another pod of that name: nothing is left to do.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("change the tolerations of pod %s: %w", key, err)
	}
	return nil
}

// change is what must change of a pod, nil for nothing.
func (k *Keeper) change(p *corev1.Pod) *change {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	n := k.cluster.Node(p.Spec.NodeName)
	if n == nil || !isEdge(n) {
		return nil
	}
	if n.Annotations[Annotation] == "off" {
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
