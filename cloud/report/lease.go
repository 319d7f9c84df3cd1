package report

import (
	"context"
	"encoding/json"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// leaseSeconds is the life of a node's lease, as a kubelet's.
const leaseSeconds = 40

// Renew renews a node's lease as the node. The hub calls it when it has heard
// the node, and at no other time, so that the lease of a node whose line is cut
// lapses. A node that does not exist yet has no lease.
func (w *Writer) Renew(ctx context.Context, node string) error {
	return w.slot(ctx, func(ctx context.Context) error {
		ctx = as(ctx, node)
		leases := w.asNode.CoordinationV1().Leases(corev1.NamespaceNodeLease)
		now := metav1.NewMicroTime(w.now())
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"renewTime": now}})
		if err != nil {
			return fmt.Errorf("encode the lease of node %s: %w", node, err)
		}
		if _, err = leases.Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{}); err == nil {
			return nil
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("renew the lease of node %s: %w", node, err)
		}
		n, err := w.asNode.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read node %s for its lease: %w", node, err)
		}
		seconds := int32(leaseSeconds)
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Name: node, Namespace: corev1.NamespaceNodeLease,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: n.UID}},
			},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &node, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create the lease of node %s: %w", node, err)
		}
		return nil
	})
}
