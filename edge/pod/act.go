package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Cgroups keeps the cgroups of pods.
type Cgroups interface {
	// Parent is the pod's cgroup in the form that the runtime wants.
	Parent(p *corev1.Pod) string
	Ensure(p *corev1.Pod) error
	Remove(p *corev1.Pod) error
}

type noCgroups struct{}

func (noCgroups) Parent(*corev1.Pod) string { return "" }
func (noCgroups) Ensure(*corev1.Pod) error  { return nil }
func (noCgroups) Remove(*corev1.Pod) error  { return nil }

// The waits between attempts at what does not work.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// An outcome of an action is applied in the worker's turn.
type outcome func(*worker)

// prepare makes an action ready to run on another goroutine: all it needs of the worker is copied here.
func (w *worker) prepare(a plan.Action) func(context.Context) outcome {
	p := w.pod
	switch a.Verb {
	case plan.StartSandbox:
		// What is made from here on must be found again after a crash, also when the pod is deleted meanwhile.
		var state []byte
		if !w.saved {
			var err error
			if state, err = w.record.marshal(); err != nil {
				w.log.Error("pod's memory cannot be encoded", "err", err)
			}
		}
		w.m.starts.enter() // before anything that can wait looks whether there are starts
		return func(ctx context.Context) outcome {
			defer w.m.starts.leave()
			return w.m.startSandbox(ctx, w.uid, p, a, state)
		}
	case plan.StartContainer:
		return w.prepareStart(a)
	case plan.StopContainer:
		return w.prepareStop(a)
	case plan.StopSandbox:
		return func(ctx context.Context) outcome {
			err := w.m.idle(ctx, a, func() error { return w.m.o.Runtime.StopSandbox(ctx, a.ID) })
			return func(w *worker) {
				if w.ok(err, holdKey(a)) {
					w.stopped[a.ID] = true
					w.markSandbox(a.ID)
				}
			}
		}
	case plan.RemoveSandbox:
		return func(ctx context.Context) outcome {
			err := w.m.idle(ctx, a, func() error { return w.m.o.Runtime.RemoveSandbox(ctx, a.ID) })
			return func(w *worker) { w.stale = w.ok(err, holdKey(a)) || w.stale }
		}
	case plan.RemoveContainer:
		log, message := w.filesOf(a.ID)
		return func(ctx context.Context) outcome {
			err := w.m.idle(ctx, a, func() error { return w.m.o.Runtime.RemoveContainer(ctx, a.ID) })
			if err == nil && log != "" {
				removeLog(log)
			}
			if err == nil && message != "" {
				os.Remove(message) // one that stays is removed with the pod
			}
			return func(w *worker) { w.stale = w.ok(err, holdKey(a)) || w.stale }
		}
	}
	return w.prepareRelease(a)
}

// ok notes a failure; what failed because the worker changed its mind is none.
func (w *worker) ok(err error, key string) bool {
	if err == nil {
		delete(w.hold, key)
		return true
	}
	w.stale = true
	if errors.Is(err, context.Canceled) {
		return false
	}
	again := w.failed(key, retryFirst, retryMost)
	w.log.Warn("pod action failed", "err", err, "again", again)
	return false
}

// markSandbox notes that a sandbox is stopped without asking the runtime.
func (w *worker) markSandbox(id string) {
	for i := range w.seen.Sandboxes {
		if w.seen.Sandboxes[i].ID == id {
			w.seen.Sandboxes[i].Ready = false
		}
	}
	w.publish()
}

// idle runs what can wait when the node is not busy starting pods.
func (m *Manager) idle(ctx context.Context, a plan.Action, f func() error) error {
	if a.Idle {
		if err := m.starts.quiet(ctx, idlePatience); err != nil {
			return err
		}
	}
	return f()
}

// gate counts the starts that wait or are under way; what can wait waits until there are none.
type gate struct {
	mu    sync.Mutex
	count int
	still chan struct{} // closed when count falls to 0; nil while nobody waits
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count--; g.count == 0 && g.still != nil {
		close(g.still)
		g.still = nil
	}
}

// quiet waits until there are none. A pod that starts again and again cannot hold others' rubbish for ever:
// there is a limit to the patience.
func (g *gate) quiet(ctx context.Context, patience time.Duration) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		g.mu.Lock()
		if g.count == 0 {
			g.mu.Unlock()
			return nil
		}
		if g.still == nil {
			g.still = make(chan struct{})
		}
		still := g.still
		g.mu.Unlock()
		select {
		case <-still:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const idlePatience = time.Minute

// filesOf are the log file and the file for the termination message of a container, "" when not known.
func (w *worker) filesOf(id string) (log, message string) {
	for i := range w.seen.Containers {
		if c := &w.seen.Containers[i]; c.ID == id {
			return c.LogPath, runtime.TerminationLogPath(w.m.dir(w.uid), c.Name, c.Attempt)
		}
	}
	return "", ""
}

// removeLog removes a container's log and its rotated parts.
func removeLog(path string) {
	parts, err := filepath.Glob(path + "*")
	if err != nil {
		return
	}
	for _, p := range parts {
		os.Remove(p) // one that stays is removed with the pod
	}
}

// sandboxSpec says how the pod's sandbox is made.
func (m *Manager) sandboxSpec(p *corev1.Pod, attempt uint32) runtime.SandboxSpec {
	s := runtime.SandboxSpec{
		Pod: p, Attempt: attempt, LogDir: runtime.LogDir(m.o.PodLogsDir, p), CgroupParent: m.o.Cgroups.Parent(p),
	}
	s.Hostname, _ = runtime.Hostname(p, m.o.Domain)
	if m.o.DNS != nil {
		s.DNS = m.o.DNS(p)
	}
	return s
}

// startSandbox mounts the pod's volumes, makes its cgroup and its sandbox. A state is stored meanwhile.
func (m *Manager) startSandbox(ctx context.Context, uid string, p *corev1.Pod, a plan.Action, state []byte) outcome {
	var writes errgroup.Group
	if state != nil {
		writes.Go(func() error { return m.o.Store.SetPodState(ctx, uid, state) })
	}
	id, err := func() (string, error) {
		if err := m.furnish(ctx, uid, p); err != nil {
			return "", err
		}
		if err := m.lanes.sandbox(ctx); err != nil {
			return "", err
		}
		defer m.lanes.leave()
		return m.o.Runtime.RunSandbox(ctx, m.sandboxSpec(p, a.Attempt))
	}()
	stored := writes.Wait()
	return func(w *worker) {
		w.stale = true
		w.saved = w.saved || state != nil && stored == nil
		switch {
		case err == nil:
			delete(w.hold, "")
			w.log.Debug("sandbox started", "sandbox", id, "attempt", a.Attempt)
			return
		case errors.Is(err, context.Canceled):
			return
		}
		again := w.failed("", retryFirst, retryMost)
		var mount *mountError
		if errors.As(err, &mount) {
			w.m.events.pod(w.pod, corev1.EventTypeWarning, "FailedMount", err.Error())
		} else {
			w.m.events.pod(w.pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		}
		w.log.Warn("pod's sandbox cannot be started", "err", err, "again", again)
	}
}

// parallelMounts bounds the pods whose volumes are made ready at once.
const parallelMounts = 8

// furnish makes ready what a sandbox needs before it: the pod's directory, its volumes and its cgroup. It takes no
// lane, because a volume may wait for a token from the cloud, and others can start meanwhile.
func (m *Manager) furnish(ctx context.Context, uid string, p *corev1.Pod) error {
	if err := m.rooms.Acquire(ctx, 1); err != nil {
		return err
	}
	defer m.rooms.Release(1)
	if err := os.MkdirAll(m.dir(uid), 0o750); err != nil {
		return fmt.Errorf("directory of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if _, err := m.o.Volumes.Mount(ctx, p, nil); err != nil {
		return &mountError{err}
	}
	return m.o.Cgroups.Ensure(p)
}

type mountError struct{ err error }

func (e *mountError) Error() string { return e.err.Error() }
func (e *mountError) Unwrap() error { return e.err }

// prepareStop stops one container: its preStop hook and the signals share the time until the deadline.
func (w *worker) prepareStop(a plan.Action) func(context.Context) outcome {
	p, spec, ip := w.pod, named(w.pod, a.Name), w.podIP()
	running := false
	for i := range w.seen.Containers {
		running = running || w.seen.Containers[i].ID == a.ID && w.seen.Containers[i].State == runtime.Running
	}
	// A container that is only told to go sooner has had its hook.
	running = running && !w.hooked[a.ID]
	w.hooked[a.ID] = true
	w.m.probes.Remove(a.ID)
	delete(w.probing, a.ID)
	w.ready[a.ID] = false
	w.m.events.container(p, a.Name, corev1.EventTypeNormal, "Killing", a.Why)
	w.log.Info("stopping container", "container", a.Name, "why", a.Why)
	return func(ctx context.Context) outcome {
		err := w.m.stop(ctx, p, spec, ip, a, running)
		return func(w *worker) {
			w.stale = true
			if w.ok(err, holdKey(a)) {
				delete(w.unhealthy, a.ID)
			}
		}
	}
}

// leastGrace is left for the container itself when the hook took all the time, as the kubelet does.
const leastGrace = 2 * time.Second

func (m *Manager) stop(ctx context.Context, p *corev1.Pod, spec *corev1.Container, ip string, a plan.Action, running bool) error {
	left := a.Deadline - m.clock.Mono()
	if running && left > 0 && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		hook, cancel := context.WithTimeout(ctx, left)
		err := m.hook(hook, spec.Lifecycle.PreStop, a.ID, spec, ip, left)
		cancel()
		if err != nil && ctx.Err() == nil {
			m.events.container(p, a.Name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: "+err.Error())
		}
		left = max(a.Deadline-m.clock.Mono(), leastGrace)
	}
	return m.o.Runtime.StopContainer(ctx, a.ID, max(left, 0))
}

// prepareRelease gives back what an ended pod holds, and with Forget also what reminds of it.
func (w *worker) prepareRelease(a plan.Action) func(context.Context) outcome {
	p, uid, deleted := w.pod, w.uid, !w.vanished
	return func(ctx context.Context) outcome {
		err := w.m.release(ctx, uid, p, a.Forget)
		if err == nil && a.Forget {
			err = w.m.farewell(ctx, uid, p, deleted)
		}
		return func(w *worker) {
			if !w.ok(err, "") {
				return
			}
			if a.Forget {
				w.finish()
				return
			}
			w.record.Memory.Released = true
			w.dirty()
		}
	}
}

// release takes the pod's volumes, cgroup and, when it is forgotten, its files away.
func (m *Manager) release(ctx context.Context, uid string, p *corev1.Pod, forget bool) error {
	if err := m.o.Volumes.Unmount(ctx, uid); err != nil {
		return err
	}
	if err := m.o.Cgroups.Remove(p); err != nil {
		return err
	}
	if !forget {
		return nil
	}
	if err := removeTree(m.dir(uid)); err != nil {
		return fmt.Errorf("directory of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if p.Name == "" || p.Namespace == "" {
		return nil
	}
	if err := runtime.RemovePodLogs(runtime.LogDir(m.o.PodLogsDir, p)); err != nil {
		return fmt.Errorf("logs of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// farewell tells the hub that nothing is left of the pod, then forgets it. In this order: a power cut in
// between says it twice rather than never.
func (m *Manager) farewell(ctx context.Context, uid string, p *corev1.Pod, tell bool) error {
	if tell {
		gone := &corev1.Pod{}
		gone.Namespace, gone.Name, gone.UID = p.Namespace, p.Name, p.UID
		b, err := gone.Marshal()
		if err != nil {
			return fmt.Errorf("report that pod %s/%s is gone: %w", p.Namespace, p.Name, err)
		}
		if err := m.o.Store.PutReport(ctx, store.Report{Kind: wire.ReportKind_REPORT_POD_GONE, Key: uid, Payload: b}); err != nil {
			return err
		}
	}
	return m.o.Store.DeletePodState(ctx, uid)
}

// finish ends the worker: nothing of the pod is left.
func (w *worker) finish() {
	for id := range w.probing {
		w.m.probes.Remove(id)
	}
	w.m.events.Forget(w.uid)
	w.log.Info("pod is gone")
	w.stopTimer()
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.m.forget(w)
}

// podIP is the address of the pod, the node's own with host networking; "" while there is none.
func (w *worker) podIP() string {
	if ips := w.podIPs(); len(ips) > 0 {
		return ips[0]
	}
	return ""
}

func (w *worker) podIPs() []string {
	s := w.sandbox()
	if s == nil {
		return nil
	}
	if w.pod.Spec.HostNetwork {
		return w.m.o.HostIPs()
	}
	return s.IPs
}

// sandbox is the one in which containers run, or nil.
func (w *worker) sandbox() *runtime.Sandbox {
	for i := range w.seen.Sandboxes {
		if s := &w.seen.Sandboxes[i]; s.Ready && !w.stopped[s.ID] {
			return s
		}
	}
	return nil
}
