package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/runtime/runtimetest"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/volume"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// leapClock is a clock that a test moves; a worker that waits for it is woken with nudge.
type leapClock struct {
	start time.Time
	leap  atomic.Int64
	boot  atomic.Pointer[string]
}

func newLeapClock() *leapClock {
	c := &leapClock{start: time.Now()}
	boot := "boot-1"
	c.boot.Store(&boot)
	return c
}

func (c *leapClock) Mono() time.Duration {
	return time.Hour + time.Since(c.start) + time.Duration(c.leap.Load())
}
func (c *leapClock) Wall() time.Time { return time.Now() }
func (c *leapClock) Boot() string    { return *c.boot.Load() }

// fakeNode is a node whose runtime is in memory.
type fakeNode struct {
	*node
	fake  *runtimetest.Runtime
	clock *leapClock
}

func newFakeNode(t *testing.T, images ...string) *fakeNode {
	t.Helper()
	n := &fakeNode{node: &node{t: t, dir: t.TempDir()}, fake: runtimetest.New(images...), clock: newLeapClock()}
	var err error
	n.store, err = store.Open(filepath.Join(n.dir, "store.db"), store.Options{})
	must(t, err)
	t.Cleanup(func() { n.store.Close() })
	n.start()
	t.Cleanup(n.halt)
	return n
}

func (n *fakeNode) start() {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{n.t}, nil))
	tokens := NewTokens(n.store, n.askToken, n.clock)
	var err error
	n.manager, err = New(Options{
		Store: n.store, Runtime: n.fake, Log: log, Clock: n.clock, Tokens: tokens, NodeName: "edge-1", DataDir: n.dir,
		Volumes:    volume.New(filepath.Join(n.dir, "pods"), sources{n.store, tokens}, log),
		PodLogsDir: filepath.Join(n.dir, "logs"), Online: n.online.Load,
	})
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan error, 1)
	go func() { n.ended <- n.manager.Run(ctx) }()
}

func (n *fakeNode) halt() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.ended; !errors.Is(err, context.Canceled) {
		n.t.Errorf("the manager ended with %v", err)
	}
	n.cancel = nil
}

// pass lets time pass for the workers.
func (n *fakeNode) pass(d time.Duration) {
	n.clock.leap.Add(int64(d))
	for _, w := range n.manager.all() {
		w.tell(func(in *inbox) { in.tick = true })
	}
}

func waitsFor(reason string) func(*corev1.PodStatus) bool {
	return func(s *corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == reason
	}
}

func TestPullThatFailsIsHeldBackAndTriedAgain(t *testing.T) {
	n := newFakeNode(t)
	n.online.Store(true)
	first, second := make(chan time.Duration, 1), make(chan time.Duration, 1)
	n.fake.Fail("Pull", func(context.Context, string) error {
		select {
		case first <- n.clock.Mono():
		default:
			select {
			case second <- n.clock.Mono():
			default:
			}
		}
		return runtime.ErrImageNotFound
	})
	p := busyboxPod("pull", "")
	n.apply(p)
	n.awaitStatus(p, "error", func(s *corev1.PodStatus) bool {
		return waitsFor("ErrImagePull")(s) || waitsFor("ImagePullBackOff")(s)
	})
	n.awaitStatus(p, "back-off", waitsFor("ImagePullBackOff"))
	n.await("second pull", func() error {
		n.pass(time.Second)
		if len(second) == 0 {
			return errStill
		}
		return nil
	})
	if gap := <-second - <-first; gap < pullFirst {
		t.Errorf("pulled again after %s, want %s at least", gap, pullFirst)
	}
	n.awaitStatus(p, "longer back-off", waitsFor("ImagePullBackOff"))
	n.fake.Fail("Pull", nil)
	n.await("ready", func() error {
		n.pass(30 * time.Second)
		if s := n.status(p.UID); s == nil || !ready(s) {
			return errStill
		}
		return nil
	})
	n.awaitEvents(p, "Pulling", "Pulled", "Failed", "BackOff", "Created", "Started")
}

func TestPresentImageIsUsedWhenItsRegistryFails(t *testing.T) {
	for name, set := range map[string]func(*fakeNode){
		"offline":     func(n *fakeNode) { n.online.Store(false) },
		"unreachable": func(n *fakeNode) { n.fake.SetReachable(false) },
		"refusing":    func(*fakeNode) {},
	} {
		t.Run(name, func(t *testing.T) {
			n := newFakeNode(t, image.BusyboxName)
			n.online.Store(true)
			n.fake.Fail("Pull", func(context.Context, string) error { return runtime.ErrUnauthorized })
			set(n)
			p := busyboxPod("always", "")
			p.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
			n.apply(p)
			n.awaitStatus(p, "ready", ready)
			if got := n.fake.Calls()["Pull"]; name != "refusing" && got != 0 {
				t.Errorf("pulled %d times, want never", got)
			}
		})
	}
}

func TestDeletionEndsAPullThatHangs(t *testing.T) {
	n := newFakeNode(t)
	n.online.Store(true)
	n.fake.Fail("Pull", func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
	p := busyboxPod("hang", "")
	n.apply(p)
	n.await("pulling", func() error {
		if n.fake.Calls()["Pull"] == 0 {
			return errStill
		}
		return nil
	})
	n.remove(p)
	n.await("gone", func() error {
		if len(n.manager.Snapshot()) > 0 {
			return errStill
		}
		return nil
	})
}

func TestRuntimeThatDoesNotAnswerIsWaitedFor(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	s := n.awaitStatus(p, "ready", ready)
	n.fake.Fail("Inspect", func(context.Context, string) error { return runtime.ErrUnavailable })
	n.fake.Exit(string(p.UID), "main", 1)
	calls := n.fake.Calls()["Inspect"]
	n.await("asked again", func() error {
		if n.fake.Calls()["Inspect"] < calls+2 {
			return errStill
		}
		return nil
	})
	if got := n.status(p.UID); !ready(got) || got.ContainerStatuses[0].ContainerID != s.ContainerStatuses[0].ContainerID {
		t.Errorf("while the runtime does not answer: %v, want what was known last", got)
	}
	n.fake.Fail("Inspect", nil)
	n.awaitStatus(p, "restarted", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
}

// TestDeletedPodThatIsLongGoneKeepsItsLastStatus: the apiserver may keep a pod for its finalizers; a node that
// comes up again and knows nothing of it must not say that it failed.
func TestDeletedPodThatIsLongGoneKeepsItsLastStatus(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("job", "")
	now := metav1.Now()
	p.DeletionTimestamp = &now
	n.apply(p)
	n.await("gone", func() error {
		if !n.gone(p.UID) {
			return errStill
		}
		return nil
	})
	if s := n.status(p.UID); s != nil {
		t.Errorf("a status was reported: %v", s)
	}
}

func TestPodThatNeverStartedIsFoundAfterACrash(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	n.fake.Fail("RunSandbox", func(context.Context, string) error { return runtime.ErrUnavailable })
	p := busyboxPod("web", "")
	n.apply(p)
	n.await("a record before the first sandbox", func() error {
		_, err := n.store.PodState(t.Context(), string(p.UID))
		return err
	})
	n.halt()
	n.remove(p)
	n.start()
	n.await("cleared away", func() error {
		if _, err := n.store.PodState(t.Context(), string(p.UID)); !errors.Is(err, store.ErrNotFound) {
			return errStill
		}
		if _, err := os.Stat(filepath.Join(n.dir, "pods", string(p.UID))); !os.IsNotExist(err) {
			return errStill
		}
		return nil
	})
}

func TestIdlePodsCostNoCalls(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	var pods []*corev1.Pod
	for i := range 10 {
		p := busyboxPod(fmt.Sprintf("idle-%d", i), "")
		pods = append(pods, p)
		n.apply(p)
	}
	for _, p := range pods {
		n.awaitStatus(p, "ready", ready)
	}
	for _, p := range pods {
		n.await("at rest", func() error { return n.settled(p) })
	}
	before := n.fake.Calls()
	n.manager.relist(t.Context())
	for _, p := range pods {
		n.await("at rest", func() error { return n.settled(p) })
	}
	after := n.fake.Calls()
	for call, count := range after {
		if call != "List" && count != before[call] {
			t.Errorf("%s was called %d times by pods at rest", call, count-before[call])
		}
	}
}

// TestCountsSurviveALostRuntimeAndALostStore: whichever still knows tells how often a container was started.
func TestCountsSurviveALostRuntimeAndALostStore(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	n.fake.Exit(string(p.UID), "main", 1)
	n.awaitStatus(p, "restarted", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	n.await("at rest", func() error { return n.settled(p) })
	n.halt()
	n.fake = runtimetest.New(image.BusyboxName)
	n.start()
	n.awaitStatus(p, "the store knew", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 2 })
	n.await("at rest", func() error { return n.settled(p) })
	n.halt()
	must(t, n.store.DeletePodState(t.Context(), string(p.UID)))
	n.fake.Reboot()
	n.start()
	n.awaitStatus(p, "the runtime knew", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 3 })
}

func TestDeadlineEndsThePodAlsoAcrossReboots(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("short", "")
	limit := int64(600)
	p.Spec.ActiveDeadlineSeconds = &limit
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	n.pass(400 * time.Second)
	n.await("at rest", func() error { return n.settled(p) })
	n.halt()
	n.fake.Reboot()
	boot := "boot-2"
	n.clock.boot.Store(&boot)
	n.start()
	n.awaitStatus(p, "back", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount == 1 })
	n.pass(300 * time.Second)
	s := n.awaitStatus(p, "ended", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	if s.Reason != "DeadlineExceeded" {
		t.Errorf("reason %q", s.Reason)
	}
}

// TestTimeCountsAlsoWhenThePowerIsCut: how long a pod has run is kept now and then, not only when it has news.
func TestTimeCountsAlsoWhenThePowerIsCut(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("short", "")
	limit := int64(24 * 3600)
	p.Spec.ActiveDeadlineSeconds = &limit
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	for _, passed := range []time.Duration{time.Minute, time.Hour, 2 * time.Hour} { // the first saves what is new
		n.pass(time.Hour)
		n.await("at rest", func() error { return n.settled(p) })
		b, err := n.store.PodState(t.Context(), string(p.UID))
		must(t, err)
		r, err := readRecord(string(p.UID), b, n.clock)
		must(t, err)
		if got := r.Mark - r.Since; got < passed {
			t.Errorf("%s are remembered, want %s at least", got, passed)
		}
	}
}
