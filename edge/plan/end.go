package plan

import (
	"cmp"
	"slices"
	"time"
)

// end plans the way out of a pod that is to go: containers, sandboxes, what it held, the rest.
func (p *planner) end() {
	if p.busy(StartSandbox, Release) || p.stopAll(func() time.Duration { return p.in.Ending.Since + p.in.Ending.Grace }) {
		return
	}
	if p.busy(StartContainer, StopContainer) || p.held("") {
		return
	}
	for _, s := range p.in.Observed.Sandboxes {
		if p.busyWith(s.ID) {
			continue
		}
		verb := RemoveSandbox
		if !s.Stopped {
			verb = StopSandbox
		}
		p.do(Action{Verb: verb, ID: s.ID})
	}
	if len(p.in.Observed.Sandboxes) > 0 || len(p.plan.Actions) > 0 {
		return
	}
	for _, c := range p.in.Observed.Containers { // without a sandbox: odd, but possible
		if !p.busyWith(c.ID) {
			p.do(Action{Verb: RemoveContainer, ID: c.ID, Name: c.Name})
		}
	}
	if len(p.in.Observed.Containers) == 0 && len(p.in.Busy) == 0 {
		p.do(Action{Verb: Release, Forget: true})
	}
}

// settle plans for a pod that ended by itself: nothing of it runs or is held, and its last containers
// stay for their logs.
func (p *planner) settle() {
	if p.busy(StartSandbox, Release) || p.stopAll(func() time.Duration { return p.in.Now + p.grace(nil) }) {
		return
	}
	if p.busy(StartContainer, StopContainer) || p.held("") {
		return
	}
	for _, s := range p.in.Observed.Sandboxes {
		if !s.Stopped && !p.busyWith(s.ID) {
			if s.Ready || !p.in.Memory.Released {
				p.do(Action{Verb: StopSandbox, ID: s.ID})
			}
		}
	}
	if len(p.plan.Actions) > 0 || len(p.in.Busy) > 0 {
		return
	}
	if !p.in.Memory.Released {
		p.do(Action{Verb: Release})
		return
	}
	p.garbage("")
}

// stopAll stops every container: those proper at once, then the sidecars from the last to the first. It
// tells whether some are still there.
func (p *planner) stopAll(deadline func() time.Duration) bool {
	sidecar := map[string]int{}
	for i := range p.in.Pod.Spec.InitContainers {
		if Sidecar(&p.in.Pod.Spec.InitContainers[i]) {
			sidecar[p.in.Pod.Spec.InitContainers[i].Name] = i + 1
		}
	}
	var live []*Container
	for i := range p.in.Observed.Containers {
		if c := &p.in.Observed.Containers[i]; c.State == Running || c.State == Unknown {
			live = append(live, c)
		}
	}
	if len(live) == 0 {
		return false
	}
	// Proper containers have rank 0 and go first; among sidecars the highest goes first.
	slices.SortStableFunc(live, func(a, b *Container) int {
		ra, rb := sidecar[a.Name], sidecar[b.Name]
		if ra == 0 || rb == 0 {
			return cmp.Compare(ra, rb)
		}
		return cmp.Compare(rb, ra)
	})
	first := sidecar[live[0].Name]
	for _, c := range live {
		if sidecar[c.Name] != first {
			break
		}
		at := deadline()
		if b := p.stopping(c.ID); b != nil && p.in.Ending == nil {
			at = b.Deadline // it has its time already
		}
		p.stop(c, at, "Stopping container "+c.Name)
	}
	return true
}

func (p *planner) stopping(id string) *Action {
	for i := range p.in.Busy {
		if b := &p.in.Busy[i]; b.Verb == StopContainer && b.ID == id {
			return b
		}
	}
	return nil
}

// garbage removes what nobody will ask for: of each name the newest record and the one before it stay
// (for lastState and for the log of the previous run), and sandboxes stay while they hold one of those.
func (p *planner) garbage(current string) {
	kept := map[string]bool{} // sandbox ids
	byName := map[string][]*Container{}
	for i := range p.in.Observed.Containers {
		c := &p.in.Observed.Containers[i]
		byName[c.Name] = append(byName[c.Name], c)
	}
	names := make([]string, 0, len(byName))
	for n := range byName {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		list := byName[n]
		slices.SortStableFunc(list, func(a, b *Container) int {
			if later(a, b) {
				return -1
			}
			return 1
		})
		for i, c := range list {
			if i < 2 || c.State == Running || c.State == Unknown {
				kept[c.SandboxID] = true
				continue
			}
			p.do(Action{Verb: RemoveContainer, ID: c.ID, Name: c.Name, Idle: true})
		}
	}
	for i, s := range p.in.Observed.Sandboxes {
		switch {
		case s.ID == current || current == "" && i == 0 && len(kept) == 0:
		case !s.Stopped && current != "":
			p.do(Action{Verb: StopSandbox, ID: s.ID, Idle: true})
		case !kept[s.ID] && len(p.plan.Actions) == 0:
			p.do(Action{Verb: RemoveSandbox, ID: s.ID, Idle: true})
		}
	}
}
