package pod

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Summary is one pod for people.
type Summary struct {
	Namespace, Name, UID string
	Phase                string
	Ready                bool
	Restarts             int32
	Reason               string // why it is not simply what Phase says
	Message              string
	Created, Started     time.Time // of the object, and here; zero: not known
	IP                   string
	HostNetwork          bool
	// DefaultContainer is the one that the pod's author names for logs and exec.
	DefaultContainer string
	Containers       []ContainerSummary
}

// ContainerSummary is one container of a pod for people.
type ContainerSummary struct {
	Name              string
	Kind              string // "", init or ephemeral
	State             string // waiting, running or exited
	Reason, Message   string // of State
	ExitCode          int32  // of State exited
	Ready             bool
	Restarts          int32
	Image, ImageID    string
	ID                string    // as the runtime has it; empty: there is none
	Started, Finished time.Time // zero: not, or not known
	// Last is how the attempt before this one ended; nil: there was none.
	Last *Ended
}

// Ended is how a container ended.
type Ended struct {
	Reason   string
	Message  string
	ExitCode int32
	At       time.Time
}

// defaultContainer is the annotation by which kubectl chooses a container.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// Snapshot lists the pods, ordered by name.
func (m *Manager) Snapshot() []Summary {
	var list []Summary
	for _, w := range m.all() {
		if s, ok := w.summary(); ok {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Summary) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return list
}

// publishSummary lets people read what the status says, at the end of a turn.
func (w *worker) publishSummary(s *corev1.PodStatus) {
	reason, message := s.Reason, s.Message
	for _, c := range s.ContainerStatuses {
		if c.State.Waiting != nil && reason == "" {
			reason, message = c.State.Waiting.Reason, c.State.Waiting.Message
		}
	}
	if w.record.Ending != nil {
		reason = "Terminating"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.public.summarized, w.public.status, w.public.reason, w.public.message = w.pod, s, reason, message
}

// summary is worked out when somebody asks: a pod that nobody looks at keeps no more
// than a reference to its status.
func (w *worker) summary() (Summary, bool) {
	w.mu.Lock()
	v := w.public
	w.mu.Unlock()
	if v.status == nil {
		return Summary{}, false
	}
	p, s := v.summarized, v.status
	out := Summary{
		Namespace: p.Namespace, Name: p.Name, UID: w.uid, Phase: string(s.Phase), Reason: v.reason, Message: v.message,
		Created: p.CreationTimestamp.Time, IP: s.PodIP, HostNetwork: p.Spec.HostNetwork, DefaultContainer: p.Annotations[defaultContainer],
	}
	if s.StartTime != nil {
		out.Started = s.StartTime.Time
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, list := range []struct {
		kind  string
		items []corev1.ContainerStatus
	}{{"init", s.InitContainerStatuses}, {"", s.ContainerStatuses}, {"ephemeral", s.EphemeralContainerStatuses}} {
		for i := range list.items {
			c := summarize(&list.items[i])
			c.Kind = list.kind
			out.Containers = append(out.Containers, c)
			if list.kind == "" {
				out.Restarts += c.Restarts
			}
		}
	}
	return out, true
}

// bareID is a container's id without the runtime's name in front, as crictl has it.
func bareID(id string) string {
	if _, bare, ok := strings.Cut(id, "://"); ok {
		return bare
	}
	return id
}

func summarize(s *corev1.ContainerStatus) ContainerSummary {
	c := ContainerSummary{Name: s.Name, Ready: s.Ready, Restarts: s.RestartCount, Image: s.Image, ImageID: s.ImageID, ID: bareID(s.ContainerID)}
	switch {
	case s.State.Running != nil:
		c.State, c.Started = "running", s.State.Running.StartedAt.Time
	case s.State.Terminated != nil:
		t := s.State.Terminated
		c.State, c.Reason, c.Message, c.ExitCode = "exited", t.Reason, t.Message, t.ExitCode
		c.Started, c.Finished = t.StartedAt.Time, t.FinishedAt.Time
	case s.State.Waiting != nil:
		c.State, c.Reason, c.Message = "waiting", s.State.Waiting.Reason, s.State.Waiting.Message
	default:
		c.State = "waiting"
	}
	if t := s.LastTerminationState.Terminated; t != nil {
		c.Last = &Ended{Reason: t.Reason, Message: t.Message, ExitCode: t.ExitCode, At: t.FinishedAt.Time}
	}
	return c
}
