package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/status"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// observe looks at the runtime if what is known is out of date.
func (w *worker) observe(ctx context.Context) bool {
	if w.known && !w.stale {
		return true
	}
	p, err := w.m.o.Runtime.Inspect(ctx, w.uid)
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		w.retry = min(max(2*w.retry, 500*time.Millisecond), 15*time.Second)
		w.log.Warn("pod cannot be observed", "err", err, "again", w.retry)
		w.known = false
		w.wakeAt(w.m.clock.Mono() + w.retry)
		return false
	}
	w.retry = 0
	w.see(p)
	return true
}

// see takes an observation over.
func (w *worker) see(p *runtime.Pod) {
	w.known, w.stale = true, false
	if p == nil {
		p = &runtime.Pod{UID: w.uid}
	}
	w.seen = *p
	now := w.m.clock.Mono()
	live := map[string]bool{}
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		live[c.ID] = true
		if c.State != runtime.Exited {
			continue
		}
		if _, noticed := w.exits[c.ID]; !noticed {
			w.exits[c.ID] = now
			w.exited(c)
		}
	}
	for _, s := range w.seen.Sandboxes {
		live[s.ID] = true
	}
	forget(w.exits, live)
	forget(w.unhealthy, live)
	forget(w.ready, live)
	forget(w.begun, live)
	forget(w.stopped, live)
	forget(w.hooked, live)
	for key := range w.hold {
		if id, of := strings.CutPrefix(key, heldID); of && !live[id] {
			delete(w.hold, key)
		}
	}
	w.publish()
}

func forget[V any](m map[string]V, live map[string]bool) {
	for id := range m {
		if !live[id] {
			delete(m, id)
		}
	}
}

// exited notes how a container ended, for the day when the runtime has forgotten it.
func (w *worker) exited(c *runtime.Container) {
	w.m.probes.Remove(c.ID)
	delete(w.probing, c.ID)
	if w.pod == nil {
		return
	}
	last := status.Terminated(statusContainer(c))
	if len(last.Message) > 1024 {
		last.Message = last.Message[:1024]
	}
	w.record.Last[c.Name] = last
	if spec := named(w.pod, c.Name); spec != nil && !plan.Restarts(w.pod, spec, c.ExitCode) {
		w.record.Memory.Exits[c.Name] = c.ExitCode
	}
	w.log.Info("container exited", "container", c.Name, "attempt", c.Attempt, "code", c.ExitCode, "reason", c.Reason)
}

// publish lets others find the worker by what it runs.
func (w *worker) publish() {
	ids := make(map[string]bool, len(w.seen.Containers)+len(w.seen.Sandboxes))
	for i := range w.seen.Containers {
		ids[w.seen.Containers[i].ID] = true
	}
	for i := range w.seen.Sandboxes {
		ids[w.seen.Sandboxes[i].ID] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.public.containers = ids
	w.public.print = fingerprint(&w.seen)
}

// owns tells whether an id is of this pod. While a container is being made its id is not known yet: its
// first exit may be missed here, which is why a start ends with an observation.
func (w *worker) owns(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.public.containers[id]
}

// differs tells whether an observation is other than what the worker knows.
func (w *worker) differs(p *runtime.Pod) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.active && fingerprint(p) != w.public.print
}

func fingerprint(p *runtime.Pod) string {
	if p == nil {
		return ""
	}
	var list []string
	for i := range p.Sandboxes {
		list = append(list, fmt.Sprint(p.Sandboxes[i].ID, p.Sandboxes[i].Ready))
	}
	for i := range p.Containers {
		list = append(list, fmt.Sprint(p.Containers[i].ID, p.Containers[i].State))
	}
	slices.Sort(list)
	return fmt.Sprint(list)
}

// refersTo tells whether the pod uses that ConfigMap or Secret.
func (w *worker) refersTo(c store.Change) bool {
	w.mu.Lock()
	p := w.public.pod
	w.mu.Unlock()
	return p != nil && p.Namespace == c.Namespace && refers(p, c)
}

func (w *worker) isGone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}
