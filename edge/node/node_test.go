package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = 2 * time.Minute

// fakeMachine writes the files of a machine with 4 GiB.
func fakeMachine(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range map[string]string{
		"proc/meminfo":                   "MemTotal:        4194304 kB\nMemFree:          100000 kB\nMemAvailable:    2097152 kB\n",
		"proc/loadavg":                   "0.1 0.2 0.3 1/400 12345\n",
		"proc/sys/kernel/pid_max":        "4194304\n",
		"proc/sys/kernel/threads-max":    "30000\n",
		"proc/sys/kernel/osrelease":      "6.1.0-pi\n",
		"proc/sys/kernel/random/boot_id": "boot-1\n",
		"etc/machine-id":                 "machine-1\n",
		"etc/os-release":                 "NAME=x\nPRETTY_NAME=\"Raspberry Pi OS\"\n",
	} {
		p := filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// fakeRuntime answers what a test says; a real one cannot be made to.
type fakeRuntime struct {
	mu   sync.Mutex
	info runtime.Info
	err  error
}

func (f *fakeRuntime) set(info runtime.Info, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.info, f.err = info, err
}

func (f *fakeRuntime) Info(context.Context) (runtime.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.info, f.err
}

var readyRuntime = runtime.Info{Name: "containerd", Version: "1.7.24", Ready: true, NetworkReady: true}

// line is what the node is told of the line.
type line struct {
	mu        sync.Mutex
	connected bool
	since     time.Time
	changed   chan struct{}
	asked     bool // since the last change
}

func (l *line) noticed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *line) set(connected bool, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected, l.since, l.asked = connected, since, false
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *line) state() (bool, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = true
	return l.connected, l.since
}

func (l *line) event() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

type rig struct {
	store   *store.Store
	runtime *fakeRuntime
	line    *line
	root    string
	options Options
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := &rig{store: s, runtime: &fakeRuntime{info: readyRuntime}, line: &line{since: time.Unix(1000, 0), changed: make(chan struct{})}, root: fakeMachine(t)}
	r.options = Options{Name: "pi", NodeIP: "192.0.2.7", DataDir: t.TempDir(), MaxPods: 110, Labels: map[string]string{"site": "shop-7"},
		Taints: []string{"edge=yes:NoSchedule"}, Interval: time.Millisecond, Version: "v0.1.0", Store: s, Runtime: r.runtime.Info,
		Line: r.line.state, LineEvent: r.line.event, Root: r.root}
	return r
}

func (r *rig) start(t *testing.T) *Node {
	t.Helper()
	n, err := New(r.options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	n.Wake()
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

// report waits for a report with an id above after.
func (r *rig) report(t *testing.T, after uint64) (*corev1.Node, uint64) {
	t.Helper()
	deadline := time.After(patience)
	for {
		out, err := r.store.Outbox(context.Background(), after, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > 0 {
			node := new(corev1.Node)
			if err := node.Unmarshal(out[0].Payload); err != nil || out[0].Kind != wire.ReportKind_REPORT_NODE {
				t.Fatalf("report %v, %v", out[0].Kind, err)
			}
			return node, out[0].Id
		}
		select {
		case <-deadline:
			t.Fatal("no report")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func condition(n *corev1.Node, t corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func TestNodeSaysWhatTheMachineIs(t *testing.T) {
	r := newRig(t)
	n := r.start(t)
	node, _ := r.report(t, 0)
	if node.Name != "pi" || node.Labels["site"] != "shop-7" || node.Labels[EdgeLabel] != "true" ||
		node.Labels["kubernetes.io/hostname"] != "pi" || node.Labels["kubernetes.io/arch"] != goruntime.GOARCH || node.Labels["kubernetes.io/os"] != "linux" {
		t.Errorf("metadata %v", node.ObjectMeta)
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0] != (corev1.Taint{Key: "edge", Value: "yes", Effect: "NoSchedule"}) {
		t.Errorf("taints %v", node.Spec.Taints)
	}
	capacity, allocatable := node.Status.Capacity, node.Status.Allocatable
	if capacity.Memory().Value() != 4<<30 || allocatable.Memory().Value() != 4<<30-100<<20 || capacity.Pods().Value() != 110 ||
		capacity.Cpu().Value() != int64(goruntime.NumCPU()) || capacity.StorageEphemeral().IsZero() ||
		allocatable.StorageEphemeral().Cmp(*capacity.StorageEphemeral()) >= 0 {
		t.Errorf("capacity %v, allocatable %v", capacity, allocatable)
	}
	info := node.Status.NodeInfo
	if info.MachineID != "machine-1" || info.BootID != "boot-1" || info.KernelVersion != "6.1.0-pi" || info.OSImage != "Raspberry Pi OS" ||
		info.ContainerRuntimeVersion != "containerd://1.7.24" || info.SystemUUID != "machine-1" {
		t.Errorf("info %+v", info)
	}
	v, err := version.ParseSemantic(info.KubeletVersion)
	if err != nil || v.Major() != 1 || v.Minor() != 36 || !strings.Contains(info.KubeletVersion, "v0.1.0") {
		t.Errorf("version %s: %v", info.KubeletVersion, err)
	}
	if a := node.Status.Addresses; len(a) != 2 || a[0] != (corev1.NodeAddress{Type: "InternalIP", Address: "192.0.2.7"}) || a[1] != (corev1.NodeAddress{Type: "Hostname", Address: "pi"}) {
		t.Errorf("addresses %v", a)
	}
	for c, want := range map[corev1.NodeConditionType]corev1.ConditionStatus{"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"} {
		if got := condition(node, c); got.Status != want || got.LastHeartbeatTime.IsZero() || got.LastTransitionTime.IsZero() {
			t.Errorf("condition %+v", got)
		}
	}
	for deadline := time.Now().Add(patience); !n.Reported(); time.Sleep(time.Millisecond) { // said a moment after the report is stored
		if time.Now().After(deadline) {
			t.Fatal("the node does not say that it has reported")
		}
	}
	if ready, _ := n.Ready(); !ready || n.HostIPs()[0] != "192.0.2.7" || len(n.Capacity()) != 4 {
		t.Error("the node's own view differs")
	}
}

func TestOnlyChangesAreReported(t *testing.T) {
	r := newRig(t)
	r.start(t)
	_, id := r.report(t, 0)
	// Each of these is followed by looks at the machine without news: the next report must be the expected one.
	r.runtime.set(runtime.Info{Name: "containerd", Version: "1.7.24", Ready: true, Reason: "no CNI configuration"}, nil)
	node, id := r.report(t, id)
	if c := condition(node, "Ready"); c.Status != "False" || c.Reason != "NetworkNotReady" || c.Message != "no CNI configuration" {
		t.Errorf("without a network: %+v", c)
	}
	for i := range 5 { // the same trouble in other words is no news
		r.runtime.set(runtime.Info{Name: "containerd", Version: "1.7.24", Ready: true, Reason: fmt.Sprint("words ", i)}, nil)
	}
	r.runtime.set(runtime.Info{}, errors.New("connection refused"))
	node, id = r.report(t, id)
	if c := condition(node, "Ready"); c.Status != "False" || c.Reason != "ContainerRuntimeDown" || node.Status.NodeInfo.ContainerRuntimeVersion != "containerd://1.7.24" {
		t.Errorf("without a runtime: %+v, %s", c, node.Status.NodeInfo.ContainerRuntimeVersion)
	}
	r.runtime.set(readyRuntime, nil)
	node, _ = r.report(t, id)
	if c := condition(node, "Ready"); c.Status != "True" {
		t.Errorf("afterwards: %+v", c)
	}
}

func TestConditionsOutliveARestart(t *testing.T) {
	r := newRig(t)
	before, err := New(r.options)
	if err != nil {
		t.Fatal(err)
	}
	if err := before.look(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	first := before.conditions.current["Ready"].LastTransitionTime
	after, err := New(r.options)
	if err != nil {
		t.Fatal(err)
	}
	c := newConditions(after.machine, nil)
	c.current = after.conditions.current
	got := c.judge(seen{runtime: readyRuntime, available: 1 << 30, disk: after.disk}, first.Add(time.Hour))
	if ready := got[len(got)-1]; !ready.LastTransitionTime.Time.Equal(first.Time) {
		t.Errorf("ready since %v, was %v", ready.LastTransitionTime, first)
	}
}

func TestPressureIsToldAtOnceAndTakenBackSlowly(t *testing.T) {
	m := machine{memory: 4 << 30}
	now := time.Unix(100000, 0)
	good := seen{runtime: readyRuntime, available: 1 << 30, threads: 100, threadsMax: 30000,
		disk: disk{bytes: 32 << 30, free: 16 << 30, inodes: 1000000, inodesFree: 500000}}
	for _, tt := range []struct {
		name string
		kind corev1.NodeConditionType
		do   func(*seen)
	}{
		{"memory", "MemoryPressure", func(s *seen) { s.available = 99 << 20 }},
		{"disk", "DiskPressure", func(s *seen) { s.disk.free = 1 << 30 }},
		{"inodes", "DiskPressure", func(s *seen) { s.disk.inodesFree = 49999 }},
		{"process ids", "PIDPressure", func(s *seen) { s.threads = 27001 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newConditions(m, nil)
			status := func(s seen, at time.Time) corev1.ConditionStatus {
				return condition(&corev1.Node{Status: corev1.NodeStatus{Conditions: c.judge(s, at)}}, tt.kind).Status
			}
			bad := good
			tt.do(&bad)
			if got := status(good, now); got != "False" {
				t.Errorf("in good times: %s", got)
			}
			if got := status(bad, now.Add(time.Second)); got != "True" {
				t.Errorf("in bad times: %s", got)
			}
			if got := status(good, now.Add(time.Minute)); got != "True" {
				t.Errorf("just after: %s", got)
			}
			if got := status(good, now.Add(time.Second+pressureEnds)); got != "False" {
				t.Errorf("long after: %s", got)
			}
		})
	}
	small := machine{memory: 512 << 20}
	if got := small.memoryReserve(); got != 512<<20/10 {
		t.Errorf("a small machine keeps %d", got)
	}
	if c := newConditions(m, nil).judge(seen{runtime: readyRuntime, available: 1 << 30, disk: disk{bytes: 32 << 30, free: 16 << 30}}, now); c[1].Status != "False" {
		t.Error("a file system without a count of inodes is short of them")
	}
}

func TestNodeSpeaksUpWhenItMayHaveBeenGivenUp(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.options.Interval = time.Hour
	r.start(t)
	_, id := r.report(t, 0)
	if err := r.store.Settle(ctx, id); err != nil {
		t.Fatal(err)
	}
	base := time.Unix(2000, 0)
	for i, away := range []time.Duration{givenUpAfter, 10 * time.Minute} {
		at := base.Add(time.Duration(i) * time.Hour)
		down := at.Add(-away)
		r.cut(t, down)
		r.line.set(true, at)
		_, id = r.report(t, id)
		if err := r.store.Settle(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	// The Node object is deleted by somebody.
	b, err := (&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "pi"}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	ref := &wire.ObjectRef{Kind: wire.Kind_KIND_NODE, Name: "pi", Uid: "u", Version: wire.Version(b)}
	if err := r.store.Apply(ctx, []*wire.Object{{Ref: ref, Payload: b}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Apply(ctx, nil, []*wire.ObjectRef{ref}); err != nil {
		t.Fatal(err)
	}
	r.report(t, id)
}

// cut takes the line down and waits until the node has taken notice.
func (r *rig) cut(t *testing.T, since time.Time) {
	t.Helper()
	r.line.set(false, since)
	deadline := time.After(patience)
	for !r.line.noticed() {
		select {
		case <-deadline:
			t.Fatal("the node does not look at the line")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestAddressIsFoundWithoutSending(t *testing.T) {
	hubAP := netip.MustParseAddrPort("203.0.113.5:10350")
	mine, other := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
	a := newAddresses("", []string{hubAP.String()}, "")
	routed := true
	a.route = func(to netip.AddrPort) (netip.Addr, bool) { return mine, routed && to == hubAP }
	own := []netip.Addr{other, mine}
	a.interfaces = func() []netip.Addr { return own }
	if got := a.find(); got != "192.0.2.7" {
		t.Errorf("with a route: %s", got)
	}
	routed = false
	if got := a.find(); got != "192.0.2.7" {
		t.Errorf("line cut: %s", got)
	}
	own = nil
	if got := a.find(); got != "192.0.2.7" {
		t.Errorf("interface down: %s", got)
	}
	b := newAddresses("", []string{"hub.example.test:10350"}, "")
	b.route, b.interfaces = a.route, func() []netip.Addr { return []netip.Addr{other} }
	if got := b.find(); got != "192.0.2.8" {
		t.Errorf("first start without a line: %s", got)
	}
	after := newAddresses("", []string{hubAP.String()}, "192.0.2.7")
	after.route, after.interfaces = a.route, func() []netip.Addr { return []netip.Addr{other, mine} }
	if got := after.find(); got != "192.0.2.7" {
		t.Errorf("after a reboot without a line: %s", got)
	}
	if got := newAddresses("198.51.100.1", nil, "").find(); got != "198.51.100.1" {
		t.Errorf("configured: %s", got)
	}
	if ip, ok := routeTo(netip.MustParseAddrPort("127.0.0.1:9")); !ok || !ip.IsLoopback() {
		t.Errorf("the kernel's route to loopback: %v, %v", ip, ok)
	}
}

func TestBadTaintIsNamed(t *testing.T) {
	r := newRig(t)
	r.options.Taints = []string{"edge"}
	if _, err := New(r.options); err == nil || !strings.Contains(err.Error(), `"edge"`) {
		t.Errorf("error %v", err)
	}
}

func TestOfflineReadyIsReportedOnceKnownAndOutlivesARestart(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var said outage
	say := func(o outage) {
		mu.Lock()
		defer mu.Unlock()
		said = o
	}
	r.options.Outage = func() (bool, string, string, bool) {
		mu.Lock()
		defer mu.Unlock()
		return said.ready, said.reason, said.message, said.known
	}
	r.start(t)
	node, id := r.report(t, 0)
	if c := condition(node, OfflineReady); c.Type != "" {
		t.Errorf("before anybody has looked: %+v", c)
	}
	say(outage{ready: true, known: true, reason: "AllChecksPassed", message: "good"})
	node, id = r.report(t, id)
	first := condition(node, OfflineReady)
	if first.Status != "True" || first.Reason != "AllChecksPassed" || first.Message != "good" {
		t.Errorf("a node that is ready: %+v", first)
	}
	for i := range 5 { // other words are no news
		say(outage{ready: true, known: true, reason: "AllChecksPassed", message: fmt.Sprint("words ", i)})
	}
	say(outage{known: true, reason: "ImageMissing", message: "image x"})
	node, _ = r.report(t, id)
	if c := condition(node, OfflineReady); c.Status != "False" || c.Reason != "ImageMissing" || c.Message != "image x" {
		t.Errorf("a node that is not: %+v", c)
	}
	if last := node.Status.Conditions[len(node.Status.Conditions)-1]; last.Type != corev1.NodeReady {
		t.Errorf("the last condition is %s", last.Type)
	}

	say(outage{}) // an edgecore that has just started
	deadline := time.After(patience)
	for {
		after, err := New(r.options)
		if err != nil {
			t.Fatal(err)
		}
		var c corev1.NodeCondition
		for _, c = range after.conditions.judge(seen{}, time.Now()) {
			if c.Type == OfflineReady {
				break
			}
		}
		if c.Status == "False" && c.Reason == "ImageMissing" {
			return
		}
		select { // the report is stored a moment before what must outlive a restart
		case <-deadline:
			t.Fatalf("after a restart: %+v", c)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
