package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/link"
)

// watched plays cloud/watch.
type watched struct {
	onNode func(n *corev1.Node, gone bool)
	pods   map[string]int
}

func (w *watched) OnNode(f func(n *corev1.Node, gone bool)) { w.onNode = f }
func (w *watched) WaitSynced(context.Context) error         { return nil }
func (w *watched) PodCount(node string) (total, ready int, known bool) {
	total, known = w.pods[node]
	return total, total, known
}
func (w *watched) Node(string) *corev1.Node           { return nil }
func (w *watched) Pods(string) ([]*corev1.Pod, error) { return nil, nil }

// held plays cloud/hub.
type held struct {
	mu       sync.Mutex
	sessions map[string]hub.NodeInfo
	open     func(ctx context.Context, node string) (link.Stream, error)
}

func (h *held) Session(node string) (hub.NodeInfo, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.sessions[node]
	return n, ok
}

func (h *held) Each(f func(hub.NodeInfo)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.sessions {
		f(n)
	}
}

func (h *held) OpenStream(ctx context.Context, node string) (link.Stream, error) {
	return h.open(ctx, node)
}

// scene is a fleet with a clock.
type scene struct {
	*Fleet
	watched *watched
	held    *held
	clock   time.Time
}

// newScene has an apiserver that answers nothing but what the handler does.
func newScene(t testing.TB, apiserver http.Handler) *scene {
	t.Helper()
	if apiserver == nil {
		apiserver = http.NotFoundHandler()
	}
	server := httptest.NewServer(apiserver)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{watched: &watched{pods: map[string]int{}}, held: &held{sessions: map[string]hub.NodeInfo{}}, clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s.Fleet = New(Options{Client: client, AsNode: client, Cluster: s.watched, Hub: "own", Version: "v1", Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return s.clock }})
	s.Follow(s.held)
	return s
}

func (s *scene) connect(node, transport string) {
	n := hub.NodeInfo{Node: node, Session: fmt.Sprint(node, s.clock.UnixNano()), Transport: transport, Remote: "192.0.2.1:1", Since: s.clock, LastHeard: s.clock, Version: "v9"}
	s.held.sessions[node] = n
	s.OnSession(n, false)
}

func (s *scene) moved(node string, down, up uint64) {
	n := s.held.sessions[node]
	n.Traffic = link.Traffic{Sent: down, Received: up}
	n.LastHeard = s.clock
	s.held.sessions[node] = n
}

func (s *scene) cut(node string) {
	n := s.held.sessions[node]
	s.OnSession(n, true)
	delete(s.held.sessions, node)
}

func edgeNode(name, at string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{roster.LabelEdge: "true"}, Annotations: map[string]string{roster.AnnotationHub: at}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Reason: "EdgeReady", LastTransitionTime: metav1.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3-holdfast", ContainerRuntimeVersion: "containerd://2.1.0", OSImage: "Debian GNU/Linux 13 (trixie)", Architecture: "arm64"},
		},
	}
}

func (s *scene) one(t testing.TB, name string) fleet.Node {
	t.Helper()
	for _, n := range s.List(Query{}).Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("there is no node %s", name)
	return fleet.Node{}
}

func TestWhereANodesLineLeads(t *testing.T) {
	s := newScene(t, nil)
	for name, n := range map[string]*corev1.Node{
		"here": edgeNode("here", "own", corev1.ConditionTrue), "there": edgeNode("there", "other", corev1.ConditionTrue),
		"lost": edgeNode("lost", "other", corev1.ConditionUnknown), "mine": edgeNode("mine", "own", corev1.ConditionTrue),
	} {
		n.Name = name
		s.watched.onNode(n, false)
	}
	kubelets := edgeNode("kubelets", "", corev1.ConditionTrue)
	kubelets.Labels = nil
	s.watched.onNode(kubelets, false)
	s.connect("here", "quic")
	want := func(name string, connected bool, hub, transport string) {
		t.Helper()
		n := s.one(t, name)
		if n.Connected != connected || n.Hub != hub || n.Transport != transport {
			t.Errorf("%s: connected %v to %q by %q; want %v, %q, %q", name, n.Connected, n.Hub, n.Transport, connected, hub, transport)
		}
	}
	want("here", true, "own", "quic")
	want("there", true, "other", "")
	want("lost", false, "other", "")
	want("mine", false, "own", "") // ready by its Node, but this hub would hear it
	if c := s.List(Query{}).Counts; c != (fleet.Counts{All: 4, Connected: 2, Here: 1, Offline: 2, NotOfflineReady: 4}) {
		t.Errorf("counted %+v", c)
	}
	if since := s.one(t, "lost").Since; since == nil || !since.Equal(time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)) {
		t.Errorf("lost since %v, not since its Node says so", since)
	}
	// Nobody has given it up though this hub does not hear it: another does.
	s.clock = s.clock.Add(graceful + time.Second)
	want("mine", true, "", "")
	s.cut("here")
	want("here", false, "own", "")
	s.watched.onNode(edgeNode("here", "own", corev1.ConditionUnknown), false)
	s.clock = s.clock.Add(time.Hour)
	want("here", false, "own", "")
	// A node that is deleted is gone, unless it is connected.
	s.connect("lost", "websocket")
	s.watched.onNode(edgeNode("lost", "other", corev1.ConditionUnknown), true)
	s.watched.onNode(edgeNode("there", "other", corev1.ConditionUnknown), true)
	want("lost", true, "own", "websocket")
	s.cut("lost")
	if n := len(s.List(Query{}).Nodes); n != 2 {
		t.Errorf("%d nodes are left", n)
	}
}

// TestANodeOfAnotherHubIsLookedAt when somebody looks: its lease says who hears it,
// and until when.
func TestANodeOfAnotherHubIsLookedAt(t *testing.T) {
	var s *scene
	var asked atomic.Int32
	s = newScene(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/pi":
			asked.Add(1)
			fmt.Fprint(w, `{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{"name":"pi","annotations":{"holdfast.io/hub":"south"}},"spec":{"renewTime":"2026-03-01T11:59:50.000000Z"}}`)
		case "/api/v1/pods":
			if f := r.URL.Query().Get("fieldSelector"); f != "spec.nodeName=pi" {
				t.Errorf("pods are listed by %q", f)
			}
			fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"a"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}},{"metadata":{"name":"b"},"status":{"phase":"Pending"}},{"metadata":{"name":"c"},"status":{"phase":"Succeeded"}}]}`)
		default:
			http.NotFound(w, r)
		}
	}))
	s.watched.onNode(edgeNode("pi", "own", corev1.ConditionTrue), false) // as it was when it was here
	if n := s.one(t, "pi"); n.Connected || !n.Pods.Unknown {
		t.Errorf("before a look: %+v", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { s.look(ctx) })
	defer all.Wait()
	defer cancel()
	var n fleet.Node
	for deadline := time.Now().Add(time.Minute); n.Pods.Total == 0; n = s.one(t, "pi") {
		if time.Now().After(deadline) {
			t.Fatalf("nobody looked: %+v", n)
		}
		runtime.Gosched()
	}
	if !n.Connected || n.Hub != "south" || n.Pods != (fleet.PodCount{Total: 2, Ready: 1}) || !n.LastSeen.Equal(time.Date(2026, 3, 1, 11, 59, 50, 0, time.UTC)) {
		t.Errorf("after a look: %+v, last seen %v", n, n.LastSeen)
	}
	s.one(t, "pi")
	if asked.Load() != 1 {
		t.Errorf("its lease was read %d times", asked.Load())
	}
	s.clock = s.clock.Add(31 * time.Second) // the lease has ended, by what is known
	if n := s.one(t, "pi"); n.Connected {
		t.Errorf("after the lease's end: %+v", n)
	}
}

func TestTheHistoryOfALineIsBounded(t *testing.T) {
	s := newScene(t, nil)
	s.watched.onNode(edgeNode("pi", "own", corev1.ConditionTrue), false)
	for range 100 {
		s.clock = s.clock.Add(time.Minute)
		s.connect("pi", "websocket")
		s.clock = s.clock.Add(time.Second)
		s.cut("pi")
	}
	spans := s.records["pi"].spans()
	if len(spans) != maxChanges {
		t.Fatalf("%d spans", len(spans))
	}
	for i, span := range spans {
		last := i == len(spans)-1
		if span.Connected != (i%2 == 0) || (span.To == nil) != last || !last && !span.To.Equal(spans[i+1].From) {
			t.Errorf("span %d: %+v", i, span)
		}
	}
	// A clock that goes back, even to 1970, does not turn the order about.
	s.clock = time.Unix(0, 0)
	s.connect("pi", "quic")
	spans = s.records["pi"].spans()
	if !slices.IsSortedFunc(spans, func(a, b fleet.Span) int { return a.From.Compare(b.From) }) {
		t.Errorf("the order: %+v", spans)
	}
}

func TestBytesAreCountedFromMidnight(t *testing.T) {
	s := newScene(t, nil)
	s.watched.onNode(edgeNode("pi", "own", corev1.ConditionTrue), false)
	want := func(what string, down, up uint64) {
		t.Helper()
		if got := s.one(t, "pi").BytesToday; got != (fleet.Bytes{Down: down, Up: up}) {
			t.Errorf("%s: %+v, want %d down, %d up", what, got, down, up)
		}
	}
	s.connect("pi", "websocket")
	s.moved("pi", 100, 10)
	want("the first session", 100, 10)
	s.cut("pi")
	want("after its end", 100, 10)
	s.clock = s.clock.Add(time.Second)
	s.connect("pi", "websocket")
	s.moved("pi", 1000, 100)
	want("with the second", 1100, 110)
	s.clock = time.Date(2026, 3, 2, 0, 0, 1, 0, time.UTC)
	want("a new day", 0, 0)
	s.moved("pi", 1005, 101)
	want("in the new day", 5, 1)
	s.cut("pi")
	want("after the second's end", 5, 1)
	s.clock = s.clock.Add(24 * time.Hour)
	want("another day", 0, 0)
}

func TestQueries(t *testing.T) {
	s := newScene(t, nil)
	for i := range 250 {
		s.watched.onNode(edgeNode(fmt.Sprintf("n-%03d", i), "own", corev1.ConditionTrue), false)
	}
	for i := range 100 {
		name := fmt.Sprintf("n-%03d", i)
		s.connect(name, "websocket")
		s.moved(name, uint64(i), 0)
		s.watched.pods[name] = 100 - i
	}
	list := func(query string) fleet.Fleet {
		t.Helper()
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		q, err := QueryOf(values)
		if err != nil {
			t.Fatal(err)
		}
		return s.List(q)
	}
	for query, want := range map[string]string{
		"":                                "250 250 n-000 n-249",
		"limit=10":                        "250 10 n-000 n-009",
		"limit=10&offset=245":             "250 5 n-245 n-249",
		"limit=10&offset=9000":            "250 0",
		"sort=-name&limit=2":              "250 2 n-249 n-248",
		"state=connected&sort=-bytes":     "100 100 n-099 n-000",
		"state=connected&sort=pods":       "100 100 n-099 n-000",
		"state=offline&limit=1":           "150 1 n-100 n-100",
		"state=not-offline-ready&limit=1": "250 1 n-000 n-000",
		"q=N-01":                          "10 10 n-010 n-019",
		"q=v9&limit=1":                    "100 1 n-000 n-000",
		"sort=line&limit=1":               "250 1 n-100 n-100",
		"q=none":                          "0 0",
	} {
		doc := list(query)
		got := fmt.Sprint(doc.Matched, len(doc.Nodes))
		if n := len(doc.Nodes); n > 0 {
			got += " " + doc.Nodes[0].Name + " " + doc.Nodes[n-1].Name
		}
		if got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
		if doc.Counts.All != 250 || doc.Counts.Here != 100 {
			t.Errorf("%q: counted %+v", query, doc.Counts)
		}
	}
	for _, query := range []string{"sort=beauty", "state=sad", "limit=x", "offset=-1", "q=" + strings.Repeat("x", 257)} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := QueryOf(values); err == nil {
			t.Errorf("%q is taken", query)
		}
	}
}

// TestARecordIsSmall prints what a node costs a hub, with a full history.
func TestARecordIsSmall(t *testing.T) {
	const nodes = 20000
	s := newScene(t, nil)
	before := heap()
	for i := range nodes {
		name := fmt.Sprintf("till-%05d.shops.example.test", i)
		s.watched.onNode(edgeNode(name, "own", corev1.ConditionTrue), false)
		for range maxChanges / 2 {
			n := hub.NodeInfo{Node: name, Session: strings.Clone("0123456789"), Transport: "websocket", Remote: strings.Clone("192.0.2.1:65535"), Since: s.clock, LastHeard: s.clock, Version: "v9"}
			s.OnSession(n, false)
			s.OnSession(n, true)
			s.OnSession(n, false)
		}
	}
	each := int64(heap()-before) / nodes
	runtime.KeepAlive(s)
	t.Logf("%d bytes a node, %d MiB for %d nodes", each, each*nodes>>20, nodes)
	if each > 1024 {
		t.Errorf("a node takes %d bytes", each)
	}
	began := time.Now()
	const times = 20
	for range times {
		s.List(Query{Sort: "-name", Limit: 100})
	}
	t.Logf("a page of %d nodes takes %s", nodes, (time.Since(began) / times).Round(time.Microsecond))
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestADeletionInABreakShowsInTheNextList, and what passed by during a list is newer.
func TestADeletionInABreakShowsInTheNextList(t *testing.T) {
	var s *scene
	var during func()
	s = newScene(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/nodes" || r.URL.Query().Get("labelSelector") != roster.LabelEdge {
			http.NotFound(w, r)
			return
		}
		if during != nil {
			during()
		}
		w.Header().Set("Content-Type", "application/json")
		list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{*edgeNode("stays", "other", corev1.ConditionUnknown), *edgeNode("goes", "other", corev1.ConditionTrue)}}
		_ = json.NewEncoder(w).Encode(list) // to a client of this test
	}))
	s.watched.onNode(edgeNode("ghost", "other", corev1.ConditionTrue), false)
	s.watched.onNode(edgeNode("stays", "other", corev1.ConditionUnknown), false)
	during = func() {
		s.watched.onNode(edgeNode("stays", "other", corev1.ConditionTrue), false)
		s.watched.onNode(edgeNode("new", "other", corev1.ConditionTrue), false)
	}
	if s.List(Query{}).Complete {
		t.Error("complete before anything was listed")
	}
	if err := s.listAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	doc := s.List(Query{})
	var names []string
	for _, n := range doc.Nodes {
		names = append(names, n.Name)
	}
	if !doc.Complete || !slices.Equal(names, []string{"goes", "new", "stays"}) || s.one(t, "stays").Ready != "True" {
		t.Errorf("after the list: %v, complete %v, %+v", names, doc.Complete, s.one(t, "stays"))
	}
}

// TestAnApiserverThatIsAwayLeavesWhatTheHubKnows on a node's page.
func TestAnApiserverThatIsAwayLeavesWhatTheHubKnows(t *testing.T) {
	s := newScene(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "down", http.StatusInternalServerError)
	}))
	s.watched.onNode(edgeNode("pi", "own", corev1.ConditionTrue), false)
	s.connect("pi", "quic")
	d, err := s.Detail(t.Context(), "pi", Rights{Pods: true, Events: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	if !d.Connected || len(d.Line) == 0 || len(d.Remarks) == 0 || !strings.Contains(d.Remarks[0], "the apiserver does not answer") {
		t.Errorf("%+v", d)
	}
	if _, err := s.Detail(t.Context(), "none", Rights{}); err == nil {
		t.Error("a node that there is not")
	}
	if _, err := s.Detail(t.Context(), "../pi", Rights{}); err == nil {
		t.Error("a path is no node")
	}
}

// TestWhatANodeSaysForALogIsBounded: a node that answers for ever, with too much, or
// with nonsense.
func TestWhatANodeSaysForALogIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		says func(w io.Writer)
		code int
		body func(b []byte) bool
	}{
		"a header without an end": {func(w io.Writer) {
			for line := []byte("X-A: " + strings.Repeat("a", 1000) + "\r\n"); ; {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, 503, func(b []byte) bool { return len(b) < 1000 }},
		"nonsense": {func(w io.Writer) { fmt.Fprint(w, "nonsense\r\n\r\n") }, 503, func(b []byte) bool { return bytes.Contains(b, []byte("does not answer for the log")) }},
		"more than was asked for": {func(w io.Writer) {
			fmt.Fprint(w, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
			for line := bytes.Repeat([]byte("x"), 64<<10); ; {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, 200, func(b []byte) bool { return len(b) > 1<<20 && len(b) <= maxLogBytes }},
		"a long refusal": {func(w io.Writer) {
			fmt.Fprint(w, "HTTP/1.1 500 No\r\nContent-Type: text/html\r\n\r\n"+strings.Repeat("<script>", 10000))
		}, 502, func(b []byte) bool { return len(b) < 2000 }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			here, there := newPipe()
			s.held.open = func(context.Context, string) (link.Stream, error) { return here, nil }
			go func() {
				if _, err := http.ReadRequest(there.reader); err == nil {
					c.says(there)
				}
				there.Close()
			}()
			server := httptest.NewServer(s.Page(ServerOptions{Token: "T"}))
			defer server.Close()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+fleet.NodePath+"pi/logs/default/a/b", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer T")
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			b, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != c.code || !c.body(b) {
				t.Errorf("%s, %d bytes, %v: %.200s", answer.Status, len(b), err, b)
			}
			if kind := answer.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/plain") {
				t.Errorf("it comes as %s", kind)
			}
			if _, err := here.Write([]byte("x")); err == nil {
				t.Error("the stream is left open")
			}
		})
	}
}

func TestTheLocalTokenStaysAndIsNobodyElses(t *testing.T) {
	path := t.TempDir() + "/cloud/" + fleet.TokenFile
	first, err := LocalToken(path)
	if err != nil || len(first) < minToken {
		t.Fatal(first, err)
	}
	if again, err := LocalToken(path); err != nil || again != first {
		t.Errorf("it has changed: %v", err)
	}
	loosen(t, path)
	if again, err := LocalToken(path); err != nil || again == first {
		t.Errorf("one that others could read is kept: %v", err)
	}
}
