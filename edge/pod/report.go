package pod

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/probe"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/status"
	"github.com/holdfast-edge/holdfast/edge/store"
)

func statusContainer(c *runtime.Container) status.Container {
	return status.Container{
		ID: c.ID, SandboxID: c.SandboxID, Name: c.Name, Attempt: c.Attempt, State: planState(c.State), ExitCode: c.ExitCode,
		Reason: c.Reason, Message: c.Message, Started: c.StartedAt, Finished: c.FinishedAt, Image: c.Image, ImageID: c.ImageID,
	}
}

// explain keeps why containers wait in step with the plan.
func (w *worker) explain(p plan.Plan) {
	for name, delay := range p.BackOff {
		text := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, name, w.pod.Name, w.pod.Namespace, w.uid)
		if w.waiting[name].Reason != "CrashLoopBackOff" {
			w.m.events.container(w.pod, name, corev1.EventTypeWarning, "BackOff",
				fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)", name, w.pod.Name, w.pod.Namespace, w.uid))
		}
		w.waiting[name] = status.Waiting{Reason: "CrashLoopBackOff", Message: text}
	}
	for name, why := range w.waiting {
		if _, waits := p.BackOff[name]; !waits && why.Reason == "CrashLoopBackOff" && !w.starting(name) {
			delete(w.waiting, name)
		}
	}
}

// starting tells whether a start of the container is under way: until it has landed the status says what
// it said before, so that a crash loop does not flicker.
func (w *worker) starting(name string) bool {
	for _, f := range w.flights {
		if f.action.Verb == plan.StartContainer && f.action.Name == name {
			return true
		}
	}
	return false
}

// watch sees to it that what runs is probed, and what does not is not.
func (w *worker) watch() {
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		if c.State != runtime.Running || w.probing[c.ID] || w.busyWith(c.ID) || w.starting(c.Name) {
			continue
		}
		spec := named(w.pod, c.Name)
		if spec == nil || w.record.Ending != nil && spec.ReadinessProbe == nil {
			continue
		}
		w.probing[c.ID] = true
		// A container that was ready when edgecore stopped is ready until a probe says otherwise.
		was := w.record.Ready[c.ID]
		w.begun[c.ID] = spec.StartupProbe == nil || was
		w.ready[c.ID] = spec.ReadinessProbe == nil || was
		w.m.probes.Add(probe.Target{
			PodUID: w.uid, ContainerID: c.ID, Container: spec, IP: w.podIP(), Started: w.begun[c.ID], Ready: w.ready[c.ID],
			Age: w.age(c),
		})
		if w.begun[c.ID] && spec.StartupProbe == nil && len(w.pod.Spec.InitContainers) > 0 {
			w.tell(func(in *inbox) { in.tick = true }) // a sidecar that has started lets the next one begin
		}
	}
}

// age is how long a container has run, as far as the wall clock can be believed.
func (w *worker) age(c *runtime.Container) time.Duration {
	if c.StartedAt.IsZero() {
		return 0
	}
	return min(max(time.Since(c.StartedAt), 0), time.Hour)
}

func (w *worker) busyWith(id string) bool {
	for _, f := range w.flights {
		if f.action.ID == id {
			return true
		}
	}
	return false
}

// heed takes a probe's finding to heart.
func (w *worker) heed(r probe.Result) {
	if !w.probing[r.ContainerID] {
		return
	}
	spec := named(w.pod, r.Container)
	if spec == nil {
		return
	}
	if r.Failure != "" {
		w.m.events.container(w.pod, r.Container, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", r.Kind, r.Failure))
	}
	switch {
	case r.Verdict == probe.Undecided:
	case r.Kind == probe.Readiness:
		w.ready[r.ContainerID] = r.Verdict == probe.Healthy
	case r.Verdict == probe.Sick:
		grace := spec.LivenessProbe
		if r.Kind == probe.Startup {
			grace = spec.StartupProbe
		}
		u := plan.Unhealthy{Message: fmt.Sprintf("Container %s failed %s probe, will be restarted", r.Container, lower(r.Kind))}
		if grace != nil {
			u.Grace = grace.TerminationGracePeriodSeconds
		}
		w.unhealthy[r.ContainerID] = u
	case r.Kind == probe.Startup:
		w.begun[r.ContainerID] = true
	}
}

func lower(k probe.Kind) string {
	switch k {
	case probe.Startup:
		return "startup"
	case probe.Readiness:
		return "readiness"
	}
	return "liveness"
}

// report tells the hub what a reader of the status would see changed.
func (w *worker) report(ctx context.Context, p plan.Plan) {
	s := w.status(p)
	if w.reported != nil && status.Equal(w.reported, &s) {
		w.publishSummary(w.reported)
		return
	}
	w.publishSummary(&s)
	if w.pod.Namespace == "" || w.vanished {
		return
	}
	// A pod that is to go and of which nothing is left or remembered: what was last reported of it stands
	// (it may have succeeded long ago), and that it is gone is said next.
	if w.record.Ending != nil && w.reported == nil && w.record.Phase == "" && len(w.seen.Containers) == 0 && len(w.record.Memory.Attempts) == 0 {
		return
	}
	if wait := w.soon(&s); wait > 0 {
		w.again(wait)
		return
	}
	out := &corev1.Pod{Status: s}
	out.Namespace, out.Name, out.UID = w.pod.Namespace, w.pod.Name, w.pod.UID
	b, err := out.Marshal()
	if err == nil {
		err = w.m.o.Store.PutReport(ctx, store.Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: w.uid, Payload: b})
	}
	if err != nil {
		if ctx.Err() == nil {
			w.log.Error("pod's status cannot be stored", "err", err)
			w.again(5 * time.Second)
		}
		return
	}
	if w.reported == nil || w.reported.Phase != s.Phase {
		w.log.Info("pod phase", "phase", s.Phase, "reason", s.Reason)
	}
	w.reported = &s
	w.record.Phase, w.record.Conditions = s.Phase, s.Conditions
	w.record.Ready = map[string]bool{}
	for id, ok := range w.ready {
		if ok && w.begun[id] {
			w.record.Ready[id] = true
		}
	}
	w.dirty()
}

// How long a report waits for a better one; longer before anything of the pod runs, because the cloud calls such a
// pod Pending by itself.
const (
	reportPatience  = 500 * time.Millisecond
	pendingPatience = 5 * time.Second
)

// soon tells how long a report may wait because there will be more to say in a moment: before the first container
// has started only an address is new, and each report is a write to the disk, bytes on the line and two requests at
// the apiserver.
func (w *worker) soon(s *corev1.PodStatus) time.Duration {
	now, patience := w.m.clock.Mono(), reportPatience
	switch pending := corev1.PodPending; {
	case s.Phase == pending && (w.record.Phase == "" || w.record.Phase == pending):
		patience = pendingPatience
	case w.reported == nil || w.reported.Phase != s.Phase:
		patience = 0
	}
	if patience == 0 || !w.busyStarting() || len(w.hold) > 0 {
		w.deferred = 0
		return 0
	}
	if w.deferred == 0 {
		w.deferred = now + patience
	}
	if now >= w.deferred {
		w.deferred = 0
		return 0
	}
	return w.deferred - now
}

func (w *worker) busyStarting() bool {
	for _, f := range w.flights {
		if f.action.Verb == plan.StartContainer || f.action.Verb == plan.StartSandbox {
			return true
		}
	}
	return false
}

// status is the pod's at this moment.
func (w *worker) status(p plan.Plan) corev1.PodStatus {
	in := status.Input{
		Pod: w.pod, PodIPs: w.podIPs(), HostIPs: w.m.o.HostIPs(), Memory: w.record.Memory, Last: w.record.Last,
		Waiting: w.waiting, Ready: w.ready, Started: w.begun, Initialized: p.Initialized, Ending: w.record.Ending != nil,
		Refused: w.refused, StartTime: w.record.Start, Previous: w.reported, Now: w.m.clock.Wall(),
	}
	if in.Previous == nil && w.record.Phase != "" {
		in.Previous = &corev1.PodStatus{Phase: w.record.Phase, Conditions: w.record.Conditions}
	}
	if s := w.sandbox(); s != nil {
		in.SandboxID = s.ID
	} else if w.reported != nil && (in.Memory.Outcome != nil || in.Ending) {
		for _, ip := range w.reported.PodIPs { // what it had, as the kubelet leaves it
			in.PodIPs = append(in.PodIPs, ip.IP)
		}
	}
	if in.Memory.Outcome != nil || in.Ending {
		in.Initialized = in.Initialized || initializedBefore(w.record.Conditions)
	}
	for i := range w.seen.Containers {
		in.Containers = append(in.Containers, statusContainer(&w.seen.Containers[i]))
	}
	return status.Of(in)
}

func initializedBefore(list []corev1.PodCondition) bool {
	for _, c := range list {
		if c.Type == corev1.PodInitialized {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
