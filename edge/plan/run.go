package plan

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// run plans for a pod that shall run.
func (p *planner) run() {
	if p.busy(StartSandbox, StopSandbox, Release) {
		return
	}
	s := p.sandbox()
	if s == nil {
		p.withoutSandbox()
		return
	}
	if p.strays(s.ID) {
		return
	}
	if p.initialize(s) {
		p.plan.Initialized = true
		p.main(s)
	}
	p.debug(s)
	if len(p.plan.Actions) == 0 && len(p.in.Busy) == 0 {
		p.garbage(s.ID)
	}
}

// strays stops what runs outside the sandbox that counts: one name never runs twice.
func (p *planner) strays(sandbox string) bool {
	found := false
	seen := map[string]string{}
	for i := range p.in.Observed.Containers {
		c := &p.in.Observed.Containers[i]
		if c.State != Running && c.State != Unknown {
			continue
		}
		switch {
		case c.SandboxID != sandbox:
			p.stop(c, p.in.Now+p.grace(nil), "its sandbox is gone")
			found = true
		case !p.wanted(c.Name):
			p.stop(c, p.in.Now+p.grace(nil), "the pod does not name it")
			found = true
		case c.State == Running && seen[c.Name] != "":
			if n := p.newest(c.Name, sandbox); n.ID != c.ID {
				p.stop(c, p.in.Now, "it runs twice")
			} else {
				p.do(Action{Verb: StopContainer, ID: seen[c.Name], Name: c.Name, Deadline: p.in.Now, Why: "it runs twice"})
			}
			found = true
		case c.State == Running:
			seen[c.Name] = c.ID
		}
	}
	return found
}

func (p *planner) wanted(name string) bool {
	named := func(c corev1.Container) bool { return c.Name == name }
	return slices.ContainsFunc(p.in.Pod.Spec.InitContainers, named) || slices.ContainsFunc(p.in.Pod.Spec.Containers, named) ||
		Ephemeral(p.in.Pod, name) != nil
}

// withoutSandbox makes one, unless nothing is left to run in it.
func (p *planner) withoutSandbox() {
	if o := p.ended(); o != nil {
		p.conclude(*o)
		return
	}
	if p.strays("") {
		return
	}
	attempt := uint32(0)
	for _, s := range p.in.Observed.Sandboxes {
		if s.Attempt+1 > attempt {
			attempt = s.Attempt + 1
		}
		// A port of the node cannot be given twice; all else of an old sandbox can wait until the
		// pod runs again.
		if !s.Stopped && (hostPorts(p.in.Pod) || s.Ready) && !p.busyWith(s.ID) {
			p.do(Action{Verb: StopSandbox, ID: s.ID})
		}
	}
	if len(p.plan.Actions) > 0 || p.held("") {
		return
	}
	p.do(Action{Verb: StartSandbox, Attempt: attempt})
}

func hostPorts(pod *corev1.Pod) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.HostPort != 0 && !pod.Spec.HostNetwork {
					return true
				}
			}
		}
	}
	return false
}

// Sidecar tells whether an init container keeps running beside the others.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// initialize runs the init containers, one after the other, and tells whether the others may run.
func (p *planner) initialize(s *Sandbox) bool {
	begun := p.begun(s.ID)
	for i := range p.in.Pod.Spec.InitContainers {
		c := &p.in.Pod.Spec.InitContainers[i]
		seen := p.newest(c.Name, s.ID)
		if Sidecar(c) {
			if !p.keep(c, seen, s) && !begun {
				return false
			}
			if seen != nil && seen.State == Running && !p.in.Started[seen.ID] && !begun {
				return false // the next waits until this one has started
			}
			continue
		}
		if begun || seen != nil && seen.State == Exited && seen.ExitCode == 0 {
			continue
		}
		if seen != nil && seen.State == Exited && p.finished(c, seen) {
			p.conclude(Outcome{Phase: corev1.PodFailed})
			return false
		}
		p.keep(c, seen, s)
		return false
	}
	return true
}

// begun tells whether a container proper was ever made in the sandbox: then the init containers have
// done their part there.
func (p *planner) begun(sandbox string) bool {
	for i := range p.in.Pod.Spec.Containers {
		if c := p.newest(p.in.Pod.Spec.Containers[i].Name, sandbox); c != nil && c.State != Created {
			return true
		}
	}
	return false
}

// main runs the containers proper.
func (p *planner) main(s *Sandbox) {
	if o := p.ended(); o != nil {
		p.conclude(*o)
		return
	}
	for i := range p.in.Pod.Spec.Containers {
		c := &p.in.Pod.Spec.Containers[i]
		if done, _ := p.done(c); !done {
			p.keep(c, p.newest(c.Name, s.ID), s)
		}
	}
}

// keep sees to it that one container runs, and tells whether it does.
func (p *planner) keep(c *corev1.Container, seen *Container, s *Sandbox) bool {
	if seen != nil && p.busyWith(seen.ID) {
		return false
	}
	if seen != nil {
		switch seen.State {
		case Running:
			return p.check(c, seen)
		case Unknown:
			p.stop(seen, p.in.Now+p.grace(nil), "the runtime lost sight of it")
			return false
		case Created: // left by a start that did not come to its end
			if !p.starting() {
				p.do(Action{Verb: RemoveContainer, ID: seen.ID, Name: seen.Name})
			}
			return false
		}
	}
	p.start(c, seen, s)
	return false
}

// check stops a running container that must be replaced.
func (p *planner) check(c *corev1.Container, seen *Container) bool {
	if u, bad := p.in.Unhealthy[seen.ID]; bad {
		p.stop(seen, p.in.Now+p.grace(u.Grace), u.Message)
		return false
	}
	if want := p.in.Hashes[c.Name]; want != "" && seen.Hash != "" && want != seen.Hash {
		p.stop(seen, p.in.Now+p.grace(nil), "Container "+c.Name+" definition changed, will be restarted")
		return false
	}
	return true
}

// start begins a container now, or says when. Containers of one pod start one after the other.
func (p *planner) start(c *corev1.Container, seen *Container, s *Sandbox) {
	for i := range p.plan.Actions {
		if p.plan.Actions[i].Verb == StartContainer {
			return
		}
	}
	crash := p.in.Memory.Crashes[c.Name]
	delay := crash.Delay
	// Only an exit in this sandbox counts as a crash: after a reboot nobody is to blame. A
	// container whose image changed is not held back either.
	crashed := seen != nil && seen.State == Exited
	if want := p.in.Hashes[c.Name]; crashed && want != "" && seen.Hash != "" && want != seen.Hash {
		crashed, delay = false, 0
	}
	if crashed && delay > 0 && seen.ExitedAt-crash.Started > BackOffReset {
		delay = 0
	}
	if crashed && delay > 0 {
		if until := seen.ExitedAt + delay; until > p.in.Now {
			p.plan.BackOff[c.Name] = delay
			p.wake(until)
			return
		}
	}
	if p.starting() || p.held(c.Name) {
		return
	}
	next := time.Duration(0)
	if crashed {
		next = min(max(2*delay, BackOffFirst), BackOffMax)
	}
	p.do(Action{Verb: StartContainer, Name: c.Name, SandboxID: s.ID, Attempt: p.next(c.Name), Delay: next})
}

// done tells whether a container proper has ended and is not started again, and with what code.
func (p *planner) done(c *corev1.Container) (bool, int32) {
	seen := p.newest(c.Name, "")
	switch {
	case seen != nil && seen.State == Exited:
		return p.finished(c, seen), seen.ExitCode
	case seen != nil:
		return false, 0
	}
	if code, ok := p.in.Memory.Exits[c.Name]; ok {
		return !Restarts(p.in.Pod, c, code), code
	}
	if p.in.Memory.Attempts[c.Name] > 0 {
		return !Restarts(p.in.Pod, c, LostCode), LostCode
	}
	return false, 0
}

// finished tells whether a container that exited stays so. One made from another image than the pod
// asks for is started afresh, unless it may not run twice.
func (p *planner) finished(c *corev1.Container, seen *Container) bool {
	return !Restarts(p.in.Pod, c, seen.ExitCode)
}

// LostCode stands for the exit code of a container that the runtime has forgotten.
const LostCode = 137

// Restarts tells whether a container that exited with that code is started again.
func Restarts(pod *corev1.Pod, c *corev1.Container, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if r.Action != corev1.ContainerRestartRuleActionRestart || r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// ended tells how the pod ended, or nil while something is left to run.
func (p *planner) ended() *Outcome {
	phase := corev1.PodSucceeded
	for i := range p.in.Pod.Spec.Containers {
		done, code := p.done(&p.in.Pod.Spec.Containers[i])
		if !done {
			return p.initFailed()
		}
		if code != 0 {
			phase = corev1.PodFailed
		}
	}
	return &Outcome{Phase: phase}
}

// initFailed tells whether an init container has failed that may not run again.
func (p *planner) initFailed() *Outcome {
	for i := range p.in.Pod.Spec.InitContainers {
		c := &p.in.Pod.Spec.InitContainers[i]
		seen := p.newest(c.Name, "")
		if !Sidecar(c) && seen != nil && seen.State == Exited && seen.ExitCode != 0 && p.finished(c, seen) {
			return &Outcome{Phase: corev1.PodFailed}
		}
	}
	return nil
}
