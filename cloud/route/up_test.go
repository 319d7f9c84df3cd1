package route

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// known is cloud/watch for tests.
type known struct {
	routes map[string]*v1beta1.Route
	nodes  map[string]map[string]string // labels
}

func (k *known) Route(namespace, name string) *v1beta1.Route { return k.routes[namespace+"/"+name] }

func (k *known) Node(name string) *corev1.Node {
	if labels, ok := k.nodes[name]; ok {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	return nil
}

// newCarrier returns a Carrier that knows one route of that spec, shop/sales. Its
// apiserver is api; nil: it has nothing.
func newCarrier(t *testing.T, spec v1beta1.RouteSpec, api http.HandlerFunc) *Carrier {
	t.Helper()
	if api == nil {
		api = http.NotFound
	}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	config := &rest.Config{Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	devices, err := crd.New(config)
	if err != nil {
		t.Fatal(err)
	}
	route := &v1beta1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "sales", UID: "u"}, Spec: spec}
	return NewCarrier(Options{
		Client: devices, Cluster: client, AsNode: client, Version: "1",
		Known:   &known{routes: map[string]*v1beta1.Route{"shop/sales": route}, nodes: map[string]map[string]string{"n": {"floor": "2"}}},
		Reports: report.New(report.Options{Client: client, AsNode: client, Log: slog.New(slog.DiscardHandler)}),
	})
}

func posted(url string) v1beta1.RouteSpec {
	return v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#", HTTP: &v1beta1.HTTPTarget{URL: url}}}
}

// batchOf are messages 1, 2, 3 ... on those topics.
func batchOf(topics ...string) *wire.RoutedMessages {
	m := &wire.RoutedMessages{RouteNamespace: "shop", RouteName: "sales", RouteUid: "u"}
	for i, topic := range topics {
		m.Messages = append(m.Messages, &wire.RoutedMessage{Number: uint64(i + 1), Topic: topic, Payload: fmt.Append(nil, "m", i+1)})
	}
	return m
}

func carry(t *testing.T, c *Carrier, node string, m *wire.RoutedMessages) *wire.ReportResult {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Write(t.Context(), node, "store", 1, &wire.Report{Id: 7, Kind: wire.ReportKind_REPORT_MESSAGES, Payload: payload})
	if err != nil || r.GetId() != 7 {
		t.Fatal(r, err)
	}
	return r
}

// target is an endpoint that notes what it is given and answers as the test says.
type target struct {
	mu      sync.Mutex
	got     []string
	headers []http.Header
	answer  func(body string) int
}

func (e *target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got, e.headers = append(e.got, string(body)), append(e.headers, r.Header)
	if code := e.answer(string(body)); code != http.StatusOK {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
	}
}

func TestMessagesComeWithWhereTheyAreFrom(t *testing.T) {
	to := &target{answer: func(string) int { return http.StatusOK }}
	server := httptest.NewServer(to)
	defer server.Close()
	c := newCarrier(t, posted(server.URL), nil)
	if r := carry(t, c, "n", batchOf("till/1", "a b\r\nHoldfast-Node: other", "50%/ä")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	if !slices.Equal(to.got, []string{"m1", "m2", "m3"}) {
		t.Errorf("posted %q", to.got)
	}
	for i, topic := range []string{"till/1", "a b%0D%0AHoldfast-Node: other", "50%25/%C3%A4"} {
		for name, want := range map[string]string{
			"Holdfast-Node": "n", "Holdfast-Topic": topic, "Holdfast-Route": "shop/sales", "Holdfast-Message-Id": fmt.Sprint("store/u/", i+1),
			"Content-Type": "application/octet-stream", "User-Agent": "cloudcore/1",
		} {
			if got := to.headers[i].Values(name); !slices.Equal(got, []string{want}) {
				t.Errorf("message %d: %s: %q, want %q", i+1, name, got, want)
			}
		}
	}
}

func TestWhatAnEndpointAnswersIsWhatCounts(t *testing.T) {
	for code, want := range map[int]struct {
		result wire.ResultCode
		posts  string
	}{
		http.StatusNoContent:             {wire.ResultCode_RESULT_ACCEPTED, "m1 m2 m3"},
		http.StatusBadRequest:            {wire.ResultCode_RESULT_ACCEPTED, "m1 m2 m3"},
		http.StatusRequestEntityTooLarge: {wire.ResultCode_RESULT_ACCEPTED, "m1 m2 m3"},
		http.StatusUnprocessableEntity:   {wire.ResultCode_RESULT_ACCEPTED, "m1 m2 m3"},
		http.StatusUnauthorized:          {wire.ResultCode_RESULT_RETRY, "m1 m2 m2 m3"},
		http.StatusNotFound:              {wire.ResultCode_RESULT_RETRY, "m1 m2 m2 m3"},
		http.StatusTemporaryRedirect:     {wire.ResultCode_RESULT_RETRY, "m1 m2 m2 m3"},
		http.StatusTooManyRequests:       {wire.ResultCode_RESULT_RETRY, "m1 m2 m2 m3"},
		http.StatusInternalServerError:   {wire.ResultCode_RESULT_RETRY, "m1 m2 m2 m3"},
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			to := &target{}
			to.answer = func(body string) int {
				if body == "m2" && !slices.Contains(to.got[:len(to.got)-1], "m2") {
					return code
				}
				return http.StatusOK
			}
			server := httptest.NewServer(to)
			defer server.Close()
			c := newCarrier(t, posted(server.URL), nil)
			if r := carry(t, c, "n", batchOf("a", "b", "c")); r.Code != want.result {
				t.Fatal(r)
			} else if r.Code == wire.ResultCode_RESULT_RETRY {
				if r := carry(t, c, "n", batchOf("a", "b", "c")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
					t.Errorf("again: %v", r)
				}
			}
			if got := strings.Join(to.got, " "); got != want.posts {
				t.Errorf("posted %s, want %s", got, want.posts)
			}
			if len(c.progress) != 0 || len(c.posting) != 0 || len(c.posts) != 0 {
				t.Errorf("left behind: %v, %v, %d posts", c.progress, c.posting, len(c.posts))
			}
		})
	}
}

func TestANodeSendsOnlyWhatItsRoutesCarry(t *testing.T) {
	to := &target{answer: func(string) int { return http.StatusOK }}
	server := httptest.NewServer(to)
	defer server.Close()
	chosen := func(f func(*v1beta1.RouteSpec)) v1beta1.RouteSpec { s := posted(server.URL); f(&s); return s }
	for what, c := range map[string]struct {
		spec v1beta1.RouteSpec
		node string
		m    *wire.RoutedMessages
		want wire.ResultCode
	}{
		"another node's route":    {chosen(func(s *v1beta1.RouteSpec) { s.NodeName = "m" }), "n", batchOf("a"), wire.ResultCode_RESULT_REJECTED},
		"other labels":            {chosen(func(s *v1beta1.RouteSpec) { s.NodeSelector = map[string]string{"floor": "3"} }), "n", batchOf("a"), wire.ResultCode_RESULT_REJECTED},
		"labels not known":        {chosen(func(s *v1beta1.RouteSpec) { s.NodeSelector = map[string]string{"floor": "2"} }), "new", batchOf("a"), wire.ResultCode_RESULT_RETRY},
		"a route that leads down": {v1beta1.RouteSpec{Down: &v1beta1.DownRoute{Topic: "x"}}, "n", batchOf("a"), wire.ResultCode_RESULT_REJECTED},
		"a route that is gone":    {posted(server.URL), "n", &wire.RoutedMessages{RouteNamespace: "shop", RouteName: "old", RouteUid: "u"}, wire.ResultCode_RESULT_ACCEPTED},
		"an earlier route":        {posted(server.URL), "n", &wire.RoutedMessages{RouteNamespace: "shop", RouteName: "sales", RouteUid: "earlier"}, wire.ResultCode_RESULT_ACCEPTED},
		"a path for a name":       {posted(server.URL), "n", &wire.RoutedMessages{RouteNamespace: "shop", RouteName: "../../x", RouteUid: "u"}, wire.ResultCode_RESULT_RETRY},
		"no name":                 {posted(server.URL), "n", &wire.RoutedMessages{RouteUid: "u"}, wire.ResultCode_RESULT_REJECTED},
	} {
		carrier := newCarrier(t, c.spec, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/apis/devices.holdfast.io/v1beta1/namespaces/shop/routes/") {
				t.Errorf("%s: the apiserver is asked for %s", what, r.URL.Path)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		})
		if r := carry(t, carrier, c.node, c.m); r.Code != c.want || c.want != wire.ResultCode_RESULT_ACCEPTED && r.Message == "" {
			t.Errorf("%s: %v", what, r)
		}
	}
	if len(to.got) != 0 {
		t.Errorf("posted %q", to.got)
	}
}

// TestANodeIsNotToldWhereItsMessagesGo: the URL may have a password in it.
func TestANodeIsNotToldWhereItsMessagesGo(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	c := newCarrier(t, posted(strings.Replace(server.URL, "://", "://me:secret@", 1)+"/?key=secret"), nil)
	if r := carry(t, c, "n", batchOf("a")); r.Code != wire.ResultCode_RESULT_RETRY || strings.Contains(r.Message, "secret") {
		t.Errorf("the node hears %v", r)
	}
}

func TestADeadEndpointTakesNotAllPlaces(t *testing.T) {
	c := newCarrier(t, posted("http://127.0.0.1"), nil)
	var leave []func()
	for range maxPostsOne {
		l, err := c.enter(t.Context(), "dead")
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	if _, err := c.enter(t.Context(), "dead"); !errors.Is(err, report.ErrNotYet) {
		t.Errorf("one too many: %v", err)
	}
	if l, err := c.enter(t.Context(), "other"); err != nil {
		t.Errorf("another route: %v", err)
	} else {
		l()
	}
	for _, l := range leave {
		l()
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxPosts {
		c.posts <- struct{}{}
	}
	if _, err := c.enter(ended, "dead"); !errors.Is(err, context.Canceled) {
		t.Errorf("no place until the session ended: %v", err)
	}
	if len(c.posting) != 0 {
		t.Errorf("left behind: %v", c.posting)
	}
}

// TestATopicThatSaysMuchDoesNotFillTheCluster: an Event is kept for an hour.
func TestATopicThatSaysMuchDoesNotFillTheCluster(t *testing.T) {
	var mu sync.Mutex
	made := make(map[string]bool)
	c := newCarrier(t, v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#", Event: &v1beta1.EventTarget{Reason: "Said"}}}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		made[string(body)] = true
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	})
	r := carry(t, c, "n", batchOf(make([]string, 3*eventsAtOnce)...))
	if r.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("got %v", r)
	}
	if n := len(made); n < eventsAtOnce || n > 2*eventsAtOnce {
		t.Errorf("%d Events were made", n)
	}
	// Another node is not delayed, and what was made is not made again.
	if r := carry(t, c, "m", batchOf("a")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("another node: %v", r)
	}
	if got := c.progress["n/store/u"]; int(got) != len(made)-1 {
		t.Errorf("message %d is the last one of %d", got, len(made)-1)
	}
}
