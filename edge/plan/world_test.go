package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// world plays the runtime, the disk and the clock of a node with one pod, without time passing by itself.
// It carries out what is planned and notes whatever must never happen.
type world struct {
	pod      *corev1.Pod
	now      time.Duration
	observed Observed
	memory   Memory
	busy     []Action // what was begun and waits to be ended by land
	started  map[string]bool
	sick     map[string]Unhealthy
	ending   *Ending
	deadline time.Duration
	gone     bool // released and forgotten
	ids      int
	wrongs   []string
	hashes   map[string]string
	slow     map[string]bool // containers whose startup probe has to be answered by the script
}

func newWorld(pod *corev1.Pod) *world {
	w := &world{pod: pod, now: time.Minute, started: map[string]bool{}, sick: map[string]Unhealthy{}, hashes: map[string]string{},
		slow: map[string]bool{}}
	w.memory = Memory{Attempts: map[string]uint32{}, Crashes: map[string]Crash{}, Exits: map[string]int32{}}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		w.hashes[c.Name] = c.Image
	}
	return w
}

func (w *world) wrong(format string, args ...any) {
	w.wrongs = append(w.wrongs, fmt.Sprintf("at %s: ", w.now)+fmt.Sprintf(format, args...))
}

func (w *world) plan() Plan {
	memory := w.memory
	memory.Attempts, memory.Crashes, memory.Exits = maps.Clone(w.memory.Attempts), maps.Clone(w.memory.Crashes), maps.Clone(w.memory.Exits)
	return For(Input{
		Pod: w.pod, Now: w.now, Memory: memory, Busy: slices.Clone(w.busy), Hashes: w.hashes, Started: w.started, Unhealthy: w.sick,
		Ending: w.ending, Deadline: w.deadline,
		Observed: Observed{Sandboxes: slices.Clone(w.observed.Sandboxes), Containers: slices.Clone(w.observed.Containers)},
	})
}

// begin takes an action over and checks what may not be asked for.
func (w *world) begin(a Action) {
	switch a.Verb {
	case Conclude:
		if w.memory.Outcome != nil {
			w.wrong("the pod ends twice")
		}
		w.memory.Outcome = a.Outcome
		return
	case StartContainer:
		for _, c := range w.observed.Containers {
			if c.Name == a.Name && c.State == Running {
				w.wrong("%s is started while %s runs", a.Name, c.ID)
			}
		}
		if a.Attempt < w.memory.Attempts[a.Name] {
			w.wrong("attempt %d of %s is started again", a.Attempt, a.Name)
		}
		for _, c := range w.observed.Containers {
			if c.Name == a.Name && c.State != Created && c.Attempt >= a.Attempt {
				w.wrong("%s is started with number %d, and there is one with %d", a.Name, a.Attempt, c.Attempt)
			}
		}
		for _, b := range w.busy {
			if b.Verb == StartContainer && (b.Name == a.Name || w.proper(a.Name) && w.proper(b.Name)) {
				w.wrong("%s is started while %s is being started", a.Name, b.Name)
			}
		}
		if !w.proper(a.Name) {
			w.checkOnce(a)
			break
		}
		w.checkOrder(a)
	case StopContainer:
		w.checkStop(a)
		w.busy = slices.DeleteFunc(w.busy, func(b Action) bool { return b.Verb == StopContainer && b.ID == a.ID })
	case RemoveSandbox:
		for _, c := range w.observed.Containers {
			if c.SandboxID == a.ID && c.State == Running {
				w.wrong("sandbox %s is removed while %s runs in it", a.ID, c.ID)
			}
		}
	case Release:
		for _, c := range w.observed.Containers {
			if c.State == Running {
				w.wrong("volumes are taken from %s while it runs", c.ID)
			}
		}
	}
	w.busy = append(w.busy, a)
}

// proper tells an init container or a container proper from an ephemeral one.
func (w *world) proper(name string) bool { return Ephemeral(w.pod, name) == nil }

// debug adds an ephemeral container to the pod.
func (w *world) debug(name string) {
	c := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "v1"}}
	w.pod.Spec.EphemeralContainers = append(w.pod.Spec.EphemeralContainers, c)
}

// checkOnce: an ephemeral container is started once, and not in a pod that has ended.
func (w *world) checkOnce(a Action) {
	if w.memory.Attempts[a.Name] > 0 || w.memory.Outcome != nil {
		w.wrong("ephemeral container %s is started; starts before: %d, outcome: %v", a.Name, w.memory.Attempts[a.Name], w.memory.Outcome)
	}
}

// checkOrder: nothing proper starts before the init containers have done their part in its sandbox.
func (w *world) checkOrder(a Action) {
	for _, c := range w.observed.Containers {
		if c.SandboxID == a.SandboxID && c.Attempt > 0 && slices.ContainsFunc(w.pod.Spec.Containers, func(s corev1.Container) bool { return s.Name == c.Name }) {
			return
		}
	}
	for i := range w.pod.Spec.InitContainers {
		c := &w.pod.Spec.InitContainers[i]
		if c.Name == a.Name {
			return
		}
		ok := false
		for _, r := range w.observed.Containers {
			if r.Name == c.Name && r.SandboxID == a.SandboxID {
				ok = ok || r.State == Exited && r.ExitCode == 0 || Sidecar(c)
			}
		}
		if !ok && !w.begun(a.SandboxID) {
			w.wrong("%s is started before init container %s has done its part", a.Name, c.Name)
		}
	}
}

func (w *world) begun(sandbox string) bool {
	for _, r := range w.observed.Containers {
		if r.SandboxID == sandbox && slices.ContainsFunc(w.pod.Spec.Containers, func(s corev1.Container) bool { return s.Name == r.Name }) {
			return true
		}
	}
	return false
}

// checkStop: what runs and matches is left alone.
func (w *world) checkStop(a Action) {
	if w.ending != nil || w.memory.Outcome != nil {
		for _, c := range w.pod.Spec.InitContainers {
			if c.Name != a.Name || !Sidecar(&c) {
				continue
			}
			for _, name := range w.running() {
				if slices.ContainsFunc(w.pod.Spec.Containers, func(s corev1.Container) bool { return s.Name == name }) {
					w.wrong("sidecar %s is stopped before %s", a.Name, name)
				}
			}
		}
		return
	}
	for _, c := range w.observed.Containers {
		if c.ID != a.ID || c.State != Running || c.Hash != w.hashes[c.Name] {
			continue
		}
		if _, bad := w.sick[c.ID]; bad || !w.sandboxReady(c.SandboxID) {
			continue
		}
		w.wrong("%s runs and matches, and is stopped: %s", c.ID, a.Why)
	}
}

func (w *world) sandboxReady(id string) bool {
	for _, s := range w.observed.Sandboxes {
		if s.ID == id {
			return s.Ready && !s.Stopped
		}
	}
	return false
}

// land ends the i-th action under way; ok says whether it worked.
func (w *world) land(i int, ok bool) {
	a := w.busy[i]
	w.busy = slices.Delete(w.busy, i, i+1)
	if !ok {
		return
	}
	switch a.Verb {
	case StartSandbox:
		w.ids++
		s := Sandbox{ID: fmt.Sprintf("s%d", w.ids), Attempt: a.Attempt, Ready: true}
		w.observed.Sandboxes = append([]Sandbox{s}, w.observed.Sandboxes...)
		w.memory.Released = false
	case StopSandbox:
		for j := range w.observed.Sandboxes {
			if s := &w.observed.Sandboxes[j]; s.ID == a.ID {
				s.Ready, s.Stopped = false, true
			}
		}
		for j := range w.observed.Containers {
			if c := &w.observed.Containers[j]; c.SandboxID == a.ID && c.State == Running {
				w.exit(c.ID, 137)
			}
		}
	case RemoveSandbox:
		w.observed.Sandboxes = slices.DeleteFunc(w.observed.Sandboxes, func(s Sandbox) bool { return s.ID == a.ID })
		w.observed.Containers = slices.DeleteFunc(w.observed.Containers, func(c Container) bool { return c.SandboxID == a.ID })
	case StartContainer:
		if !w.sandboxReady(a.SandboxID) {
			return // it died meanwhile
		}
		w.ids++
		c := Container{ID: fmt.Sprintf("%s-%d", a.Name, w.ids), SandboxID: a.SandboxID, Name: a.Name, Attempt: a.Attempt,
			State: Running, Hash: w.hashes[a.Name]}
		w.memory.Attempts[a.Name] = a.Attempt + 1
		w.memory.Crashes[a.Name] = Crash{Delay: a.Delay, Started: w.now}
		delete(w.memory.Exits, a.Name)
		w.observed.Containers = append(w.observed.Containers, c)
		w.started[c.ID] = !w.slow[a.Name]
	case StopContainer:
		w.exit(a.ID, 143)
	case RemoveContainer:
		w.observed.Containers = slices.DeleteFunc(w.observed.Containers, func(c Container) bool { return c.ID == a.ID })
	case Release:
		w.memory.Released = true
		w.gone = a.Forget
	}
}

// exit ends a container.
func (w *world) exit(id string, code int32) {
	for i := range w.observed.Containers {
		c := &w.observed.Containers[i]
		if c.ID != id || c.State == Exited {
			continue
		}
		c.State, c.ExitCode, c.ExitedAt = Exited, code, w.now
		delete(w.sick, id)
		for _, list := range [][]corev1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
			for j := range list {
				if list[j].Name == c.Name && !Restarts(w.pod, &list[j], code) {
					w.memory.Exits[c.Name] = code
				}
			}
		}
	}
}

// reboot ends everything that runs; the runtime's disk and the memory stay.
func (w *world) reboot() {
	w.busy = nil
	for i := range w.observed.Sandboxes {
		w.observed.Sandboxes[i].Ready, w.observed.Sandboxes[i].Stopped = false, false
	}
	for _, c := range slices.Clone(w.observed.Containers) {
		w.exit(c.ID, 255)
	}
	clear(w.memory.Crashes)
	if w.ending != nil {
		w.ending.Since = w.now
	}
}

// settle plans and carries out until there is nothing to do at this moment.
func (w *world) settle() {
	for range 200 {
		p := w.plan()
		for _, a := range p.Actions {
			w.begin(a)
		}
		if len(w.busy) == 0 && len(p.Actions) == 0 {
			return
		}
		for len(w.busy) > 0 {
			w.land(0, true)
		}
		if w.gone {
			return
		}
	}
	w.wrong("no rest after 200 plans")
}

func (w *world) running() []string {
	var list []string
	for _, c := range w.observed.Containers {
		if c.State == Running {
			list = append(list, c.Name)
		}
	}
	slices.Sort(list)
	return list
}

func (v Verb) String() string {
	return map[Verb]string{StartSandbox: "StartSandbox", StopSandbox: "StopSandbox", RemoveSandbox: "RemoveSandbox", StartContainer: "StartContainer",
		StopContainer: "StopContainer", RemoveContainer: "RemoveContainer", Conclude: "Conclude", Release: "Release"}[v]
}

func describe(a Action, now time.Duration) string {
	var b strings.Builder
	b.WriteString(a.Verb.String())
	if a.ID != "" {
		b.WriteString(" " + a.ID)
	} else if a.Name != "" {
		b.WriteString(" " + a.Name)
	}
	switch a.Verb {
	case StartSandbox:
		fmt.Fprintf(&b, " #%d", a.Attempt)
	case StartContainer:
		fmt.Fprintf(&b, " #%d in %s", a.Attempt, a.SandboxID)
	case StopContainer:
		fmt.Fprintf(&b, " within %s (%s)", a.Deadline-now, a.Why)
	case Conclude:
		fmt.Fprintf(&b, " %s %s", a.Outcome.Phase, a.Outcome.Reason)
	case Release:
		if a.Forget {
			b.WriteString(" and forget")
		}
	}
	if a.Idle {
		b.WriteString(" (when idle)")
	}
	return strings.TrimRight(b.String(), " ")
}
