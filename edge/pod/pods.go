package pod

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Pods lists the pods with their status of this moment, ordered by name. What they refer
// to is shared: it is for reading alone. A pod whose object is gone is left out.
func (m *Manager) Pods() []*corev1.Pod {
	var list []*corev1.Pod
	for _, w := range m.all() {
		w.mu.Lock()
		known, shown, status := w.public.pod, w.public.summarized, w.public.status
		w.mu.Unlock()
		if shown == nil || status == nil {
			shown, status = known, nil // it has not had its first turn: what the hub says of it stands
		}
		if shown == nil || len(shown.Spec.Containers) == 0 {
			continue
		}
		p := *shown
		if status != nil {
			p.Status = *status
		}
		list = append(list, &p)
	}
	slices.SortFunc(list, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return list
}
