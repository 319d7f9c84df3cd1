package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// no lets nobody in.
type no struct{}

func (no) Authenticate(context.Context, *http.Request) (*authenticationv1.UserInfo, error) {
	return nil, &access.Refusal{Code: http.StatusUnauthorized, Message: "say who you are"}
}

func (no) Authorize(context.Context, *authenticationv1.UserInfo, ...authorizationv1.ResourceAttributes) error {
	return &access.Refusal{Code: http.StatusForbidden}
}

// as serves a Tunnel as the port of that node, and secure as it is: over TLS.
func as(t *testing.T, tun *Tunnel, node string) *httptest.Server {
	return served(t, tun, node, httptest.NewServer)
}

func secure(t *testing.T, tun *Tunnel, node string) *httptest.Server {
	return served(t, tun, node, httptest.NewTLSServer)
}

func served(t *testing.T, tun *Tunnel, node string, start func(http.Handler) *httptest.Server) *httptest.Server {
	t.Helper()
	server := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tun.serve(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, node)))
	}))
	t.Cleanup(server.Close)
	return server
}

// TestAStrangerWhoNeverEndsHisRequestIsLetGo: there is a bounded number of connections
// for all nodes together, and the server waits for a request's end before it answers.
func TestAStrangerWhoNeverEndsHisRequestIsLetGo(t *testing.T) {
	begin, _ := node(t, nil)
	tun := tunnel(t, begin)
	tun.o.Access = no{}
	conn, err := net.Dial("tcp", as(t, tun, "till-1").Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /exec/a/b/c HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this")
	_ = conn.SetReadDeadline(time.Now().Add(2 * refusedTimeout))
	if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "401") {
		t.Errorf("%q, %v; want an answer and the end", b, err)
	}
}

// TestConnectionsAreNotKeptInACrowd: who scrapes many nodes keeps a connection to each
// for the next time, and others get none.
func TestConnectionsAreNotKeptInACrowd(t *testing.T) {
	begin, _ := node(t, func(s link.Stream) {
		r, err := http.ReadRequest(bufio.NewReader(s))
		switch {
		case err != nil:
		case r.Header.Get("Upgrade") != "":
			fmt.Fprint(s, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		default:
			fmt.Fprint(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	tun := tunnel(t, begin)
	server := as(t, tun, "till-1")
	for _, c := range []struct {
		open   int64
		header string
		close  bool
	}{{crowd, "", false}, {crowd + 1, "", true}, {crowd + 1, "x", false}} {
		tun.ports.open.Store(c.open)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/metrics/resource", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.header != "" {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", c.header)
		}
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode >= 300 || response.Close != c.close {
			t.Errorf("%d connections, upgrade %q: %s, close %v", c.open, c.header, response.Status, response.Close)
		}
	}
	tun.ports.open.Store(0)
}

func TestTheNodeInAnApiserversURI(t *testing.T) {
	for uri, want := range map[string]string{
		"/api/v1/nodes/till-1/proxy/pods": "till-1", "/api/v1/nodes/till-1:10401/proxy/pods": "till-1",
		"/api/v1/nodes/https:till-1:10401/proxy": "till-1", "/api/v1/nodes/https:till-1:/proxy": "till-1",
		"/apis/x": "", "": "",
	} {
		if got := nodeInURI(uri); got != want {
			t.Errorf("%s: %q, want %q", uri, got, want)
		}
	}
}

type recorder struct{ last *http.Request }

func (r *recorder) RoundTrip(out *http.Request) (*http.Response, error) {
	r.last = out
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: out}, nil
}

// TestWhatAHubPassesOnIsForTheNodeThatWasChecked: also where its port is another's by
// now.
func TestWhatAHubPassesOnIsForTheNodeThatWasChecked(t *testing.T) {
	ca, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.SignHub(time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	begin, _ := node(t, func(s link.Stream) {
		if _, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
			fmt.Fprint(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	tun := tunnel(t, begin)
	tun.o.Access, tun.o.Peers = no{}, Peers{CA: ca.Pool(), ClientName: pki.HubName}
	for name, code := range map[string]int{"till-1": 200, "till-2": 421, "": 421} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), nodeKey{}, "till-1"), http.MethodGet, "/pods", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}
		r.Header.Set(nodeHeader, name)
		if tun.serve(w, r); w.Code != code {
			t.Errorf("a hub asks for %q at till-1's port: %d %q, want %d", name, w.Code, w.Body, code)
		}
	}
	var over recorder
	r := httptest.NewRequestWithContext(context.WithValue(t.Context(), nodeKey{}, "till-2"), http.MethodGet, "/pods", nil)
	r.Header.Set(nodeHeader, "till-1") // the client's own
	r.Header.Set("Connection", nodeHeader)
	tun.proxy(&over).ServeHTTP(httptest.NewRecorder(), r.WithContext(withTarget(r.Context(), netip.AddrPortFrom(loopback, 1))))
	if got := over.last.Header.Get(nodeHeader); got != "till-2" {
		t.Errorf("a request for till-2 is passed on for %q", got)
	}
}

// TestAPortThatANodeIsKnownByIsNobodyElses: also while it is not open here.
func TestAPortThatANodeIsKnownByIsNobodyElses(t *testing.T) {
	first := 12000 + os.Getpid()%400*20
	tun, err := New(Options{Address: loopback, Bind: loopback, First: first, Last: first + 2, Access: everybody{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.ports.Close()
	tun.known.Store(true)
	other, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first)))
	if err != nil {
		t.Fatal(err)
	}
	away := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "away"}}
	away.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: loopback.String()}}
	away.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(first)
	tun.OnNode(away, false)
	other.Close() // another hub of this machine that stops, say
	for _, node := range []string{"till-1", "till-2"} {
		if _, port, ok := tun.Endpoint(node); !ok || int(port) == first {
			t.Errorf("%s is given port %d (%v), which is where node away is looked for", node, port, ok)
		}
	}
	if _, _, ok := tun.Endpoint("till-3"); ok {
		t.Error("there is a third port")
	}
	if _, port, _ := tun.Endpoint("away"); int(port) != first {
		t.Errorf("the node itself is given port %d", port)
	}
	tun.OnNode(away, true)
	if _, port, _ := tun.Endpoint("till-3"); int(port) != first {
		t.Errorf("the port of a node that is gone: %d is given", port)
	}
}

func TestANodesNumbersAreFewMetrics(t *testing.T) {
	var c counts
	for code := range 1000 {
		c.end("pods", code)
	}
	if len(c.requests) > 80 {
		t.Errorf("%d kinds of requests", len(c.requests))
	}
}

// TestThePortsOfNodesThatAreGoneAreFree: a deletion may fall into a break of what
// follows the cluster.
func TestThePortsOfNodesThatAreGoneAreFree(t *testing.T) {
	first := 12000 + os.Getpid()%400*20
	nodeAt := func(name string, port int) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: loopback.String()}}
		n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
		return n
	}
	there := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{nodeAt("stays", first), nodeAt("goes", first+1)}}
	meanwhile := func() {}
	apiserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		meanwhile()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(there)
	}))
	defer apiserver.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: apiserver.URL})
	if err != nil {
		t.Fatal(err)
	}
	tun, err := New(Options{Address: loopback, Bind: loopback, First: first, Last: first + 2, Access: everybody{}, Client: client, Holds: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.ports.Close()
	for _, want := range []map[string]int{{"stays": first, "goes": first + 1, "comes": 0}, {"stays": first, "goes": 0, "comes": first + 2}} {
		if err := tun.listAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, port := range want {
			if _, known := tun.nodes.of(name); tun.ports.of(name) != port || known != (port != 0) {
				t.Errorf("node %s has port %d (known %v), want %d", name, tun.ports.of(name), known, port)
			}
		}
		there.Items = there.Items[:1]
		meanwhile = func() { n := nodeAt("comes", first+2); tun.OnNode(&n, false) }
	}
}
