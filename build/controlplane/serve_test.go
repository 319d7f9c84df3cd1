package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestFreshControlPlane(t *testing.T) {
	p := start(t, filepath.Join(t.TempDir(), "a-folder-with-a-name-so-long-that-a-unix-socket-in-it-could-not-be-bound-by-its-whole-path"))
	t.Run("listens on one port alone", func(t *testing.T) {
		n, err := listeners(p.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if n != 1 {
			t.Errorf("the process listens on %d TCP ports, want the apiserver's alone", n)
		}
	})
	t.Run("lets nobody else read its files", func(t *testing.T) { ownerAlone(t, p.dir) })
	t.Run("tells anonymous callers its health and nothing else", func(t *testing.T) { anonymousSeesHealth(t, p) })
	t.Run("publishes its certificate authority to pods", func(t *testing.T) {
		eventually(t, "ConfigMap default/kube-root-ca.crt", func(ctx context.Context) error {
			m, err := p.admin().CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			if err == nil && m.Data["ca.crt"] != readFile(t, filepath.Join(p.dir, "pki", "ca.crt")) {
				err = errors.New("it holds another authority")
			}
			return err
		})
	})
	t.Run("accepts the tokens that it issues", func(t *testing.T) { tokenWorks(t, p) })
	t.Run("schedules pods", func(t *testing.T) { schedules(t, p) })
	t.Run("gives a node its own objects alone", func(t *testing.T) { nodeIsConfined(t, p) })
	t.Run("gives a stranger nothing", func(t *testing.T) {
		c := clientFor(t, p.as(t, "stranger"))
		if _, err := c.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("listing Secrets: %v, want Forbidden", err)
		}
	})
	t.Run("refuses a second one in the same folder", func(t *testing.T) {
		wantWords(t, refused(t, "--data-dir", p.dir, "--listen", "127.0.0.1:0"), p.dir, "another control plane", "--data-dir")
	})
}

func ownerAlone(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // SQLite's files come and go
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func anonymousSeesHealth(t *testing.T, p *plane) {
	c := p.config()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CAData)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{"/readyz": 200, "/livez": 200, "/healthz": 200, "/api/v1/namespaces": 401, "/version": 401} {
		reply, err := client.Get(p.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, reply.Body)
		if err := errors.Join(err, reply.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if reply.StatusCode != want {
			t.Errorf("GET %s answers %d, want %d", path, reply.StatusCode, want)
		}
	}
}

func tokenWorks(t *testing.T, p *plane) {
	request := &authenticationv1.TokenRequest{}
	reply, err := p.admin().CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	admin := p.config()
	c := clientFor(t, &rest.Config{Host: admin.Host, BearerToken: reply.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData}})
	self, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := self.Status.UserInfo.Username; got != "system:serviceaccount:default:default" {
		t.Errorf("the token makes one %q", got)
	}
}

// pod is bound to node when that is given, else left to the scheduler; it uses Secret secret.
func pod(name, node, secret string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "c", Image: "example.test/none:1"}},
		},
	}
	if secret != "" {
		p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}}}
	}
	return p
}

func createNode(t *testing.T, c kubernetes.Interface, name string) {
	t.Helper()
	amount := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("100")}
	_, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Capacity: amount, Allocatable: amount},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func schedules(t *testing.T, p *plane) {
	c := p.admin()
	createNode(t, c, "place")
	waiting := pod("waiting", "", "")
	// Nobody reports the node Ready, and the controller manager says so by taints.
	waiting.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	if _, err := c.CoreV1().Pods("default").Create(t.Context(), waiting, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pod default/waiting", func(ctx context.Context) error {
		got, err := c.CoreV1().Pods("default").Get(ctx, "waiting", metav1.GetOptions{})
		if err == nil && got.Spec.NodeName != "place" {
			err = errors.New("it is not bound to node place")
		}
		return err
	})
}

func nodeIsConfined(t *testing.T, p *plane) {
	admin := p.admin()
	for _, n := range []string{"1", "2"} {
		createNode(t, admin, "edge-"+n)
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "secret-" + n}, StringData: map[string]string{"of": n}}
		if _, err := admin.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.CoreV1().Pods("default").Create(t.Context(), pod("bound-"+n, "edge-"+n, "secret-"+n), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	asNode := p.config()
	asNode.Impersonate = rest.ImpersonationConfig{UserName: "system:node:edge-1", Groups: []string{"system:nodes"}}
	for how, config := range map[string]*rest.Config{
		"by certificate":   p.as(t, "system:node:edge-1", "system:nodes"),
		"by impersonation": asNode,
	} {
		c := clientFor(t, config)
		eventually(t, "node edge-1 reads its own Secret "+how, func(ctx context.Context) error {
			// The authorizer learns of the binding by a watch.
			_, err := c.CoreV1().Secrets("default").Get(ctx, "secret-1", metav1.GetOptions{})
			return err
		})
		if _, err := c.CoreV1().Secrets("default").Get(t.Context(), "secret-2", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%s: node edge-1 reads the Secret of node edge-2: %v, want Forbidden", how, err)
		}
		patch := []byte(`{"metadata":{"labels":{"by":"edge-1"}}}`)
		if _, err := c.CoreV1().Nodes().Patch(t.Context(), "edge-2", types.MergePatchType, patch, metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%s: node edge-1 labels node edge-2: %v, want Forbidden (NodeRestriction)", how, err)
		}
		if _, err := c.CoreV1().Nodes().Patch(t.Context(), "edge-1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Errorf("%s: node edge-1 labels itself: %v", how, err)
		}
	}
}

// as is a client configuration with a certificate that the cluster's authority signed.
func (p *plane) as(t *testing.T, name string, groups ...string) *rest.Config {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "pki", "ca.crt"), filepath.Join(p.dir, "pki", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	admin := p.config()
	return &rest.Config{Host: admin.Host, TLSClientConfig: rest.TLSClientConfig{
		CAData:   admin.CAData,
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
	}}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestKillLosesNothingThatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	authority := readFile(t, filepath.Join(dir, "pki", "ca.crt"))
	const writers, enough = 4, 200
	var acknowledged sync.Map // name -> uid
	var count atomic.Int64
	reached := make(chan struct{})
	var group sync.WaitGroup
	for w := range writers {
		c := p.admin()
		group.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("write-%d-%d", w, i)
				m, err := c.CoreV1().ConfigMaps("default").Create(context.Background(), &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: name},
					Data:       map[string]string{"n": strconv.Itoa(i), "filling": strings.Repeat("x", 2000)},
				}, metav1.CreateOptions{})
				if err != nil {
					return // the kill, which the test waits for below
				}
				acknowledged.Store(name, m.UID)
				if count.Add(1) == enough {
					close(reached)
				}
			}
		})
	}
	select {
	case <-reached:
	case <-p.ended:
		t.Fatalf("control plane ended with %v", p.cmd.ProcessState)
	case <-time.After(patience):
		t.Fatalf("only %d writes were acknowledged", count.Load())
	}
	p.kill()
	group.Wait()

	holds := func(p *plane) {
		t.Helper()
		list, err := p.admin().CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stored := map[string]types.UID{}
		for _, m := range list.Items {
			stored[m.Name] = m.UID
		}
		acknowledged.Range(func(name, uid any) bool {
			if stored[name.(string)] != uid {
				t.Errorf("ConfigMap %v was acknowledged with uid %v and is now %q", name, uid, stored[name.(string)])
			}
			return true
		})
	}
	p = start(t, dir)
	holds(p)
	p.terminate()
	if info, err := os.Stat(filepath.Join(dir, "state.db-wal")); err == nil && info.Size() != 0 {
		t.Errorf("after a clean end the write-ahead log still holds %d bytes", info.Size())
	}
	p = start(t, dir)
	holds(p)
	if readFile(t, filepath.Join(dir, "pki", "ca.crt")) != authority {
		t.Error("a restart made another certificate authority")
	}
}

func TestStopDuringTheFirstStartLosesNothing(t *testing.T) {
	dir := t.TempDir()
	var said lines
	cmd := exec.Command(binary(t), "--data-dir", dir, "--listen", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = &said, &said
	ended := launch(t, cmd)
	t.Cleanup(func() {
		// When all went well it has ended long ago.
		_ = cmd.Process.Kill()
		<-ended
	})
	// The socket is the last thing that is made before Kubernetes' parts start.
	eventually(t, "the database's socket", func(context.Context) error {
		_, err := os.Stat(filepath.Join(dir, "kine.sock"))
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatalf("control plane does not end; it said:\n%s", &said)
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("control plane ended with %v, want exit code 0; it said:\n%s", cmd.ProcessState, &said)
	}
	start(t, dir)
}

func TestRefusals(t *testing.T) {
	t.Run("port taken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		wantWords(t, refused(t, "--data-dir", t.TempDir(), "--listen", l.Addr().String()), l.Addr().String(), "taken", "--listen")
	})
	t.Run("data directory below a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(file, "data")
		wantWords(t, refused(t, "--data-dir", dir, "--listen", "127.0.0.1:0"), dir, "--data-dir")
	})
	t.Run("damaged database", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "state.db")
		garbage := strings.Repeat("damaged ", 4096)
		if err := os.WriteFile(path, []byte(garbage), 0o600); err != nil {
			t.Fatal(err)
		}
		wantWords(t, refused(t, "--data-dir", dir, "--listen", "127.0.0.1:0"), path, "damaged", "backup")
		if readFile(t, path) != garbage {
			t.Error("the damaged file was changed")
		}
	})
	t.Run("damaged certificate authority", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "pki", "ca.crt")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		wantWords(t, refused(t, "--data-dir", dir, "--listen", "127.0.0.1:0"), path, "backup")
	})
	t.Run("flags", func(t *testing.T) {
		dir := t.TempDir()
		for _, flags := range [][]string{
			{"--listen", "6443"}, {"--listen", "name:6443"}, {"--listen", "127.0.0.1:http"},
			{"--service-cidr", "10.96.0.0"}, {"--node-monitor-grace-period", "6s"},
			{"--log-level", "loud"}, {"--no-such-flag"}, {"argument"}, {"--data-dir", ""},
		} {
			wantWords(t, refused(t, append([]string{"--data-dir", dir}, flags...)...), strings.TrimLeft(flags[0], "-"))
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("refused flags left %v (%v) in the data directory", entries, err)
		}
	})
}
