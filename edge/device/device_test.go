package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = time.Minute

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is the machine's.
type clock struct{ began time.Time }

func (c clock) Wall() time.Time     { return time.Now() }
func (c clock) Mono() time.Duration { return time.Since(c.began) }

// events remembers what was recorded.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) Device(d *v1beta1.Device, kind, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, kind+" "+reason+" "+d.Name+": "+message)
}

// node is a store with a Manager.
type node struct {
	t      testing.TB
	path   string
	store  *store.Store
	events *events
	*Manager
	stop func()
}

func newNode(t testing.TB) *node {
	n := &node{t: t, path: filepath.Join(t.TempDir(), "store.db")}
	n.start()
	t.Cleanup(func() { n.end() })
	return n
}

func (n *node) start() {
	n.t.Helper()
	s, err := store.Open(n.path, store.Options{})
	must(n.t, err)
	n.store, n.events = s, new(events)
	n.Manager = New(Options{Store: s, Clock: clock{time.Now().Add(-time.Hour)}, Events: n.events})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := n.Manager
	go func() { done <- m.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	}
	select {
	case <-n.Started():
	case <-time.After(patience):
		n.t.Fatal("the manager does not start")
	}
}

func (n *node) end() {
	if n.stop != nil {
		n.stop()
		must(n.t, n.store.Close())
		n.stop = nil
	}
}

func (n *node) restart() { n.end(); n.start() }

func thermometer(namespace string) *v1beta1.DeviceModel {
	return &v1beta1.DeviceModel{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "thermometer", UID: types.UID("model-" + namespace)},
		Spec: v1beta1.DeviceModelSpec{Properties: []v1beta1.ModelProperty{
			{Name: "temperature", Type: v1beta1.TypeDouble, AccessMode: v1beta1.ReadOnly, Minimum: "-40", Maximum: "125"},
			{Name: "target", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "5", Maximum: "30"},
		}},
	}
}

func aDevice(name string, properties ...v1beta1.DeviceProperty) *v1beta1.Device {
	return &v1beta1.Device{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 1},
		Spec:       v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "thermometer"}, NodeName: "pi", Properties: properties},
	}
}

func object(t testing.TB, kind wire.Kind, m metav1.ObjectMeta, of any) *wire.Object {
	b, err := json.Marshal(of)
	must(t, err)
	return &wire.Object{Ref: &wire.ObjectRef{Kind: kind, Namespace: m.Namespace, Name: m.Name, Uid: string(m.UID), Version: wire.Version(b)}, Payload: b}
}

// apply is the hub's word.
func (n *node) apply(objects ...any) {
	n.t.Helper()
	var upserts []*wire.Object
	for _, o := range objects {
		switch o := o.(type) {
		case *v1beta1.Device:
			upserts = append(upserts, object(n.t, wire.Kind_KIND_DEVICE, o.ObjectMeta, o))
		case *v1beta1.DeviceModel:
			upserts = append(upserts, object(n.t, wire.Kind_KIND_DEVICE_MODEL, o.ObjectMeta, o))
		}
	}
	must(n.t, n.store.Apply(n.t.Context(), upserts, nil))
}

func key(name string) twin.Key { return twin.Key{Namespace: "shop", Name: name} }

// await waits until the device is as wanted.
func (n *node) await(name, what string, is func(View) bool) View {
	n.t.Helper()
	for deadline := time.After(patience); ; {
		v, err := n.Get(key(name))
		if err == nil && is(v) {
			return v
		}
		select {
		case <-deadline:
			n.t.Fatalf("device %s: waited for %s; %+v, %v", name, what, v, err)
		case <-time.After(time.Millisecond):
		}
	}
}

func value(text string) twin.Value { return twin.Value{Text: text} }

func (n *node) report(name, property, text string) error {
	_, _, err := n.Do(n.t.Context(), Operation{Key: key(name), Reported: []Update{{property, value(text)}}})
	return err
}

func (n *node) desire(name, property, text string) error {
	_, _, err := n.Do(n.t.Context(), Operation{Key: key(name), Desired: []Update{{property, value(text)}}})
	return err
}

func usable(v View) bool { return v.Problem == "" }

// drain settles every report as a hub would, and returns them.
func (n *node) drain() (reports []*wire.DeviceReport) {
	n.t.Helper()
	for {
		keys := n.Take()
		for _, k := range keys {
			r, receipt, err := n.Report(n.t.Context(), k)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			must(n.t, err)
			d := new(wire.DeviceReport)
			must(n.t, proto.Unmarshal(r.Payload, d))
			reports = append(reports, d)
			n.Settle(k, receipt)
		}
		if !n.busy() {
			return reports
		}
		select {
		case <-n.Changed():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// busy says that something is still to be reported or settled.
func (n *node) busy() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if len(n.settled)+len(n.ready)+len(n.waiting) > 0 {
		return true
	}
	for _, d := range n.devices {
		if len(d.dirty()) > 0 {
			return true
		}
	}
	return false
}

func TestWhatWasAnsweredSurvivesAPowerCut(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	must(t, n.report("cellar", "temperature", "21.5"))
	must(t, n.desire("cellar", "target", "19"))
	// The power goes: nothing is closed in order. What is on the disk is copied.
	other := &node{t: t, path: filepath.Join(t.TempDir(), "store.db")}
	copyDatabase(t, n.path, other.path)
	other.start()
	defer other.end()
	v := other.await("cellar", "its values", func(v View) bool { return v.Twin.Properties["temperature"] != nil })
	if got := v.Twin.Properties["temperature"].Reported.Text; got != "21.5" {
		t.Errorf("temperature %q", got)
	}
	if want, byEdge := v.Twin.Properties["target"].Desired(); want == nil || want.Text != "19" || !byEdge {
		t.Errorf("target %v, by edge %v", want, byEdge)
	}
	if v.Twin.State != v1beta1.StateOnline {
		t.Errorf("state %s", v.Twin.State)
	}
}

func TestRefusedValuesHaveOneClearAnswer(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	must(t, n.report("cellar", "temperature", "20"))
	for _, tt := range []struct{ property, value, want string }{
		{"temperature", "126", "above the maximum 125"},
		{"temperature", "warm", "not a finite number"},
		{"temperature", "NaN", "not a finite number"},
		{"temperature", strings.Repeat("1", twin.MaxValue+1), "bytes"},
		{"temperature", "\xff", "UTF-8"},
		{"humidity", "3", "no such property"},
	} {
		var rejected *twin.RejectedError
		if err := n.report("cellar", tt.property, tt.value); !errors.As(err, &rejected) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s = %.20q: %v, want %q", tt.property, tt.value, err, tt.want)
		}
	}
	if err := n.desire("cellar", "temperature", "20"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("desired and read-only: %v", err)
	}
	if err := n.report("attic", "temperature", "1"); !errors.Is(err, ErrUnknownDevice) || !strings.Contains(err.Error(), "shop/attic") {
		t.Errorf("unknown device: %v", err)
	}
	// One wrong value of several: none is taken.
	_, _, err := n.Do(t.Context(), Operation{Key: key("cellar"), Reported: []Update{{"temperature", value("22")}, {"target", value("99")}}})
	if err == nil {
		t.Error("a wrong value among others is taken")
	}
	v, err := n.Get(key("cellar"))
	must(t, err)
	if got := v.Twin.Properties["temperature"].Reported.Text; got != "20" {
		t.Errorf("temperature %s after refusals", got)
	}
	if x := v.Twin.Properties["target"]; x == nil || x.Rejected == nil || x.Rejected.Text != "99" {
		t.Errorf("target %+v does not tell of its refusal", x)
	}
	n.events.mu.Lock()
	defer n.events.mu.Unlock()
	if len(n.events.all) < 6 || !strings.Contains(n.events.all[0], "Warning ValueRejected cellar") {
		t.Errorf("events %q", n.events.all)
	}
}

func TestTheWordThatCameLastWins(t *testing.T) {
	n := newNode(t)
	want := func(text string) v1beta1.DeviceProperty {
		return v1beta1.DeviceProperty{Name: "target", Desired: &v1beta1.TwinProperty{Value: text}}
	}
	n.apply(thermometer("shop"), aDevice("cellar", want("20")))
	n.await("cellar", "the cloud's word", func(v View) bool {
		d, _ := v.Twin.Properties["target"].Desired()
		return d != nil && d.Text == "20"
	})
	must(t, n.desire("cellar", "target", "18"))
	// The cloud says something else about the device: the local value holds.
	d := aDevice("cellar", want("20"))
	d.Generation = 2
	n.apply(d)
	v := n.await("cellar", "generation 2", func(v View) bool { return v.Generation == 2 })
	if got, byEdge := v.Twin.Properties["target"].Desired(); got.Text != "18" || !byEdge {
		t.Errorf("%s, by edge %v", got.Text, byEdge)
	}
	n.restart()
	// It changes its word for this property: that wins, and the loser is told.
	n.apply(aDevice("cellar", want("25")))
	v = n.await("cellar", "25", func(v View) bool { d, _ := v.Twin.Properties["target"].Desired(); return d.Text == "25" })
	e := v.Twin.Properties["target"]
	if _, byEdge := e.Desired(); byEdge || e.Overridden == nil || e.Overridden.Text != "18" {
		t.Errorf("%+v", e)
	}
	if delta := v.Twin.Delta(); delta["target"].Text != "25" {
		t.Errorf("delta %v", delta)
	}
	// Out of range: what was in force stays, and the refusal is told.
	n.apply(aDevice("cellar", want("99")))
	v = n.await("cellar", "a refusal", func(v View) bool { return v.Twin.Properties["target"].Rejected != nil })
	if d, _ := v.Twin.Properties["target"].Desired(); d.Text != "25" {
		t.Errorf("in force is %s", d.Text)
	}
}

func TestTheHubHearsTheLatestValuesOnce(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	for i := range 20 {
		must(t, n.report("cellar", "temperature", fmt.Sprint(i)))
	}
	n.Begin()
	reports := n.drain()
	last := reports[len(reports)-1]
	if len(reports) > 3 || last.Properties[0].Reported.Value != "19" || last.State != "online" {
		t.Errorf("%d reports, the last %v", len(reports), last)
	}
	if again := n.drain(); len(again) != 0 {
		t.Errorf("told again: %v", again)
	}
	// The same value is no news; a session that ends without an answer is.
	must(t, n.report("cellar", "temperature", "19"))
	if again := n.drain(); len(again) != 0 {
		t.Errorf("the same value is told again: %v", again)
	}
	must(t, n.report("cellar", "temperature", "30"))
	for _, k := range n.awaitKeys() {
		_, _, err := n.Report(t.Context(), k)
		must(t, err)
	}
	n.Begin()
	if again := n.drain(); len(again) != 1 || again[0].Properties[0].Reported.Value != "30" {
		t.Errorf("after a lost session: %v", again)
	}
	n.restart()
	n.Begin()
	if again := n.drain(); len(again) != 0 {
		t.Errorf("told again after a restart: %v", again)
	}
}

func (n *node) awaitKeys() []string {
	n.t.Helper()
	for {
		if keys := n.Take(); len(keys) > 0 {
			return keys
		}
		select {
		case <-n.Changed():
		case <-time.After(patience):
			n.t.Fatal("nothing is ready to be reported")
		}
	}
}

func TestAHistoryIsCompleteAndInOrder(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar", v1beta1.DeviceProperty{Name: "temperature", History: &v1beta1.History{Limit: 600}}))
	n.await("cellar", "its model", usable)
	for i := range 600 {
		must(t, n.report("cellar", "temperature", fmt.Sprintf("%.1f", float64(i%100))))
	}
	n.restart()
	n.Begin()
	var got []*wire.HistoryValue
	for _, r := range n.drain() {
		for _, p := range r.Properties {
			got = append(got, p.History...)
			if p.HistoryDropped != 0 {
				t.Errorf("%d dropped", p.HistoryDropped)
			}
		}
	}
	if len(got) != 600 {
		t.Fatalf("%d of 600 values", len(got))
	}
	for i, v := range got {
		if v.Number != uint64(i+1) || v.Value != fmt.Sprintf("%.1f", float64(i%100)) {
			t.Fatalf("value %d is %v", i, v)
		}
	}
	n.restart()
	if ids := n.historyLen("cellar"); ids != 0 {
		t.Errorf("%d values are kept after they were delivered", ids)
	}
}

func (n *node) historyLen(name string) int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.devices[key(name)].backlog("temperature"))
}

func TestTheOldestOfAHistoryIsDroppedAndCounted(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar", v1beta1.DeviceProperty{Name: "temperature", History: &v1beta1.History{Limit: 10}}))
	n.await("cellar", "its model", usable)
	for i := range 35 {
		must(t, n.report("cellar", "temperature", fmt.Sprint(i)))
	}
	n.Begin()
	reports := n.drain()
	p := reports[0].Properties[0]
	if len(p.History) != 10 || p.History[0].Number != 26 || p.History[9].Value != "34" || p.HistoryDropped != 25 {
		t.Errorf("history %v, dropped %d", p.History, p.HistoryDropped)
	}
}

func TestADeviceThatIsDeletedLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"), aDevice("attic"))
	n.await("cellar", "its model", usable)
	must(t, n.report("cellar", "temperature", "1"))
	changes, cancel := n.Listen(8)
	defer cancel()
	must(t, n.store.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_DEVICE, Namespace: "shop", Name: "cellar", Uid: "uid-cellar"}}))
	for c := range changes {
		if c.Key() == key("cellar") && c.After.Definition == nil {
			break
		}
	}
	if err := n.report("cellar", "temperature", "1"); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("while it reports: %v", err)
	}
	rows := 0
	must(t, n.store.Twins(t.Context(), func(r store.TwinRow) {
		if r.UID == "uid-cellar" {
			rows++
		}
	}))
	if rows > 0 {
		t.Errorf("%d rows are left", rows)
	}
}

func TestAFloodOfOneDeviceIsItsOwnTrouble(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("noisy"), aDevice("quiet"))
	n.await("quiet", "its model", usable)
	n.await("noisy", "its model", usable)
	refused := make(chan error, 20000)
	for range 20000 {
		must(t, n.Submit(t.Context(), Operation{Key: key("noisy"), Reported: []Update{{"temperature", value("1")}}, Done: func(_, _ View, err error) { refused <- err }}))
	}
	must(t, n.report("quiet", "temperature", "2"))
	many := 0
	for range cap(refused) {
		if errors.Is(<-refused, ErrTooMany) {
			many++
		}
	}
	if many == 0 {
		t.Error("20,000 updates at once are taken")
	}
}

func TestOperationsAreAnsweredInTheirOrder(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	var got []int
	done := make(chan struct{})
	for i := range 1000 {
		must(t, n.Submit(t.Context(), Operation{Key: key("cellar"), Reported: []Update{{"temperature", value(fmt.Sprint(i % 100))}}, Done: func(_, _ View, err error) {
			if got = append(got, i); i == 999 {
				close(done)
			}
		}}))
	}
	<-done
	for i, n := range got {
		if i != n {
			t.Fatalf("answer %d is that of operation %d", i, n)
		}
	}
}

func TestAModelThatComesLaterMakesTheDeviceUsable(t *testing.T) {
	n := newNode(t)
	n.apply(aDevice("cellar"))
	v := n.await("cellar", "itself", func(View) bool { return true })
	if !strings.Contains(v.Problem, "shop/thermometer") {
		t.Errorf("problem %q", v.Problem)
	}
	if err := n.report("cellar", "temperature", "1"); err == nil || !strings.Contains(err.Error(), "there is no device model") {
		t.Errorf("without a model: %v", err)
	}
	n.apply(thermometer("shop"))
	n.await("cellar", "its model", usable)
	must(t, n.report("cellar", "temperature", "1"))
	// A model that goes takes no value with it.
	must(t, n.store.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_DEVICE_MODEL, Namespace: "shop", Name: "thermometer", Uid: "model-shop"}}))
	n.await("cellar", "a problem", func(v View) bool { return v.Problem != "" && v.Twin.Properties["temperature"].Reported.Text == "1" })
}

// TestTheCloudsWordAndTheDevicesAnswerAreOneReport, where the device answers soon; and
// where it does not, the cloud hears that the node follows.
func TestTheCloudsWordAndTheDevicesAnswerAreOneReport(t *testing.T) {
	n := newNode(t)
	want := func(text string, generation int64) *v1beta1.Device {
		d := aDevice("cellar", v1beta1.DeviceProperty{Name: "target", Desired: &v1beta1.TwinProperty{Value: text}})
		d.Generation = generation
		return d
	}
	n.apply(thermometer("shop"), want("20", 1))
	n.await("cellar", "its model", usable)
	n.Begin()
	n.drain()
	n.apply(want("21", 2))
	n.await("cellar", "21", func(v View) bool { return v.Generation == 2 })
	must(t, n.report("cellar", "target", "21"))
	reports := n.drain()
	if len(reports) != 1 || reports[0].Properties[0].Reported.GetValue() != "21" || reports[0].Properties[0].Desired.GetValue() != "21" || reports[0].ObservedGeneration != 2 {
		t.Errorf("an answer at once: %v", reports)
	}
	n.apply(want("22", 3))
	reports = nil
	for len(reports) == 0 {
		reports = n.drain()
	}
	if len(reports) != 1 || reports[0].Properties[0].Desired.GetValue() != "22" || reports[0].ObservedGeneration != 3 {
		t.Errorf("no answer: %v", reports)
	}
}
