package pod

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// specOf is the pod's container of that name, be it ephemeral, or nil. Ephemeral containers have no probes, hooks, ports
// or resources: where those are looked for, named is enough.
func specOf(p *corev1.Pod, name string) *corev1.Container {
	if c := plan.Ephemeral(p, name); c != nil {
		return (*corev1.Container)(&c.EphemeralContainerCommon)
	}
	return named(p, name)
}

// target is the container whose processes an ephemeral container wants to see; missing when there is none of that name.
func (w *worker) target(name string) (id string, missing error) {
	c := plan.Ephemeral(w.pod, name)
	if c == nil || c.TargetContainerName == "" {
		return "", nil
	}
	for i := range w.seen.Containers { // newest first
		switch seen := &w.seen.Containers[i]; {
		case seen.Name != c.TargetContainerName:
		case seen.State == runtime.Running:
			return seen.ID, nil
		case id == "":
			id = seen.ID // the runtime says best why it cannot be joined
		}
	}
	if id == "" {
		return "", configErrorf("unable to find target container %q", c.TargetContainerName)
	}
	return id, nil
}

// ledger knows the starts of a pod's containers that were written down. An ephemeral container may be started while
// another container is, each with a memory that was copied when it began: the one that is written last must not
// forget the other.
type ledger struct {
	mu     sync.Mutex
	starts map[string]uint32 // as in plan.Memory.Attempts
}

// write notes the start of a container and stores the pod's memory with it.
func (l *ledger) write(ctx context.Context, s *store.Store, uid, name string, r *record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.starts == nil {
		l.starts = map[string]uint32{}
	}
	l.starts[name] = r.Memory.Attempts[name]
	for n, attempts := range l.starts {
		r.Memory.Attempts[n] = max(r.Memory.Attempts[n], attempts)
	}
	b, err := r.marshal()
	if err != nil {
		return err
	}
	return s.SetPodState(ctx, uid, b)
}

// failed takes back what was noted: the container has not run.
func (l *ledger) failed(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.starts, name)
}
