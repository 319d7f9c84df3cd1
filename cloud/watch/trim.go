package watch

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// trimPod drops what no room needs before a pod enters the cache. Of the status
// remain the phase and the conditions.
func trimPod(obj any) (any, error) {
	call(obj, func(p *corev1.Pod) {
		p.ManagedFields = nil
		p.Finalizers = nil
		p.Status = corev1.PodStatus{Phase: p.Status.Phase, Conditions: p.Status.Conditions}
	})
	return obj, nil
}

// trimNode keeps of a node's status the conditions.
func trimNode(obj any) (any, error) {
	call(obj, func(n *corev1.Node) {
		n.ManagedFields = nil
		n.Status = corev1.NodeStatus{Conditions: n.Status.Conditions, DaemonEndpoints: n.Status.DaemonEndpoints}
	})
	return obj, nil
}

// trimMetadata keeps the name, uid and resource version.
func trimMetadata(obj any) (any, error) {
	call(obj, func(m *metav1.PartialObjectMetadata) {
		m.ObjectMeta = metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
	})
	return obj, nil
}

func podNode(obj any) ([]string, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok || p.Spec.NodeName == "" {
		return nil, nil
	}
	return []string{p.Spec.NodeName}, nil
}

func podReferences(obj any) ([]string, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, nil
	}
	refs := roster.References(p)
	keys := make([]string, len(refs))
	for i, r := range refs {
		keys[i] = r.String()
	}
	return keys, nil
}
