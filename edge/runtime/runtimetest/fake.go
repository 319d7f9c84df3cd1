// Package runtimetest is a container runtime in memory, for what cannot be provoked with a real one: a
// registry that refuses, a runtime that does not answer, a call that never ends. It counts the calls it gets.
//
// Tests of edge/pod use it beside the real containerd of tests/rig; nothing else does. It runs nothing: a
// container ends when a test says so.
package runtimetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// Runtime plays containerd. The zero value has no images; use New.
type Runtime struct {
	mu     sync.Mutex
	pods   map[string]*runtime.Pod
	images map[string]bool
	fail   map[string]func(ctx context.Context, what string) error
	calls  map[string]int
	ids    int
	events chan runtime.Event
	live   bool // the registry can be connected to
}

// New makes a runtime which holds those images.
func New(images ...string) *Runtime {
	r := &Runtime{pods: map[string]*runtime.Pod{}, images: map[string]bool{}, fail: map[string]func(context.Context, string) error{},
		calls: map[string]int{}, events: make(chan runtime.Event, 1024), live: true}
	for _, i := range images {
		r.images[i] = true
	}
	return r
}

// Fail lets each call of that name (RunSandbox, Pull, ...) ask f, which is given what the call is about;
// nil lets them succeed again.
func (r *Runtime) Fail(call string, f func(ctx context.Context, what string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail[call] = f
}

// Calls is how often each call was made.
func (r *Runtime) Calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.calls)
}

// SetReachable says whether registries can be connected to.
func (r *Runtime) SetReachable(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = yes
}

// Exit ends the running container of that name, and tells.
func (r *Runtime) Exit(uid, name string, code int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.pod(uid).Containers {
		if c := &r.pod(uid).Containers[i]; c.Name == name && c.State == runtime.Running {
			r.end(c, code)
		}
	}
}

// Reboot ends everything that runs, and tells nobody.
func (r *Runtime) Reboot() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		for i := range p.Sandboxes {
			p.Sandboxes[i].Ready = false
		}
		for i := range p.Containers {
			if c := &p.Containers[i]; c.State == runtime.Running {
				c.State, c.ExitCode, c.Reason = runtime.Exited, 255, "Unknown"
			}
		}
	}
}

// end is called with mu held.
func (r *Runtime) end(c *runtime.Container, code int32) {
	c.State, c.ExitCode, c.FinishedAt = runtime.Exited, code, time.Now()
	c.Reason = "Completed"
	if code != 0 {
		c.Reason = "Error"
	}
	r.events <- runtime.Event{ContainerID: c.ID, Kind: runtime.ContainerExited}
}

// call counts, and fails when a test wants it to.
func (r *Runtime) call(ctx context.Context, name, what string) error {
	r.mu.Lock()
	r.calls[name]++
	f := r.fail[name]
	r.mu.Unlock()
	if f != nil {
		return f(ctx, what)
	}
	return ctx.Err()
}

// pod is called with mu held.
func (r *Runtime) pod(uid string) *runtime.Pod {
	if r.pods[uid] == nil {
		r.pods[uid] = &runtime.Pod{UID: uid}
	}
	return r.pods[uid]
}

func (r *Runtime) id(kind string) string {
	r.ids++
	return fmt.Sprintf("%s-%d", kind, r.ids)
}

func clone(p *runtime.Pod) *runtime.Pod {
	if p == nil || len(p.Sandboxes)+len(p.Containers) == 0 {
		return nil
	}
	q := *p
	q.Sandboxes, q.Containers = slices.Clone(p.Sandboxes), slices.Clone(p.Containers)
	return &q
}

// List is part of pod.Runtime, as are all methods below.
func (r *Runtime) List(ctx context.Context) (map[string]*runtime.Pod, error) {
	if err := r.call(ctx, "List", ""); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*runtime.Pod{}
	for uid, p := range r.pods {
		if q := clone(p); q != nil {
			out[uid] = q
		}
	}
	return out, nil
}

func (r *Runtime) Inspect(ctx context.Context, uid string) (*runtime.Pod, error) {
	if err := r.call(ctx, "Inspect", uid); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return clone(r.pods[uid]), nil
}

func (r *Runtime) RunSandbox(ctx context.Context, s runtime.SandboxSpec) (string, error) {
	if err := r.call(ctx, "RunSandbox", s.Pod.Name); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pod(string(s.Pod.UID))
	p.Namespace, p.Name = s.Pod.Namespace, s.Pod.Name
	sb := runtime.Sandbox{ID: r.id("sandbox"), Attempt: s.Attempt, Ready: true, CreatedAt: time.Now(), IPs: []string{"10.88.0.9"}}
	p.Sandboxes = append([]runtime.Sandbox{sb}, p.Sandboxes...)
	return sb.ID, nil
}

func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	if err := r.call(ctx, "StopSandbox", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		for i := range p.Sandboxes {
			if p.Sandboxes[i].ID == id {
				p.Sandboxes[i].Ready = false
			}
		}
	}
	return nil
}

func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	if err := r.call(ctx, "RemoveSandbox", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		p.Sandboxes = slices.DeleteFunc(p.Sandboxes, func(s runtime.Sandbox) bool { return s.ID == id })
		p.Containers = slices.DeleteFunc(p.Containers, func(c runtime.Container) bool { return c.SandboxID == id })
	}
	return nil
}

func (r *Runtime) CreateContainer(ctx context.Context, s runtime.ContainerSpec) (string, error) {
	if err := r.call(ctx, "CreateContainer", s.Container.Name); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := runtime.Container{ID: r.id("container"), SandboxID: s.SandboxID, Name: s.Container.Name, Attempt: s.Attempt,
		Hash: runtime.Hash(s.Container), State: runtime.Created, CreatedAt: time.Now(), Image: s.Container.Image}
	p := r.pod(string(s.Pod.UID))
	p.Containers = append([]runtime.Container{c}, p.Containers...)
	return c.ID, nil
}

func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	if err := r.call(ctx, "StartContainer", id); err != nil {
		return err
	}
	r.each(id, func(c *runtime.Container) { c.State, c.StartedAt = runtime.Running, time.Now() })
	return nil
}

func (r *Runtime) each(id string, f func(*runtime.Container)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		for i := range p.Containers {
			if p.Containers[i].ID == id {
				f(&p.Containers[i])
			}
		}
	}
}

func (r *Runtime) StopContainer(ctx context.Context, id string, _ time.Duration) error {
	if err := r.call(ctx, "StopContainer", id); err != nil {
		return err
	}
	r.each(id, func(c *runtime.Container) {
		if c.State == runtime.Running {
			r.end(c, 143)
		}
	})
	return nil
}

func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	if err := r.call(ctx, "RemoveContainer", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		p.Containers = slices.DeleteFunc(p.Containers, func(c runtime.Container) bool { return c.ID == id })
	}
	return nil
}

func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, _ time.Duration) (runtime.ExecResult, error) {
	return runtime.ExecResult{}, r.call(ctx, "Exec", fmt.Sprint(cmd))
}

func (r *Runtime) Image(ctx context.Context, ref string) (string, bool, error) {
	if err := r.call(ctx, "Image", ref); err != nil {
		return "", false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return "id-of-" + ref, r.images[ref], nil
}

func (r *Runtime) RegistryReachable(context.Context, string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live
}

func (r *Runtime) Pull(ctx context.Context, ref string, _ []runtime.Auth) (string, error) {
	if err := r.call(ctx, "Pull", ref); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[ref] = true
	return "id-of-" + ref, nil
}

func (r *Runtime) Events(ctx context.Context) <-chan runtime.Event {
	out := make(chan runtime.Event)
	go func() {
		defer close(out)
		for {
			select {
			case e := <-r.events:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
