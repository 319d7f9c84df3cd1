package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/tool"
)

// TestKubectlTop: a metrics-server that knows nothing of Holdfast reads what nodes and pods use.
func TestKubectlTop(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	nodes, err := operated()
	s.Must(err)
	startMetricsServer(s)
	for _, transport := range transports {
		s.Watch(nodes[transport])
		s.Start("busy-"+transport, nodes[transport], func(p *corev1.Pod) {
			main := &p.Spec.Containers[0]
			main.Command = scene.Shell("while :; do :; done")
			main.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")} // the other tests want some of it
		})
	}
	busy := regexp.MustCompile(`(?m)^busy-\w+ +(\d+)m +(\d+)Mi`)
	k := s.By(scene.Websocket)
	s.Until("kubectl top pod shows both pods at work", func(context.Context) (bool, error) {
		out, failed, code := k.Run(nil, "top", "pod")
		rows := busy.FindAllStringSubmatch(out, -1)
		if code != 0 || len(rows) != len(transports) {
			return false, fmt.Errorf("%s%s", out, failed)
		}
		for _, row := range rows {
			if len(row[1]) < 2 { // less than 10 thousandths of a core
				return false, fmt.Errorf("%s", out)
			}
		}
		return true, nil
	})
	s.Until("kubectl top node shows the nodes", func(context.Context) (bool, error) {
		out, failed, code := k.Run(nil, "top", "node")
		for _, transport := range transports {
			shown := regexp.MustCompile(`(?m)^` + nodes[transport].Name + ` +\d+m +\d+% +\d+Mi +\d+%`).MatchString(out)
			if code != 0 || !shown {
				return false, fmt.Errorf("%s%s", out, failed)
			}
		}
		return true, nil
	})
	out := s.Kubectl("top", "pod", "--containers")
	if !regexp.MustCompile(`busy-quic +main +\d+m`).MatchString(out) {
		t.Errorf("kubectl top pod --containers:\n%s", out)
	}
}

// startMetricsServer runs a metrics-server beside the apiserver, as the deployment of its release does: with
// a service account and the rights of that, behind an APIService. The nodes' certificates are checked.
func startMetricsServer(s *scene.Scene) {
	s.Helper()
	core := s.Client.CoreV1()
	address, _, err := net.SplitHostPort(s.World.Hub())
	s.Must(err)
	const port = 10251
	_, err = core.ServiceAccounts(s.NS).Create(s.Ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "metrics-server"}}, metav1.CreateOptions{})
	s.Must(err)
	grantMetricsServer(s)

	// A Service with an endpoint that is no pod.
	_, err = core.Services(s.NS).Create(s.Ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "metrics-server"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}},
	}, metav1.CreateOptions{})
	s.Must(err)
	name, tcp, number := "https", corev1.ProtocolTCP, int32(port)
	_, err = s.Client.DiscoveryV1().EndpointSlices(s.NS).Create(s.Ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "metrics-server", Labels: map[string]string{discoveryv1.LabelServiceName: "metrics-server"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &tcp}},
	}, metav1.CreateOptions{})
	s.Must(err)
	anything, err := dynamic.NewForConfig(s.World.RestConfig())
	s.Must(err)
	services := anything.Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	_, err = services.Create(s.Ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1beta1.metrics.k8s.io"},
		"spec": map[string]any{
			"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
			"service": map[string]any{"name": "metrics-server", "namespace": s.NS}, "insecureSkipTLSVerify": true,
		},
	}}, metav1.CreateOptions{})
	s.Must(err)
	s.Cleanup(func() {
		// An APIService that nobody serves would hold up the end of every namespace.
		if err := services.Delete(context.Background(), "v1beta1.metrics.k8s.io", metav1.DeleteOptions{}); err != nil {
			s.Error(err)
		}
	})

	kubeconfig := s.Scratch("metrics-server.kubeconfig")
	token := strings.TrimSpace(s.Kubectl("create", "token", "metrics-server", "--duration", "1h"))
	config := s.World.RestConfig()
	s.Must(os.WriteFile(kubeconfig, []byte(fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],"users":[{"name":"u","user":{"token":%q}}]}`,
		config.Host, b64(config.CAData), token)), 0o600))
	path, err := tool.Path(tool.MetricsServer)
	s.Must(err)
	var log scene.Text
	cmd := exec.CommandContext(s.Ctx, path, "--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
		"--bind-address", address, "--secure-port", fmt.Sprint(port), "--cert-dir", filepath.Join(s.TempDir(), "certs"),
		"--kubelet-use-node-status-port", "--kubelet-preferred-address-types", "InternalIP", "--kubelet-certificate-authority", kubeletCA(s), "--metric-resolution", "10s", "--kubelet-request-timeout", "5s")
	cmd.Stdout, cmd.Stderr = &log, &log
	s.Must(cmd.Start())
	s.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.Failed() {
			s.Logf("metrics-server printed:\n%s", log.String())
		}
	})
	s.Until("the APIService of metrics-server is available", func(ctx context.Context) (bool, error) {
		o, err := services.Get(ctx, "v1beta1.metrics.k8s.io", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		b, err := json.Marshal(o.Object["status"])
		if strings.Contains(string(b), `"status":"True"`) {
			return true, nil
		}
		return false, fmt.Errorf("its status is %s: %w", b, err)
	})
}

// grantMetricsServer gives the rights that its release's manifests give.
func grantMetricsServer(s *scene.Scene) {
	s.Helper()
	rbac := s.Client.RbacV1()
	account := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "metrics-server", Namespace: s.NS}}
	name := s.NS + ":metrics-server"
	_, err := rbac.ClusterRoles().Create(s.Ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"}},
	}}, metav1.CreateOptions{})
	s.Must(err)
	for role, binding := range map[string]string{name: name, "system:auth-delegator": name + ":auth-delegator"} {
		_, err := rbac.ClusterRoleBindings().Create(s.Ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: binding}, Subjects: account,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		}, metav1.CreateOptions{})
		s.Must(err)
	}
	_, err = rbac.RoleBindings("kube-system").Create(s.Ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-auth-reader"}, Subjects: account,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "extension-apiserver-authentication-reader"},
	}, metav1.CreateOptions{})
	s.Must(err)
}

// TestKubectlGetRaw: what the apiserver proxies of a node's kubelet API.
func TestKubectlGetRaw(t *testing.T) {
	everyWay(t, func(w way) {
		pod := w.pod("raw", nil)
		raw := func(path string) string {
			w.Helper()
			return w.Do("get", "--raw", "/api/v1/nodes/"+w.node.Name+"/proxy"+path)
		}
		if got := raw("/healthz"); got != "ok" {
			w.Errorf("healthz: %q", got)
		}
		var pods corev1.PodList
		w.Must(json.Unmarshal([]byte(raw("/pods")), &pods))
		found := false
		for _, p := range pods.Items {
			found = found || p.Name == pod && p.Namespace == w.NS && p.Status.Phase == corev1.PodRunning
			if p.Spec.NodeName != w.node.Name {
				w.Errorf("pods: %s/%s is on node %q", p.Namespace, p.Name, p.Spec.NodeName)
			}
		}
		if !found {
			w.Errorf("pods: pod %s is not among %d, or does not run", pod, len(pods.Items))
		}
		var summary struct {
			Node struct{ NodeName string }
			Pods []struct{ PodRef struct{ Name string } }
		}
		w.Until("stats/summary has the pod", func(context.Context) (bool, error) {
			// A runtime that is starved of the processor is a runtime that does not answer: 503.
			out, said, code := w.Run(nil, "get", "--raw", "/api/v1/nodes/"+w.node.Name+"/proxy/stats/summary")
			if code != 0 {
				return false, fmt.Errorf("exit code %d: %s", code, said)
			}
			if err := json.Unmarshal([]byte(out), &summary); err != nil {
				return false, err
			}
			for _, p := range summary.Pods {
				if p.PodRef.Name == pod {
					return summary.Node.NodeName == w.node.Name, nil
				}
			}
			return false, nil
		})
		w.Until("metrics/resource has the pod", func(context.Context) (bool, error) {
			out := raw("/metrics/resource")
			return strings.Contains(out, "node_cpu_usage_seconds_total") && strings.Contains(out, fmt.Sprintf(`pod=%q`, pod)), nil
		})
		var configz struct {
			Edgecore struct{ NodeName string }
		}
		w.Must(json.Unmarshal([]byte(raw("/configz")), &configz))
		if configz.Edgecore.NodeName != w.node.Name {
			w.Errorf("configz: %+v", configz)
		}
		if got := raw("/logs/?query=edgecore"); !strings.Contains(got, "level=") && !strings.Contains(got, "edgecore") {
			w.Errorf("logs/?query=edgecore: %q", got)
		}
	})
}
