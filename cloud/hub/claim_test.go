package hub_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/wire"
)

func status() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "p", UID: "u"}}
}

// TestReportsWaitForTheClaimAndDeliveriesDoNot: the apiserver refuses the claim a
// few times, and then takes its time.
func TestReportsWaitForTheClaimAndDeliveriesDoNot(t *testing.T) {
	r := newRig(t, func(o *hub.Options) { o.Timing.Retry = time.Millisecond })
	gate := make(chan struct{})
	var attempts atomic.Int64
	r.reports.claims = func(ctx context.Context, _ string) (report.Epoch, error) {
		if attempts.Add(1) < 4 {
			return 0, errors.New("the apiserver is away")
		}
		select {
		case <-gate:
			return 7, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	r.cluster.want("till", podItem(t, "a", 1))
	e := r.edge(t, "till", "disk")
	e.Connect()
	e.Wait("Welcome", welcomed)
	if !e.Seen().Welcome.ClaimFollows {
		t.Error("the edge is not told to wait with its reports")
	}
	sent := e.Send(wire.ReportKind_REPORT_POD_STATUS, status())
	e.WaitObjects("its pod", edgetest.Has("pod/d/p-a"))
	e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced == 1 })
	r.reports.mu.Lock()
	if len(r.reports.written) > 0 {
		t.Error("a report was written before the node was claimed")
	}
	r.reports.mu.Unlock()
	if e.Seen().Claimed > 0 {
		t.Error("the edge is told of a claim that does not stand")
	}
	close(gate)
	if got := e.Result(sent); got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("the report that waited: %v", got)
	}
	if n := e.Seen().Claimed; n != 1 {
		t.Errorf("the edge is told of its claim %d times", n)
	}
	if claimed, failed := r.figure(t, `holdfast_hub_claims_total{result="claimed"}`), r.figure(t, `holdfast_hub_claims_total{result="failed"}`); claimed != 1 || failed != 3 {
		t.Errorf("the metrics tell of %d claims and %d failures", claimed, failed)
	}
}

func TestASessionThatIsFencedEnds(t *testing.T) {
	r := newRig(t)
	r.reports.fenced = map[string]bool{"till": true}
	e := r.edge(t, "till", "disk")
	e.Connect()
	e.Wait("the claim", func(s edgetest.Seen) bool { return s.Claimed == 1 })
	sent := e.Send(wire.ReportKind_REPORT_POD_STATUS, status())
	e.Wait("Goodbye", parted)
	if g := e.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_REPLACED {
		t.Errorf("told: %v", g)
	}
	// What was not written was not answered either: the edge keeps it.
	r.reports.mu.Lock()
	r.reports.fenced = nil
	r.reports.mu.Unlock()
	e.Connect()
	e.Wait("the next claim", func(s edgetest.Seen) bool { return s.Claimed == 1 })
	again := e.Send(wire.ReportKind_REPORT_POD_STATUS, status())
	if got := e.Result(again); again == sent || got.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("in the next session: %v", got)
	}
}

func TestAnotherMachineAtAnotherHubIsADuplicate(t *testing.T) {
	r := newRig(t)
	r.reports.claims = func(_ context.Context, node string) (report.Epoch, error) {
		return 0, &report.HeldError{Node: node, Hub: "north"}
	}
	e := r.edge(t, "till", "disk")
	e.Connect()
	e.Wait("Goodbye", parted)
	if g := e.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_DUPLICATE || !strings.Contains(g.Message, "hub north") || !strings.Contains(g.Message, "holdfast reset") {
		t.Errorf("told: %v", g)
	}
}

func TestARevokedNodeIsPutOutAndKeptOut(t *testing.T) {
	var void atomic.Int64 // certificates until then, in seconds
	r := newRig(t, func(o *hub.Options) {
		o.Admit = func(_ string, issued time.Time) error {
			if issued.Unix() <= void.Load() {
				return errors.New("its certificate was revoked")
			}
			return nil
		}
	})
	thief, other := r.edge(t, "thief", "1"), r.edge(t, "other", "2")
	for _, e := range []*edgetest.Edge{thief, other} {
		e.Connect()
		e.Wait("Welcome", welcomed)
	}
	r.hub.Revoke("thief", time.Unix(1, 0)) // an older certificate of the same name
	r.hub.Revoke("nobody", time.Now().Add(time.Hour))
	r.cluster.want("thief", podItem(t, "a", 1))
	thief.WaitObjects("its pod, still", edgetest.Has("pod/d/p-a"))

	void.Store(time.Now().Add(time.Hour).Unix())
	r.hub.Revoke("thief", time.Now().Add(time.Hour))
	thief.Wait("Goodbye", parted)
	thief.Connect()
	thief.Wait("Goodbye", parted)
	if g := thief.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_REVOKED || thief.Seen().Welcome != nil {
		t.Errorf("on coming back it is told: %v", g)
	}
	r.cluster.want("other", podItem(t, "b", 1))
	other.WaitObjects("its pod", edgetest.Has("pod/d/p-b"))
}
