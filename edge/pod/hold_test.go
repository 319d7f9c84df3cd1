package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// attempts are those at what first failed.
type attempts struct {
	mu   sync.Mutex
	what string
	at   []time.Duration
}

// failing lets every call of that name fail.
func (n *fakeNode) failing(call string) *attempts {
	a := &attempts{}
	n.fake.Fail(call, func(_ context.Context, what string) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.at) == 0 || call == "StartContainer" { // each start is one of another container
			a.what = what
		}
		if what == a.what {
			a.at = append(a.at, n.clock.Mono())
		}
		return errors.New("device or resource busy")
	})
	return a
}

// heldBack waits for four attempts, time passing quickly, and checks that each waited longer than the one before.
func (a *attempts) heldBack(n *fakeNode) {
	n.t.Helper()
	n.await("four attempts", func() error {
		n.pass(time.Minute)
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.at) < 4 {
			return fmt.Errorf("%d so far", len(a.at))
		}
		return nil
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range 3 {
		if gap, least := a.at[i+1]-a.at[i], retryFirst<<i; gap < least {
			n.t.Errorf("attempt %d came %s after the one before, want at least %s", i+2, gap, least)
		}
	}
}

// TestStartThatFailsIsHeldBackAlsoWhenItsContainerIsRemoved: what a failed start leaves behind is removed at once,
// and that this works says nothing of the next start.
func TestStartThatFailsIsHeldBackAlsoWhenItsContainerIsRemoved(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	starts := n.failing("StartContainer")
	n.apply(busyboxPod("web", ""))
	starts.heldBack(n)
}

func TestRemovalThatFailsIsHeldBack(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	removals := n.failing("RemoveContainer")
	for i := range int32(3) {
		n.fake.Exit(string(p.UID), "main", 1)
		n.await("restart", func() error {
			n.pass(time.Minute)
			if s := n.status(p.UID); !ready(s) || s.ContainerStatuses[0].RestartCount != i+1 {
				return errStill
			}
			return nil
		})
	}
	removals.heldBack(n)
}

func TestSandboxThatCannotBeStoppedIsHeldBack(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}} // must be free before the next
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	n.await("at rest", func() error { return n.settled(p) })
	n.halt()
	n.fake.Reboot()
	stops := n.failing("StopSandbox")
	n.start()
	stops.heldBack(n)
	n.fake.Fail("StopSandbox", nil)
	n.await("restart", func() error {
		n.pass(time.Minute)
		if s := n.status(p.UID); !ready(s) || s.ContainerStatuses[0].RestartCount != 1 {
			return errStill
		}
		return nil
	})
}

// TestTokenOfAPodThatHasEndedIsNotLookedAtForEver: its time comes, and nobody reads it any more.
func TestTokenOfAPodThatHasEndedIsNotLookedAtForEver(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	n.online.Store(true)
	p := busyboxPod("job", "")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}}
	n.apply(p)
	n.awaitStatus(p, "ready", ready)
	due := func() (at, now time.Duration) {
		w := n.manager.existing(string(p.UID))
		n.await("at rest", func() error { return n.settled(p) })
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.tokensDue, n.clock.Mono()
	}
	if at, now := due(); at <= now {
		t.Fatalf("the token of a pod that runs is due at %s, and it is %s", at, now)
	}
	n.fake.Exit(string(p.UID), "main", 0)
	n.awaitStatus(p, "succeeded", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	n.pass(2 * time.Hour)
	if at, _ := due(); at != 0 {
		t.Errorf("the token of a pod that has ended is due at %s", at)
	}
}

// TestPodThatCannotBeReadRunsOn: what edgecore does not understand is not what nobody wants.
func TestPodThatCannotBeReadRunsOn(t *testing.T) {
	n := newFakeNode(t, image.BusyboxName)
	p := busyboxPod("web", "")
	n.apply(p)
	before := n.awaitStatus(p, "ready", ready)
	n.await("at rest", func() error { return n.settled(p) })
	n.halt()
	torn := []byte{0xff, 0xff, 0xff}
	must(t, n.store.Apply(t.Context(), []*wire.Object{{Payload: torn, Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD,
		Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID), Version: wire.Version(torn)}}}, nil))
	must(t, n.store.MarkSynced(t.Context()))
	n.start()
	other := busyboxPod("other", "")
	n.apply(other)
	n.awaitStatus(other, "ready", ready)
	n.manager.relist(t.Context())
	n.apply(p)
	n.await("taken over", func() error { return n.settled(p) })
	after := n.status(p.UID)
	if !ready(after) || after.ContainerStatuses[0].ContainerID != before.ContainerStatuses[0].ContainerID || after.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the pod is %v, want it as it was", after)
	}
	if calls := n.fake.Calls(); calls["StopContainer"] != 0 || calls["RunSandbox"] != 2 {
		t.Errorf("calls: %v, want nothing stopped and one sandbox for each pod", calls)
	}
}
