package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
)

// api is what a node of the tests answers: enough of a kubelet to see what arrives.
type api struct {
	node string
	hold chan struct{} // a followed log ends when it is closed
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/never":
		<-r.Context().Done()
	case r.Header.Get("Upgrade") != "":
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
	case strings.HasPrefix(r.URL.Path, "/containerLogs/"):
		fmt.Fprintf(w, "%s %s?%s\n", a.node, r.URL.Path, r.URL.RawQuery)
		if r.URL.Query().Get("follow") == "true" {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-a.hold:
			case <-r.Context().Done():
			}
		}
	case r.URL.Path == "/flood":
		block := bytes.Repeat([]byte("x"), 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	default:
		fmt.Fprintf(w, "%s %s authorization=%q", a.node, r.URL.Path, r.Header.Get("Authorization"))
	}
}

// serveStream serves HTTP in one stream, as an edge does.
func serveStream(s link.Stream, handler http.Handler) {
	defer s.Close()
	l := &oneConn{conn: streamNetConn{s}, closed: make(chan struct{})}
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			close(l.closed)
		}
	}}
	server.SetKeepAlivesEnabled(false)
	_ = server.Serve(l)
}

type oneConn struct {
	conn   net.Conn
	given  bool
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.closed
	return nil, io.EOF
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

type streamNetConn struct{ link.Stream }

func (streamNetConn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (streamNetConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }

// reachable connects a node that answers.
func (p *place) reachable(t *testing.T, node string) (*edgetest.Edge, *api) {
	t.Helper()
	a := &api{node: node, hold: make(chan struct{})}
	e := p.edge(t, node, "store of "+node)
	e.OnStream(func(s link.Stream) { serveStream(s, a) })
	p.register(t, e, node)
	return e, a
}

// at is where a Node says that it is reached.
func (p *place) at(t *testing.T, node string) (address string, port int) {
	t.Helper()
	n, err := p.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Status.Addresses) == 0 {
		return "", 0
	}
	return n.Status.Addresses[0].Address, int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
}

// TestTheClusterReachesNodes goes through a real apiserver, with the certificate that
// its signer gave.
func TestTheClusterReachesNodes(t *testing.T) {
	p := newPlace(t)
	p.reachable(t, "till-1")
	e2, _ := p.reachable(t, "till-2")
	for _, node := range []string{"till-1", "till-2"} {
		p.create(t, pod("p-"+node, node))
	}
	eventually(t, "the cluster has signed a certificate for the ports", func() bool {
		return strings.Contains(p.logs.String(), "the cluster signed a certificate")
	})
	t.Run("each node has a port", func(t *testing.T) {
		a1, p1 := p.at(t, "till-1")
		a2, p2 := p.at(t, "till-2")
		if a1 == "" || a1 != a2 || p1 == 0 || p2 == 0 || p1 == p2 {
			t.Errorf("till-1 at %s:%d, till-2 at %s:%d", a1, p1, a2, p2)
		}
		n, err := p.client.CoreV1().Nodes().Get(t.Context(), "till-1", metav1.GetOptions{})
		if err != nil || len(n.Status.Addresses) != 2 || n.Status.Addresses[1].Address != "192.0.2.7" {
			t.Errorf("its own address comes second: %v, %v", n.Status.Addresses, err)
		}
	})
	t.Run("logs and the node's own paths", func(t *testing.T) {
		for _, node := range []string{"till-1", "till-2"} {
			b, err := p.client.CoreV1().Pods("default").GetLogs("p-"+node, &corev1.PodLogOptions{Timestamps: true}).DoRaw(t.Context())
			if want := node + " /containerLogs/default/p-" + node + "/main?timestamps=true\n"; err != nil || string(b) != want {
				t.Errorf("logs of %s: %q, %v", node, b, err)
			}
			b, err = p.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + node + "/proxy/stats/summary").DoRaw(t.Context())
			if want := node + ` /stats/summary authorization=""`; err != nil || string(b) != want {
				t.Errorf("the proxy of %s: %q, %v", node, b, err)
			}
		}
	})
	t.Run("directly", func(t *testing.T) { p.direct(t) })
	t.Run("the wrong hub passes a request on", func(t *testing.T) { p.passes(t) })
	t.Run("a line that is cut ends a followed log with a reason", func(t *testing.T) {
		stream, err := p.client.CoreV1().Pods("default").GetLogs("p-till-2", &corev1.PodLogOptions{Follow: true}).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		lines := bufio.NewScanner(stream)
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		e2.Disconnect()
		var rest strings.Builder
		for lines.Scan() {
			rest.WriteString(lines.Text())
		}
		if !strings.Contains(rest.String(), "the line to node till-2 was cut") {
			t.Errorf("the log ends with %q, %v", rest.String(), lines.Err())
		}
	})
	t.Run("a node that is away", func(t *testing.T) {
		if said := p.refused(t, "p-till-2"); !strings.Contains(said, "node till-2 is not connected to the cloud") {
			t.Errorf("its logs: %q", said)
		}
	})
	t.Run("a hub that restarts keeps the ports", func(t *testing.T) {
		_, before := p.at(t, "till-1")
		p.stop()
		p.start(t)
		p.reachable(t, "till-1")
		_, after := p.at(t, "till-1")
		if before != after {
			t.Errorf("port %d is now %d", before, after)
		}
		// The ports are open when all Nodes are known.
		eventually(t, "till-1 is reached", func() bool {
			_, err := p.client.CoreV1().Pods("default").GetLogs("p-till-1", &corev1.PodLogOptions{}).DoRaw(t.Context())
			return err == nil
		})
		eventually(t, "of till-2 is said that it is away", func() bool {
			return strings.Contains(p.refused(t, "p-till-2"), "node till-2 is not connected to the cloud")
		})
	})
}

// passes: a node moves to another hub, and who still asks at its old port is served.
func (p *place) passes(t *testing.T) {
	other := p.secondHub(t)
	a := &api{node: "till-3", hold: make(chan struct{})}
	first := p.edge(t, "till-3", "store of till-3")
	first.OnStream(func(s link.Stream) { serveStream(s, a) })
	p.register(t, first, "till-3")
	eventually(t, "till-3 is reached at the first hub", func() bool { _, port := p.at(t, "till-3"); return port != 0 })
	_, before := p.at(t, "till-3")
	first.Disconnect()
	second := other.edge(t, "till-3", "store of till-3")
	second.OnStream(func(s link.Stream) { serveStream(s, a) })
	second.Connect()
	eventually(t, "till-3 is reached at the second hub", func() bool { _, port := p.at(t, "till-3"); return port != before })
	address, now := p.at(t, "till-3")
	client := p.adminClient(t)
	for _, port := range []int{now, before} {
		response, err := client.Get("https://" + net.JoinHostPort(address, strconv.Itoa(port)) + "/pods")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != http.StatusOK || !strings.HasPrefix(string(b), "till-3 /pods") {
			t.Errorf("at port %d: %s %q", port, response.Status, b)
		}
	}
	second.Disconnect()
	eventually(t, "both say that the node is away", func() bool {
		for _, port := range []int{now, before} {
			response, err := client.Get("https://" + net.JoinHostPort(address, strconv.Itoa(port)) + "/pods")
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusBadGateway || !strings.Contains(string(b), "not connected") {
				return false
			}
		}
		return true
	})
}

// secondHub is another cloudcore of the same cluster.
func (p *place) secondHub(t *testing.T) *place {
	t.Helper()
	cfg, err := config.LoadCloud(p.config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg.DataDir, cfg.RunDir = filepath.Join(dir, "cloud"), filepath.Join(dir, "run")
	text, err := config.Encode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	q := &place{cluster: p.cluster, client: p.client, ca: p.ca, logs: new(record), keepAlive: p.keepAlive, config: filepath.Join(dir, "cloudcore.yaml")}
	if err := os.WriteFile(q.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	q.start(t)
	return q
}

// adminClient has the administrator's certificate, and trusts the cluster's CA.
func (p *place) adminClient(t *testing.T) *http.Client {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	admin, err := tls.X509KeyPair(rc.CertData, rc.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	return p.clientWith(t, admin)
}

// clientWith shows that certificate, and trusts the cluster's CA.
func (p *place) clientWith(t *testing.T, pairs ...tls.Certificate) *http.Client {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rc.CAData)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: pairs}, DisableKeepAlives: true}, Timeout: time.Minute}
}

// direct are requests past the apiserver: whoever reaches the port.
func (p *place) direct(t *testing.T) {
	address, port := p.at(t, "till-1")
	url := "https://" + net.JoinHostPort(address, strconv.Itoa(port))
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rc.CAData)
	admin, err := tls.X509KeyPair(rc.CertData, rc.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	stranger := selfSigned(t)
	get := func(c *http.Client, path string, header ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := c.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer response.Body.Close()
		b, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(b)
	}
	token, scraper := p.token(t, "nosy"), p.token(t, "scraper")
	p.mayScrape(t, "scraper")
	eventually(t, "the scraper may read metrics", func() bool {
		code, _ := get(p.clientWith(t), "/metrics/resource", "Authorization", "Bearer "+scraper)
		return code == 200
	})
	for _, c := range []struct {
		name   string
		client *http.Client
		path   string
		header []string
		code   int
		says   string
	}{
		{"nobody", p.clientWith(t), "/pods", nil, 401, "say who you are"},
		{"a certificate of nobody's", p.clientWith(t, stranger), "/pods", nil, 401, "is not taken"},
		{"a made-up token", p.clientWith(t), "/pods", []string{"Authorization", "Bearer made.up.token"}, 401, "does not know this token"},
		{"no bearer", p.clientWith(t), "/pods", []string{"Authorization", "Basic eDp4"}, 401, "bearer token is needed"},
		{"the administrator", p.clientWith(t, admin), "/pods", nil, 200, "till-1 /pods"},
		{"without the right", p.clientWith(t), "/pods", []string{"Authorization", "Bearer " + token}, 403, "may not get nodes/pods of till-1"},
		{"a path that hides another", p.clientWith(t, admin), "/stats/../exec/default/p/main", nil, 400, "simplest form"},
		{"the same, encoded", p.clientWith(t, admin), "/stats/%2e%2e/exec/default/p/main", nil, 400, "simplest form"},
		{"another node's proxy", p.clientWith(t, admin), "/pods", []string{"X-Forwarded-Uri", "/api/v1/nodes/till-2/proxy/pods"}, 421, "port is node till-1's"},
		{"a right to metrics is none to pods", p.clientWith(t), "/pods", []string{"Authorization", "Bearer " + scraper}, 403, "may not"},
		{"a token is not for the edge", p.clientWith(t), "/metrics/resource", []string{"Authorization", "Bearer " + scraper}, 200, `authorization=""`},
	} {
		if code, body := get(c.client, c.path, c.header...); code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %q, want %d %q", c.name, code, body, c.code, c.says)
		}
	}
	t.Run("an upgrade is carried both ways", func(t *testing.T) {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{admin}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /exec/default/p/main?command=cat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		in := bufio.NewReader(conn)
		response, err := http.ReadResponse(in, nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", response, err)
		}
		sent := make([]byte, 4<<20)
		if _, err := rand.Read(sent); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = conn.Write(sent) }()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(sent, got) {
			t.Errorf("4 MiB came back otherwise, %v", err)
		}
	})
	t.Run("who never reads holds little, and disturbs nobody", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := p.clientWith(t, admin)
		c.Timeout = 0
		for range 8 {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/flood", nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
		}
		if code, body := get(p.clientWith(t, admin), "/pods"); code != 200 {
			t.Errorf("beside floods that nobody reads: %d %q", code, body)
		}
	})
}

// refused is what the apiserver says to whoever asks for a log in vain.
func (p *place) refused(t *testing.T, pod string) string {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.cluster.URL()+"/api/v1/namespaces/default/pods/"+pod+"/log", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode == http.StatusOK {
		t.Errorf("the log of %s: %s, %v", pod, response.Status, err)
	}
	return string(b)
}

// mayScrape gives an account the right to read nodes' metrics, as a metrics-server has it.
func (p *place) mayScrape(t *testing.T, account string) {
	t.Helper()
	name := metav1.ObjectMeta{Name: "scraper"}
	if _, err := p.client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: name,
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: name,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name.Name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: account}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
