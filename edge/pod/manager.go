package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/event"
	"github.com/holdfast-edge/holdfast/edge/probe"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/volume"
)

// Runtime is what is asked of edge/runtime.
type Runtime interface {
	List(ctx context.Context) (map[string]*runtime.Pod, error)
	Inspect(ctx context.Context, uid string) (*runtime.Pod, error)
	RunSandbox(ctx context.Context, s runtime.SandboxSpec) (string, error)
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error
	CreateContainer(ctx context.Context, s runtime.ContainerSpec) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	Exec(ctx context.Context, id string, cmd []string, timeout time.Duration) (runtime.ExecResult, error)
	Image(ctx context.Context, ref string) (id string, present bool, err error)
	RegistryReachable(ctx context.Context, ref string) bool
	Pull(ctx context.Context, ref string, auths []runtime.Auth) (id string, err error)
	Events(ctx context.Context) <-chan runtime.Event
}

// Volumes is what is asked of edge/volume.
type Volumes interface {
	Mount(ctx context.Context, p *corev1.Pod, podIPs []string) (map[string]string, error)
	Refresh(ctx context.Context, p *corev1.Pod) (changed bool, err error) // p's status names its addresses
	ContainerMounts(ctx context.Context, p *corev1.Pod, c *corev1.Container, expand func(string) (string, error)) ([]volume.Mount, error)
	Unmount(ctx context.Context, uid string) error
}

// Objects are what pods refer to; edge/store has them.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Options of New. Store, Runtime, Volumes, DataDir and PodLogsDir must be set.
type Options struct {
	Store   *store.Store
	Runtime Runtime
	Volumes Volumes
	Tokens  *Tokens // to keep projected tokens fresh; nil: they are not renewed
	Cgroups Cgroups // nil: the runtime makes the pods' cgroups where it likes
	Clock   Clock   // nil: the machine's
	Log     *slog.Logger

	NodeName   string
	HostIPs    func() []string                // the node's addresses, the main one first
	Capacity   func() corev1.ResourceList     // what the node can give
	Online     func() bool                    // the hub can be reached; nil: never known
	DataDir    string                         // <DataDir>/pods/<uid>
	PodLogsDir string                         // /var/log/pods
	DNS        func(*corev1.Pod) *runtime.DNS // nil: the runtime's default
	Domain     string                         // the cluster's domain, for host names
	Parallel   int                            // sandboxes and containers that are started at once; 0: 4
	Relist     time.Duration                  // how often everything is looked at; 0: 60 s
}

// Manager runs all pods of the node.
type Manager struct {
	o      Options
	clock  Clock
	log    *slog.Logger
	lanes  *lanes
	rooms  *semaphore.Weighted // for pods whose volumes are made ready
	starts gate
	images *images
	events events
	probes *probe.Prober
	fields fieldTable
	ctx    context.Context // of Run: what workers do ends with it
	tasks  sync.WaitGroup  // workers' turns and actions

	mu      sync.Mutex
	workers map[string]*worker
	closed  bool
	resyncs chan struct{}
}

// New makes a manager; Run starts it.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Clock == nil {
		c, err := NewClock(nil)
		if err != nil {
			return nil, err
		}
		o.Clock = c
	}
	if o.HostIPs == nil {
		o.HostIPs = func() []string { return nil }
	}
	if o.Capacity == nil {
		o.Capacity = func() corev1.ResourceList { return nil }
	}
	if o.Online == nil {
		o.Online = func() bool { return false }
	}
	if o.Cgroups == nil {
		o.Cgroups = noCgroups{}
	}
	o.Parallel = cmp.Or(o.Parallel, 4)
	o.Relist = cmp.Or(o.Relist, 60*time.Second)
	m := &Manager{
		o: o, clock: o.Clock, log: o.Log,
		lanes:   newLanes(o.Parallel),
		rooms:   semaphore.NewWeighted(parallelMounts),
		workers: map[string]*worker{},
		resyncs: make(chan struct{}, 1),
	}
	m.images = newImages(o.Runtime, o.Clock)
	m.events = events{event.New(o.Store, o.Clock, o.NodeName, o.Log, m.starts.quiet)}
	m.probes = probe.New(probe.Options{
		Exec: func(ctx context.Context, id string, cmd []string, timeout time.Duration) (int32, string, error) {
			r, err := o.Runtime.Exec(ctx, id, cmd, timeout)
			return r.ExitCode, string(append(r.Stdout, r.Stderr...)), err
		},
		Report: m.probed,
	})
	return m, nil
}

// Run runs the pods until ctx ends. Their containers go on running when it returns.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	m.ctx = ctx
	defer m.keep()
	defer m.tasks.Wait()
	defer m.close()
	defer cancel()

	changes, unsubscribe := m.o.Store.Subscribe(64)
	defer unsubscribe()
	m.tasks.Add(1)
	go func() { defer m.tasks.Done(); m.probes.Run(ctx) }()
	m.tasks.Add(1)
	go func() { defer m.tasks.Done(); m.events.Run(ctx) }()
	exits := m.o.Runtime.Events(ctx)

	if err := m.begin(ctx); err != nil {
		return err
	}
	relist := time.NewTicker(m.o.Relist)
	defer relist.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c, ok := <-changes:
			if !ok {
				return errors.New("pods: the store is closed")
			}
			m.changed(ctx, c)
		case e, ok := <-exits:
			if !ok {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return errors.New("pods: the runtime's event stream ended")
			}
			m.happened(ctx, e)
		case <-m.resyncs:
			m.relist(ctx)
		case <-relist.C:
			m.relist(ctx)
		}
	}
}

func (m *Manager) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, w := range m.workers {
		w.stopTimer()
	}
}

// keep writes what was to be written in a while; nobody takes a turn any more.
func (m *Manager) keep() {
	for _, w := range m.all() {
		if w.saveAt == 0 || w.isGone() {
			continue
		}
		if err := w.save(context.Background()); err != nil {
			w.log.Warn("pod's memory cannot be stored", "err", err)
		}
	}
}

// begin finds out what was running, what should be, and starts the workers, the most important first.
func (m *Manager) begin(ctx context.Context) error {
	seen, err := m.list(ctx)
	if err != nil {
		return err
	}
	pods, err := m.o.Store.Pods(ctx)
	if err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	states, err := m.o.Store.PodStates(ctx)
	if err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	slices.SortStableFunc(pods, byImportance)
	for _, p := range pods {
		uid := string(p.UID)
		w := m.worker(uid, states[uid])
		w.tell(func(in *inbox) { in.pod, in.seen, in.looked = p, seen[uid], true })
		delete(states, uid)
		delete(seen, uid)
	}
	// Pods which are no longer wanted but were not cleared away before the power went.
	for uid, b := range states {
		if _, err := m.o.Store.Pod(ctx, uid); !errors.Is(err, store.ErrNotFound) {
			continue // it is wanted though it cannot be read: what runs of it runs on
		}
		m.worker(uid, b).tell(func(in *inbox) { in.vanished, in.seen, in.looked = true, seen[uid], true })
	}
	return nil
}

// byImportance puts pods of a high priority first, then the older.
func byImportance(a, b *corev1.Pod) int {
	priority := func(p *corev1.Pod) int32 {
		if p.Spec.Priority == nil {
			return 0
		}
		return *p.Spec.Priority
	}
	return cmp.Or(cmp.Compare(priority(b), priority(a)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time))
}

// list asks the runtime until it answers: containerd may be slow to come up.
func (m *Manager) list(ctx context.Context) (map[string]*runtime.Pod, error) {
	wait := 200 * time.Millisecond
	for told := false; ; {
		seen, err := m.o.Runtime.List(ctx)
		if err == nil {
			return seen, nil
		}
		if !told {
			m.log.Warn("waiting for the container runtime", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// worker returns the pod's worker, made if there is none.
func (m *Manager) worker(uid string, state []byte) *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[uid]
	if w == nil {
		w = newWorker(m, uid, state)
		m.workers[uid] = w
	}
	return w
}

func (m *Manager) existing(uid string) *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workers[uid]
}

func (m *Manager) all() []*worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		list = append(list, w)
	}
	return list
}

// changed passes on what the hub changed in the store.
func (m *Manager) changed(ctx context.Context, c store.Change) {
	switch c.Kind {
	case wire.Kind_KIND_POD:
		if c.Deleted {
			if w := m.existing(c.UID); w != nil {
				w.tell(func(in *inbox) { in.vanished = true })
			}
			return
		}
		p, err := m.o.Store.Pod(ctx, c.UID)
		if errors.Is(err, store.ErrNotFound) {
			return // deleted meanwhile: that is told too
		}
		if err != nil {
			m.log.Error("pod cannot be read", "pod", c.Namespace+"/"+c.Name, "uid", c.UID, "err", err)
			return
		}
		var state []byte // of a pod that could not be read before
		if m.existing(c.UID) == nil {
			if state, err = m.o.Store.PodState(ctx, c.UID); err != nil && !errors.Is(err, store.ErrNotFound) {
				m.log.Error("what was remembered of the pod cannot be read", "pod", c.Namespace+"/"+c.Name, "uid", c.UID, "err", err)
			}
		}
		m.worker(c.UID, state).tell(func(in *inbox) { in.pod = p })
	case wire.Kind_KIND_CONFIG_MAP, wire.Kind_KIND_SECRET:
		for _, w := range m.all() {
			if w.refersTo(c) {
				w.tell(func(in *inbox) { in.refresh = true })
			}
		}
	case wire.Kind_KIND_UNSPECIFIED:
		m.relist(ctx)
	}
}

// happened passes on what the runtime says.
func (m *Manager) happened(ctx context.Context, e runtime.Event) {
	if e.Kind == runtime.Resync {
		m.relist(ctx)
		return
	}
	for _, w := range m.all() {
		if w.owns(e.ContainerID) {
			w.tell(func(in *inbox) { in.look = true })
			return
		}
	}
}

// relist looks at everything: the safety net under the events.
func (m *Manager) relist(ctx context.Context) {
	seen, err := m.o.Runtime.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.log.Warn("the container runtime cannot be observed", "err", err)
		}
		return
	}
	for _, w := range m.all() {
		if w.differs(seen[w.uid]) {
			w.tell(func(in *inbox) { in.look = true })
		}
		delete(seen, w.uid)
	}
	if len(seen) > 0 && m.o.Store.SyncedOnce() {
		m.orphans(ctx, seen)
	}
}

// orphans are pods of the runtime that nobody wants. Only those of which this node's edgecore has a memory
// are its own to remove; a kubelet's or a person's pods are left alone.
func (m *Manager) orphans(ctx context.Context, seen map[string]*runtime.Pod) {
	for uid, p := range seen {
		state, err := m.o.Store.PodState(ctx, uid)
		if err != nil || len(state) == 0 {
			continue
		}
		if _, err := m.o.Store.Pod(ctx, uid); !errors.Is(err, store.ErrNotFound) {
			continue // told in a moment, or it cannot be read: then what runs of it runs on
		}
		m.log.Info("removing a pod that nobody wants", "pod", p.Namespace+"/"+p.Name, "uid", uid)
		m.worker(uid, state).tell(func(in *inbox) { in.vanished, in.seen, in.looked = true, p, true })
	}
}

// probed passes on a probe's finding.
func (m *Manager) probed(r probe.Result) {
	if w := m.existing(r.PodUID); w != nil {
		w.tell(func(in *inbox) { in.probed = append(in.probed, r) })
	}
}

func (m *Manager) forget(w *worker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.workers[w.uid] == w {
		delete(m.workers, w.uid)
	}
}

// dir is where a pod's files are.
func (m *Manager) dir(uid string) string { return filepath.Join(m.o.DataDir, "pods", uid) }
