package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/tests/browser"
)

// TestTheFleetCanBeLookedAt: on the socket, by whom the apiserver lets, and in a
// browser.
func TestTheFleetCanBeLookedAt(t *testing.T) {
	p := newPlace(t)
	p.lookable(t)
	edges := make(map[string]*edgetest.Edge)
	for _, name := range []string{"shop-1", "shop-2", "depot-1"} {
		e := p.edge(t, name, "store of "+name)
		e.OnStream(logOf(name))
		p.register(t, e, name)
		edges[name] = e
	}
	made := p.create(t, pod("till", "shop-1"))
	edges["shop-1"].WaitObjects("the pod", edgetest.Has("pod/default/till"))
	if r := edges["shop-1"].Report(wire.ReportKind_REPORT_POD_STATUS, running(made)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	p.create(t, pod("broken", "shop-2"))
	p.event(t, "shop-1", "till")

	t.Run("on the socket", p.onTheSocket)
	t.Run("by whom the apiserver lets", p.letIn)
	t.Run("in a browser", func(t *testing.T) { p.inABrowser(t, edges) })
	t.Run("over a restart of the hub", p.overARestart)
}

// lookable makes cloudcore serve the fleet.
func (p *place) lookable(t *testing.T) {
	t.Helper()
	cfg, err := config.LoadCloud(p.config)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FleetListen, cfg.RunDir = "127.0.0.1:0", t.TempDir()
	text, err := config.Encode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.start(t)
}

// page is the address of the fleet's page.
func (p *place) page(t testing.TB) string {
	t.Helper()
	where := regexp.MustCompile(`msg="the fleet can be looked at" by="web page[^"]*" listen=(\S+)`)
	var m []string
	eventually(t, "the page is served", func() bool {
		m = where.FindStringSubmatch(p.logs.String())
		return m != nil
	})
	return "http://" + m[1]
}

func (p *place) localToken(t testing.TB) string {
	t.Helper()
	cfg, err := config.LoadCloud(p.config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.DataDir, fleet.TokenFile)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file has mode %v", info.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// logOf plays a node's kubelet API: it writes what it was asked for.
func logOf(node string) func(link.Stream) {
	return func(s link.Stream) {
		defer s.Close()
		r, err := http.ReadRequest(bufio.NewReader(s))
		if err != nil {
			return
		}
		if r.URL.Path != "/containerLogs/default/till/main" {
			fmt.Fprintf(s, "HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\n\r\nno such pod\n")
			return
		}
		fmt.Fprintf(s, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
		line := fmt.Sprintf("%s was asked for %s <b>\n", node, r.URL.RawQuery)
		fmt.Fprintf(s, "%x\r\n%s\r\n", len(line), line)
		if r.URL.Query().Get("follow") == "true" {
			_, _ = io.Copy(io.Discard, s) // until somebody leaves
			return
		}
		fmt.Fprintf(s, "0\r\n\r\n")
	}
}

// event makes an Event of the node and one of a pod.
func (p *place) event(t *testing.T, node, pod string) {
	t.Helper()
	for _, e := range []*corev1.Event{
		{ObjectMeta: metav1.ObjectMeta{Name: "node-event", Namespace: "default"}, InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: node}, Reason: "Rebooted", Message: "the power was cut", Type: "Warning", LastTimestamp: metav1.Now(), Count: 3},
		{ObjectMeta: metav1.ObjectMeta{Name: "pod-event", Namespace: "default"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod}, Reason: "Started", Message: "<script>alert(1)</script>", Type: "Normal", LastTimestamp: metav1.Now()},
		{ObjectMeta: metav1.ObjectMeta{Name: "other-event", Namespace: "default"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "elsewhere"}, Reason: "Foreign", Type: "Normal", LastTimestamp: metav1.Now()},
	} {
		if _, err := p.client.CoreV1().Events("default").Create(t.Context(), e, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *place) onTheSocket(t *testing.T) {
	cfg, err := config.LoadCloud(p.config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.RunDir, fleet.SocketName)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	var doc fleet.Fleet
	eventually(t, "all nodes are known with their pods", func() bool {
		doc = fleet.Fleet{}
		answer, err := client.Get("http://cloudcore" + fleet.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if err := json.NewDecoder(answer.Body).Decode(&doc); err != nil {
			t.Fatal(err)
		}
		return doc.Complete && len(doc.Nodes) == 3 && doc.Nodes[1].Pods == fleet.PodCount{Total: 1, Ready: 1}
	})
	n := doc.Nodes[1]
	if n.Name != "shop-1" || !n.Connected || n.Ready != "True" || n.Transport != "websocket" || n.Version != "edgetest" || n.Since == nil || n.LastSeen == nil ||
		n.BytesToday.Up == 0 || n.BytesToday.Down == 0 || n.Hub != doc.Hub || n.Kubelet == "" {
		t.Errorf("the node is %+v", n)
	}
	if want := (fleet.Counts{All: 3, Connected: 3, Here: 3, NotOfflineReady: 3}); doc.Counts != want {
		t.Errorf("counted %+v", doc.Counts)
	}
	answer, err := client.Get("http://cloudcore" + fleet.NodePath + "shop-1/logs/default/till/main")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("logs on the socket: %s", answer.Status)
	}
}

// viewer makes a service account that may do that, and returns a token of it.
func (p *place) viewer(t *testing.T, name string, rules ...rbacv1.PolicyRule) string {
	t.Helper()
	ctx := t.Context()
	if _, err := p.client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: name}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := p.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

// ask asks the page for a document.
func (p *place) ask(t testing.TB, path, token string, more ...func(*http.Request)) (code int, body string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.page(t)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for _, f := range more {
		f(r)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b), answer.Header
}

func (p *place) letIn(t *testing.T) {
	const log = fleet.NodePath + "shop-1/logs/default/till/main"
	core := func(verb string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{""}, Verbs: []string{verb}, Resources: resources}
	}
	nobody, some, most := p.viewer(t, "nobody"), p.viewer(t, "some", core("list", "nodes")), p.viewer(t, "most", core("list", "nodes", "pods", "events"), core("get", "pods/log"))
	local := p.localToken(t)
	for _, c := range []struct {
		path, token string
		code        int
		says        string
	}{
		{"/", "", 200, "<main"},
		{"/page.js", "", 200, "import"},
		{fleet.Path, "", 401, "holdfast fleet"},
		{fleet.Path, "wrong", 401, "holdfast fleet"},
		{fleet.Path, local + "x", 401, "does not know this token"},
		{fleet.Path, nobody, 403, "may not list nodes"},
		{fleet.Path, some, 200, "shop-1"},
		{fleet.Path, local, 200, "shop-1"},
		{fleet.Path + "?sort=beauty", local, 400, "sort \"beauty\" is unknown"},
		{fleet.Path + "?limit=-1", local, 400, "limit"},
		{fleet.NodePath + "shop-1", nobody, 403, "may not list nodes"},
		{fleet.NodePath + "shop-1", some, 200, "you may not list pods"},
		{fleet.NodePath + "shop-1", some, 200, "you may not list all of the events"},
		{fleet.NodePath + "shop-1", most, 200, "the power was cut"},
		{fleet.NodePath + "none", most, 404, "there is no edge node none"},
		{log, "", 401, "token"},
		{log, some, 403, "may not get pods/log"},
		{log + "?tailLines=7&limitBytes=1&follow=false", most, 200, "shop-1 was asked for limitBytes=16777216&tailLines=7"},
		{log + "?tailLines=x", local, 400, "tailLines"},
		{fleet.NodePath + "shop-1/logs/default/other/main", local, 404, "node shop-1 says: no such pod"},
		{fleet.NodePath + "shop-1/logs/default/..%2f..%2fetc/main", local, 400, "cannot be a name"},
		{fleet.NodePath + "none/logs/default/till/main", local, 503, "is not connected to this hub"},
		{"/debug/pprof/", local, 404, ""},
		{"/metrics", local, 404, ""},
	} {
		code, body, header := p.ask(t, c.path, c.token)
		if code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d, %.300q; want %d, %q", c.path, code, body, c.code, c.says)
		}
		if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", c.path, header)
		}
	}
	if _, body, _ := p.ask(t, fleet.NodePath+"shop-1", some); strings.Contains(body, "the power was cut") || strings.Contains(body, `"till"`) {
		t.Errorf("who may list nodes alone sees: %s", body)
	}
	if _, body, _ := p.ask(t, fleet.NodePath+"shop-1", most); strings.Contains(body, "Foreign") || !strings.Contains(body, "Started") || !strings.Contains(body, `"till"`) {
		t.Errorf("who may see all sees: %s", body)
	}
	for host, want := range map[string]int{"evil.example.test": 421, "127.0.0.1.example.test": 421, "localhost:1": 200, "[::1]:2": 200, "127.0.0.9": 200} {
		if code, body, _ := p.ask(t, fleet.Path, local, func(r *http.Request) { r.Host = host }); code != want {
			t.Errorf("under the name %s: %d, %s", host, code, body)
		}
	}
	// A cookie, and a token in the address, are good for nothing.
	if code, _, _ := p.ask(t, fleet.Path+"?token="+local, "", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "token", Value: local}) }); code != 401 {
		t.Errorf("with the token at another place: %d", code)
	}
	// What has not changed is not sent again.
	_, _, header := p.ask(t, fleet.Path+"?q=shop-2&limit=10", local)
	eventually(t, "nothing has changed", func() bool {
		code, _, now := p.ask(t, fleet.Path+"?q=shop-2&limit=10", local, func(r *http.Request) { r.Header.Set("If-None-Match", header.Get("ETag")) })
		header = now
		return code == http.StatusNotModified
	})
}

func (p *place) inABrowser(t *testing.T, edges map[string]*edgetest.Edge) {
	b := browser.Start(t)
	page := b.Open(p.page(t) + "/")
	row := func(node, cell string) string {
		return fmt.Sprintf(`document.querySelector('tr[data-node=%q] [data-key=%q]')?.innerText`, node, cell)
	}

	page.Wait("it asks for a token", `document.querySelector('form input[type=password]') && document.body.innerText.includes('sudo holdfast fleet')`)
	page.Do(`document.querySelector('#token').value = 'wrong'; document.querySelector('form button').click()`)
	page.Wait("the token is refused", `document.querySelector('#why')?.innerText.includes('does not know this token')`)
	page.Go(p.page(t) + "/#token=" + p.localToken(t))
	page.Wait("all nodes show", `document.querySelectorAll('tbody tr').length === 3`)
	if where := page.Text("location.href"); strings.Contains(where, "token") {
		t.Errorf("the address shows the token: %s", where)
	}
	page.Wait("the node's cells are filled", row("shop-1", "pods")+` === '1/1' && `+row("shop-1", "line")+`.startsWith('websocket') && `+row("shop-1", "bytes")+`.includes('↓') && `+row("shop-1", "version")+` === 'edgetest'`)
	picture(t, "fleet", page)

	page.Do(`window.sameDocument = true; document.querySelector('[data-node="shop-2"] a').focus()`)
	edges["shop-2"].Disconnect()
	page.Wait("the row tells that the node is offline", row("shop-2", "line")+`.includes('offline')`)
	page.Wait("the filters count it", `document.querySelector('[data-state=offline]').innerText === 'Offline 1'`)
	if page.Text("window.sameDocument") != "true" || page.Text("document.activeElement.innerText") != "shop-2" {
		t.Error("the page was loaded again, or lost the focus")
	}
	page.Do(`document.querySelector('[data-state=offline]').click()`)
	page.Wait("the offline node alone", `document.querySelectorAll('tbody tr').length === 1 && document.querySelector('[data-node="shop-2"]')`)
	page.Wait("pods of a node that is nobody's are counted", row("shop-2", "pods")+` === '0/1'`)
	page.Do(`document.querySelector('[data-state=""]').click()`)
	page.Do(`(() => { const f = document.querySelector('input[type=search]'); f.value = 'depot'; f.dispatchEvent(new Event('input', {bubbles: true})); })()`)
	page.Wait("the filter by text", `document.querySelectorAll('tbody tr').length === 1 && document.querySelector('[data-node="depot-1"]')`)
	page.Do(`(() => { const f = document.querySelector('input[type=search]'); f.value = 'nothing'; f.dispatchEvent(new Event('input', {bubbles: true})); })()`)
	page.Wait("that nothing fits", `document.body.innerText.includes('No node fits the filter.')`)
	page.Do(`(() => { const f = document.querySelector('input[type=search]'); f.value = ''; f.dispatchEvent(new Event('input', {bubbles: true})); })()`)
	page.Do(`document.querySelector('th[data-key=name] button').click()`)
	page.Wait("the order is turned about", `[...document.querySelectorAll('tbody tr')].map(r => r.dataset.node).join() === 'shop-2,shop-1,depot-1' && document.querySelector('th[data-key=name]').getAttribute('aria-sort') === 'descending'`)

	p.nodesPage(t, page, edges)
	page.Go(p.page(t) + "/#/node/none")
	page.Wait("an unknown node is told", `document.querySelector('[role=alert]').innerText.includes('there is no edge node none')`)
	if c := page.Complaints(); len(c) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(c, "\n"))
	}
}

func (p *place) nodesPage(t *testing.T, page *browser.Page, edges map[string]*edgetest.Edge) {
	t.Helper()
	edges["shop-1"].Disconnect()
	edges["shop-1"].Connect()
	edges["shop-1"].Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })
	page.Do(`document.querySelector('[data-node="shop-1"] a').click()`)
	page.Wait("the node's page", `document.querySelector('h1')?.innerText === 'shop-1'`)
	page.Wait("its pods", `document.querySelector('section[aria-label=Pods]').innerText.match(/default\/till\s+Running\s+yes\s+2/)`)
	page.Wait("its line", `document.querySelectorAll('svg.plot rect.on').length >= 2 && document.querySelectorAll('svg.plot rect.off').length >= 1`)
	page.Wait("its conditions", `document.querySelector('section[aria-label=Conditions]').innerText.includes('EdgeReady')`)
	page.Wait("its events, as text", `document.querySelector('section[aria-label=Events]').innerText.includes('<script>alert(1)</script>') && document.querySelector('section[aria-label=Events]').innerText.includes('the power was cut (3 times)')`)
	page.Do(`document.querySelector('button[data-id="default/till/main"]').click()`)
	page.Wait("its log", `document.querySelector('pre').innerText.includes('shop-1 was asked for limitBytes=16777216&tailLines=200 <b>')`)
	page.Do(`document.querySelector('#follow').click()`)
	page.Wait("its log as it comes", `document.querySelector('pre').innerText.includes('follow=true&tailLines=200') && document.body.innerText.includes('following')`)
	picture(t, "node", page)
	page.Dark()
	picture(t, "node-dark", page)
	edges["shop-1"].Disconnect()
	page.Wait("the log ends with the line", `document.querySelector('section[aria-label=Log] [role=status]').innerText !== 'following'`)
	page.Wait("the node is offline", `document.querySelector('dl.facts').innerText.includes('offline')`)
}

// picture keeps a picture of the page where somebody wants to look at it.
func picture(t *testing.T, name string, page *browser.Page) {
	t.Helper()
	dir := os.Getenv("HOLDFAST_PICTURES")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), page.Screenshot(), 0o644); err != nil {
		t.Error(err)
	}
}

// overTLS: on an address that others may reach the page is served with the hub's
// certificate alone.
func (p *place) overTLS(t *testing.T, token string) {
	t.Helper()
	before, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	open := strings.Replace(string(before), "fleetListen: 127.0.0.1:0", "fleetListen: 0.0.0.0:0", 1)
	if err := os.WriteFile(p.config, []byte(open), 0o600); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.start(t)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(p.page(t), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	pair := linktest.NodeCert(t, p.ca, "shop-1")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), Certificates: []tls.Certificate{pair}}}}
	for given, want := range map[string]int{token: http.StatusOK, "": http.StatusUnauthorized} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1:"+port+fleet.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if given != "" {
			r.Header.Set("Authorization", "Bearer "+given)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("a node with its certificate, and the token (%v): %s", given != "", answer.Status)
		}
	}
	if code, _, _ := p.ask(t, fleet.Path, token); code != http.StatusBadRequest {
		t.Errorf("in plain HTTP: %d", code)
	}
	p.stop()
	if err := os.WriteFile(p.config, before, 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(t)
}

func (p *place) overARestart(t *testing.T) {
	token := p.localToken(t)
	p.stop()
	p.start(t)
	var doc fleet.Fleet
	eventually(t, "the hub has read which nodes there are", func() bool {
		code, body, _ := p.ask(t, fleet.Path, token)
		if code != http.StatusOK {
			t.Fatalf("with the token of before: %d, %s", code, body)
		}
		doc = fleet.Fleet{}
		if err := json.Unmarshal([]byte(body), &doc); err != nil {
			t.Fatal(err)
		}
		return doc.Complete
	})
	if doc.Counts.All != 3 || len(doc.Nodes) != 3 {
		t.Errorf("after the start: %+v", doc)
	}
	p.overTLS(t, token)
	answer, err := http.Post(p.page(t)+fleet.Path, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %s", answer.Status)
	}
}
