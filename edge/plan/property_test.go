package plan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestAnyHistoryConverges lets everything happen to random pods at random moments: exits, sandboxes that
// die, actions that fail, reboots, restarts of edgecore, a changed image, forgotten containers, deletion.
// Whatever happens, no name runs twice, nothing that runs and matches is stopped, and once it is quiet the
// pod comes to rest as it should be.
func TestAnyHistoryConverges(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(randomPod(r))
		for range 5 + r.IntN(60) {
			happen(r, w)
			if w.gone {
				break
			}
		}
		w.ending, w.deadline = chosenEnd(r, w)
		quiet(w)
		check(w)
		if len(w.wrongs) > 0 {
			t.Fatalf("seed %d, pod %+v:\n%v", seed, describePod(w.pod), w.wrongs)
		}
	}
}

func randomPod(r *rand.Rand) *corev1.Pod {
	p := &corev1.Pod{}
	p.Spec.RestartPolicy = []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[r.IntN(3)]
	always := corev1.ContainerRestartPolicyAlways
	for i := range r.IntN(4) {
		c := corev1.Container{Name: fmt.Sprintf("init%d", i), Image: "v1"}
		if r.IntN(2) == 0 {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	for i := range 1 + r.IntN(3) {
		c := corev1.Container{Name: fmt.Sprintf("main%d", i), Image: "v1"}
		if r.IntN(5) == 0 {
			policy := corev1.ContainerRestartPolicyNever
			c.RestartPolicy = &policy
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	if r.IntN(4) == 0 {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	}
	return p
}

// happen is one thing that happens.
func happen(r *rand.Rand, w *world) {
	switch n := r.IntN(100); {
	case n < 35:
		for _, a := range w.plan().Actions {
			w.begin(a)
		}
	case n < 65:
		if len(w.busy) > 0 {
			w.land(r.IntN(len(w.busy)), r.IntN(8) > 0)
		}
	case n < 78:
		if live := w.running(); len(live) > 0 {
			c := w.named(live[r.IntN(len(live))])
			w.exit(c.ID, int32(r.IntN(2)))
		}
	case n < 80:
		if len(w.pod.Spec.EphemeralContainers) < 3 && w.ending == nil {
			w.debug(fmt.Sprintf("debug%d", len(w.pod.Spec.EphemeralContainers)))
		}
	case n < 83:
		w.now += time.Duration(r.IntN(400)) * time.Second
	case n < 86:
		w.reboot()
	case n < 89: // edgecore is killed and comes back: what it had begun is cut off in the middle
		for len(w.busy) > 0 {
			w.land(0, r.IntN(2) == 0)
		}
	case n < 92:
		if len(w.observed.Sandboxes) > 0 {
			w.observed.Sandboxes[0].Ready = false
		}
	case n < 94:
		if live := w.running(); len(live) > 0 {
			w.sick[w.named(live[0]).ID] = Unhealthy{Message: "Liveness"}
		}
	case n < 96:
		w.hashes[w.pod.Spec.Containers[0].Name] = fmt.Sprintf("v%d", r.IntN(3))
	case n < 98: // somebody cleared the runtime's disk
		if len(w.busy) == 0 && len(w.running()) == 0 {
			w.observed = Observed{}
		}
	case n < 98+1 && r.IntN(2) == 0: // the database was lost: what the runtime has says how often things were started
		if len(w.observed.Containers) > 0 && w.memory.Outcome == nil && w.pod.Spec.RestartPolicy == corev1.RestartPolicyAlways {
			clear(w.memory.Attempts)
			clear(w.memory.Crashes)
		}
	case n < 99:
		if len(w.observed.Sandboxes) > 0 { // a start that was cut off
			w.ids++
			w.observed.Containers = append(w.observed.Containers, Container{ID: fmt.Sprintf("made-%d", w.ids), Name: w.pod.Spec.Containers[0].Name,
				SandboxID: w.observed.Sandboxes[0].ID, State: Created, Attempt: w.memory.Attempts[w.pod.Spec.Containers[0].Name]})
		}
	default:
		if w.ending == nil && r.IntN(3) == 0 {
			w.ending = &Ending{Since: w.now, Grace: time.Duration(r.IntN(40)) * time.Second}
		}
	}
}

func (w *world) named(name string) *Container {
	for i := range w.observed.Containers {
		if c := &w.observed.Containers[i]; c.Name == name && c.State == Running {
			return c
		}
	}
	return &Container{}
}

// chosenEnd lets a third of the pods be deleted, and a few run out of time.
func chosenEnd(r *rand.Rand, w *world) (*Ending, time.Duration) {
	switch {
	case w.ending != nil || r.IntN(3) == 0:
		if w.ending == nil {
			return &Ending{Since: w.now, Grace: time.Second}, 0
		}
		return w.ending, 0
	case r.IntN(8) == 0:
		return nil, w.now
	}
	return nil, 0
}

// quiet lets time pass until nothing is left to do; init containers end well.
func quiet(w *world) {
	for range 400 {
		if w.gone {
			return
		}
		w.settle()
		if len(w.wrongs) > 0 || w.gone {
			return
		}
		if w.finishInit() {
			continue
		}
		p := w.plan()
		if p.Wake == 0 {
			return
		}
		w.now = p.Wake
	}
	w.wrong("no rest after 400 rounds")
}

// finishInit lets a regular init container that runs end well.
func (w *world) finishInit() bool {
	for i := range w.pod.Spec.InitContainers {
		c := &w.pod.Spec.InitContainers[i]
		if r := w.named(c.Name); !Sidecar(c) && r.ID != "" {
			w.exit(r.ID, 0)
			return true
		}
	}
	return false
}

// check holds how the pod came to rest.
func check(w *world) {
	if w.gone {
		if len(w.observed.Containers)+len(w.observed.Sandboxes) > 0 {
			w.wrong("forgotten with something left: %+v", w.observed)
		}
		return
	}
	if len(w.busy) > 0 || w.ending != nil {
		w.wrong("at rest with %v under way, ending %v", w.busy, w.ending)
		return
	}
	if w.memory.Outcome != nil {
		if live := w.running(); len(live) > 0 || !w.memory.Released {
			w.wrong("the pod has ended, but %v run, released: %t", live, w.memory.Released)
		}
		return
	}
	for _, c := range w.pod.Spec.EphemeralContainers {
		if w.memory.Attempts[c.Name] == 0 && !slices.ContainsFunc(w.observed.Containers, func(r Container) bool { return r.Name == c.Name }) {
			w.wrong("ephemeral container %s was never started", c.Name)
		}
	}
	seen := map[string]int{}
	for _, name := range w.running() {
		seen[name]++
	}
	for i := range w.pod.Spec.Containers {
		c := &w.pod.Spec.Containers[i]
		code, ended := w.memory.Exits[c.Name]
		if seen[c.Name] == 1 || ended && !Restarts(w.pod, c, code) || w.lost(c) {
			continue
		}
		w.wrong("container %s runs %d times; running: %v", c.Name, seen[c.Name], w.running())
	}
	for i := range w.pod.Spec.InitContainers {
		if c := &w.pod.Spec.InitContainers[i]; Sidecar(c) && seen[c.Name] != 1 {
			w.wrong("sidecar %s runs %d times", c.Name, seen[c.Name])
		}
	}
	for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
		n := 0
		for _, r := range w.observed.Containers {
			if r.Name == c.Name {
				n++
			}
		}
		if n > 2 {
			w.wrong("%d containers of %s are kept", n, c.Name)
		}
	}
}

// lost: one that may run once ran, and the runtime has forgotten how it ended.
func (w *world) lost(c *corev1.Container) bool {
	for _, r := range w.observed.Containers {
		if r.Name == c.Name {
			return r.State == Exited && !Restarts(w.pod, c, r.ExitCode)
		}
	}
	return w.memory.Attempts[c.Name] > 0 && !Restarts(w.pod, c, LostCode)
}

func describePod(p *corev1.Pod) string {
	s := string(p.Spec.RestartPolicy)
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		s += " " + c.Name
		if c.RestartPolicy != nil {
			s += "=" + string(*c.RestartPolicy)
		}
	}
	return s
}
