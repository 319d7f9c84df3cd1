package watch

import (
	"bytes"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// keptPod is what the hub holds of a pod: the item that travels, and of the
// status what somebody asks for. Everything is encoded: decoded it takes several
// times the memory.
type keptPod struct {
	item     *roster.Item
	version  string
	status   []byte // phase and conditions
	terminal bool
	ready    bool
	refs     []roster.Key
}

func placePod(obj runtime.Object) (node, key, version string) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return "", "", ""
	}
	return p.Spec.NodeName, p.Namespace + "/" + p.Name, p.ResourceVersion
}

func keepPod(obj runtime.Object, was *keptPod) (*keptPod, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("a %T is no pod", obj)
	}
	item, err := roster.Pod(p)
	if err != nil {
		return nil, err
	}
	status, err := (&corev1.PodStatus{Phase: p.Status.Phase, Conditions: p.Status.Conditions}).Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode the status of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	kept := &keptPod{item: item, version: p.ResourceVersion, status: status, terminal: roster.Terminal(p), ready: isReady(p)}
	if was != nil && sameItem(was.item, item) {
		kept.item, kept.refs = was.item, was.refs
	} else {
		kept.refs = roster.References(p)
	}
	return kept, nil
}

func isReady(p *corev1.Pod) bool {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func sameItem(a, b *roster.Item) bool {
	return a.Ref.GetUid() == b.Ref.GetUid() && bytes.Equal(a.Ref.GetVersion(), b.Ref.GetVersion())
}

// pod decodes what is kept.
func (k *keptPod) pod() (*corev1.Pod, error) {
	object, err := k.item.Object()
	if err != nil {
		return nil, err
	}
	p := new(corev1.Pod)
	if err := p.Unmarshal(object.GetPayload()); err != nil {
		return nil, fmt.Errorf("decode what is kept of a pod: %w", err)
	}
	if err := p.Status.Unmarshal(k.status); err != nil {
		return nil, fmt.Errorf("decode the status of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	p.ResourceVersion = k.version
	return p, nil
}

// keptNode is what the hub holds of a Node.
type keptNode struct {
	item  *roster.Item
	whole []byte // the Node with the conditions of its status
}

func placeNode(obj runtime.Object) (node, key, version string) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return "", "", ""
	}
	return n.Name, n.Name, n.ResourceVersion
}

func keepNode(obj runtime.Object, was *keptNode) (*keptNode, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("a %T is no node", obj)
	}
	item, err := roster.Node(n)
	if err != nil {
		return nil, err
	}
	if was != nil && sameItem(was.item, item) {
		item = was.item
	}
	trimmed := &corev1.Node{ObjectMeta: n.ObjectMeta, Spec: n.Spec, Status: corev1.NodeStatus{
		Conditions: n.Status.Conditions, Addresses: n.Status.Addresses, DaemonEndpoints: n.Status.DaemonEndpoints,
	}}
	trimmed.ManagedFields = nil
	whole, err := trimmed.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode node %s: %w", n.Name, err)
	}
	return &keptNode{item: item, whole: whole}, nil
}

func (k *keptNode) node() (*corev1.Node, error) {
	n := new(corev1.Node)
	if err := n.Unmarshal(k.whole); err != nil {
		return nil, fmt.Errorf("decode what is kept of a node: %w", err)
	}
	return n, nil
}
