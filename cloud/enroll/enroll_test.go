package enroll_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/enroll"
	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
	controlplane "github.com/holdfast-edge/holdfast/tests/cluster"
)

// place is a hub's port with a real cluster behind it.
type place struct {
	client      kubernetes.Interface
	kubeconfig  string
	self        *identity.Identity
	handler     *enroll.Handler
	revocations *enroll.Revocations
	revoked     sync.Map // what OnRevoked heard: time by node
	acceptor    link.Acceptor
	addr        string
	logs        *record
}

// record keeps what was logged.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func TestJoining(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	// No node turns NotReady by itself while the test lasts.
	c, err := controlplane.Start(ctx, controlplane.Options{Dir: t.TempDir(), GracePeriod: time.Hour, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	p := newPlace(t, c.Client())
	p.kubeconfig = c.Kubeconfig()
	t.Run("a machine with a token joins and connects", p.joinAndConnect)
	t.Run("who has no good token learns nothing", p.noToken)
	t.Run("a name that is served is not given out", p.takenName)
	t.Run("a use is taken only by who joins", p.usesOnlyForJoins)
	t.Run("what is no request to join is refused", p.malformed)
	t.Run("who sends slowly holds up nobody", p.slow)
	t.Run("who guesses is told to wait", p.guessing)
	t.Run("an apiserver that is away is said so", p.apiserverAway)
	t.Run("a certificate that has ended is renewed by its key", p.renewEnded)
	t.Run("who has not the key of a certificate does not renew it", p.renewRefused)
	t.Run("who guesses at renewals is told to wait", p.renewGuessing)
	t.Run("a session renews its node's certificate and no other", p.renewInSession)
	t.Run("a revoked node is out until it joins anew", p.revocation)
	t.Run("nobody is admitted before the revocations were read", p.failClosed)
	t.Run("old revocations are forgotten", p.forgetting)
	if logs := p.logs.String(); strings.Contains(logs, secretMark) {
		t.Errorf("the log holds a token's secret:\n%s", logs)
	}
}

func newPlace(t *testing.T, client kubernetes.Interface) *place {
	t.Helper()
	p := &place{client: client, logs: new(record)}
	log := slog.New(slog.NewTextHandler(p.logs, nil))
	var err error
	if p.self, err = identity.Open(t.Context(), identity.Options{Client: client, Hosts: []string{"127.0.0.1"}, Log: log}); err != nil {
		t.Fatal(err)
	}
	p.handler = enroll.New(enroll.Options{Client: client, CA: p.self.CA(), Log: log})
	p.revocations = enroll.NewRevocations(enroll.RevocationsOptions{Client: client, Log: log, OnRevoked: func(node string, before time.Time) {
		p.revoked.Store(node, before)
	}})
	var links http.Handler
	p.acceptor, links = link.AcceptWebsocket(link.AcceptOptions{Admit: p.revocations.Admit})
	mux := http.NewServeMux()
	mux.Handle(enrollment.Path, p.handler)
	mux.Handle(enrollment.RenewPath, p.handler)
	mux.Handle(link.Path, links)
	p.addr = p.port(t, mux)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.revocations.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = p.acceptor.Close()
	})
	return p
}

// port serves the handler as the hub's port does, and returns its address.
func (p *place) port(t *testing.T, handler http.Handler) string {
	t.Helper()
	l, err := link.Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: handler, TLSConfig: p.self.TLSConfig(), ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String()
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (p *place) token(t *testing.T, uses int) pki.Token {
	t.Helper()
	token, _, err := cluster.CreateToken(t.Context(), p.client, cluster.NewTokenOptions{Uses: uses})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (p *place) join(t *testing.T, token pki.Token, node string) (enrollment.Credentials, error) {
	t.Helper()
	return enrollment.Enroll(patient(t), enrollment.Request{Hub: p.addr, Token: token.String(), CAHash: p.self.CA().Hash(), NodeName: node})
}

func (p *place) joinAndConnect(t *testing.T) {
	c, err := p.join(t, p.token(t, 0), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	if node, err := p.connect(t, c); err != nil || node != "pi-1" {
		t.Fatalf("the hub accepted %q, %v", node, err)
	}
}

// connect makes a connection as that node and closes it.
func (p *place) connect(t *testing.T, c enrollment.Credentials) (node string, err error) {
	t.Helper()
	pool, err := c.Pool()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	accepted := make(chan string, 1)
	go func() {
		defer close(accepted)
		if conn, err := p.acceptor.Accept(ctx); err == nil {
			accepted <- conn.Peer()
			_ = conn.Close()
		}
	}()
	edge, err := link.DialWebsocket(link.DialOptions{Hubs: []string{p.addr}, RootCAs: pool, Certificate: c.KeyPair}).Dial(ctx)
	if err != nil {
		cancel()
		<-accepted
		return "", err
	}
	defer edge.Close()
	return <-accepted, nil
}

// secretMark stands in for secrets that must not show anywhere.
const secretMark = "zzzzzzzzzzzzzzzz"

func (p *place) noToken(t *testing.T) {
	good := p.token(t, 0)
	old, _, err := cluster.CreateToken(t.Context(), p.client, cluster.NewTokenOptions{TTL: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	p.node(t, "somebody", false, true)
	for name, c := range map[string]struct {
		token pki.Token
		text  string
	}{
		"an unknown token": {pki.Token{ID: "nobody", Secret: secretMark}, `token nobody is not known here: make a new one with "holdfast token create"`},
		"a wrong secret":   {pki.Token{ID: good.ID, Secret: secretMark}, "the secret of token " + good.ID + " is wrong"},
		"an old token":     {old, "token " + old.ID + " has expired at "},
	} {
		// The name is one that the cluster has: that must not show.
		_, err := p.join(t, c.token, "somebody")
		if !errors.Is(err, enrollment.ErrRefused) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "somebody") {
			t.Errorf("%s: %v, want %q", name, err, c.text)
		}
	}
}

// node makes a Node, an edge's or another, Ready or not.
func (p *place) node(t *testing.T, name string, edge, ready bool) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if edge {
		node.Labels = map[string]string{"holdfast.io/edge": "true"}
	}
	nodes := p.client.CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), node, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	node.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue},
		{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.Now()},
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": node.Status.Conditions}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Patch(t.Context(), name, "application/strategic-merge-patch+json", patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

func (p *place) takenName(t *testing.T) {
	token := p.token(t, 0)
	p.node(t, "ready-edge", true, true)
	p.node(t, "lost-edge", true, false)
	p.node(t, "ready-kubelet", false, true)
	p.node(t, "lost-kubelet", false, false)
	for node, text := range map[string]string{
		"ready-edge":    "node ready-edge is connected and Ready: join with another --node-name",
		"ready-kubelet": "node ready-kubelet that is no edge node",
		"lost-kubelet":  "kubectl label node lost-kubelet holdfast.io/edge=true",
	} {
		if _, err := p.join(t, token, node); !errors.Is(err, enrollment.ErrRefused) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", node, err, text)
		}
	}
	if _, err := p.join(t, token, "lost-edge"); err != nil {
		t.Errorf("an edge that is gone: %v", err)
	}
}

func (p *place) usesOnlyForJoins(t *testing.T) {
	token := p.token(t, 1)
	if _, err := p.join(t, token, "ready-edge"); !errors.Is(err, enrollment.ErrRefused) {
		t.Fatalf("a taken name: %v", err)
	}
	if _, err := p.join(t, token, "pi-2"); err != nil {
		t.Fatalf("a use was taken by who did not join: %v", err)
	}
	if _, err := p.join(t, token, "pi-3"); !errors.Is(err, enrollment.ErrRefused) || !strings.Contains(err.Error(), "has been used as often as it may") {
		t.Fatalf("a second use: %v", err)
	}
}

// ask gives a request to the handler as if it came from that address.
func ask(h http.Handler, method, from string, body io.Reader) (status int, header http.Header, text string) {
	r := httptest.NewRequest(method, enrollment.Path, body)
	r.RemoteAddr = from
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var no enrollment.Refusal
	if err := json.Unmarshal(w.Body.Bytes(), &no); err != nil {
		return w.Code, w.Header(), w.Body.String()
	}
	return w.Code, w.Header(), no.Error
}

func (p *place) malformed(t *testing.T) {
	token := p.token(t, 0)
	_, csr, err := pki.NewKeyAndCSR("pi-9")
	if err != nil {
		t.Fatal(err)
	}
	body := func(token, csr string) string {
		b, err := json.Marshal(enrollment.Ask{Token: token, CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, c := range map[string]struct{ body, text string }{
		"nothing":     {"", "not the JSON"},
		"garbage":     {"\x00\xff", "not the JSON"},
		"too much":    {body(token.String(), strings.Repeat("x", enrollment.MaxBody)), "more than"},
		"no token":    {body("", string(csr)), "the token is not of the form"},
		"no request":  {body(token.String(), ""), "no certificate request"},
		"another PEM": {body(token.String(), strings.Replace(string(csr), "REQUEST", "RUBBISH", 1)), "no certificate request"},
	} {
		status, _, text := ask(p.handler, http.MethodPost, "192.0.2.7:1", strings.NewReader(c.body))
		if status != http.StatusBadRequest || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %q, want %q", name, status, text, c.text)
		}
	}
	status, header, _ := ask(p.handler, http.MethodGet, "192.0.2.7:1", nil)
	if status != http.StatusMethodNotAllowed || header.Get("Allow") != http.MethodPost {
		t.Errorf("GET: %d", status)
	}
}

// slow lets more machines than have a turn at once stop in the middle of what
// they send, while another joins.
func (p *place) slow(t *testing.T) {
	var all sync.WaitGroup
	var pipes []*io.PipeWriter
	for n := range 50 {
		r, w := io.Pipe()
		pipes = append(pipes, w)
		all.Go(func() { ask(p.handler, http.MethodPost, "192.0.2.8:"+strconv.Itoa(1000+n), r) })
		// A pipe holds nothing: what is written has been read.
		if _, err := w.Write([]byte("{")); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.join(t, p.token(t, 0), "pi-4")
	for _, w := range pipes {
		w.CloseWithError(errors.New("the line is cut"))
	}
	all.Wait()
	if err != nil {
		t.Errorf("while others send slowly: %v", err)
	}
}

func (p *place) guessing(t *testing.T) {
	now := time.Now()
	h := enroll.New(enroll.Options{Client: p.client, CA: p.self.CA(), Now: func() time.Time { return now }})
	_, csr, err := pki.NewKeyAndCSR("pi-9")
	if err != nil {
		t.Fatal(err)
	}
	try := func(from, token string) int {
		b, err := json.Marshal(enrollment.Ask{Token: token, CSR: string(csr)})
		if err != nil {
			t.Fatal(err)
		}
		status, _, _ := ask(h, http.MethodPost, from, bytes.NewReader(b))
		return status
	}
	tries := 0
	for try("192.0.2.1:"+strconv.Itoa(1000+tries), "nobody."+secretMark) == http.StatusUnauthorized {
		if tries++; tries > 1000 {
			t.Fatal("guessing has no limit")
		}
	}
	if tries < 10 {
		t.Errorf("stopped after %d mistakes", tries)
	}
	good := p.token(t, 0).String()
	if status := try("192.0.2.1:9", good); status != http.StatusTooManyRequests {
		t.Errorf("a good token after too many bad: %d", status)
	}
	if status := try("192.0.2.2:9", good); status != http.StatusOK {
		t.Errorf("from another address: %d", status)
	}
	now = now.Add(time.Minute)
	if status := try("192.0.2.1:9", good); status != http.StatusOK {
		t.Errorf("a minute later: %d", status)
	}
	// One who owns a whole IPv6 network is one.
	for n := range tries {
		try("[2001:db8::"+strconv.Itoa(n)+"]:1", "nobody."+secretMark)
	}
	if status := try("[2001:db8::ffff]:1", good); status != http.StatusTooManyRequests {
		t.Errorf("from the same IPv6 network: %d", status)
	}
	if status := try("[2001:db8:0:1::1]:1", good); status != http.StatusOK {
		t.Errorf("from the next IPv6 network: %d", status)
	}
}

func (p *place) apiserverAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	logs := new(record)
	h := enroll.New(enroll.Options{Client: client, CA: p.self.CA(), Log: slog.New(slog.NewTextHandler(logs, nil))})
	_, csr, err := pki.NewKeyAndCSR("pi-9")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(enrollment.Ask{Token: p.token(t, 0).String(), CSR: string(csr)})
	if err != nil {
		t.Fatal(err)
	}
	status, _, text := ask(h, http.MethodPost, "192.0.2.1:1", bytes.NewReader(b))
	if status != http.StatusServiceUnavailable || !strings.Contains(text, "apiserver does not answer") || strings.Contains(text, l.Addr().String()) {
		t.Errorf("%d %q", status, text)
	}
	if !strings.Contains(logs.String(), l.Addr().String()) {
		t.Errorf("the log does not say what is wrong:\n%s", logs)
	}
}

func TestRunAsksAtOnceAndEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan struct{}, 1)
	// An apiserver that answers nothing but shows that it was asked.
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		http.Error(w, "away", http.StatusInternalServerError)
	}))
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	h := enroll.New(enroll.Options{Client: client})
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	<-asked
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
