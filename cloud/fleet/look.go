package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// A hub holds pods and hears the line of nodes that are connected to it. Of others it
// reads the lease and counts the pods when they are on somebody's page.
const (
	lookers = 4
	// lookAgain is how long what was read is good enough.
	lookAgain = 30 * time.Second
	// maxLooks is how many nodes may wait for a look; further ones are left for the
	// next time that somebody asks.
	maxLooks = 512
)

// looks is a queue of nodes to look at, each in it once.
type looks struct {
	nodes chan string

	mu     sync.Mutex
	queued map[string]bool
}

func newLooks() looks {
	return looks{nodes: make(chan string, maxLooks), queued: make(map[string]bool)}
}

func (l *looks) add(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queued[node] {
		return
	}
	select {
	case l.nodes <- node:
		l.queued[node] = true
	default:
	}
}

func (l *looks) done(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.queued, node)
}

// look looks at one node after the other until ctx ends.
func (f *Fleet) look(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case node := <-f.looks.nodes:
			if err := f.lookAt(ctx, node); err != nil && ctx.Err() == nil {
				f.log.Debug("a node of which somebody wants to know cannot be looked at", "node", node, "err", err)
			}
			f.looks.done(node)
		}
	}
}

// lookAt reads a node's lease and counts its pods.
func (f *Fleet) lookAt(ctx context.Context, node string) error {
	lease, err := f.readLease(ctx, node)
	if err != nil {
		return err
	}
	pods, err := f.listPods(ctx, node)
	if err != nil {
		return err
	}
	total, ready := 0, 0
	for i := range pods {
		if p := &pods[i]; !roster.Terminal(p) {
			total++
			if podReady(p) {
				ready++
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[node]; r != nil {
		r.pods, r.ready, r.counted = capped(total), capped(ready), stampOf(f.now())
		f.takeLease(r, lease)
	}
	return nil
}

// takeLease notes what a lease says of a node that is not connected here; the caller
// holds mu.
func (f *Fleet) takeLease(r *record, l *coordinationv1.Lease) {
	r.lease = leaseSaid{at: stampOf(f.now())}
	if l.Spec.RenewTime != nil {
		r.lease.hub = wordOf(l.Annotations[roster.AnnotationHub])
		r.lease.held = stampOf(l.Spec.RenewTime.Add(report.LeaseLife))
		r.heard = max(r.heard, stampOf(l.Spec.RenewTime.Time))
	}
	if r.session == "" {
		f.settle(r)
	}
}

func (f *Fleet) readLease(ctx context.Context, node string) (*coordinationv1.Lease, error) {
	l, err := call(ctx, func(ctx context.Context) (*coordinationv1.Lease, error) {
		return f.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(asnode.With(ctx, node), node, metav1.GetOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("read the lease of node %s: %w", node, err)
	}
	return l, nil
}

// maxPods is how many pods of a node are shown.
const maxPods = 1000

// listPods lists a node's pods from the apiserver's cache.
func (f *Fleet) listPods(ctx context.Context, node string) ([]corev1.Pod, error) {
	list, err := call(ctx, func(ctx context.Context) (*corev1.PodList, error) {
		return f.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), ResourceVersion: "0", Limit: maxPods,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	return list.Items, nil
}

func podReady(p *corev1.Pod) bool {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
