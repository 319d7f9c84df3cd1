package pod

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/event"
)

// events records what happened to pods.
type events struct{ *event.Recorder }

// pod records an event of the pod as a whole.
func (e events) pod(p *corev1.Pod, kind, reason, message string) {
	e.Put(podReference(p, ""), kind, reason, message)
}

// container records an event of one container.
func (e events) container(p *corev1.Pod, name, kind, reason, message string) {
	path := fmt.Sprintf("spec.containers{%s}", name)
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			path = fmt.Sprintf("spec.initContainers{%s}", name)
		}
	}
	e.Put(podReference(p, path), kind, reason, message)
}

func podReference(p *corev1.Pod, path string) corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID, FieldPath: path}
}
