package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	clustertest "github.com/holdfast-edge/holdfast/tests/cluster"
)

// cloudBox is a machine on which init succeeds, with a cluster that exists.
type cloudBox struct {
	*box
	cluster *clustertest.Cluster
	health  string
}

func newCloudBox(t *testing.T) *cloudBox {
	t.Helper()
	var log bytes.Buffer
	c, err := clustertest.Start(t.Context(), clustertest.Options{Dir: t.TempDir(), Log: &log})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	b := &cloudBox{box: newBox(t), cluster: c}
	// cloudcore's health check is played, and its unit is said to run: the port is taken by it.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	b.health = listener.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	write(t, filepath.Join(filepath.Dir(b.root), "active"), "cloudcore.service\n", 0o644)
	return b
}

func (b *cloudBox) cloudConfig() string { return filepath.Join(b.dir, "etc/cloudcore.yaml") }
func (b *cloudBox) cloudData() string   { return filepath.Join(b.dir, "cloud") }

func (b *cloudBox) initArgs(extra ...string) []string {
	return append([]string{
		"init", "--root", b.root, "--bin-dir", b.bin, "--data-dir", b.cloudData(), "--config", b.cloudConfig(),
		"--health-listen", b.health, "--listen", "127.0.0.1:10350", "--advertise-address", "cloud.example.test",
	}, extra...)
}

func TestInitFurnishesAClusterAndResetClearsIt(t *testing.T) {
	b := newCloudBox(t)
	ctx, client := t.Context(), b.cluster.Client()
	b.refusesALaxCluster(ctx)
	code, out := holdfast(t, "", b.initArgs("--kubeconfig", b.cluster.Kubeconfig())...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	ca, err := cluster.GetCA(ctx, client)
	must(t, err)
	says(t, out, "The cloud is ready", "holdfast join cloud.example.test:10350 --token ", "--ca-hash "+ca.Hash(), "kubectl get nodes")
	token := regexp.MustCompile(`--token ([a-z0-9]{6})\.`).FindStringSubmatch(out)[1]
	says(t, read(t, filepath.Join(b.root, "etc/systemd/system/cloudcore.service")), "--config "+b.cloudConfig())
	if got := b.systemctl(); !slices.Contains(got, "enable cloudcore.service") || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "controlplane") }) {
		t.Errorf("systemctl was told %q", got)
	}
	b.cloudcoreIsNoAdministrator(ctx)
	kinds := func() bool {
		_, err := client.Discovery().ServerResourcesForGroupVersion(v1beta1.GroupVersion().String())
		return err == nil
	}
	if !kinds() {
		t.Errorf("the cluster does not know %s", v1beta1.GroupVersion())
	}

	// Again, and without the flags: the CA stays, the config stays, one more token.
	code, out = holdfast(t, "", "init", "--root", b.root, "--bin-dir", b.bin, "--data-dir", b.cloudData(), "--config", b.cloudConfig())
	if code != 0 {
		t.Fatalf("again: exit code %d:\n%s", code, out)
	}
	says(t, out, "holdfast join cloud.example.test:10350 --token ", "--ca-hash "+ca.Hash())
	if got := b.systemctl(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "restart") }) {
		t.Errorf("systemctl was told %q: a restart for nothing", got)
	}
	tokens, err := cluster.ListTokens(ctx, client)
	must(t, err)
	if len(tokens) != 2 {
		t.Errorf("%d tokens after two inits, want 2", len(tokens))
	}

	b.tokens(token)

	code, out = holdfast(t, "", "reset", "--force", "--root", b.root, "--data-dir", b.cloudData())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	says(t, out, "every Device, DeviceModel and Route")
	wait(t, "devices are no kind of the cluster", func() bool { return !kinds() })
	wait(t, "the namespace is gone", func() bool {
		_, err := client.CoreV1().Namespaces().Get(ctx, cluster.Namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	roles, err := client.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{})
	must(t, err)
	if i := slices.IndexFunc(roles.Items, func(r rbacv1.ClusterRole) bool { return strings.HasPrefix(r.Name, "holdfast") }); i >= 0 {
		t.Errorf("ClusterRole %s is left", roles.Items[i].Name)
	}
	for _, path := range []string{b.cloudData(), b.cloudConfig(), filepath.Join(b.root, "etc/systemd/system/cloudcore.service")} {
		if there(path) {
			t.Errorf("%s is left", path)
		}
	}
	if !there(b.cluster.Kubeconfig()) {
		t.Error("the administrator's kubeconfig, which init did not make, is gone")
	}
}

// refusesALaxCluster: where every node may read every Secret, init stops.
func (b *cloudBox) refusesALaxCluster(ctx context.Context) {
	b.Helper()
	bindings := b.cluster.Client().RbacV1().ClusterRoleBindings()
	_, err := bindings.Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "lax"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:nodes"}},
	}, metav1.CreateOptions{})
	must(b.T, err)
	// The apiserver's authorizer follows within moments.
	var code int
	var out string
	wait(b.T, "init sees that nodes may do all", func() bool {
		code, out = holdfast(b.T, "", b.initArgs("--kubeconfig", b.cluster.Kubeconfig(), "--root", b.TempDir())...) // no systemd there: it never gets further
		return strings.Contains(out, "every Secret")
	})
	if code != 1 || there(b.cloudData()) {
		b.Errorf("exit code %d; the cluster was furnished:\n%s", code, out)
	}
	says(b.T, out, "--authorization-mode=Node,RBAC")
	must(b.T, bindings.Delete(ctx, "lax", metav1.DeleteOptions{}))
	wait(b.T, "nodes may not any more", func() bool {
		review, err := b.cluster.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:node:x", Groups: []string{"system:nodes"}, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "secrets", Namespace: "default", Name: "x"},
		}}, metav1.CreateOptions{})
		return err == nil && !review.Status.Allowed
	})
}

// cloudcoreIsNoAdministrator: the kubeconfig that cloudcore gets is its own, and
// grants no more than it needs.
func (b *cloudBox) cloudcoreIsNoAdministrator(ctx context.Context) {
	b.Helper()
	c, err := config.LoadCloud(b.cloudConfig())
	must(b.T, err)
	own, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	must(b.T, err)
	client, err := kubernetes.NewForConfig(own)
	must(b.T, err)
	me, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	must(b.T, err)
	if me.Status.UserInfo.Username != "system:serviceaccount:holdfast-system:cloudcore" {
		b.Errorf("cloudcore enters the cluster as %s", me.Status.UserInfo.Username)
	}
	if _, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
		b.Errorf("cloudcore may not list nodes: %v", err)
	}
	_, err = client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		b.Errorf("cloudcore may create pods: %v", err)
	}
	err = client.CoreV1().Secrets("default").Delete(ctx, "x", metav1.DeleteOptions{})
	if !apierrors.IsForbidden(err) {
		b.Errorf("cloudcore may delete Secrets: %v", err)
	}
}

// tokens tries the token commands; known is the id of one that there is.
func (b *cloudBox) tokens(known string) {
	b.Helper()
	code, out := holdfast(b.T, "", "token", "create", "--config", b.cloudConfig(), "--ttl", "1h", "--uses", "3", "--description", "for the shops")
	if code != 0 {
		b.Fatalf("token create: exit code %d:\n%s", code, out)
	}
	says(b.T, out, "holdfast join cloud.example.test:10350 --token ")
	made := regexp.MustCompile(`--token ([a-z0-9]{6})\.([a-z0-9]{16})`).FindStringSubmatch(out)
	code, out = holdfast(b.T, "", "token", "list", "--kubeconfig", b.cluster.Kubeconfig(), "--config", b.cloudConfig())
	if code != 0 {
		b.Errorf("token list: exit code %d", code)
	}
	says(b.T, out, known, made[1], "for the shops", "made by holdfast init")
	if strings.Contains(out, made[2]) {
		b.Error("token list shows a secret")
	}
	code, out = holdfast(b.T, "", "token", "delete", "--config", b.cloudConfig(), made[1]+"."+made[2])
	if code != 0 || strings.Contains(out, made[2]) {
		b.Errorf("token delete: exit code %d:\n%s", code, out)
	}
	code, out = holdfast(b.T, "", "token", "delete", "--config", b.cloudConfig(), made[1])
	if code != 1 {
		b.Errorf("token delete of one that is gone: exit code %d, want 1", code)
	}
	says(b.T, out, made[1], "holdfast token list")
	code, out = holdfast(b.T, "", "token", "create", "-q", "--config", b.cloudConfig())
	if code != 0 || !regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}\n$`).MatchString(out) {
		b.Errorf("token create -q: exit code %d:\n%s", code, out)
	}
}

func TestInitNamesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, b *box) []string
		say   []string
	}{
		{"port taken", func(t *testing.T, b *box) []string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			t.Cleanup(func() { l.Close() })
			return []string{"--listen", l.Addr().String()}
		}, []string{"ports", "is taken by another program", "--listen"}},
		{"no control plane program", func(t *testing.T, b *box) []string {
			must(t, os.RemoveAll(filepath.Join(b.bin, "controlplane")))
			return nil
		}, []string{"controlplane is neither in", "make build"}},
		{"no systemd", func(t *testing.T, b *box) []string {
			must(t, os.RemoveAll(filepath.Join(b.root, "run")))
			return nil
		}, []string{"systemd does not run", "--foreground"}},
		{"cluster out of reach", func(t *testing.T, b *box) []string {
			file := filepath.Join(filepath.Dir(b.root), "kubeconfig")
			write(t, file, `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], contexts: [{name: c, context: {cluster: c}}]}`, 0o600)
			return []string{"--kubeconfig", file}
		}, []string{"cluster", "127.0.0.1:1", "--kubeconfig"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t)
			args := append([]string{
				"init", "--root", b.root, "--bin-dir", b.bin, "--data-dir", b.data(), "--config", filepath.Join(b.dir, "cloudcore.yaml"),
				"--control-plane-dir", filepath.Join(b.dir, "cp"), "--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0",
				"--control-plane-listen", "127.0.0.1:0", "--advertise-address", "127.0.0.1",
			}, tt.spoil(t, b)...)
			code, out := holdfast(t, "", args...)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			says(t, out, append(tt.say, "[fail]")...)
			if there(b.dir) || len(b.systemctl()) > 0 {
				t.Error("a machine that is not ready was changed")
			}
		})
	}
}

func TestInitTellsWhyTheControlPlaneEnded(t *testing.T) {
	b := newBox(t)
	b.program("controlplane", `echo "controlplane: database /x/state.db is damaged" >&2; exit 1`)
	code, out := holdfast(t, "", "init", "--foreground", "--root", b.root, "--bin-dir", b.bin, "--data-dir", b.data(), "--config", filepath.Join(b.dir, "cloudcore.yaml"),
		"--control-plane-dir", filepath.Join(b.dir, "cp"), "--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--control-plane-listen", "127.0.0.1:0", "--advertise-address", "127.0.0.1")
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, "controlplane stopped (exit status 1)", "/x/state.db is damaged", "controlplane.log")
}
