package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"os"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/config"
	enrolled "github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/tests/cluster"
)

const (
	// gracePeriod is after how long the control plane gives up a silent node.
	gracePeriod = 40 * time.Second
	keepAlive   = 12 * time.Second
)

// place is a control plane with a cloudcore that has its real rights.
type place struct {
	cluster *cluster.Cluster
	client  kubernetes.Interface
	config  string // cloudcore's config file
	ca      *pki.CA
	addr    string // of the hub
	logs    *record
	stop    func()

	keepAlive   time.Duration // of the edges
	withDevices bool          // the cluster has the CRDs
}

func newPlace(t testing.TB) *place { return newPlaceWith(t, keepAlive) }

// newPlaceWith is newPlace with another keepalive on the line.
func newPlaceWith(t testing.TB, keepAlive time.Duration) *place {
	t.Helper()
	return newPlaceOf(t, &place{keepAlive: keepAlive, withDevices: true})
}

func newPlaceOf(t testing.TB, p *place) *place {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dir := t.TempDir()
	c, err := cluster.Start(ctx, cluster.Options{Dir: filepath.Join(dir, "controlplane"), GracePeriod: gracePeriod, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Log(err)
		}
	})
	p.cluster, p.client, p.logs = c, c.Client(), new(record)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("cloudcore said:\n%s", p.logs)
		}
	})
	p.apply(t)
	if p.ca, err = enrolled.EnsureCA(t.Context(), p.client); err != nil {
		t.Fatal(err)
	}
	p.config = filepath.Join(dir, "cloudcore.yaml")
	text, err := config.Encode(config.Cloud{
		Kubeconfig: p.kubeconfig(t, dir), Listen: "127.0.0.1:0", QUIC: true, HealthListen: "127.0.0.1:0", AdvertiseAddresses: []string{"127.0.0.1"},
		DataDir: filepath.Join(dir, "cloud"), KeepAlive: config.Duration{Duration: p.keepAlive}, LogLevel: "debug",
		Tunnel: config.Tunnel{Ports: ownPorts()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(t)
	return p
}

// ownPorts is a range for nodes that no other test process of this machine has.
func ownPorts() string {
	const size = 32
	first := 12000 + os.Getpid()%500*size
	return fmt.Sprintf("%d-%d", first, first+size-1)
}

// apply creates what build/manifests holds.
func (p *place) apply(t testing.TB) {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	in, err := install.New(rc)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := install.Objects(manifests.Files)
	if err != nil {
		t.Fatal(err)
	}
	if !p.withDevices {
		objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "CustomResourceDefinition" })
	}
	if err := in.Apply(t.Context(), objects); err != nil {
		t.Fatalf("apply the manifests: %v", err)
	}
}

// kubeconfig is that of cloudcore's service account, with no more rights.
func (p *place) kubeconfig(t testing.TB, dir string) string {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	seconds := int64(24 * 3600)
	token, err := p.client.CoreV1().ServiceAccounts(enrolled.Namespace).CreateToken(t.Context(), "cloudcore",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kc := clientcmdapi.NewConfig()
	kc.Clusters["c"] = &clientcmdapi.Cluster{Server: p.cluster.URL(), CertificateAuthorityData: rc.CAData}
	kc.AuthInfos["cloudcore"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	kc.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "cloudcore"}
	kc.CurrentContext = "c"
	file := filepath.Join(dir, "cloudcore.kubeconfig")
	if err := clientcmd.WriteToFile(*kc, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// start runs cloudcore as its main does, and waits until it is ready.
func (p *place) start(t testing.TB) {
	t.Helper()
	p.logs.reset()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", p.config}, io.Discard, p.logs) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("cloudcore ended with: %v", err)
		}
	})
	t.Cleanup(p.stop)
	ready := regexp.MustCompile(`msg=ready listen=(\S+)`)
	eventually(t, "cloudcore is ready", func() bool {
		m := ready.FindStringSubmatch(p.logs.String())
		if m != nil {
			p.addr = m[1]
		}
		return m != nil
	})
}

// edge is an edge of that name, not connected.
func (p *place) edge(t testing.TB, node, storeID string) *edgetest.Edge {
	pair := linktest.NodeCert(t, p.ca, node)
	return edgetest.New(t, link.DialWebsocket(link.DialOptions{
		Hubs: []string{p.addr}, RootCAs: p.ca.Pool(), Timing: link.TimingFor(p.keepAlive),
		Certificate: func() (tls.Certificate, error) { return pair, nil },
	}), storeID)
}

// join connects an edge and registers its node.
func (p *place) join(t testing.TB, node string) *edgetest.Edge {
	t.Helper()
	e := p.edge(t, node, "store of "+node)
	p.register(t, e, node)
	return e
}

// register connects an edge and registers its node.
func (p *place) register(t testing.TB, e *edgetest.Edge, node string) {
	t.Helper()
	e.Connect()
	e.Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })
	if r := e.Report(wire.ReportKind_REPORT_NODE, nodeReport(node)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("register node %s: %v", node, r)
	}
	e.WaitObjects("its Node", edgetest.Has("node//"+node))
}

func nodeReport(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "shop": "north"}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "EdgeReady", Message: "all is well"},
				{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "EnoughMemory"},
			},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}},
			NodeInfo:  corev1.NodeSystemInfo{KubeletVersion: "v1.36.3-holdfast", OperatingSystem: "linux"},
		},
	}
}

// pod is a pod bound to a node, with whatever else.
func pod(name, node string, more ...func(*corev1.Pod)) *corev1.Pod {
	off := false
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: node, AutomountServiceAccountToken: &off,
			Containers: []corev1.Container{{Name: "main", Image: "example.test/till:1"}},
		},
	}
	for _, f := range more {
		f(p)
	}
	return p
}

func running(p *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.1.0.5", PodIPs: []corev1.PodIP{{IP: "10.1.0.5"}},
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: corev1.ConditionTrue},
			},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "main", Ready: true, Image: "example.test/till:1", RestartCount: 2,
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}},
		},
	}
}

func (p *place) create(t testing.TB, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	created, err := p.client.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// get reads a pod; nil when there is none.
func (p *place) get(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	got, err := p.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (p *place) configMap(t testing.TB, name, value string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"value": value}}
	_, err := p.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = p.client.CoreV1().ConfigMaps("default").Update(t.Context(), cm, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *place) secret(t testing.TB, name, value string) {
	t.Helper()
	_, err := p.client.CoreV1().Secrets("default").Create(t.Context(),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"value": []byte(value)}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(edgetest.Patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// record keeps what is logged.
type record struct {
	mu   sync.Mutex
	text strings.Builder
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

func (r *record) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text.Reset()
}
