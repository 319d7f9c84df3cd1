// Package scene is what a story on real parts is told with: a cloud that the
// tests of a package share, a namespace and nodes for each test, and waits that
// say what did not come. tests/e2e and tests/chaos use it; it asserts only what
// its callers ask for.
package scene

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

// Patience bounds every wait. It only ends a test that has failed.
const Patience = 8 * time.Minute

// shared is the one cloud of this package; every test has nodes and a namespace
// of its own in it.
var shared = sync.OnceValues(func() (*world.World, error) {
	return world.New(context.Background(), world.Options{})
})

// World is the cloud that the tests of this package share.
func World() (*world.World, error) { return shared() }

// Scene is what one test works with.
type Scene struct {
	*testing.T
	Ctx    context.Context
	World  *world.World
	Client kubernetes.Interface
	NS     string // a namespace of its own
}

// New gives a test its namespace, named after it.
func New(t *testing.T) *Scene {
	t.Helper()
	w, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	s := &Scene{T: t, Ctx: t.Context(), World: w, Client: w.Client()}
	ns, err := s.Client.CoreV1().Namespaces().Create(s.Ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.NS = ns.Name
	s.Until("the namespace has its service account", func(ctx context.Context) (bool, error) {
		_, err := s.Client.CoreV1().ServiceAccounts(s.NS).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
	return s
}

// Node adds a node with a name of its own to the shared cloud.
func (s *Scene) Node(name string, o world.NodeOptions) *world.Node {
	s.Helper()
	n, err := s.World.AddNode(s.Ctx, name, o)
	if err != nil {
		s.Fatal(err)
	}
	s.Watch(n)
	return n
}

// Watch makes a failure of this test show what the node has said.
func (s *Scene) Watch(n *world.Node) { s.Cleanup(func() { s.dumpOnFailure(n) }) }

// dumpOnFailure prints the end of edgecore's log when the test failed.
func (s *Scene) dumpOnFailure(n *world.Node) {
	if !s.Failed() {
		return
	}
	for _, log := range []string{"join.log", "edgecore.log", "data/edgecore.log"} {
		b, err := os.ReadFile(filepath.Join(s.World.Dir, n.Name, log))
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

// Must fails the test on an error.
func (s *Scene) Must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// Until waits for a condition and fails the test when it does not come.
func (s *Scene) Until(what string, done func(context.Context) (bool, error)) {
	s.Helper()
	if err := world.Eventually(s.Ctx, Patience, what, done); err != nil {
		s.Fatal(err)
	}
}

// Pod is a pod bound to the node that sleeps, for change to make something of.
func (s *Scene) Pod(name string, node *world.Node, change func(*corev1.Pod)) *corev1.Pod {
	grace := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.NS},
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

// Start creates a pod and waits until it is Ready.
func (s *Scene) Start(name string, node *world.Node, change func(*corev1.Pod)) *corev1.Pod {
	s.Helper()
	s.Create(s.Pod(name, node, change))
	return s.Ready(name)
}

// Create creates a pod.
func (s *Scene) Create(p *corev1.Pod) *corev1.Pod {
	s.Helper()
	made, err := s.Client.CoreV1().Pods(s.NS).Create(s.Ctx, p, metav1.CreateOptions{})
	s.Must(err)
	return made
}

// Get reads a pod.
func (s *Scene) Get(name string) *corev1.Pod {
	s.Helper()
	p, err := s.Client.CoreV1().Pods(s.NS).Get(s.Ctx, name, metav1.GetOptions{})
	s.Must(err)
	return p
}

// When waits until the pod fulfils cond, and returns it as it then is.
func (s *Scene) When(name, what string, cond func(*corev1.Pod) bool) *corev1.Pod {
	s.Helper()
	var last *corev1.Pod
	err := world.Eventually(s.Ctx, Patience, fmt.Sprintf("pod %s: %s", name, what), func(ctx context.Context) (bool, error) {
		p, err := s.Client.CoreV1().Pods(s.NS).Get(ctx, name, metav1.GetOptions{})
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

// Ready waits until the pod is Ready.
func (s *Scene) Ready(name string) *corev1.Pod {
	s.Helper()
	return s.When(name, "Ready", world.PodReady)
}

// ReadyAfter waits until the pod is Ready and its first container was restarted n times.
func (s *Scene) ReadyAfter(name string, n int32) *corev1.Pod {
	s.Helper()
	return s.When(name, fmt.Sprintf("Ready after %d restarts", n), func(p *corev1.Pod) bool {
		return world.PodReady(p) && p.Status.ContainerStatuses[0].RestartCount == n
	})
}

// Delete deletes a pod with its own grace.
func (s *Scene) Delete(name string) {
	s.Helper()
	s.Must(s.Client.CoreV1().Pods(s.NS).Delete(s.Ctx, name, metav1.DeleteOptions{}))
}

// Gone waits until the pod is no more.
func (s *Scene) Gone(name string) {
	s.Helper()
	s.Until("pod "+name+" is gone", func(ctx context.Context) (bool, error) {
		_, err := s.Client.CoreV1().Pods(s.NS).Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

// Running maps "pod/container" to the running container, for this test's namespace.
func (s *Scene) Running(n *world.Node) map[string]world.Running {
	s.Helper()
	all, err := n.Running(s.Ctx)
	s.Must(err)
	byName := map[string]world.Running{}
	for _, c := range all {
		if c.Namespace == s.NS {
			byName[c.Pod+"/"+c.Name] = c
		}
	}
	return byName
}

// LogEnds waits until the container's log ends with a line that contains text.
func (s *Scene) LogEnds(n *world.Node, pod, container, text string) {
	s.Helper()
	var last string
	err := world.Eventually(s.Ctx, Patience, fmt.Sprintf("log of %s/%s says %q", pod, container, text), func(context.Context) (bool, error) {
		var err error
		last, err = n.PodLog(s.NS, pod, container)
		return strings.Contains(last, text), err
	})
	if err != nil {
		s.Fatalf("%v; its last line: %q", err, last)
	}
}

// NodeTurns waits for a status of the node's Ready condition.
func (s *Scene) NodeTurns(n *world.Node, want corev1.ConditionStatus) {
	s.Helper()
	s.Until("node "+n.Name+" Ready="+string(want), func(ctx context.Context) (bool, error) {
		node, err := s.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return world.NodeReady(node) == want, nil
	})
}

// Shell is a command of one script.
func Shell(script string) []string { return []string{"sh", "-c", script} }

// Within is the same scene for a subtest.
func (s *Scene) Within(t *testing.T) *Scene {
	inner := *s
	inner.T, inner.Ctx = t, t.Context()
	return &inner
}

// ReadFile is a file's content.
func ReadFile(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
