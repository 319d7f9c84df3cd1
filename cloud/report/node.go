package report

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// LabelRole is the role that "kubectl get nodes" shows. NodeRestriction forbids
// nodes to give themselves a role, so cloudcore adds it.
const LabelRole = "node-role.kubernetes.io/edge"

// node registers a node or brings its labels and status up to date, as the node.
func (w *Writer) node(ctx context.Context, name string, epoch Epoch, payload []byte) (note string, err error) {
	said := new(corev1.Node)
	if err := said.Unmarshal(payload); err != nil {
		return "", fmt.Errorf("decode the report of node %s: %w: %w", name, err, ErrRejected)
	}
	if said.Name != "" && said.Name != name {
		return "", fmt.Errorf("node %s reports about node %s: %w", name, said.Name, ErrRejected)
	}
	metadata, refused, err := allowedMetadata(said)
	if err != nil {
		return "", err
	}
	if len(refused) > 0 {
		note = fmt.Sprintf("labels that a node may not set on itself were left out: %s; set them with kubectl label node %s", strings.Join(refused, ", "), name)
		w.log.Debug("labels left out", "node", name, "labels", refused)
	}
	metadata.Annotations[roster.AnnotationEpoch] = epoch.String()
	metadata.Annotations[roster.AnnotationHub] = w.hub
	return note, w.patient(ctx, func(ctx context.Context) error {
		n, err := w.ensureNode(as(ctx, name), name, epoch, metadata, said)
		if err != nil {
			return err
		}
		status := mergeNodeStatus(n, &said.Status, w.now())
		w.reachable(name, status, &n.Status, said.Status.Addresses)
		if !apiequality.Semantic.DeepEqual(*status, n.Status) {
			n.Status = *status
			if n, err = w.asNode.CoreV1().Nodes().UpdateStatus(as(ctx, name), n, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("write the status of node %s: %w", name, err)
			}
		}
		return w.adorn(ctx, n)
	})
}

// ensureNode creates the Node or patches the metadata that differs.
func (w *Writer) ensureNode(ctx context.Context, name string, epoch Epoch, metadata *metav1.ObjectMeta, said *corev1.Node) (*corev1.Node, error) {
	nodes := w.asNode.CoreV1().Nodes()
	n, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		fresh := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: metadata.Labels, Annotations: metadata.Annotations},
			Spec:       corev1.NodeSpec{Taints: said.Spec.Taints},
		}
		n, err = nodes.Create(ctx, fresh, metav1.CreateOptions{})
		if err == nil {
			w.log.Info("registered a node", "node", name)
			return n, nil
		}
		if apierrors.IsAlreadyExists(err) {
			n, err = nodes.Get(ctx, name, metav1.GetOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", name, err)
	}
	if err := fence(n.Annotations, epoch, "node "+name); err != nil {
		return nil, err
	}
	patch := metav1.ObjectMeta{Labels: differing(metadata.Labels, n.Labels), Annotations: differing(metadata.Annotations, n.Annotations)}
	if patch.Labels == nil && patch.Annotations == nil {
		return n, nil
	}
	n, err = nodes.Patch(ctx, name, types.MergePatchType, metadataPatch(n, patch.Labels, patch.Annotations), metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("label node %s: %w", name, err)
	}
	return n, nil
}

// adorn adds, in cloudcore's own name, what no node may set on itself.
func (w *Writer) adorn(ctx context.Context, n *corev1.Node) error {
	if _, ok := n.Labels[LabelRole]; ok {
		return nil
	}
	if _, err := w.client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, metadataPatch(n, map[string]string{LabelRole: ""}, nil), metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("label node %s with its role: %w", n.Name, err)
	}
	return nil
}

// metadataPatch patches the node in the version that was read, and no other: so
// no session writes over what a later one wrote meanwhile.
func metadataPatch(n *corev1.Node, labels, annotations map[string]string) []byte {
	// An empty map is left out: a null would delete what is there.
	metadata := map[string]any{"resourceVersion": n.ResourceVersion}
	if len(labels) > 0 {
		metadata["labels"] = labels
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	b, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		// Maps of strings always encode.
		return []byte("{}")
	}
	return b
}

// differing returns those of want that have does not hold, nil for none.
func differing(want, have map[string]string) map[string]string {
	var out map[string]string
	for k, v := range want {
		if was, ok := have[k]; !ok || was != v {
			if out == nil {
				out = make(map[string]string)
			}
			out[k] = v
		}
	}
	return out
}

// mayLabel says that a node may set a label on itself: NodeRestriction's rule.
func mayLabel(key string) bool {
	domain, _, found := strings.Cut(key, "/")
	if !found {
		return true
	}
	ours := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
	if !ours("kubernetes.io") && !ours("k8s.io") {
		return true
	}
	switch key {
	case corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion,
		corev1.LabelInstanceTypeStable, corev1.LabelOSStable, corev1.LabelArchStable,
		corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelInstanceType,
		"beta.kubernetes.io/os", "beta.kubernetes.io/arch":
		return true
	}
	return ours("kubelet.kubernetes.io") || ours("node.kubernetes.io")
}

// allowedMetadata is what is written of the reported metadata. The conditions
// are kept in an annotation too, so that RestoreNode can write them again
// without a word on the line.
func allowedMetadata(said *corev1.Node) (m *metav1.ObjectMeta, refused []string, err error) {
	m = &metav1.ObjectMeta{Labels: map[string]string{roster.LabelEdge: "true"}, Annotations: map[string]string{}}
	for k, v := range said.Labels {
		if mayLabel(k) {
			m.Labels[k] = v
		} else if k != LabelRole {
			refused = append(refused, k)
		}
	}
	slices.Sort(refused)
	for k, v := range said.Annotations {
		if k != roster.AnnotationHub && k != roster.AnnotationEpoch {
			m.Annotations[k] = v
		}
	}
	var kept []keptCondition
	for _, c := range said.Status.Conditions {
		kept = append(kept, keptCondition{c.Type, c.Status, c.Reason, c.Message})
	}
	b, err := json.Marshal(kept)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the conditions of node %s: %w", said.Name, err)
	}
	m.Annotations[roster.AnnotationConditions] = string(b)
	return m, refused, nil
}

type keptCondition struct {
	Type    corev1.NodeConditionType `json:"type"`
	Status  corev1.ConditionStatus   `json:"status"`
	Reason  string                   `json:"reason,omitempty"`
	Message string                   `json:"message,omitempty"`
}

// mergeNodeStatus is a node's status after a report. Conditions of types that
// the node does not report, attached volumes and, unless reported, the kubelet
// port are somebody else's. Times are the hub's: an edge's clock is not trusted.
func mergeNodeStatus(n *corev1.Node, said *corev1.NodeStatus, now time.Time) *corev1.NodeStatus {
	s := said.DeepCopy()
	s.VolumesAttached, s.VolumesInUse = n.Status.VolumesAttached, n.Status.VolumesInUse
	s.Phase = n.Status.Phase
	if s.DaemonEndpoints.KubeletEndpoint.Port == 0 {
		s.DaemonEndpoints = n.Status.DaemonEndpoints
	}
	s.Conditions = mergeConditions(n.Status.Conditions, s.Conditions, now)
	return s
}

func mergeConditions(was, said []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	out := slices.Clone(was)
	at := metav1.NewTime(now).Rfc3339Copy()
	for _, c := range said {
		i := slices.IndexFunc(out, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		switch {
		case i < 0:
			c.LastHeartbeatTime, c.LastTransitionTime = at, at
			out = append(out, c)
		case out[i].Status != c.Status:
			c.LastHeartbeatTime, c.LastTransitionTime = at, at
			out[i] = c
		case out[i].Reason != c.Reason || out[i].Message != c.Message:
			c.LastHeartbeatTime, c.LastTransitionTime = at, out[i].LastTransitionTime
			out[i] = c
		}
	}
	return out
}

// statusUnknown is the reason that the node lifecycle controller writes.
const statusUnknown = "NodeStatusUnknown"

// NeedsConditions says that the cluster gave a node up as silent: a condition
// which the node has reported reads Unknown. The controller also adds conditions
// that the node never reported; those stay as they are.
func NeedsConditions(n *corev1.Node) bool {
	given := func(c corev1.NodeCondition) bool {
		return c.Status == corev1.ConditionUnknown && c.Reason == statusUnknown
	}
	if !slices.ContainsFunc(n.Status.Conditions, given) {
		return false
	}
	last, err := keptConditions(n)
	return err == nil && slices.ContainsFunc(last, func(k corev1.NodeCondition) bool {
		return k.Status != corev1.ConditionUnknown &&
			slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == k.Type && given(c) })
	})
}

// keptConditions are those of the last report, from the Node's annotation.
func keptConditions(n *corev1.Node) ([]corev1.NodeCondition, error) {
	text := n.Annotations[roster.AnnotationConditions]
	if text == "" {
		return nil, nil
	}
	var last []keptCondition
	if err := json.Unmarshal([]byte(text), &last); err != nil {
		return nil, fmt.Errorf("annotation %s of node %s: %w", roster.AnnotationConditions, n.Name, err)
	}
	said := make([]corev1.NodeCondition, len(last))
	for i, c := range last {
		said[i] = corev1.NodeCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message}
	}
	return said, nil
}

// NodeReady says that the cluster holds a node for ready.
func NodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// RestoreNode writes a node's conditions as the node last reported them, after
// the cluster had given it up, and makes the Node lead to this hub. The node's
// lease must have been renewed before, else the cluster gives it up again.
func (w *Writer) RestoreNode(ctx context.Context, name string, epoch Epoch) error {
	return w.guarded(ctx, name, func(ctx context.Context) error {
		return w.patient(ctx, func(ctx context.Context) error {
			n, err := w.asNode.CoreV1().Nodes().Get(as(ctx, name), name, metav1.GetOptions{})
			if err != nil {
				return fmt.Errorf("read node %s: %w", name, err)
			}
			conditions := NeedsConditions(n)
			endpoint, _ := w.NeedsEndpoint(n)
			said, err := keptConditions(n)
			if err != nil || !conditions && !endpoint {
				return err
			}
			if err := fence(n.Annotations, epoch, "the conditions of node "+name); err != nil {
				return err
			}
			mark(&n.ObjectMeta, epoch)
			if conditions {
				n.Status.Conditions = mergeConditions(n.Status.Conditions, said, w.now())
			}
			w.reachable(name, &n.Status, n.Status.DeepCopy(), ownAddresses(&n.Status))
			if _, err := w.asNode.CoreV1().Nodes().UpdateStatus(as(ctx, name), n, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("write the conditions of node %s: %w", name, err)
			}
			if conditions {
				w.log.Info("the node is heard again", "node", name)
			}
			return nil
		})
	})
}
