package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
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

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// clusterCA is the cluster's CA, which signs what the nodes' ports serve.
func clusterCA(s *scene.Scene) []byte {
	s.Helper()
	config := s.World.RestConfig()
	s.Must(rest.LoadTLSFiles(config))
	return config.CAData
}

// kubeletCA is a file with clusterCA.
func kubeletCA(s *scene.Scene) string {
	s.Helper()
	file := s.Scratch("ca.crt")
	s.Must(os.WriteFile(file, clusterCA(s), 0o600))
	return file
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// caller asks a node's kubelet API directly, as the apiserver and metrics-server do.
type caller struct {
	*scene.Scene
	cert  *tls.Certificate
	token string
}

// kubeletAddress is where the Node says that its kubelet API is.
func kubeletAddress(s *scene.Scene, node string) string {
	s.Helper()
	var address string
	s.Until("node "+node+" says where its kubelet API is", func(ctx context.Context) (bool, error) {
		n, err := s.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil || n.Status.DaemonEndpoints.KubeletEndpoint.Port == 0 {
			return false, err
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && address == "" { // the first, as an apiserver does
				address = net.JoinHostPort(a.Address, strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)))
			}
		}
		return address != "", nil
	})
	return address
}

// ask sends a request whose path is sent as it stands, and returns the answer within bounds.
func (c caller) ask(n *world.Node, method, path string) (code int, body string) {
	c.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(clusterCA(c.Scene))
	config := &tls.Config{RootCAs: pool}
	if c.cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	ctx, cancel := context.WithTimeout(c.Ctx, 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "https://"+kubeletAddress(c.Scene, n.Name), nil)
	c.Must(err)
	request.URL.Opaque = "//" + request.URL.Host + path
	if strings.HasPrefix(path, "/exec/") {
		request.Header.Set("Connection", "Upgrade")
		request.Header.Set("Upgrade", "SPDY/3.1")
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := (&http.Transport{TLSClientConfig: config, DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		c.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	c.Must(err)
	return response.StatusCode, string(b)
}

func (c caller) wants(n *world.Node, path string, codes ...int) string {
	c.Helper()
	code, body := c.ask(n, http.MethodGet, path)
	for _, want := range codes {
		if code == want {
			return body
		}
	}
	c.Errorf("GET %s: %d %.300q, want %v", path, code, body, codes)
	return body
}

// forged is a client certificate like the apiserver's, of another CA.
func forged(s *scene.Scene) *tls.Certificate {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.Must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	s.Must(err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestKubeletAPIRefuses: each bad request gets one clear answer, soon.
func TestKubeletAPIRefuses(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n, other := s.Node("refuses", world.NodeOptions{}), s.Node("refuses-too", world.NodeOptions{})
	s.Start("here", n, func(p *corev1.Pod) { p.Spec.Containers[0].Command = scene.Shell("echo mine; sleep 100000") })
	s.Start("there", other, func(p *corev1.Pod) { p.Spec.Containers[0].Command = scene.Shell("echo theirs; sleep 100000") })
	logs := "/containerLogs/" + s.NS + "/here/main"

	config := s.World.RestConfig()
	s.Must(rest.LoadTLSFiles(config))
	adminCert, err := tls.X509KeyPair(config.CertData, config.KeyData)
	s.Must(err)
	admin := caller{Scene: s, cert: &adminCert}
	s.Until("the log is there", func(context.Context) (bool, error) {
		code, body := admin.ask(n, http.MethodGet, logs)
		return code == http.StatusOK && body == "mine\n", fmt.Errorf("%d %s", code, body)
	})

	t.Run("who has no credential, or one of somebody else", func(t *testing.T) {
		s := s.Within(t)
		nodeCert, err := tls.LoadX509KeyPair(filepath.Join(n.DataDir(), "pki", "node.crt"), filepath.Join(n.DataDir(), "pki", "node.key"))
		s.Must(err)
		for what, c := range map[string]caller{
			"nobody": {Scene: s}, "a certificate of another CA": {Scene: s, cert: forged(s)},
			"a node": {Scene: s, cert: &nodeCert}, "a token of nobody's": {Scene: s, token: "abc.def.ghi"},
		} {
			for _, path := range []string{"/healthz", logs, "/pods", "/exec/" + s.NS + "/here/main?command=true&output=1"} {
				if code, body := c.ask(n, http.MethodGet, path); code != http.StatusUnauthorized && code != http.StatusForbidden {
					s.Errorf("%s, GET %s: %d %.200q", what, path, code, body)
				}
			}
		}
	})

	t.Run("rights are those of a kubelet", func(t *testing.T) {
		s := s.Within(t)
		s.Kubectl("create", "serviceaccount", "watcher")
		c := caller{Scene: s, token: strings.TrimSpace(s.Kubectl("create", "token", "watcher"))}
		c.wants(n, "/metrics/resource", http.StatusForbidden)
		name := s.NS + ":watcher"
		_, err := s.Client.RbacV1().ClusterRoles().Create(s.Ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{})
		s.Must(err)
		_, err = s.Client.RbacV1().ClusterRoleBindings().Create(s.Ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "watcher", Namespace: s.NS}},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}}, metav1.CreateOptions{})
		s.Must(err)
		s.Until("the right is known", func(context.Context) (bool, error) {
			code, body := c.ask(n, http.MethodGet, "/metrics/resource")
			return code == http.StatusOK, fmt.Errorf("%d %s", code, body)
		})
		c.wants(n, logs, http.StatusForbidden)
		c.wants(n, "/exec/"+s.NS+"/here/main?command=true&output=1", http.StatusForbidden)
		c.wants(n, "/logs/", http.StatusForbidden)
	})

	t.Run("what is not there, or not this node's", func(t *testing.T) {
		c := caller{Scene: s.Within(t), cert: &adminCert}
		c.wants(n, "/containerLogs/"+s.NS+"/there/main", http.StatusNotFound)
		c.wants(n, "/containerLogs/"+s.NS+"/nobody/main", http.StatusNotFound)
		c.wants(n, "/containerLogs/"+s.NS+"/here/nobody", http.StatusNotFound)
		c.wants(n, "/no/such/path", http.StatusNotFound)
		c.wants(n, logs+"?tailLines=many", http.StatusBadRequest, http.StatusUnprocessableEntity)
		if code, body := c.ask(n, http.MethodPost, "/exec/"+s.NS+"/there/main?command=true&output=1"); code != http.StatusNotFound {
			c.Errorf("exec in a pod of another node: %d %.200q", code, body)
		}
		if code, body := c.ask(n, http.MethodDelete, "/pods"); code != http.StatusMethodNotAllowed && code != http.StatusNotFound {
			c.Errorf("DELETE /pods: %d %.200q", code, body)
		}
		out, said, code := c.By(scene.Websocket).Run(nil, "get", "--raw", "/api/v1/nodes/nowhere/proxy/healthz")
		if code == 0 || !strings.Contains(said, "nowhere") {
			c.Errorf("a node that is not there: exit code %d, %q, %q", code, out, said)
		}
	})

	t.Run("paths that lead out", func(t *testing.T) {
		c := caller{Scene: s.Within(t), cert: &adminCert}
		for _, path := range []string{
			"/logs/../../../../etc/passwd", "/logs/..%2f..%2f..%2fetc/passwd", "/logs/%2e%2e/%2e%2e/etc/passwd", "/logs//etc/passwd", "/logs/%2fetc%2fpasswd",
			"/logs/?query=../../etc/passwd", "/logs/?query=/etc/passwd", "/logs/?query=%2e%2e%2fetc%2fpasswd", "/logs/?query=edgecore%00", "/logs/?query=-o%20cat",
			"/containerLogs/../../../etc/passwd/x/y", "/containerLogs/" + s.NS + "/..%2f..%2fhere/main", "/containerLogs/" + s.NS + "/here/..%2f..%2f..%2fetc%2fpasswd",
		} {
			if code, body := c.ask(n, http.MethodGet, path); code < 300 || code >= 500 || strings.Contains(body, "root:") {
				c.Errorf("GET %s: %d %.200q", path, code, body)
			}
		}
	})

	t.Run("a node that is away", func(t *testing.T) {
		c := caller{Scene: s.Within(t), cert: &adminCert}
		c.Must(other.StopEdgecore())
		c.Until("it is said that the node is not connected", func(context.Context) (bool, error) {
			_, said, code := c.By(scene.Websocket).Run(nil, "logs", "there")
			return code != 0 && strings.Contains(said, "not connected"), fmt.Errorf("%d %s", code, said)
		})
	})
}
