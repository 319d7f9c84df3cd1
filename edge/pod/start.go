package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/status"
)

// start is one attempt at one container. It runs beside the worker and touches nothing of it.
type start struct {
	m       *Manager
	uid     string
	pod     *corev1.Pod
	c       *corev1.Container
	a       plan.Action
	sandbox uint32 // its attempt
	ips     []string
	at      placement
	target  string // id of the container whose processes an ephemeral one shares; "" for none
	astray  error  // there is no such container
	ledger  *ledger
	record  record // as it is to be when the container has started
	created string // id, once made
	running bool
}

// prepareStart copies what the attempt needs.
func (w *worker) prepareStart(a plan.Action) func(context.Context) outcome {
	s := &start{m: w.m, uid: w.uid, pod: w.pod, c: specOf(w.pod, a.Name), a: a, ips: w.podIPs(), record: w.record.clone(), ledger: &w.ledger}
	s.target, s.astray = w.target(a.Name)
	for i := range w.seen.Sandboxes {
		if w.seen.Sandboxes[i].ID == a.SandboxID {
			s.sandbox = w.seen.Sandboxes[i].Attempt
		}
	}
	s.at = placement{nodeName: w.m.o.NodeName, hostIPs: w.m.o.HostIPs(), podIPs: s.ips, capacity: w.m.o.Capacity()}
	crash := plan.Crash{Delay: a.Delay, Started: w.m.clock.Mono()}
	s.record.Memory.Attempts[a.Name] = a.Attempt + 1
	s.record.Memory.Crashes[a.Name] = crash
	delete(s.record.Memory.Exits, a.Name)
	s.record.Mark = w.m.clock.Mono()
	return func(ctx context.Context) outcome {
		err := s.run(ctx)
		return func(w *worker) { w.landed(s, crash, err) }
	}
}

// A startError is a failure with the reason that the status shows.
type startError struct {
	reason string
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// run makes and starts the container.
func (s *start) run(ctx context.Context) error {
	image, err := s.image(ctx)
	if err != nil {
		return err
	}
	if err := s.launch(ctx, image); err != nil {
		return err
	}
	s.m.events.container(s.pod, s.c.Name, corev1.EventTypeNormal, "Started", "Started container "+s.c.Name)
	if s.c.Lifecycle == nil || s.c.Lifecycle.PostStart == nil {
		return nil
	}
	ip := ""
	if len(s.ips) > 0 {
		ip = s.ips[0]
	}
	if err := s.m.hook(ctx, s.c.Lifecycle.PostStart, s.created, s.c, ip, 0); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.m.events.container(s.pod, s.c.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: "+err.Error())
		return &startError{"PostStartHookError", err}
	}
	return nil
}

// launch creates the container, remembers the attempt, and starts it. The memory is written while the
// container is made, and is on the disk before it runs: a start that nobody remembers cannot happen.
func (s *start) launch(ctx context.Context, image string) error {
	s.m.starts.enter()
	defer s.m.starts.leave()
	if err := s.m.lanes.container(ctx); err != nil {
		return err
	}
	defer s.m.lanes.leave()
	spec, err := s.spec(ctx, image)
	if err != nil {
		return s.failed("CreateContainerConfigError", err)
	}
	stored := make(chan error, 1)
	go func() { stored <- s.ledger.write(ctx, s.m.o.Store, s.uid, s.c.Name, &s.record) }()
	s.created, err = s.m.o.Runtime.CreateContainer(ctx, spec)
	if errStore := <-stored; err == nil && errStore != nil {
		return errStore
	}
	if err != nil {
		reason := "CreateContainerError"
		if errors.Is(err, runtime.ErrRunAsNonRoot) || errors.Is(err, runtime.ErrInvalidSpec) {
			reason = "CreateContainerConfigError"
		}
		return s.failed(reason, err)
	}
	s.m.events.container(s.pod, s.c.Name, corev1.EventTypeNormal, "Created", "Created container: "+s.c.Name)
	if err := s.m.o.Runtime.StartContainer(ctx, s.created); err != nil {
		return s.failed("RunContainerError", err)
	}
	s.running = true
	return nil
}

func (s *start) failed(reason string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	s.m.events.container(s.pod, s.c.Name, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	return &startError{reason, err}
}

// image makes sure that the image is there.
func (s *start) image(ctx context.Context) (string, error) {
	auths, err := s.m.pullSecrets(ctx, s.pod, s.c.Image)
	if err != nil {
		return "", err
	}
	return s.m.images.ensure(ctx, imageWish{
		ref: s.c.Image, policy: s.c.ImagePullPolicy, auths: auths, offline: !s.m.o.Online(),
		tell: func(kind, reason, text string) { s.m.events.container(s.pod, s.c.Name, kind, reason, text) },
	})
}

// spec is the container in the runtime's words.
func (s *start) spec(ctx context.Context, image string) (runtime.ContainerSpec, error) {
	if s.astray != nil {
		return runtime.ContainerSpec{}, s.astray
	}
	vars, err := environment(ctx, s.m.o.Store, s.pod, s.c, s.at)
	if err != nil {
		return runtime.ContainerSpec{}, err
	}
	values := make(map[string]string, len(vars))
	spec := runtime.ContainerSpec{
		Pod: s.pod, Container: s.c, Attempt: s.a.Attempt, SandboxID: s.a.SandboxID, Sandbox: s.m.sandboxSpec(s.pod, s.sandbox),
		ImageRef: image, Command: expandAll(s.c.Command, vars), Args: expandAll(s.c.Args, vars),
		TerminationLog: runtime.TerminationLogPath(s.m.dir(s.uid), s.c.Name, s.a.Attempt), PIDTarget: s.target,
	}
	for _, v := range vars {
		spec.Envs = append(spec.Envs, runtime.Env{Name: v.name, Value: v.value})
		values[v.name] = v.value
	}
	if spec.EtcHosts, err = s.m.etcHosts(s.uid, s.pod, s.ips); err != nil {
		return spec, err
	}
	if spec.Mounts, err = s.m.mounts(ctx, addressed(s.pod, s.ips, s.at.hostIPs), s.c, values); err != nil {
		return spec, err
	}
	return spec, nil
}

// landed takes in how a start ended.
func (w *worker) landed(s *start, crash plan.Crash, err error) {
	w.stale = true
	w.saved = w.saved || s.created != ""
	w.dirty() // what was stored beside the start knew nothing of what else has come since
	if s.running {
		w.record.Memory.Attempts[s.a.Name] = s.a.Attempt + 1
		w.record.Memory.Crashes[s.a.Name] = crash
		delete(w.record.Memory.Exits, s.a.Name)
	} else {
		w.ledger.failed(s.a.Name)
	}
	if err == nil {
		delete(w.hold, s.a.Name)
		delete(w.waiting, s.a.Name)
		return
	}
	if errors.Is(err, context.Canceled) {
		return
	}
	reason, first, most := "CreateContainerError", retryFirst, retryMost
	var failed *startError
	var pull *pullError
	switch {
	case errors.As(err, &pull):
		reason, first, most = pull.reason, pull.wait, pull.wait
	case errors.As(err, &failed):
		reason = failed.reason
		if reason == "RunContainerError" {
			most = plan.BackOffMax // each attempt counts as a restart, and is told
		}
	}
	if s.running { // the hook failed: the container goes
		w.unhealthy[s.created] = plan.Unhealthy{Message: "FailedPostStartHook"}
		delete(w.hold, s.a.Name)
		return
	}
	again := w.failed(s.a.Name, first, most)
	w.waiting[s.a.Name] = status.Waiting{Reason: reason, Message: err.Error()}
	w.log.Warn("container cannot be started", "container", s.a.Name, "reason", reason, "err", err, "again", again.Round(time.Millisecond))
}

// podName is how a pod is named to people.
func podName(p *corev1.Pod) string { return fmt.Sprintf("%s/%s", p.Namespace, p.Name) }
