package watch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/autonomy"
	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/tests/cluster"
)

// patience is for a loaded machine.
const patience = 2 * time.Minute

// site is a control plane, and a Cluster with cloudcore's real rights.
type site struct {
	plane  *cluster.Cluster
	admin  kubernetes.Interface
	config *rest.Config // cloudcore's
	watch  *Cluster
}

// TestAgainstARealApiserver shows cloud/watch and cloud/autonomy with a real
// control plane and their real rights. The parts share it.
func TestAgainstARealApiserver(t *testing.T) {
	s := newSite(t)
	t.Run("a node is told what it must hold, and nothing else is held", s.holds)
	t.Run("what nobody follows costs nothing", s.frees)
	t.Run("nothing is lost or made up in the bustle", s.bustle)
	t.Run("one hub keeps pods, and another when it dies", s.keeps)
	t.Run("an apiserver that starts again changes nothing", s.restarts)
}

func newSite(t testing.TB) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	plane, err := cluster.Start(ctx, cluster.Options{Dir: filepath.Join(t.TempDir(), "controlplane"), Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Kill(); err != nil {
			t.Log(err)
		}
	})
	rc, err := plane.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{plane: plane, admin: plane.Client()}
	in, err := install.New(rc)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := install.Objects(manifests.Files)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Apply(ctx, objects); err != nil {
		t.Fatal(err)
	}
	text, err := in.CloudKubeconfig(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.config, err = clientcmd.RESTConfigFromKubeConfig(text); err != nil {
		t.Fatal(err)
	}
	s.config.QPS = -1
	s.watch = s.open(t)
	return s
}

// open runs a Cluster until the test ends.
func (s *site) open(t testing.TB) *Cluster {
	t.Helper()
	c, err := New(Options{Client: s.client(t, s.config), AsNode: s.asNode(t), Metadata: s.metadata(t), Devices: s.devices(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, c)
	return c
}

func (s *site) run(t testing.TB, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the cluster is followed", func() error {
		if !c.Synced() {
			return fmt.Errorf("not yet")
		}
		return nil
	})
}

func (s *site) client(t testing.TB, rc *rest.Config) kubernetes.Interface {
	t.Helper()
	rc = rest.CopyConfig(rc)
	rc.ContentType = runtime.ContentTypeProtobuf
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) asNode(t testing.TB) kubernetes.Interface {
	t.Helper()
	c, err := asnode.NewClient(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) metadata(t testing.TB) metadata.Interface {
	t.Helper()
	c, err := metadata.NewForConfig(metadata.ConfigFor(s.config))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) devices(t testing.TB) *crd.Client {
	t.Helper()
	c, err := crd.New(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) node(t testing.TB, name string, labels map[string]string) {
	t.Helper()
	_, err := s.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// pod makes a pod that refers to a ConfigMap of the given name, if any.
func (s *site) pod(t testing.TB, name, node, configMap string) *corev1.Pod {
	t.Helper()
	off := false
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{NodeName: node, AutomountServiceAccountToken: &off,
			Containers: []corev1.Container{{Name: "main", Image: "example.test/till:1"}}},
	}
	if configMap != "" {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: configMap}}}}
	}
	made, err := s.admin.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (s *site) configMap(t testing.TB, name, value string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"value": value}}
	_, err := s.admin.CoreV1().ConfigMaps("default").Update(t.Context(), cm, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = s.admin.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) deletePod(t *testing.T, name string) {
	t.Helper()
	if err := s.admin.CoreV1().Pods("default").Delete(t.Context(), name, *metav1.NewDeleteOptions(0)); err != nil {
		t.Fatal(err)
	}
}

// names says what a node must hold.
func names(w *roster.Wanted) []string {
	var all []string
	for _, item := range w.Items {
		all = append(all, wire.Describe(item.Ref))
	}
	slices.Sort(all)
	return all
}

// wants resolves until ok says nil of what the node must hold.
func wants(t *testing.T, resolve func(context.Context) (*roster.Wanted, error), what string, ok func(*roster.Wanted) error) {
	t.Helper()
	eventually(t, what, func() error {
		w, err := resolve(t.Context())
		if w == nil {
			return fmt.Errorf("nothing is known: %w", err)
		}
		return ok(w)
	})
}

// holding is a condition for wants: so many objects, and these texts in their names.
func holding(n int, texts ...string) func(*roster.Wanted) error {
	return func(w *roster.Wanted) error {
		all := strings.Join(names(w), ", ")
		for _, text := range texts {
			if !strings.Contains(all, text) {
				return fmt.Errorf("no %s in %s", text, all)
			}
		}
		if len(w.Items) != n || !w.Complete() {
			return fmt.Errorf("want %d objects, all known: %s; unknown are %v", n, all, w.Unknown)
		}
		return nil
	}
}

func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
	}
}

func (s *site) holds(t *testing.T) {
	s.node(t, "holder", nil)
	s.node(t, "other", nil)
	s.configMap(t, "prices", "1")
	s.configMap(t, "unrelated", "1")
	s.pod(t, "mine", "holder", "prices")
	s.pod(t, "theirs", "other", "unrelated")
	if w, err := s.watch.Resolver("holder")(t.Context()); w != nil || err == nil {
		t.Errorf("of a node that nobody follows: %v, %v", w, err)
	}
	changed, stop := s.watch.Follow("holder")
	defer stop()
	if pods, err := s.watch.Pods("holder"); len(pods) > 0 || err != nil || s.watch.Node("holder") != nil {
		t.Errorf("before anything was read there are %v and %v, %v", pods, s.watch.Node("holder"), err)
	}
	resolve := s.watch.Resolver("holder")
	wants(t, resolve, "the pod and what it refers to", holding(3, "pod default/mine", "prices", "holder"))

	pods, err := s.watch.Pods("holder")
	if err != nil || len(pods) != 1 || pods[0].Spec.Containers[0].Image == "" || pods[0].Status.Phase != corev1.PodPending {
		t.Errorf("the pods of the node: %v, %v", pods, err)
	}
	if n := s.watch.Node("holder"); n == nil || n.UID == "" {
		t.Errorf("the node: %v", n)
	}
	if nodes, known, objects := s.watch.pods.size(); nodes != 1 || known != 1 || objects != 1 || s.watch.configMaps.size() != 1 || s.watch.secrets.size() != 0 {
		t.Errorf("held: %d nodes, %d known, %d pods, %d ConfigMaps, %d Secrets", nodes, known, objects, s.watch.configMaps.size(), s.watch.secrets.size())
	}

	version := func() (version string, err error) {
		w, err := resolve(t.Context())
		if w == nil {
			return "", err
		}
		for _, item := range w.Items {
			if item.Ref.GetKind() == wire.Kind_KIND_CONFIG_MAP {
				version = string(item.Ref.GetVersion())
			}
		}
		return version, err
	}
	count := func(n int) func() (bool, error) {
		return func() (bool, error) {
			w, err := resolve(t.Context())
			return err == nil && len(w.Items) == n, err
		}
	}
	before, err := version()
	if err != nil {
		t.Fatal(err)
	}
	s.configMap(t, "prices", "2")
	waitFor(t, "the new prices", changed, func() (bool, error) { now, err := version(); return now != before, err })
	if err := s.admin.CoreV1().ConfigMaps("default").Delete(t.Context(), "prices", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the prices", changed, func() (bool, error) { now, err := version(); return now == "", err })
	s.pod(t, "more", "holder", "")
	waitFor(t, "another pod", changed, count(3))
	s.deletePod(t, "mine")
	s.deletePod(t, "more")
	waitFor(t, "no pod", changed, count(1))
}

// waitFor looks at ok whenever a signal comes, and again when it failed.
func waitFor(t *testing.T, what string, changed <-chan struct{}, ok func() (bool, error)) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		is, err := ok()
		if is {
			return
		}
		again := tick.C
		if err == nil {
			again = nil
		}
		select {
		case <-changed:
		case <-again:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
	}
}

func (s *site) frees(t *testing.T) {
	nodes, _, objects := s.watch.pods.size()
	own, _, _ := s.watch.nodes.size()
	if n := nodes + objects + own + s.watch.configMaps.size() + s.watch.secrets.size() + len(s.watch.followers) + len(s.watch.shared); n != 0 {
		t.Errorf("%d nodes, %d pods, %d Nodes, %d ConfigMaps, %d Secrets, %d followers, %d shared remain",
			nodes, objects, own, s.watch.configMaps.size(), s.watch.secrets.size(), len(s.watch.followers), len(s.watch.shared))
	}
}

// bustle changes pods while followers come and go, then compares.
func (s *site) bustle(t *testing.T) {
	const nodes, changes = 5, 150
	for i := range nodes {
		s.node(t, fmt.Sprint("busy-", i), nil)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range nodes {
		all.Go(func() {
			node := fmt.Sprint("busy-", i)
			for ctx.Err() == nil {
				changed, stop := s.watch.Follow(node)
				resolve := s.watch.Resolver(node)
				for range 5 {
					if w, err := resolve(ctx); err == nil && w.Items == nil {
						t.Error("neither an error nor anything wanted")
					}
					select {
					case <-changed:
					case <-ctx.Done():
					}
				}
				stop()
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	here := map[string]bool{}
	for range changes {
		name := fmt.Sprint("busy-", r.IntN(12))
		switch {
		case !here[name]:
			s.pod(t, name, fmt.Sprint("busy-", r.IntN(nodes)), "")
			here[name] = true
		case r.IntN(2) == 0:
			s.deletePod(t, name)
			delete(here, name)
		default:
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{"n":"%d"}}}`, r.Int())
			if _, err := s.admin.CoreV1().Pods("default").Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Followers who wait for a change are let go by the end.
	stop()
	all.Wait()
	for i := range nodes {
		node := fmt.Sprint("busy-", i)
		_, stop := s.watch.Follow(node)
		defer stop()
		resolve := s.watch.Resolver(node)
		eventually(t, "what "+node+" must hold is the truth", func() error {
			w, err := resolve(t.Context())
			if err != nil {
				return err
			}
			return s.compare(t, node, w)
		})
	}
	for name := range here {
		s.deletePod(t, name)
	}
}

// compare says how what a node must hold differs from the apiserver's own answer.
func (s *site) compare(t *testing.T, node string, w *roster.Wanted) error {
	t.Helper()
	list, err := s.admin.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return err
	}
	want, got := map[string]string{}, map[string]string{}
	for i := range list.Items {
		item, err := roster.Pod(&list.Items[i])
		if err != nil {
			return err
		}
		want[item.Ref.GetUid()] = string(item.Ref.GetVersion())
	}
	for id, item := range w.Items {
		if id.Kind == wire.Kind_KIND_POD {
			got[id.UID] = string(item.Ref.GetVersion())
		}
	}
	if !maps.Equal(want, got) {
		return fmt.Errorf("node %s must hold %d pods, the apiserver has %d", node, len(got), len(want))
	}
	return nil
}

// keeps shows autonomy with two hubs, one of which dies without a word.
func (s *site) keeps(t *testing.T) {
	s.node(t, "edge-1", map[string]string{roster.LabelEdge: "true"})
	s.node(t, "no-edge", nil)
	s.pod(t, "before", "edge-1", "")
	s.pod(t, "foreign", "no-edge", "")
	first, dead := s.keeper(t, "hub-1")
	s.patched(t, "before", true)
	s.pod(t, "during", "edge-1", "")
	s.patched(t, "during", true)
	second, _ := s.keeper(t, "hub-2")
	if _, err := s.admin.CoreV1().Nodes().Patch(t.Context(), "edge-1", types.MergePatchType, []byte(`{"metadata":{"annotations":{"holdfast.io/autonomy":"off"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.patched(t, "before", false)
	s.patched(t, "during", false)
	if !leads(first) || leads(second) {
		t.Errorf("hub-1 leads: %v, hub-2 leads: %v", leads(first), leads(second))
	}

	dead.Store(true)
	if _, err := s.admin.CoreV1().Nodes().Patch(t.Context(), "edge-1", types.MergePatchType, []byte(`{"metadata":{"annotations":{"holdfast.io/autonomy":null}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.patched(t, "before", true)
	s.patched(t, "during", true)
	eventually(t, "hub-2 leads, and hub-1 knows it", func() error {
		if !leads(second) || leads(first) {
			return fmt.Errorf("hub-1 leads: %v, hub-2 leads: %v", leads(first), leads(second))
		}
		return nil
	})
	p, err := s.admin.CoreV1().Pods("default").Get(t.Context(), "foreign", metav1.GetOptions{})
	if err != nil || p.Annotations[roster.AnnotationTolerations] != "" {
		t.Errorf("a pod of a node that is no edge: %v, %v", p.Annotations, err)
	}
}

func leads(k *autonomy.Keeper) bool {
	var b strings.Builder
	k.WriteMetrics(&b)
	return strings.Contains(b.String(), "holdfast_hub_autonomy_leader 1")
}

// patched waits until a pod has, or has not, what autonomy gives it.
func (s *site) patched(t *testing.T, name string, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("autonomy of pod %s is %v", name, want), func() error {
		p, err := s.admin.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := p.Annotations[roster.AnnotationTolerations] != ""; got != want {
			return fmt.Errorf("tolerations are %v", p.Spec.Tolerations)
		}
		return nil
	})
}

// keeper runs a hub's autonomy; once dead is true it reaches the apiserver no more.
func (s *site) keeper(t *testing.T, hub string) (k *autonomy.Keeper, dead *atomic.Bool) {
	t.Helper()
	dead = new(atomic.Bool)
	rc := rest.CopyConfig(s.config)
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if dead.Load() {
				return nil, fmt.Errorf("%s is dead", hub)
			}
			return next.RoundTrip(r)
		})
	})
	client := s.client(t, rc)
	c, err := New(Options{Client: client, AsNode: s.asNode(t), Metadata: s.metadata(t), Devices: s.devices(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	k = autonomy.New(autonomy.Options{Client: client, Cluster: c, Log: slog.New(slog.DiscardHandler), Hub: hub,
		Timing: autonomy.Timing{Lease: 4 * time.Second, Renew: 3 * time.Second, Retry: time.Second}})
	s.run(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k, dead
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// restarts kills the apiserver under a follower.
func (s *site) restarts(t *testing.T) {
	s.node(t, "steady", nil)
	s.configMap(t, "lasting", "1")
	s.pod(t, "steady", "steady", "lasting")
	_, stop := s.watch.Follow("steady")
	defer stop()
	resolve := s.watch.Resolver("steady")
	wants(t, resolve, "the pod", holding(3, "pod default/steady", "lasting"))
	if err := s.plane.Kill(); err != nil {
		t.Fatal(err)
	}
	// What is known stays known, also to a resolver that reads anew.
	wants(t, resolve, "what is known", holding(3, "pod default/steady", "lasting"))
	_, stopElsewhere := s.watch.Follow("elsewhere")
	if w, err := s.watch.Resolver("elsewhere")(t.Context()); w != nil || err == nil {
		t.Errorf("without an apiserver: %v, %v", w, err)
	}
	stopElsewhere()
	if err := s.plane.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.admin = s.plane.Client()
	wants(t, resolve, "what is known", holding(3, "pod default/steady", "lasting"))
	s.pod(t, "after", "steady", "")
	wants(t, resolve, "what came after", holding(4, "pod default/after", "pod default/steady", "lasting"))
	if err := s.admin.CoreV1().ConfigMaps("default").Delete(t.Context(), "lasting", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wants(t, resolve, "what is gone after", holding(3, "pod default/after", "pod default/steady"))
	// Not each stream: one whose end arrives late may find the apiserver back already.
	if !slices.ContainsFunc(s.watch.streams, func(one *stream) bool { return one.interrupts.Load() > 0 }) {
		t.Error("the apiserver was away, and nobody noticed")
	}
	var b strings.Builder
	s.watch.WriteMetrics(&b)
	for _, line := range []string{"holdfast_hub_watch_followed_nodes 1", `holdfast_hub_watch_objects{kind="pods"} 2`, `holdfast_hub_watch_up{kind="secrets"} 1`} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
}
