// Package plan decides what to do next for one pod: from what is wanted, what was seen, what is
// remembered and what time it is, it works out a few actions and when to look again.
//
// It is called by edge/pod, which carries the actions out and asks again. It never does anything
// itself: no I/O, no clock, no CRI type, no goroutine. All times are durations on the node's own clock
// that only goes forward (see Input.Now); the wall clock decides nothing here.
package plan

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// State of a container as the runtime tells it.
type State uint8

// The states of a container.
const (
	Created State = iota + 1 // made, never started
	Running
	Exited
	Unknown // the runtime has lost sight of it
)

// Sandbox is one sandbox of the pod.
type Sandbox struct {
	ID      string
	Attempt uint32
	Ready   bool
	Stopped bool // its network is given back; a sandbox that is not ready may still hold it
}

// Container is one container of the pod, in whichever sandbox.
type Container struct {
	ID, SandboxID, Name string
	Attempt             uint32
	State               State
	ExitCode            int32
	Hash                string        // of what it was made from
	ExitedAt            time.Duration // when its exit was noticed
}

// Observed is what the runtime holds of the pod.
type Observed struct {
	Sandboxes  []Sandbox // newest first
	Containers []Container
}

// Memory is what a worker must know beyond a reboot and cannot see in the runtime.
type Memory struct {
	// Attempts counts the starts of each container: the next start has this number.
	Attempts map[string]uint32 `json:"attempts,omitempty"`
	// Crashes tells how the containers that fail are held back.
	Crashes map[string]Crash `json:"crashes,omitempty"`
	// Exits holds the last exit code of containers that may not be started again.
	Exits map[string]int32 `json:"exits,omitempty"`
	// Outcome is set once, when the pod has ended for good.
	Outcome *Outcome `json:"outcome,omitempty"`
	// Released says that an ended pod holds no volumes, network or cgroup any more.
	Released bool `json:"released,omitempty"`
}

// Crash is the back-off of one container.
type Crash struct {
	Delay   time.Duration `json:"delay"`   // to wait after the next exit
	Started time.Duration `json:"started"` // when the container was last started
}

// Outcome is how a pod ended.
type Outcome struct {
	Phase   corev1.PodPhase `json:"phase"` // Succeeded or Failed
	Reason  string          `json:"reason,omitempty"`
	Message string          `json:"message,omitempty"`
}

// Ending is asked for by a deletion.
type Ending struct {
	Since time.Duration // when it was asked for
	Grace time.Duration // from then on
}

// Unhealthy is why a running container must be stopped.
type Unhealthy struct {
	Message string
	Grace   *int64 // seconds; nil: the pod's
}

// Input is all that a plan is made from. Plan changes nothing of it.
type Input struct {
	Pod      *corev1.Pod
	Observed Observed
	Memory   Memory
	Now      time.Duration

	// Hashes of the containers that the pod asks for, by name. An observed container with another
	// hash is replaced; one without a hash is taken as it is.
	Hashes map[string]string
	// Busy are the actions that have begun and not ended.
	Busy []Action
	// Hold says before when something that failed is not tried again: by container name, and "" for
	// the sandbox.
	Hold map[string]time.Duration
	// Unhealthy containers, by id.
	Unhealthy map[string]Unhealthy
	// Started holds the ids of containers whose startup probe (if any) has succeeded.
	Started map[string]bool
	// Ending is set when the pod is to go.
	Ending *Ending
	// Deadline is when an active pod is ended (activeDeadlineSeconds); 0: never.
	Deadline time.Duration
}

// Verb of an action.
type Verb uint8

// The verbs.
const (
	StartSandbox    Verb = iota + 1 // volumes, cgroup and a sandbox with number Attempt
	StopSandbox                     // ID: gives back its network
	RemoveSandbox                   // ID, with what is left in it
	StartContainer                  // Name with number Attempt, in sandbox SandboxID
	StopContainer                   // ID, at the latest at Deadline
	RemoveContainer                 // ID, and its log
	Conclude                        // remember Outcome: the pod has ended
	Release                         // volumes and cgroup; with Forget also everything else
)

// Action is one thing to do.
type Action struct {
	Verb      Verb
	ID        string
	Name      string // of the container
	SandboxID string
	Attempt   uint32
	Delay     time.Duration // StartContainer: the back-off after its next exit
	Deadline  time.Duration // StopContainer: when SIGKILL is sent; never earlier than Now
	Why       string        // StopContainer: for the event
	Outcome   *Outcome
	Forget    bool // Release: the pod is gone after this
	Idle      bool // may wait until the node has nothing better to do
}

// Plan is what to do.
type Plan struct {
	Actions []Action
	// Wake is when to plan again though nothing happened; 0: not needed.
	Wake time.Duration
	// BackOff names the containers which crashed and wait, with the delay that they wait.
	BackOff map[string]time.Duration
	// Initialized says that the init containers have done their part in the current sandbox.
	Initialized bool
}

// The back-off of containers that exit, as the kubelet's.
const (
	BackOffFirst = 10 * time.Second
	BackOffMax   = 300 * time.Second
	BackOffReset = 10 * time.Minute // a container that ran this long begins afresh
	defaultGrace = 30 * time.Second
)

// For makes the plan.
func For(in Input) Plan {
	p := &planner{in: in, plan: Plan{BackOff: map[string]time.Duration{}}}
	switch {
	case in.Ending != nil:
		p.end()
	case in.Memory.Outcome != nil:
		p.settle()
	case in.Deadline > 0 && in.Now >= in.Deadline:
		p.conclude(Outcome{Phase: corev1.PodFailed, Reason: "DeadlineExceeded",
			Message: "Pod was active on the node longer than the specified deadline"})
	default:
		if in.Deadline > 0 {
			p.wake(in.Deadline)
		}
		p.run()
	}
	return p.plan
}

type planner struct {
	in   Input
	plan Plan
}

func (p *planner) do(a Action) { p.plan.Actions = append(p.plan.Actions, a) }

func (p *planner) wake(at time.Duration) {
	if at > p.in.Now && (p.plan.Wake == 0 || at < p.plan.Wake) {
		p.plan.Wake = at
	}
}

// held tells whether key must wait, and looks again when it need not.
func (p *planner) held(key string) bool {
	until := p.in.Hold[key]
	if until <= p.in.Now {
		return false
	}
	p.wake(until)
	return true
}

// conclude asks to remember how the pod ended.
func (p *planner) conclude(o Outcome) {
	if !p.busy(Conclude) {
		p.do(Action{Verb: Conclude, Outcome: &o})
	}
}

func (p *planner) busy(verbs ...Verb) bool {
	for _, b := range p.in.Busy {
		for _, v := range verbs {
			if b.Verb == v {
				return true
			}
		}
	}
	return false
}

// busyWith tells whether an action on that container or sandbox is under way.
func (p *planner) busyWith(id string) bool {
	for _, b := range p.in.Busy {
		if b.ID != "" && b.ID == id {
			return true
		}
	}
	return false
}

// sandbox is the one in which containers run, or nil.
func (p *planner) sandbox() *Sandbox {
	for i := range p.in.Observed.Sandboxes {
		if s := &p.in.Observed.Sandboxes[i]; s.Ready && !s.Stopped {
			return s
		}
	}
	return nil
}

// newest is the latest record of a container in the given sandbox; "" means in any.
func (p *planner) newest(name, sandbox string) *Container {
	var best *Container
	for i := range p.in.Observed.Containers {
		c := &p.in.Observed.Containers[i]
		if c.Name != name || sandbox != "" && c.SandboxID != sandbox {
			continue
		}
		if best == nil || later(c, best) {
			best = c
		}
	}
	return best
}

// later orders records of one name: a running one is the newest whatever its number says.
func later(a, b *Container) bool {
	if (a.State == Running) != (b.State == Running) {
		return a.State == Running
	}
	return a.Attempt > b.Attempt
}

// next is the number of the next start of a container.
func (p *planner) next(name string) uint32 {
	n := p.in.Memory.Attempts[name]
	for _, c := range p.in.Observed.Containers {
		// A container that was made and never started has not used its number up.
		if c.Name == name && c.State != Created && c.Attempt+1 > n {
			n = c.Attempt + 1
		}
	}
	return n
}

func (p *planner) grace(u *int64) time.Duration {
	switch {
	case u != nil:
		return time.Duration(*u) * time.Second
	case p.in.Pod.Spec.TerminationGracePeriodSeconds != nil:
		return time.Duration(*p.in.Pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return defaultGrace
}

// stop asks for a container to be stopped by deadline; one that is being stopped is asked again only
// if it must go sooner than was said.
func (p *planner) stop(c *Container, deadline time.Duration, why string) {
	if deadline < p.in.Now {
		deadline = p.in.Now
	}
	for _, b := range p.in.Busy {
		if b.Verb == StopContainer && b.ID == c.ID && b.Deadline <= deadline+time.Second {
			return
		}
	}
	p.do(Action{Verb: StopContainer, ID: c.ID, Name: c.Name, Deadline: deadline, Why: why})
}
