package plan

import (
	corev1 "k8s.io/api/core/v1"
)

// Ephemeral is the pod's ephemeral container of that name, or nil. Such containers are added to a pod that
// runs, for somebody to look into it.
func Ephemeral(pod *corev1.Pod, name string) *corev1.EphemeralContainer {
	for i := range pod.Spec.EphemeralContainers {
		if c := &pod.Spec.EphemeralContainers[i]; c.Name == name {
			return c
		}
	}
	return nil
}

// debug starts the ephemeral containers. Each is started once, whatever becomes of it: not again when it has ended,
// nor in another sandbox. They wait neither for init containers nor for other starts, and none of those waits for
// them: their image may be large, and it is for a pod in trouble that they are there.
func (p *planner) debug(s *Sandbox) {
	for i := range p.plan.Actions {
		if p.plan.Actions[i].Verb == Conclude {
			return
		}
	}
	for i := range p.in.Pod.Spec.EphemeralContainers {
		name := p.in.Pod.Spec.EphemeralContainers[i].Name
		if p.startingOf(name) {
			continue
		}
		switch seen := p.newest(name, ""); {
		case seen != nil && seen.State != Created:
		case seen != nil: // left by a start that did not come to its end
			if !p.busyWith(seen.ID) {
				p.do(Action{Verb: RemoveContainer, ID: seen.ID, Name: name})
			}
		case p.in.Memory.Attempts[name] > 0: // it ran, and the runtime has forgotten it
		case !p.held(name):
			p.do(Action{Verb: StartContainer, Name: name, SandboxID: s.ID})
		}
	}
}

// starting tells whether a container that is not ephemeral is being started.
func (p *planner) starting() bool {
	for _, b := range p.in.Busy {
		if b.Verb == StartContainer && Ephemeral(p.in.Pod, b.Name) == nil {
			return true
		}
	}
	return false
}

func (p *planner) startingOf(name string) bool {
	for _, b := range p.in.Busy {
		if b.Verb == StartContainer && b.Name == name {
			return true
		}
	}
	return false
}
