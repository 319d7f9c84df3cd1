package hub_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// fakeCluster is cloud/watch for tests that need no apiserver: every node wants
// what the test says.
type fakeCluster struct {
	mu        sync.Mutex
	wants     map[string][]*roster.Item
	followers map[string][]chan struct{}
}

func (c *fakeCluster) want(node string, items ...*roster.Item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wants[node] = items
	for _, ch := range c.followers[node] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (c *fakeCluster) Follow(node string) (<-chan struct{}, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan struct{}, 1)
	c.followers[node] = append(c.followers[node], ch)
	return ch, func() {}
}

func (c *fakeCluster) Resolver(node string) func(context.Context) (*roster.Wanted, error) {
	return func(context.Context) (*roster.Wanted, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		w := &roster.Wanted{Items: make(map[roster.ID]*roster.Item)}
		for _, i := range c.wants[node] {
			w.Items[roster.IDOf(i.Ref)] = i
		}
		return w, nil
	}
}

func (c *fakeCluster) Gone(context.Context, string, *wire.ObjectRef) (bool, error) { return true, nil }
func (c *fakeCluster) Node(string) *corev1.Node                                    { return nil }
func (c *fakeCluster) Pods(string) ([]*corev1.Pod, error)                          { return nil, nil }

// fakeReports is cloud/report: it keeps the order in which reports were written,
// and writes those of a blocked node when the test says so.
type fakeReports struct {
	mu       sync.Mutex
	written  []string // "node subject-and-text"
	blocked  map[string]chan struct{}
	claims   func(ctx context.Context, node string) (report.Epoch, error) // nil: all succeed
	rejected map[string]bool                                              // nodes whose reports are
	fenced   map[string]bool
}

func (r *fakeReports) Write(ctx context.Context, node string, _ report.Epoch, said *wire.Report) (*wire.ReportResult, error) {
	r.mu.Lock()
	gate := r.blocked[node]
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return &wire.ReportResult{Id: said.Id, Code: wire.ResultCode_RESULT_RETRY}, nil
		}
	}
	p := new(corev1.Pod)
	_ = p.Unmarshal(said.Payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fenced[node] {
		return nil, fmt.Errorf("a pod carries 2: %w", report.ErrFenced)
	}
	if r.rejected[node] {
		return &wire.ReportResult{Id: said.Id, Code: wire.ResultCode_RESULT_REJECTED, Message: "never"}, nil
	}
	r.written = append(r.written, fmt.Sprintf("%s %s %s", node, p.UID, p.Status.Message))
	return &wire.ReportResult{Id: said.Id, Code: wire.ResultCode_RESULT_ACCEPTED}, nil
}

func (r *fakeReports) Token(_ context.Context, _ string, ask *wire.TokenAsk) *wire.TokenAnswer {
	return &wire.TokenAnswer{Id: ask.Id, Code: wire.ResultCode_RESULT_ACCEPTED, Token: "t"}
}
func (r *fakeReports) Claim(ctx context.Context, node, _ string) (report.Epoch, error) {
	if r.claims != nil {
		return r.claims(ctx, node)
	}
	return 1, nil
}
func (r *fakeReports) Renew(context.Context, string, report.Epoch) error       { return nil }
func (r *fakeReports) RestoreNode(context.Context, string, report.Epoch) error { return nil }
func (r *fakeReports) NeedsEndpoint(*corev1.Node) (needs, known bool)          { return false, true }

func (r *fakeReports) RestoreReady(context.Context, string, report.Epoch, *corev1.Pod) error {
	return nil
}

type rig struct {
	*linktest.Hub
	hub     *hub.Hub
	cluster *fakeCluster
	reports *fakeReports
	said    *said
	stop    func()
}

func newRig(t *testing.T, more ...func(*hub.Options)) *rig {
	t.Helper()
	r := &rig{
		said: new(said),
		// Nothing that a slow machine might cause ends a connection.
		Hub:     linktest.StartHub(t, linktest.NewCA(t), link.Timing{KeepAlive: time.Hour, UserTimeout: edgetest.Patience, Write: edgetest.Patience, Dial: edgetest.Patience}.Complete()),
		cluster: &fakeCluster{wants: make(map[string][]*roster.Item), followers: make(map[string][]chan struct{})},
		reports: &fakeReports{blocked: make(map[string]chan struct{})},
	}
	o := hub.Options{Cluster: r.cluster, Reports: r.reports, Log: slog.New(slog.NewTextHandler(r.said, nil)), Version: "test"}
	for _, f := range more {
		f(&o)
	}
	r.hub = hub.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.hub.Serve(ctx, r.Hub) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// said keeps what the hub logs.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// lines counts those that hold all of the words.
func (s *said) lines(words ...string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.text.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// figure is what the hub's metrics say.
func (r *rig) figure(t *testing.T, name string) (value int) {
	t.Helper()
	var text strings.Builder
	r.hub.WriteMetrics(&text)
	for line := range strings.Lines(text.String()) {
		if number, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(number, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func (r *rig) edge(t *testing.T, node, store string) *edgetest.Edge {
	return edgetest.New(t, r.Dialer(t, node), store)
}

func welcomed(s edgetest.Seen) bool { return s.Welcome != nil }
func parted(s edgetest.Seen) bool   { return s.Goodbye != nil }

func podItem(t testing.TB, uid string, generation int64) *roster.Item {
	t.Helper()
	item, err := roster.Pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "p-" + uid, UID: types.UID(uid), Generation: generation}})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func TestASecondMachineWithTheNameOfAConnectedNodeIsTurnedAway(t *testing.T) {
	r := newRig(t)
	first, second := r.edge(t, "till", "disk 1"), r.edge(t, "till", "disk 2")
	first.Connect()
	first.Wait("Welcome", welcomed)
	second.Connect()
	second.Wait("Goodbye", parted)
	g := second.Seen().Goodbye
	if g.Reason != wire.Goodbye_REASON_DUPLICATE || strings.Count(g.Message, "127.0.0.1:") != 2 || !strings.Contains(g.Message, "holdfast reset") {
		t.Errorf("the second machine is told: %v", g)
	}
	r.cluster.want("till", podItem(t, "a", 1))
	first.WaitObjects("its pod, in the first session", edgetest.Has("pod/d/p-a"))
}

func TestTheSameMachineReplacesItsOwnSession(t *testing.T) {
	r := newRig(t)
	first, second := r.edge(t, "till", "disk 1"), r.edge(t, "till", "disk 1")
	first.Connect()
	first.Wait("Welcome", welcomed)
	second.Connect()
	second.Wait("Welcome", welcomed)
	first.Wait("Goodbye", parted)
	if g := first.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_REPLACED {
		t.Errorf("the first session is told: %v", g)
	}
	if n := r.hub.Connected(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestBadInputEndsASessionWithAReason(t *testing.T) {
	r := newRig(t)
	old := r.edge(t, "old", "disk")
	old.Versions(7, 8)
	old.Connect()
	old.Wait("Goodbye", parted)
	if g := old.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_PROTOCOL_VERSION || !strings.Contains(g.Message, "[7 8]") {
		t.Errorf("an unknown version: %v", g)
	}

	hello := &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: &wire.Hello{
		ProtocolVersions: []uint32{wire.ProtocolVersion}, Digest: wire.Digest(nil), StoreId: "disk"}}}
	ack := &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: 9}}}
	inventory := &wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: &wire.Inventory{Last: true}}}
	for name, messages := range map[string][]any{
		"no protobuf":          {[]byte{0xff, 0xff, 0xff}},
		"no hello":             {ack},
		"two hellos":           {hello, hello},
		"an unsent ack":        {hello, ack},
		"an unasked inventory": {hello, inventory},
		"rubbish later":        {hello, []byte{0xff, 0xff, 0xff}},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.edge(t, "bad", "disk").Dial()
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), edgetest.Patience)
			defer cancel()
			for _, m := range messages {
				b, ok := m.([]byte)
				if !ok {
					var err error
					if b, err = wire.Encode(m.(*wire.EdgeMessage)); err != nil {
						t.Fatal(err)
					}
				}
				if err := conn.Send(ctx, b); err != nil {
					t.Fatal(err)
				}
			}
			for {
				b, err := conn.Recv(ctx)
				if err != nil {
					t.Fatalf("no Goodbye before the end: %v", err)
				}
				m, err := wire.DecodeHub(b)
				if err != nil {
					t.Fatal(err)
				}
				if g := m.GetGoodbye(); g != nil {
					if g.Reason != wire.Goodbye_REASON_PROTOCOL_ERROR || g.Message == "" {
						t.Errorf("Goodbye %v", g)
					}
					return
				}
			}
		})
	}
}

func TestReportsOfOnePodKeepTheirOrderAndOthersAreNotHeldUp(t *testing.T) {
	r := newRig(t)
	gate := make(chan struct{})
	r.reports.blocked["slow"] = gate
	slow, quick := r.edge(t, "slow", "1"), r.edge(t, "quick", "2")
	for _, e := range []*edgetest.Edge{slow, quick} {
		e.Connect()
		e.Wait("Welcome", welcomed)
	}
	status := func(uid, text string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: uid, UID: types.UID(uid)}, Status: corev1.PodStatus{Message: text}}
	}
	var numbers []uint64
	for i := range 30 {
		numbers = append(numbers, slow.Send(wire.ReportKind_REPORT_POD_STATUS, status(fmt.Sprint("pod-", i%3), fmt.Sprintf("%02d", i))))
	}
	// The slow node's calls hang; the quick one is served.
	if got := quick.Report(wire.ReportKind_REPORT_POD_STATUS, status("q", "x")); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("the quick node: %v", got)
	}
	// So is the slow one's own delivery.
	r.cluster.want("slow", podItem(t, "a", 1))
	slow.WaitObjects("its pod", edgetest.Has("pod/d/p-a"))
	close(gate)
	for _, n := range numbers {
		slow.Result(n)
	}
	r.reports.mu.Lock()
	defer r.reports.mu.Unlock()
	for i := range 3 {
		var of []string
		for _, w := range r.reports.written {
			if strings.HasPrefix(w, fmt.Sprintf("slow pod-%d ", i)) {
				of = append(of, w)
			}
		}
		if len(of) != 10 || !slices.IsSorted(of) {
			t.Errorf("reports of pod-%d were written as %q", i, of)
		}
	}
}

// TestANodeThatReadsNothingDelaysNobody lets one node stop reading in the middle
// of megabytes, while its objects go on changing.
func TestANodeThatReadsNothingDelaysNobody(t *testing.T) {
	r := newRig(t)
	big := func(i int) *roster.Item {
		item, err := roster.ConfigMap(&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprint("c", i%20), UID: types.UID(fmt.Sprint("u", i%20))},
			BinaryData: map[string][]byte{"b": slices.Repeat([]byte{byte(i)}, 700<<10)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return item
	}
	var items []*roster.Item
	for i := range 20 {
		items = append(items, big(i))
	}
	r.cluster.want("deaf", items...)
	proxy := linktest.NewProxy(t, r.Addr)
	deaf := edgetest.New(t, r.DialerVia(t, "deaf", proxy), "1")
	deaf.Connect()
	deaf.Wait("Welcome", welcomed)
	proxy.Hold(linktest.Down)

	quick := r.edge(t, "quick", "2")
	quick.Connect()
	quick.Wait("Welcome", welcomed)
	for i := range 20 {
		items[i] = big(100 + i)
		r.cluster.want("deaf", slices.Clone(items)...)
		r.cluster.want("quick", podItem(t, "a", int64(i)))
	}
	quick.WaitObjects("the last of many changes", func(o map[string]*wire.Object) bool {
		return o["pod/d/p-a"] != nil && string(o["pod/d/p-a"].Ref.Version) == string(podItem(t, "a", 19).Ref.Version)
	})
	proxy.Release(linktest.Down)
	deaf.WaitObjects("everything as it is now", func(o map[string]*wire.Object) bool {
		return !slices.ContainsFunc(items, func(i *roster.Item) bool {
			held := o["configmap/d/"+i.Ref.Name]
			return held == nil || string(held.Ref.Version) != string(i.Ref.Version)
		})
	})
}

func TestNodesAreToldWhenTheHubStops(t *testing.T) {
	r := newRig(t)
	e := r.edge(t, "till", "1")
	e.Connect()
	e.Wait("Welcome", welcomed)
	r.stop()
	e.Wait("Goodbye", parted)
	if g := e.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_SHUTDOWN {
		t.Errorf("told: %v", g)
	}
}

func TestAHelloThatNeverComesEndsTheConnection(t *testing.T) {
	r := newRig(t)
	h := hub.New(hub.Options{Cluster: r.cluster, Reports: r.reports, Log: slog.New(slog.DiscardHandler), Timing: hub.Timing{Hello: time.Millisecond}})
	r.stop()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, r.Hub) }()
	conn := r.edge(t, "mute", "1").Dial()
	within, stop := context.WithTimeout(t.Context(), edgetest.Patience)
	defer stop()
	if _, err := conn.Recv(within); err == nil || within.Err() != nil {
		t.Errorf("the connection of a mute edge: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
