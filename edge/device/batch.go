package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// batch is what becomes one commit: it is worked out beside what is in force, which
// takes its place only once it is on the disk.
type batch struct {
	m       *Manager
	order   []*touch
	touched map[*device]*touch
	forget  []string
	drops   []uint64
	answers []func(err error) // in the order of the operations
	events  []func()
}

// touch is one device in a batch.
type touch struct {
	d             *device
	before, after View
	parts         map[string]bool // rows to write; "" is the device's own
	gone          []string        // properties that end
	added         bool            // the device is new
	removed       bool
	// what happens to the histories
	values  map[string][]*store.TwinValue
	dropped map[string][]uint64

	source any
	mixed  bool
	told   bool // listeners hear of it
	cloud  bool // what has changed is the cloud's word alone
}

func newBatch(m *Manager) *batch { return &batch{m: m, touched: make(map[*device]*touch)} }

func (b *batch) touch(d *device, source any) *touch {
	t := b.touched[d]
	if t == nil {
		t = &touch{d: d, before: d.view, after: d.view, parts: make(map[string]bool), source: source}
		b.touched[d] = t
		b.order = append(b.order, t)
	}
	if t.source != source {
		t.mixed = true
	}
	return t
}

// answer calls done after the commit.
func (b *batch) answer(done func(before, after View, err error), before, after View, err error) {
	if done == nil {
		return
	}
	b.answers = append(b.answers, func(failed error) {
		if failed != nil && err == nil {
			err = failed
		}
		if err != nil {
			after = before
		}
		done(before, after, err)
	})
}

// take works out one operation.
func (b *batch) take(op Operation) {
	m := b.m
	d := m.devices[op.Key]
	if d == nil {
		m.count(func(c *counts) { c.unknown++ })
		b.answer(op.Done, View{}, View{}, fmt.Errorf("device %s: %w", op.Key, ErrUnknownDevice))
		return
	}
	if !d.limit.take(m.o.Clock.Mono(), m.o.Rate) {
		m.count(func(c *counts) { c.flooded++ })
		b.answer(op.Done, d.view, d.view, fmt.Errorf("device %s: %w: at most %.0f a second are taken", op.Key, ErrTooMany, m.o.Rate))
		return
	}
	t := b.touch(d, op.Source)
	before, now := t.after, m.now()
	next, entries, err := m.apply(before, op, now)
	if err != nil {
		// What was refused is told, once, and nothing else is taken.
		if e := entries[err.Property]; e != nil && e.Version != entryVersion(before.Twin, err.Property) {
			t.set(before.Twin.With(err.Property, e), err.Property)
		}
		m.count(func(c *counts) { c.refused++ })
		b.refuse(before.Device, err)
		b.answer(op.Done, before, before, err)
		return
	}
	for name := range entries {
		t.parts[name] = true
	}
	for i := range op.Reported {
		b.keepHistory(t, &next, op.Reported[i].Property)
	}
	if next.State != before.Twin.State {
		t.parts[""] = true
	}
	t.after.Twin, t.told = next, true
	m.count(func(c *counts) { c.accepted++ })
	b.answer(op.Done, before, t.after, nil)
}

func (t *touch) set(tw *twin.Twin, part string) {
	t.after.Twin, t.parts[part], t.told = tw, true, true
}

func entryVersion(t *twin.Twin, name string) uint64 {
	if e := t.Properties[name]; e != nil {
		return e.Version
	}
	return 0
}

// apply works out an operation on a view. With an error, entries holds what the twin
// is to remember of the refusal.
func (m *Manager) apply(v View, op Operation, now int64) (*twin.Twin, map[string]*twin.Entry, *twin.RejectedError) {
	next, entries := *v.Twin, make(map[string]*twin.Entry, len(op.Reported)+len(op.Desired))
	t := &next
	each := func(updates []Update, f func(*twin.Twin, string, twin.Value) (*twin.Entry, *twin.RejectedError)) *twin.RejectedError {
		for _, u := range updates {
			if u.Value.At == 0 {
				u.Value.At = now
			}
			e, err := f(t, u.Property, u.Value)
			if err != nil {
				if e != nil && entries[u.Property] != nil { // the same property twice: only the refusal is kept
					e = nil
				}
				clear(entries)
				entries[err.Property] = e
				return err
			}
			entries[u.Property] = e
			t = t.With(u.Property, e)
		}
		return nil
	}
	err := each(op.Reported, func(t *twin.Twin, name string, v twin.Value) (*twin.Entry, *twin.RejectedError) {
		return t.Report(op.definition(m), name, v, now)
	})
	if err == nil {
		err = each(op.Desired, func(t *twin.Twin, name string, v twin.Value) (*twin.Entry, *twin.RejectedError) {
			return t.SetDesired(op.definition(m), name, v, now)
		})
	}
	if err != nil {
		return v.Twin, entries, err
	}
	last := *t
	switch {
	case op.State != "":
		last.State = op.State
	case len(op.Reported) > 0:
		last.State = v1beta1.StateOnline
	}
	if len(op.Reported) > 0 || op.State == v1beta1.StateOnline {
		last.Heard = now
	}
	return &last, entries, nil
}

// definition is what the cloud says of the operation's device.
func (op *Operation) definition(m *Manager) *twin.Definition {
	return m.devices[op.Key].view.Definition
}

// refuse makes an Event of a refused value.
func (b *batch) refuse(d *v1beta1.Device, err *twin.RejectedError) {
	reason := "ValueRejected"
	if err.Desired {
		reason = "DesiredValueRejected"
	}
	b.events = append(b.events, func() { b.m.o.Events.Device(d, corev1.EventTypeWarning, reason, err.Error()) })
}

// keepHistory adds the value that was reported to its property's history.
func (b *batch) keepHistory(t *touch, next **twin.Twin, name string) {
	limit := t.after.Properties[name].History
	if limit == 0 {
		return
	}
	e := *(*next).Properties[name]
	if t.values == nil {
		t.values, t.dropped = make(map[string][]*store.TwinValue), make(map[string][]uint64)
	}
	// What is on its way to the hub stays, and does not count.
	refs := b.m.grounded(t.d, name)
	for len(refs)-len(t.dropped[name])+len(t.values[name]) >= limit { // the oldest goes, and is counted
		if at := len(t.dropped[name]); at < len(refs) {
			b.drops = append(b.drops, refs[at].id)
			t.dropped[name] = append(t.dropped[name], refs[at].id)
		} else {
			t.values[name] = t.values[name][1:]
		}
		e.Dropped++
	}
	t.values[name] = append(t.values[name], &store.TwinValue{
		UID: t.after.UID, Property: name, Number: e.Count, Text: e.Reported.Text, At: e.Reported.At})
	*next = (*next).With(name, &e)
}

// define takes the cloud's word about a device.
func (b *batch) define(of *v1beta1.Device) {
	m := b.m
	key := twin.Key{Namespace: of.Namespace, Name: of.Name}
	if was := m.devices[key]; was != nil && was.view.UID != string(of.UID) {
		b.remove(was.view.UID) // deleted, and made anew under its name
		b.flush()
	}
	b.catchUp(string(of.UID))
	d := m.byUID[string(of.UID)]
	if d == nil {
		d = &device{view: View{Twin: twin.New()}}
	}
	def := twin.Define(of, m.model(of))
	t := b.touch(d, nil)
	t.added = t.before.Definition == nil
	b.followDefinition(t, def)
}

func (b *batch) followDefinition(t *touch, def *twin.Definition) {
	next, changed, gone, refused := t.after.Twin.Follow(def, b.m.now())
	for _, name := range changed {
		t.parts[name] = true
	}
	t.gone = append(t.gone, gone...)
	if t.added {
		t.parts[""] = true
	}
	t.cloud = (t.cloud || !t.told) && len(refused) == 0 && def.Problem == ""
	t.after, t.told = View{Definition: def, Twin: next}, true
	for _, err := range refused {
		b.refuse(def.Device, err)
	}
	if def.Problem != "" && (t.before.Definition == nil || t.before.Problem != def.Problem) {
		problem := def.Problem
		b.events = append(b.events, func() { b.m.o.Events.Device(def.Device, corev1.EventTypeWarning, "DeviceNotUsable", problem) })
	}
}

// redefine takes a model's change to all its devices, those that are new in the batch
// among them.
func (b *batch) redefine(namespace, name string) {
	follow := func(v View, touch func() *touch) {
		if of := v.Device; of.Namespace == namespace && of.Spec.DeviceModelRef != nil && of.Spec.DeviceModelRef.Name == name {
			b.followDefinition(touch(), twin.Define(of, b.m.model(of)))
		}
	}
	for _, t := range b.order {
		follow(t.after, func() *touch { return t })
	}
	for _, d := range b.m.devices {
		if b.touched[d] == nil {
			follow(d.view, func() *touch { return b.touch(d, nil) })
		}
	}
}

// remove takes the word that a device is no more.
func (b *batch) remove(uid string) {
	b.catchUp(uid)
	d := b.m.byUID[uid]
	if d == nil {
		return
	}
	t := b.touch(d, nil)
	t.removed, t.told = true, true
	b.forget = append(b.forget, uid)
}

// catchUp flushes the batch when a device begins or ends in it, of which more is to be
// said.
func (b *batch) catchUp(uid string) {
	if slices.ContainsFunc(b.order, func(t *touch) bool { return t.after.UID == uid && (t.added || t.removed) }) {
		b.flush()
	}
}

// flush commits what is in the batch so far, where order matters between devices.
func (b *batch) flush() {
	b.m.commit(context.Background(), b)
	*b = *newBatch(b.m)
}

// rows are what the batch writes.
func (b *batch) rows() *store.TwinBatch {
	b.m.mu.RLock()
	defer b.m.mu.RUnlock()
	out := &store.TwinBatch{Forget: b.forget, Drop: b.drops}
	for _, t := range b.order {
		if t.removed {
			continue
		}
		for _, name := range t.gone {
			out.ForgetParts = append(out.ForgetParts, store.TwinRow{UID: t.after.UID, Part: name})
		}
		for part := range t.parts {
			if e := t.after.Twin.Properties[part]; part != "" && e != nil {
				out.Rows = append(out.Rows, store.TwinRow{UID: t.after.UID, Part: part, Data: encode(e)})
			}
		}
		if t.parts[""] {
			out.Rows = append(out.Rows, store.TwinRow{UID: t.after.UID, Data: t.d.ownRow(t.after.Twin)})
		}
		for _, values := range t.values {
			out.Values = append(out.Values, values...)
		}
	}
	return out
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and numbers alone
	}
	return b
}

// commit writes the batch, puts it into force, answers, and tells the listeners.
func (m *Manager) commit(ctx context.Context, b *batch) {
	if len(b.order)+len(b.answers)+len(b.drops) == 0 {
		return
	}
	err := m.o.Store.PutTwins(context.WithoutCancel(ctx), b.rows())
	if err == nil {
		m.force(b)
	} else {
		m.failed(ctx, b, err)
	}
	for _, answer := range b.answers {
		answer(err)
	}
	if err != nil {
		return
	}
	for _, event := range b.events {
		event()
	}
}

// failed keeps what the cloud said although it could not be written: it is in the
// store's objects, and at the next start it comes again. What devices said is not
// taken, as they are told.
func (m *Manager) failed(ctx context.Context, b *batch, err error) {
	if !errors.Is(err, store.ErrClosed) && ctx.Err() == nil {
		m.o.Log.Error("what devices say cannot be stored; they are told so", "err", err)
	}
	m.count(func(c *counts) { c.failed += uint64(len(b.answers)) })
	if len(b.answers) == 0 {
		m.force(b)
	}
}

// unname takes a device's name back, and gives it to one that was made anew under it.
func (m *Manager) unname(d *device) {
	if m.devices[d.view.Key] != d {
		return
	}
	delete(m.devices, d.view.Key)
	for _, other := range m.byUID {
		if other.view.Key == d.view.Key {
			m.devices[d.view.Key] = other
		}
	}
}

// force puts a committed batch in the place of what was before.
func (m *Manager) force(b *batch) {
	var changes []Change
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range b.order {
		d := t.d
		c := Change{Before: t.before, After: t.after, Source: t.source}
		if t.mixed {
			c.Source = nil
		}
		if t.removed {
			delete(m.byUID, d.view.UID)
			m.unname(d)
			delete(m.unsaved, d)
			delete(m.waiting, d)
			c.After = View{}
			changes = append(changes, c)
			continue
		}
		d.view = t.after
		if t.added {
			m.devices[d.view.Key], m.byUID[d.view.UID] = d, d
		}
		for _, name := range t.gone {
			delete(d.queues, name)
			delete(d.report.acked, name)
		}
		for name, ids := range t.dropped {
			d.queue(name).drop(ids)
		}
		for name, values := range t.values {
			q := d.queue(name)
			for _, v := range values {
				q.refs = append(q.refs, valueRef{v.ID, v.Number})
			}
		}
		m.holdBack(t)
		m.due(d)
		if t.told {
			changes = append(changes, c)
		}
	}
	if len(changes) > 0 {
		for l := range m.listeners {
			l.add(changes)
		}
	}
}

// holdBack lets the cloud's word wait for the device's answer, if it is all that there
// is to tell. The caller holds mu.
func (m *Manager) holdBack(t *touch) {
	_, waits := m.waiting[t.d]
	switch now := m.o.Clock.Mono(); {
	case !t.cloud && t.told:
		t.d.report.hold = 0
	case t.cloud && !waits && !t.d.report.taken && t.d.report.hold <= now:
		t.d.report.hold = now + answerWithin
	}
}
