package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/route"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestRoutes shows cloudcore and routes, with a real control plane and its real
// rights. The parts share one.
func TestRoutes(t *testing.T) {
	p := newPlace(t)
	t.Run("a route comes to the nodes that it selects", p.routeComes)
	t.Run("messages are posted in their order, each until it is taken", p.routePosts)
	t.Run("messages become Events", p.routeEvents)
	t.Run("who may publishes at a node", p.routeDown)
}

func (p *place) route(t testing.TB, name string, spec v1beta1.RouteSpec) *v1beta1.Route {
	t.Helper()
	made := new(v1beta1.Route)
	p.post(t, "routes", &v1beta1.Route{
		TypeMeta: metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "Route"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec,
	}, made)
	return made
}

func (p *place) routeComes(t *testing.T) {
	a, b := p.join(t, "way-a"), p.join(t, "way-b")
	up := &v1beta1.UpRoute{Topic: "shop/#", Event: &v1beta1.EventTarget{Reason: "Said"}}
	p.route(t, "all", v1beta1.RouteSpec{Up: up})
	p.route(t, "by-name", v1beta1.RouteSpec{NodeName: "way-a", Up: up})
	p.route(t, "by-label", v1beta1.RouteSpec{NodeSelector: map[string]string{corev1.LabelHostname: "way-b"}, Up: up})
	a.WaitObjects("its routes", edgetest.Has("route/default/all", "route/default/by-name"))
	b.WaitObjects("its routes", edgetest.Has("route/default/all", "route/default/by-label"))
	p.patchDevice(t, "routes", "by-name", `{"spec":{"nodeName":"way-b"}}`)
	b.WaitObjects("the route that moved", edgetest.Has("route/default/by-name"))
	a.WaitObjects("that it is gone", edgetest.Lacks("route/default/by-name", "route/default/by-label"))
	for _, name := range []string{"all", "by-name", "by-label"} {
		p.deleteOf(t, "routes", name)
	}
	b.WaitObjects("that all are gone", edgetest.Lacks("route/default/all", "route/default/by-name", "route/default/by-label"))
}

// endpoint takes posts, and answers as the test says.
type endpoint struct {
	mu     sync.Mutex
	got    []string
	answer func(body string) int
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, strings.Join([]string{r.Header.Get("Holdfast-Node"), r.Header.Get("Holdfast-Topic"), r.Header.Get("Holdfast-Route"), r.Header.Get("Holdfast-Message-Id"), string(body)}, " "))
	if e.answer != nil {
		code := e.answer(string(body))
		if code == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(code)
	}
}

func (e *endpoint) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	got := e.got
	e.got = nil
	return got
}

func (e *endpoint) answers(f func(body string) int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

func messages(r *v1beta1.Route, from, to uint64) *wire.RoutedMessages {
	m := &wire.RoutedMessages{RouteNamespace: r.Namespace, RouteName: r.Name, RouteUid: string(r.UID)}
	for n := from; n <= to; n++ {
		m.Messages = append(m.Messages, &wire.RoutedMessage{Number: n, Topic: fmt.Sprint("shop/", n), Payload: fmt.Append(nil, "m", n)})
	}
	return m
}

func (p *place) routePosts(t *testing.T) {
	target := new(endpoint)
	server := httptest.NewServer(target)
	t.Cleanup(server.Close)
	e, other := p.join(t, "poster"), p.join(t, "other")
	r := p.route(t, "posts", v1beta1.RouteSpec{NodeName: "poster", Up: &v1beta1.UpRoute{Topic: "shop/#", HTTP: &v1beta1.HTTPTarget{URL: server.URL + "/in?a=b"}}})
	e.WaitObjects("the route", edgetest.Has("route/default/posts"))
	send := func(m *wire.RoutedMessages) *wire.ReportResult {
		return e.ReportMessage(wire.ReportKind_REPORT_MESSAGES, m)
	}
	line := func(n int) string {
		return fmt.Sprintf("poster shop/%d default/posts store of poster/%s/%d m%d", n, r.UID, n, n)
	}
	if got := send(messages(r, 1, 3)); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(got)
	}
	if got := target.take(); !slices.Equal(got, []string{line(1), line(2), line(3)}) {
		t.Errorf("posted: %q", got)
	}
	// An endpoint that fails in the middle is asked again, and only for the rest.
	for _, code := range []int{http.StatusInternalServerError, http.StatusNotFound, http.StatusFound, http.StatusTooManyRequests} {
		target.answers(func(body string) int {
			if body == "m5" {
				return code
			}
			return http.StatusOK
		})
		if got := send(messages(r, 4, 6)); got.Code != wire.ResultCode_RESULT_RETRY {
			t.Errorf("%d: %v", code, got)
		}
	}
	target.answers(nil)
	if got := send(messages(r, 4, 6)); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(got)
	}
	five := line(5)
	if got := target.take(); !slices.Equal(got, []string{line(4), five, five, five, five, five, line(6)}) {
		t.Errorf("posted: %q", got)
	}
	// What it will never take is not tried again, and what follows comes.
	target.answers(func(body string) int {
		return map[string]int{"m7": http.StatusBadRequest, "m8": http.StatusRequestEntityTooLarge, "m9": http.StatusUnprocessableEntity, "m10": http.StatusNoContent}[body]
	})
	m := messages(r, 7, 10)
	m.Dropped = 12
	m.Messages[3].Topic = "läden/\n%"
	if got := send(m); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(got)
	}
	if got := target.take(); len(got) != 4 || !strings.HasPrefix(got[3], "poster l%C3%A4den/%0A%25 ") {
		t.Errorf("posted: %q", got)
	}
	now := new(v1beta1.Route)
	if err := p.devices(t).Get().Namespace("default").Resource("routes").Name("posts").Do(t.Context()).Into(now); err != nil {
		t.Fatal(err)
	}
	if n := now.Status.Nodes; len(n) != 1 || n[0] != (v1beta1.RouteNode{Node: "poster", Dropped: 12}) {
		t.Errorf("counted: %v", n)
	}
	// Another node's route, one that is gone, one that there never was.
	if got := other.ReportMessage(wire.ReportKind_REPORT_MESSAGES, messages(r, 1, 1)); got.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("another node: %v", got)
	}
	server.Close()
	if got := send(messages(r, 11, 11)); got.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("an endpoint that is not there: %v", got)
	}
	p.deleteOf(t, "routes", "posts")
	if got := send(messages(r, 11, 11)); got.Code != wire.ResultCode_RESULT_ACCEPTED && got.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("a route that is going: %v", got)
	}
	e.WaitObjects("that the route is gone", edgetest.Lacks("route/default/posts"))
	if got := send(messages(r, 11, 11)); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("a route that is gone: %v", got)
	}
	if got := e.Result(e.SendBytes(wire.ReportKind_REPORT_MESSAGES, []byte("\xff"))); got.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("no messages: %v", got)
	}
}

func (p *place) routeEvents(t *testing.T) {
	e := p.join(t, "teller")
	r := p.route(t, "events", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "door", Event: &v1beta1.EventTarget{Reason: "DoorOpened", Type: corev1.EventTypeWarning}}})
	e.WaitObjects("the route", edgetest.Has("route/default/events"))
	for range 2 { // the same may come twice
		if got := e.ReportMessage(wire.ReportKind_REPORT_MESSAGES, messages(r, 1, 2)); got.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatal(got)
		}
	}
	long := messages(r, 3, 3)
	long.Messages[0].Payload = bytes.Repeat([]byte("é\xff"), 4000)
	if got := e.ReportMessage(wire.ReportKind_REPORT_MESSAGES, long); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(got)
	}
	events, err := p.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=DoorOpened"})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, ev := range events.Items {
		if ev.InvolvedObject.Kind != "Node" || ev.InvolvedObject.Name != "teller" || ev.Type != corev1.EventTypeWarning {
			t.Errorf("event %+v", ev)
		}
		texts = append(texts, ev.Message)
	}
	slices.Sort(texts)
	if len(texts) != 3 || texts[0] != "shop/1: m1" || texts[1] != "shop/2: m2" || len(texts[2]) > 1024 {
		t.Errorf("events say %q", texts)
	}
}

func (p *place) routeDown(t *testing.T) {
	e := p.edge(t, "shop-42", "store of shop-42")
	published := make(chan *wire.Publish, 10)
	code := wire.ResultCode_RESULT_ACCEPTED
	e.OnPublish(func(m *wire.Publish) *wire.Published {
		published <- m
		return &wire.Published{Id: m.GetId(), Code: code, Message: "says the broker"}
	})
	e.Connect()
	e.Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })
	if r := e.Report(wire.ReportKind_REPORT_NODE, nodeReport("shop-42")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	e.WaitObjects("its Node", edgetest.Has("node//shop-42"))
	made := p.route(t, "prices", v1beta1.RouteSpec{NodeName: "shop-42", Down: &v1beta1.DownRoute{Topic: "prices/new"}})
	p.route(t, "upwards", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "x", Event: &v1beta1.EventTarget{Reason: "X"}}})
	e.WaitObjects("the routes", edgetest.Has("route/default/prices", "route/default/upwards"))
	may, mayNot := p.token(t, "publisher"), p.token(t, "stranger")
	if _, err := p.client.RbacV1().Roles("default").Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "publisher"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1beta1.GroupName}, Resources: []string{"routes/messages"}, Verbs: []string{"create"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.RbacV1().RoleBindings("default").Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "publisher"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "publisher"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "publisher", Namespace: "default"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the right has come into force", func() bool {
		code, _, _ := p.publish(t, may, "default/nowhere/shop-42", "")
		return code == http.StatusNotFound
	})
	const path = "default/prices/shop-42"
	if code, _, text := p.publish(t, may, path, "tea 3.20"); code != http.StatusAccepted {
		t.Fatalf("%d %s", code, text)
	}
	if m := <-published; m.GetTopic() != "prices/new" || string(m.GetPayload()) != "tea 3.20" || m.GetRouteUid() != string(made.UID) {
		t.Errorf("published %v", m)
	}
	large := strings.Repeat("x", route.MaxBody)
	if code, _, text := p.publish(t, may, path, large); code != http.StatusAccepted || len((<-published).GetPayload()) != route.MaxBody {
		t.Errorf("the largest message: %d %s", code, text)
	}
	for what, c := range map[string]struct {
		token, path, body string
		code              int
	}{
		"no token":                       {"", path, "", http.StatusUnauthorized},
		"a token that nobody gave":       {"x.y.z", path, "", http.StatusUnauthorized},
		"somebody without the right":     {mayNot, path, "", http.StatusForbidden},
		"the right of another place":     {may, "kube-system/prices/shop-42", "", http.StatusForbidden},
		"no such route":                  {may, "default/nothing/shop-42", "", http.StatusNotFound},
		"a route of the other way":       {may, "default/upwards/shop-42", "", http.StatusNotFound},
		"a node that is not the route's": {may, "default/prices/elsewhere", "", http.StatusNotFound},
		"too much":                       {may, path, large + "x", http.StatusRequestEntityTooLarge},
	} {
		if code, _, text := p.publish(t, c.token, c.path, c.body); code != c.code || len(text) < 10 {
			t.Errorf("%s: %d %q, want %d", what, code, text, c.code)
		}
	}
	code = wire.ResultCode_RESULT_REJECTED
	if got, _, text := p.publish(t, may, path, "x"); got != http.StatusUnprocessableEntity || !strings.Contains(text, "says the broker") {
		t.Errorf("a message that the node refuses: %d %s", got, text)
	}
	e.Disconnect()
	eventually(t, "the node is known to be away", func() bool {
		code, retry, _ := p.publish(t, may, path, "x")
		return code == http.StatusServiceUnavailable && retry != ""
	})
}

// token is one of a new service account.
func (p *place) token(t testing.TB, account string) string {
	t.Helper()
	if _, err := p.client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made, err := p.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}

func (p *place) publish(t testing.TB, token, path, body string) (code int, retryAfter, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), edgetest.Patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.addr+"/v1/routes/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), MinVersion: tls.VersionTLS13}}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header.Get("Retry-After"), string(b)
}
