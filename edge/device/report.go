package device

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// reporting is what the hub has heard of a device and has yet to hear.
type reporting struct {
	acked map[string]uint64 // version of each property that the hub has accepted
	told  told              // the same of the device as a whole
	taken bool              // uplink knows that there is something to report
	last  time.Duration     // when a report was last made
	once  bool              // last counts
	hold  time.Duration     // not before: the device may answer what the cloud has said
}

// told is what a report says of the device as a whole.
type told struct {
	State      v1beta1.DeviceState `json:"state,omitempty"`
	Generation int64               `json:"generation,omitempty"`
	Problem    string              `json:"problem,omitempty"`
	Heard      int64               `json:"heard,omitempty"`
}

// receipt is what a report that is under way has in it.
type receipt struct {
	d        *device
	versions map[string]uint64
	values   map[string][]uint64 // numbers of history values
	told     told
}

const (
	// heardEvery is how old the cloud's knowledge of when a device was last heard may
	// become while nothing else changes.
	heardEvery = 5 * time.Minute
	// A report closes at so many bytes and history values, and the next goes on.
	reportBytes, reportValues = 128 << 10, 256
	// answerWithin is how long the cloud's own word waits to be told back: a device that
	// answers by then makes one report of two, and one write at the apiserver.
	answerWithin = time.Second
)

// fresh is what the cloud should know of the device as a whole.
func (d *device) fresh() told {
	return told{State: d.view.Twin.State, Generation: d.view.Generation, Problem: d.view.Problem, Heard: d.view.Twin.Heard}
}

// dirty are the properties that the hub has yet to hear of, in order.
func (d *device) dirty() []string {
	var names []string
	for name, e := range d.view.Twin.Properties {
		p := d.view.Properties[name]
		if p != nil && p.ReportToCloud && (e.Version > d.report.acked[name] || len(d.backlog(name)) > 0) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// differs says that the device as a whole is not as the hub was told.
func (d *device) differs() bool {
	f, t := d.fresh(), d.report.told
	return f.State != t.State || f.Generation != t.Generation || f.Problem != t.Problem ||
		max(f.Heard-t.Heard, t.Heard-f.Heard) >= heardEvery.Milliseconds() // the clock may have been ahead
}

// interval is the shortest time between two reports.
func (d *device) interval(dirty []string, least time.Duration) time.Duration {
	var cycle time.Duration
	for _, name := range dirty {
		if c := d.view.Properties[name].ReportCycle; c > 0 && (cycle == 0 || c < cycle) {
			cycle = c
		}
	}
	if cycle == 0 || d.differs() && cycle > least {
		return least
	}
	return cycle
}

// due puts a device where it belongs: to those that are ready to report, to those
// that will be, or to neither. The caller holds mu.
func (m *Manager) due(d *device) {
	if d.report.taken {
		return
	}
	dirty := d.dirty()
	if len(dirty) == 0 && !d.differs() {
		delete(m.waiting, d)
		return
	}
	if m.readyAt(d, dirty) > m.o.Clock.Mono() {
		if _, waits := m.waiting[d]; !waits {
			m.waiting[d] = struct{}{}
			m.signal(m.kick)
		}
		return
	}
	m.offer(d)
}

// readyAt is when a device with something to report may do so. The caller holds mu.
func (m *Manager) readyAt(d *device, dirty []string) time.Duration {
	at := d.report.hold
	if d.report.once {
		at = max(at, d.report.last+d.interval(dirty, m.o.ReportEvery))
	}
	return at
}

// offer makes a device ready. The caller holds mu.
func (m *Manager) offer(d *device) {
	delete(m.waiting, d)
	d.report.taken = true
	m.ready = append(m.ready, d.view.UID)
	m.signal(m.more)
}

func (m *Manager) signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tend does what is due and returns how long Run may wait for the next.
func (m *Manager) tend(b *batch) (wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait = time.Hour
	now := m.o.Clock.Mono()
	for d := range m.waiting {
		if left := m.readyAt(d, d.dirty()) - now; left > 0 {
			wait = min(wait, left)
		} else {
			m.offer(d)
		}
	}
	if len(m.unsaved)+len(m.drops) > 0 {
		if len(b.order) > 0 || now-m.saved >= saveEvery || m.saved == 0 || len(m.drops) >= maxBatch {
			m.saved = now
			m.saveLocked(b)
		} else {
			wait = min(wait, m.saved+saveEvery-now)
		}
	}
	return max(wait, time.Millisecond)
}

// save adds to the batch what the hub has accepted.
func (m *Manager) save(b *batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saveLocked(b)
}

func (m *Manager) saveLocked(b *batch) {
	for d := range m.unsaved {
		b.touch(d, nil).parts[""] = true
	}
	clear(m.unsaved)
	b.drops = append(b.drops, m.drops...)
	m.drops = nil
}

// Changed is signalled (capacity 1) when Take may return something. Changed, Begin,
// Take, Report and Settle serve one caller, edge/uplink.
func (m *Manager) Changed() <-chan struct{} { return m.more }

// Begin says that nothing is under way: a session begins.
func (m *Manager) Begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = nil
	clear(m.waiting)
	for _, d := range m.devices {
		d.report.taken, d.report.once, d.report.hold = false, false, 0
		for _, q := range d.queues {
			q.flying = 0
		}
		m.due(d)
	}
}

const keyPrefix = "device/"

// Take returns keys of what is ready to be reported, each once until it is settled.
func (m *Manager) Take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make([]string, len(m.ready))
	for i, uid := range m.ready {
		keys[i] = keyPrefix + uid
	}
	m.ready = nil
	return keys
}

// Report makes the report for a key, with what is true now, or store.ErrNotFound when
// there is nothing to say any more. It may be called again for a key that is not
// settled.
func (m *Manager) Report(ctx context.Context, key string) (*wire.Report, any, error) {
	uid := strings.TrimPrefix(key, keyPrefix)
	r, rc, ids := m.compose(uid)
	if r == nil {
		return nil, nil, fmt.Errorf("report about the device with uid %s: %w", uid, store.ErrNotFound)
	}
	if len(ids) > 0 {
		values, err := m.o.Store.TwinValues(ctx, ids)
		if err != nil {
			return nil, nil, err
		}
		byName := make(map[string]*wire.PropertyReport, len(r.Properties))
		for _, p := range r.Properties {
			byName[p.Name] = p
		}
		for _, v := range values {
			if p := byName[v.Property]; p != nil {
				p.History = append(p.History, &wire.HistoryValue{Number: v.Number, Value: v.Text, UnixMs: v.At})
			}
		}
	}
	payload, err := proto.Marshal(r)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a report about device %s/%s: %w", r.Namespace, r.Name, err)
	}
	return &wire.Report{Kind: wire.ReportKind_REPORT_DEVICE, Payload: payload}, rc, nil
}

// compose makes a report but for the history, of which it returns the values' IDs.
func (m *Manager) compose(uid string) (*wire.DeviceReport, *receipt, []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.byUID[uid]
	if d == nil {
		return nil, nil, nil
	}
	dirty := d.dirty()
	if len(dirty) == 0 && !d.differs() {
		d.report.taken = false
		return nil, nil, nil
	}
	d.report.last, d.report.once = m.o.Clock.Mono(), true
	f := d.fresh()
	rc := &receipt{d: d, versions: make(map[string]uint64), values: make(map[string][]uint64), told: f}
	r := &wire.DeviceReport{Namespace: d.view.Namespace, Name: d.view.Name, Uid: uid,
		State: string(f.State), LastHeardUnixMs: f.Heard, ObservedGeneration: f.Generation, Reason: f.Problem, Lineage: m.o.Store.Lineage()}
	var ids []uint64
	size := 0
	for _, name := range dirty {
		if size > reportBytes || len(ids) >= reportValues {
			break
		}
		e := d.view.Twin.Properties[name]
		p := propertyReport(name, e)
		size += proto.Size(p)
		r.Properties = append(r.Properties, p)
		rc.versions[name] = e.Version
		for _, ref := range d.backlog(name) {
			if len(ids) >= reportValues || size > reportBytes {
				break
			}
			ids = append(ids, ref.id)
			rc.values[name] = append(rc.values[name], ref.id)
			d.queues[name].flying = ref.id
			size += twin.MaxValue / 64
		}
	}
	return r, rc, ids
}

func propertyReport(name string, e *twin.Entry) *wire.PropertyReport {
	desired, byEdge := e.Desired()
	p := &wire.PropertyReport{Name: name, Version: e.Version, Reported: wireValue(e.Reported), Desired: wireValue(desired), DesiredByEdge: byEdge,
		Overridden: wireValue(e.Overridden), HistoryDropped: e.Dropped}
	if r := e.Rejected; r != nil {
		p.Rejected, p.RejectedReason, p.RejectedDesired = &wire.PropertyValue{Value: r.Text, UnixMs: r.At}, r.Reason, r.Desired
	}
	return p
}

func wireValue(v *twin.Value) *wire.PropertyValue {
	if v == nil {
		return nil
	}
	return &wire.PropertyValue{Value: v.Text, Metadata: v.Metadata, UnixMs: v.At}
}

// Settle takes the hub's final word about a report: accepted, or refused for good,
// which is no reason to say it again either.
func (m *Manager) Settle(_ string, of any) {
	if rc, ok := of.(*receipt); ok {
		m.mu.Lock()
		m.settled = append(m.settled, rc)
		m.mu.Unlock()
		m.signal(m.kick)
	}
}

// land takes what was settled. Only Run calls it, and not while it makes a batch:
// histories must not become shorter under it.
func (m *Manager) land() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rc := range m.settled {
		if m.byUID[rc.d.view.UID] == rc.d {
			m.landOne(rc)
		}
	}
	m.settled = nil
}

func (m *Manager) landOne(rc *receipt) {
	d := rc.d
	acked := maps.Clone(d.report.acked)
	if acked == nil {
		acked = make(map[string]uint64)
	}
	for name, version := range rc.versions {
		if d.view.Twin.Properties[name] != nil {
			acked[name] = max(acked[name], version)
		}
	}
	d.report.acked, d.report.told, d.report.taken = acked, rc.told, false
	for name, ids := range rc.values {
		if q := d.queues[name]; q != nil {
			m.drops = append(m.drops, ids...)
			q.drop(ids)
			q.flying = 0
		}
	}
	m.unsaved[d] = struct{}{}
	m.counts.reported++
	if len(rc.values) > 0 && slices.ContainsFunc(d.dirty(), func(name string) bool { return len(d.backlog(name)) > 0 }) {
		d.report.once = false // a backlog knows no pause
	}
	m.due(d)
}
