package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Clock is the node's, which may be wrong, and a time that only grows.
type Clock interface {
	Wall() time.Time
	Mono() time.Duration
}

// Events makes Events in the cluster.
type Events interface {
	Device(d *v1beta1.Device, kind, reason, message string)
}

// Options are what a Manager needs.
type Options struct {
	Store  *store.Store
	Clock  Clock
	Events Events
	Log    *slog.Logger
	// ReportEvery is the shortest time between two reports about one device where its
	// properties ask for none; 0 means 250 ms.
	ReportEvery time.Duration
	// Rate is how many operations a second one device may make, with twice as many at
	// once; 0 means 1000.
	Rate float64
}

// Manager keeps the twins.
type Manager struct {
	o   Options
	ops chan Operation
	// more is signalled (capacity 1) when reports may be ready.
	more chan struct{}
	// kick makes Run look at what is due (capacity 1).
	kick    chan struct{}
	started chan struct{} // closed when the twins are read
	ended   chan struct{} // closed when Run has returned

	// Owned by Run.
	models map[string]*v1beta1.DeviceModel // by uid

	mu        sync.RWMutex
	devices   map[twin.Key]*device
	byUID     map[string]*device
	listeners map[*listener]struct{}
	unsaved   map[*device]struct{} // whose own row is to be written
	saved     time.Duration        // when unsaved was last written
	drops     []uint64             // values that the hub has
	waiting   map[*device]struct{} // have something to report later
	ready     []string             // uids of devices to report now
	settled   []*receipt           // of reports that the hub has accepted, for Run
	counts    counts
}

// device is one device. All but limit is guarded by Manager.mu, and changed by Run
// alone but for what belongs to reports.
type device struct {
	view   View
	limit  limit // Run's
	queues map[string]*queue
	report reporting
}

// New returns a Manager that does nothing until Run.
func New(o Options) *Manager {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ReportEvery == 0 {
		o.ReportEvery = 250 * time.Millisecond
	}
	if o.Rate == 0 {
		o.Rate = 1000
	}
	return &Manager{
		o: o, ops: make(chan Operation, 4*maxBatch), more: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		started: make(chan struct{}), ended: make(chan struct{}),
		models:  make(map[string]*v1beta1.DeviceModel),
		devices: make(map[twin.Key]*device), byUID: make(map[string]*device), listeners: make(map[*listener]struct{}),
		unsaved: make(map[*device]struct{}), waiting: make(map[*device]struct{}),
	}
}

// maxBatch is how many operations share a commit at most.
const maxBatch = 512

// saveEvery is how long what the hub has accepted may be unsaved: what is lost of it
// is only told again.
const saveEvery = time.Second

// Run follows the store and takes operations until ctx ends. It is called once.
func (m *Manager) Run(ctx context.Context) error {
	defer m.refuse()
	defer close(m.ended)
	changes, stop := m.o.Store.Subscribe(64)
	defer stop()
	if err := m.load(ctx); err != nil {
		return err
	}
	close(m.started)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		batch := newBatch(m)
		select {
		case op := <-m.ops:
			m.land()
			m.gather(batch, op)
		case c, ok := <-changes:
			if !ok {
				return store.ErrClosed
			}
			m.land()
			m.follow(ctx, batch, c, changes)
		case <-timer.C:
			m.land()
		case <-m.kick:
			m.land()
		case <-ctx.Done():
			m.land()
			m.save(batch)
			m.commit(ctx, batch)
			return nil
		}
		wait := m.tend(batch)
		m.commit(ctx, batch)
		timer.Reset(wait)
	}
}

// gather takes what waits into one batch.
func (m *Manager) gather(b *batch, op Operation) {
	b.take(op)
	for n := 1; n < maxBatch; n++ {
		select {
		case op := <-m.ops:
			b.take(op)
		default:
			return
		}
	}
}

// refuse answers what is queued when Run has ended.
func (m *Manager) refuse() {
	for {
		select {
		case op := <-m.ops:
			if op.Done != nil {
				op.Done(View{}, View{}, ErrEnded)
			}
		default:
			return
		}
	}
}

// Submit queues an operation; see Operation.Done. It blocks while the queue is full.
// With an error the operation is not queued, and Done is not called.
func (m *Manager) Submit(ctx context.Context, op Operation) error {
	if len(op.Reported)+len(op.Desired) > twin.MaxProperties {
		return ErrTooLarge
	}
	select {
	case <-m.ended:
		return ErrEnded
	default:
	}
	select {
	case m.ops <- op:
		select {
		case <-m.ended: // perhaps after Run had answered the last
			m.refuse()
		default:
		}
		return nil
	case <-m.ended:
		return ErrEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Do submits an operation and waits for its end.
func (m *Manager) Do(ctx context.Context, op Operation) (before, after View, err error) {
	type answer struct {
		before, after View
		err           error
	}
	done, then := make(chan answer, 1), op.Done
	op.Done = func(before, after View, err error) {
		if then != nil {
			then(before, after, err)
		}
		done <- answer{before, after, err}
	}
	if err := m.Submit(ctx, op); err != nil {
		return before, after, err
	}
	select {
	case a := <-done:
		return a.before, a.after, a.err
	case <-m.ended:
		select {
		case a := <-done:
			return a.before, a.after, a.err
		default:
			return before, after, ErrEnded
		}
	}
}

// Started is closed when the twins have been read: until then no device is known.
func (m *Manager) Started() <-chan struct{} { return m.started }

// Get returns a device as it is now.
func (m *Manager) Get(key twin.Key) (View, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := m.devices[key]
	if d == nil {
		return View{}, fmt.Errorf("device %s: %w", key, ErrUnknownDevice)
	}
	return d.view, nil
}

// List returns all devices by namespace and name.
func (m *Manager) List() []View {
	m.mu.RLock()
	views := make([]View, 0, len(m.devices))
	for _, d := range m.devices {
		views = append(views, d.view)
	}
	m.mu.RUnlock()
	slices.SortFunc(views, func(a, b View) int { return compareKeys(a.Key, b.Key) })
	return views
}

// follow takes changes of the store into the batch: the one that came, and those
// that wait behind it.
func (m *Manager) follow(ctx context.Context, b *batch, c store.Change, more <-chan store.Change) {
	for n := 0; ; n++ {
		if err := m.followOne(ctx, b, c); err != nil {
			m.o.Log.Error("what the cloud says of a device cannot be read; it stays as it was", "object", c.Namespace+"/"+c.Name, "uid", c.UID, "err", err)
		}
		if n == maxBatch {
			return
		}
		select {
		case next, ok := <-more:
			if !ok {
				return // Run sees it next
			}
			c = next
		default:
			return
		}
	}
}

func (m *Manager) followOne(ctx context.Context, b *batch, c store.Change) error {
	switch {
	case c.Kind == wire.Kind_KIND_DEVICE && c.Deleted:
		b.remove(c.UID)
	case c.Kind == wire.Kind_KIND_DEVICE:
		d := new(v1beta1.Device)
		err := m.o.Store.Decode(ctx, c.Kind, c.UID, d)
		if errors.Is(err, store.ErrNotFound) {
			return nil // its deletion comes next
		}
		if err != nil {
			return err
		}
		b.define(d)
	case c.Kind == wire.Kind_KIND_DEVICE_MODEL:
		if c.Deleted {
			delete(m.models, c.UID)
		} else {
			model := new(v1beta1.DeviceModel)
			err := m.o.Store.Decode(ctx, c.Kind, c.UID, model)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			m.models[c.UID] = model
		}
		b.redefine(c.Namespace, c.Name)
	}
	return nil
}

// model finds a device's model.
func (m *Manager) model(d *v1beta1.Device) *v1beta1.DeviceModel {
	if d.Spec.DeviceModelRef == nil {
		return nil
	}
	for _, model := range m.models { // there are few
		if model.Namespace == d.Namespace && model.Name == d.Spec.DeviceModelRef.Name {
			return model
		}
	}
	return nil
}

func (m *Manager) now() int64 { return m.o.Clock.Wall().UnixMilli() }
