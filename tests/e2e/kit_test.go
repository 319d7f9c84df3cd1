package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// patience bounds every wait. It only ends a test that has failed.
const patience = 3 * time.Minute

// shared is the one cloud of this package; every test has nodes and a namespace
// of its own in it.
var shared = sync.OnceValues(func() (*world.World, error) {
	return world.New(context.Background(), world.Options{})
})

// scene is what one test works with.
type scene struct {
	*testing.T
	ctx    context.Context
	world  *world.World
	client kubernetes.Interface
	ns     string
}

// newScene gives a test its namespace, named after it.
func newScene(t *testing.T) *scene {
	t.Helper()
	w, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t, ctx: t.Context(), world: w, client: w.Client()}
	ns, err := s.client.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.ns = ns.Name
	s.until("the namespace has its service account", func(ctx context.Context) (bool, error) {
		_, err := s.client.CoreV1().ServiceAccounts(s.ns).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
	return s
}

// node adds a node with a name of its own to the shared cloud.
func (s *scene) node(name string, o world.NodeOptions) *world.Node {
	s.Helper()
	n, err := s.world.AddNode(s.ctx, name, o)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.dumpOnFailure(n) })
	return n
}

// dumpOnFailure prints the end of edgecore's log when the test failed.
func (s *scene) dumpOnFailure(n *world.Node) {
	if !s.Failed() {
		return
	}
	for _, log := range []string{"join.log", "edgecore.log"} {
		b, err := os.ReadFile(filepath.Join(s.world.Dir, n.Name, log))
		if err != nil {
			continue
		}
		lines := strings.Split(string(b), "\n")
		if len(lines) > 60 {
			lines = lines[len(lines)-60:]
		}
		s.Logf("%s of node %s:\n%s", log, n.Name, strings.Join(lines, "\n"))
	}
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// until waits for a condition and fails the test when it does not come.
func (s *scene) until(what string, done func(context.Context) (bool, error)) {
	s.Helper()
	if err := world.Eventually(s.ctx, patience, what, done); err != nil {
		s.Fatal(err)
	}
}

// pod is a pod bound to the node that sleeps, for change to make something of.
func (s *scene) pod(name string, node *world.Node, change func(*corev1.Pod)) *corev1.Pod {
	grace := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.ns},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"kubernetes.io/hostname": node.Name},
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: world.BusyboxImage, Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"},
			}},
		},
	}
	if change != nil {
		change(p)
	}
	return p
}

// run creates a pod and waits until it is Ready.
func (s *scene) run(name string, node *world.Node, change func(*corev1.Pod)) *corev1.Pod {
	s.Helper()
	s.create(s.pod(name, node, change))
	return s.ready(name)
}

func (s *scene) create(p *corev1.Pod) *corev1.Pod {
	s.Helper()
	made, err := s.client.CoreV1().Pods(s.ns).Create(s.ctx, p, metav1.CreateOptions{})
	s.must(err)
	return made
}

func (s *scene) get(name string) *corev1.Pod {
	s.Helper()
	p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	s.must(err)
	return p
}

// when waits until the pod fulfils cond, and returns it as it then is.
func (s *scene) when(name, what string, cond func(*corev1.Pod) bool) *corev1.Pod {
	s.Helper()
	var last *corev1.Pod
	err := world.Eventually(s.ctx, patience, fmt.Sprintf("pod %s: %s", name, what), func(ctx context.Context) (bool, error) {
		p, err := s.client.CoreV1().Pods(s.ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		last = p
		return cond(p), nil
	})
	if err != nil {
		if last != nil {
			s.Fatalf("%v; its status: %s", err, last.Status.String())
		}
		s.Fatal(err)
	}
	return last
}

func (s *scene) ready(name string) *corev1.Pod {
	s.Helper()
	return s.when(name, "Ready", world.PodReady)
}

// readyAfter waits until the pod is Ready and its first container was restarted n times.
func (s *scene) readyAfter(name string, n int32) *corev1.Pod {
	s.Helper()
	return s.when(name, fmt.Sprintf("Ready after %d restarts", n), func(p *corev1.Pod) bool {
		return world.PodReady(p) && p.Status.ContainerStatuses[0].RestartCount == n
	})
}

func (s *scene) delete(name string) {
	s.Helper()
	s.must(s.client.CoreV1().Pods(s.ns).Delete(s.ctx, name, metav1.DeleteOptions{}))
}

func (s *scene) gone(name string) {
	s.Helper()
	s.until("pod "+name+" is gone", func(ctx context.Context) (bool, error) {
		_, err := s.client.CoreV1().Pods(s.ns).Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

// running maps "pod/container" to the running container, for this test's namespace.
func (s *scene) running(n *world.Node) map[string]world.Running {
	s.Helper()
	all, err := n.Running(s.ctx)
	s.must(err)
	byName := map[string]world.Running{}
	for _, c := range all {
		if c.Namespace == s.ns {
			byName[c.Pod+"/"+c.Name] = c
		}
	}
	return byName
}

// log waits until the container's log ends with a line that contains text.
func (s *scene) log(n *world.Node, pod, container, text string) {
	s.Helper()
	var last string
	err := world.Eventually(s.ctx, patience, fmt.Sprintf("log of %s/%s says %q", pod, container, text), func(context.Context) (bool, error) {
		var err error
		last, err = n.PodLog(s.ns, pod, container)
		return strings.Contains(last, text), err
	})
	if err != nil {
		s.Fatalf("%v; its last line: %q", err, last)
	}
}

// nodeTurns waits for a status of the node's Ready condition.
func (s *scene) nodeTurns(n *world.Node, want corev1.ConditionStatus) {
	s.Helper()
	s.until("node "+n.Name+" Ready="+string(want), func(ctx context.Context) (bool, error) {
		node, err := s.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return world.NodeReady(node) == want, nil
	})
}

func shell(script string) []string { return []string{"sh", "-c", script} }

// within is the same scene for a subtest.
func (s *scene) within(t *testing.T) *scene {
	inner := *s
	inner.T, inner.ctx = t, t.Context()
	return &inner
}

func readFile(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
