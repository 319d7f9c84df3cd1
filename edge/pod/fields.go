package pod

import "context"

// judge looks at the pod's fields once for each of its generations.
func (w *worker) judge(ctx context.Context) {
	if w.judged == w.pod.Generation {
		return
	}
	w.judged = w.pod.Generation
}
