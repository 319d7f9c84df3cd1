package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// LeaseLife is the life of a node's lease, as a kubelet's.
const LeaseLife = leaseSeconds * time.Second

const leaseSeconds = 40

// annotationStore is on leases: the database of the edge that holds the claim.
const annotationStore = "holdfast.io/store"

// Epoch numbers the sessions of one node, over all hubs: a later one is higher.
// What a session writes carries its epoch, and is refused where a higher one is.
type Epoch uint64

// ErrFenced is in the error of a write whose epoch is no longer the node's
// highest: another session has claimed the node.
var ErrFenced = errors.New("another session has claimed the node")

// HeldError says that another machine with this node's name is connected to
// another hub.
type HeldError struct{ Node, Hub string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("node %s is connected to hub %s from another machine or another data directory", e.Node, e.Hub)
}

// Claim makes a session the one that writes for the node, over all hubs: it
// raises the epoch on the node's lease, and so renews it. store names the edge's
// database; while another hub hears an edge with another database, the claim
// fails with a HeldError. The epoch is the hub's time in milliseconds, or one
// more than the last: so it also rises when the lease was deleted between.
func (w *Writer) Claim(ctx context.Context, node, store string) (epoch Epoch, err error) {
	err = w.patient(as(ctx, node), func(ctx context.Context) error {
		epoch, err = w.claim(ctx, node, store)
		return err
	})
	return epoch, err
}

func (w *Writer) claim(ctx context.Context, node, store string) (Epoch, error) {
	leases := w.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	was, err := leases.Get(ctx, node, metav1.GetOptions{})
	found := err == nil
	if apierrors.IsNotFound(err) {
		was = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: corev1.NamespaceNodeLease}}
	} else if err != nil {
		return 0, fmt.Errorf("read the lease of node %s: %w", node, err)
	}
	if hub, other := was.Annotations[roster.AnnotationHub], was.Annotations[annotationStore]; other != "" && other != store && hub != w.hub && w.renewedLately(was) {
		return 0, &HeldError{Node: node, Hub: hub}
	}
	epoch := max(epochOf(was.Annotations)+1, Epoch(max(w.now().UnixMilli(), 0)))
	lease := w.fill(was.DeepCopy(), node, epoch)
	lease.Annotations[annotationStore] = store
	if found {
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	} else if _, err = leases.Create(ctx, lease, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		err = apierrors.NewConflict(coordinationv1.Resource("leases"), node, err) // with another claim: look again
	}
	if err != nil {
		return 0, fmt.Errorf("claim node %s on its lease: %w", node, err)
	}
	return epoch, nil
}

// renewedLately says that whoever held the lease last may still be there.
func (w *Writer) renewedLately(l *coordinationv1.Lease) bool {
	return l.Spec.RenewTime != nil && w.now().Sub(l.Spec.RenewTime.Time) < LeaseLife
}

// fill makes the lease say that this hub hears the node now.
func (w *Writer) fill(l *coordinationv1.Lease, node string, epoch Epoch) *coordinationv1.Lease {
	if l.Annotations == nil {
		l.Annotations = make(map[string]string, 3)
	}
	l.Annotations[roster.AnnotationHub] = w.hub
	l.Annotations[roster.AnnotationEpoch] = epoch.String()
	now, seconds := metav1.NewMicroTime(w.now()), int32(leaseSeconds)
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &node, &seconds, &now
	return l
}

// Renew renews a node's lease as the node. The hub calls it when it has heard
// the node, and at no other time, so that the lease of a node whose line is cut
// lapses. It is one request, which the apiserver itself refuses under another
// epoch.
func (w *Writer) Renew(ctx context.Context, node string, epoch Epoch) error {
	ctx = as(ctx, node)
	err := w.slot(ctx, func(ctx context.Context) error {
		patch, err := json.Marshal([]map[string]any{
			{"op": "test", "path": "/metadata/annotations/holdfast.io~1epoch", "value": epoch.String()},
			{"op": "add", "path": "/spec/renewTime", "value": metav1.NewMicroTime(w.now())},
		})
		if err != nil {
			return fmt.Errorf("encode the lease of node %s: %w", node, err)
		}
		leases := w.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease)
		l, err := leases.Patch(ctx, node, types.JSONPatchType, patch, metav1.PatchOptions{})
		if err != nil {
			return fmt.Errorf("renew the lease of node %s: %w", node, err)
		}
		return w.own(ctx, l)
	})
	if apierrors.IsInvalid(err) || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return w.patient(ctx, func(ctx context.Context) error { return w.reclaim(ctx, node, epoch) })
	}
	return err
}

// reclaim writes the lease that could not be renewed, unless a later session has.
func (w *Writer) reclaim(ctx context.Context, node string, epoch Epoch) error {
	leases := w.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	l, err := leases.Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// Gone with its Node, or by hand.
		l = w.fill(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: corev1.NamespaceNodeLease}}, node, epoch)
		if _, err = leases.Create(ctx, l, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			err = apierrors.NewConflict(coordinationv1.Resource("leases"), node, err)
		}
	} else if err == nil {
		if err := fence(l.Annotations, epoch, "the lease of node "+node); err != nil {
			return err
		}
		_, err = leases.Update(ctx, w.fill(l, node, epoch), metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renew the lease of node %s: %w", node, err)
	}
	return nil
}

// own makes the lease go with its Node, as a kubelet's does. The claim of a
// node that is new comes before its Node.
func (w *Writer) own(ctx context.Context, l *coordinationv1.Lease) error {
	if len(l.OwnerReferences) > 0 {
		return nil
	}
	n, err := w.asNode.CoreV1().Nodes().Get(ctx, l.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s for its lease: %w", l.Name, err)
	}
	l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	_, err = w.asNode.CoordinationV1().Leases(l.Namespace).Update(ctx, l, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsConflict(err) { // then the next renewal does it
		return fmt.Errorf("give node %s its lease: %w", l.Name, err)
	}
	return nil
}

// String is the epoch as annotations carry it.
func (e Epoch) String() string { return strconv.FormatUint(uint64(e), 10) }

// maxEpoch is far beyond every hub's clock.
const maxEpoch Epoch = 1 << 60

// epochOf is the epoch that an object carries; 0 for none. One that is no number,
// or beyond all reason, was written by nobody of ours, and fences nobody.
func epochOf(annotations map[string]string) Epoch {
	n, err := strconv.ParseUint(annotations[roster.AnnotationEpoch], 10, 64)
	if err != nil || Epoch(n) > maxEpoch {
		return 0
	}
	return Epoch(n)
}

// fencedError is an ErrFenced that knows which epoch was met.
type fencedError struct {
	what       string
	own, there Epoch
}

func (e *fencedError) Error() string {
	return fmt.Sprintf("write %s under epoch %d: it carries %d: %v", e.what, e.own, e.there, ErrFenced)
}

func (e *fencedError) Unwrap() error { return ErrFenced }

// fence refuses to write under an epoch that is not the highest.
func fence(annotations map[string]string, epoch Epoch, what string) error {
	return Fence(epochOf(annotations), epoch, what)
}

// Fence refuses to write what carries a higher epoch: its error is ErrFenced. One
// beyond all reason fences nobody.
func Fence(there, own Epoch, what string) error {
	if there > own && there <= maxEpoch {
		return &fencedError{what, own, there}
	}
	return nil
}

// guarded runs a write that an object's epoch may refuse. The session that was refused is over in any case. But the epoch may be nobody's
// claim: the lease was deleted and the hub's clock is behind, or the annotation
// was copied from another node's pod. So the lease is brought up to it, and the
// next session's claim is above it.
func (w *Writer) guarded(ctx context.Context, node string, f func(context.Context) error) error {
	err := f(ctx)
	var fenced *fencedError
	if errors.As(err, &fenced) {
		raise := func(ctx context.Context) error { return w.raise(ctx, node, fenced.there) }
		if failed := w.patient(as(ctx, node), raise); failed != nil {
			return errors.Join(err, failed)
		}
	}
	return err
}

// raise brings the epoch on the lease up to one that was met. It claims nothing
// and renews nothing.
func (w *Writer) raise(ctx context.Context, node string, to Epoch) error {
	leases := w.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	l, err := leases.Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: corev1.NamespaceNodeLease}}
		mark(&l.ObjectMeta, to)
		if _, err = leases.Create(ctx, l, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			err = apierrors.NewConflict(coordinationv1.Resource("leases"), node, err)
		}
	} else if err == nil && epochOf(l.Annotations) < to {
		mark(&l.ObjectMeta, to)
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("raise the epoch on the lease of node %s to %d: %w", node, to, err)
	}
	return nil
}

// mark makes an object carry the epoch, and says whether it did not before.
func mark(o *metav1.ObjectMeta, epoch Epoch) (changed bool) {
	if o.Annotations[roster.AnnotationEpoch] == epoch.String() {
		return false
	}
	if o.Annotations == nil {
		o.Annotations = make(map[string]string, 1)
	}
	o.Annotations[roster.AnnotationEpoch] = epoch.String()
	return true
}
