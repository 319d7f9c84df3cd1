package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// writer is the reporting half of another hub, with cloudcore's rights.
func (p *place) writer(t *testing.T, hub string, now func() time.Time) *report.Writer {
	t.Helper()
	cfg, err := config.LoadCloud(p.config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClients(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report.New(report.Options{Client: c.own, AsNode: c.asNode, Hub: hub, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: now})
}

// fences: of two hubs that both believe to serve a node, the one with the later
// claim writes, and the other's late reports are refused.
func (p *place) fences(t *testing.T) {
	p.join(t, "till-9").Disconnect()
	made := p.create(t, pod("fenced", "till-9"))
	old := p.writer(t, "old", time.Now)
	late := p.writer(t, "late", func() time.Time { return time.Now().Add(-time.Hour) }) // its clock does not matter
	ctx := t.Context()
	const store = "store of till-9"
	claim := func(w *report.Writer, store string) report.Epoch {
		t.Helper()
		epoch, err := w.Claim(ctx, "till-9", store)
		if err != nil {
			t.Fatal(err)
		}
		return epoch
	}
	status := func(message string) *wire.Report {
		said := running(made)
		said.Status.Message = message
		payload, err := said.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return &wire.Report{Id: 1, Kind: wire.ReportKind_REPORT_POD_STATUS, Payload: payload}
	}
	write := func(w *report.Writer, epoch report.Epoch, message string) error {
		t.Helper()
		result, err := w.Write(ctx, "till-9", epoch, status(message))
		if err == nil && result.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatalf("the report of epoch %d: %v", epoch, result)
		}
		return err
	}
	says := func(message string) {
		t.Helper()
		if got := p.get(t, "fenced").Status.Message; got != message {
			t.Errorf("the status says %q, want %q", got, message)
		}
	}

	first := claim(old, store)
	if err := write(old, first, "first"); err != nil {
		t.Fatal(err)
	}
	second := claim(late, store)
	if second <= first {
		t.Fatalf("the later claim has epoch %d, the earlier %d", second, first)
	}
	// Nothing of the status changes, and yet the write must fence the old hub.
	if err := write(late, second, "first"); err != nil {
		t.Fatal(err)
	}
	if err := write(old, first, "too late"); !errors.Is(err, report.ErrFenced) {
		t.Errorf("a late report of the old hub: %v, want it fenced", err)
	}
	says("first")
	if err := old.Renew(ctx, "till-9", first); !errors.Is(err, report.ErrFenced) {
		t.Errorf("the old hub's renewal: %v, want it fenced", err)
	}
	if err := late.Renew(ctx, "till-9", second); err != nil {
		t.Error(err)
	}
	p.fencesTheNode(t, ctx, old, first, late, second)

	// A lease that is deleted comes back with the epoch, whoever is first.
	leases := p.client.CoordinationV1().Leases("kube-node-lease")
	if err := leases.Delete(ctx, "till-9", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := old.Renew(ctx, "till-9", first); err != nil {
		t.Error(err)
	}
	if err := late.Renew(ctx, "till-9", second); err != nil {
		t.Errorf("the later hub's renewal after the older one's: %v", err)
	}
	if err := old.Renew(ctx, "till-9", first); !errors.Is(err, report.ErrFenced) {
		t.Errorf("the old hub's renewal: %v, want it fenced", err)
	}

	// Another machine with the same name, at another hub.
	now := p.writer(t, "now", time.Now)
	third := claim(now, store)
	var held *report.HeldError
	if _, err := old.Claim(ctx, "till-9", "two"); !errors.As(err, &held) || held.Hub != "now" {
		t.Errorf("a claim for another database: %v, want it held by hub now", err)
	}
	if err := write(now, third, "third"); err != nil {
		t.Error(err)
	}
	says("third")
}

func (p *place) fencesTheNode(t *testing.T, ctx context.Context, old *report.Writer, first report.Epoch, late *report.Writer, second report.Epoch) {
	t.Helper()
	node := func(reason string) *wire.Report {
		said := nodeReport("till-9")
		said.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: reason}}
		payload, err := said.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return &wire.Report{Id: 1, Kind: wire.ReportKind_REPORT_NODE, Payload: payload}
	}
	if result, err := late.Write(ctx, "till-9", second, node("Newer")); err != nil || result.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("the later hub's report of the node: %v %v", result, err)
	}
	if _, err := old.Write(ctx, "till-9", first, node("Older")); !errors.Is(err, report.ErrFenced) {
		t.Errorf("the old hub's report of the node: %v, want it fenced", err)
	}
	if err := old.RestoreNode(ctx, "till-9", first); errors.Is(err, report.ErrFenced) {
		t.Error("nothing is to be restored, and it was fenced all the same")
	}
	n, err := p.client.CoreV1().Nodes().Get(ctx, "till-9", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Reason != "Newer" {
			t.Errorf("the node's condition says %q", c.Reason)
		}
	}
}

// noObjects is a cluster that wants nothing of any node.
type noObjects struct{}

func (noObjects) Follow(string) (<-chan struct{}, func()) { return nil, func() {} }
func (noObjects) Resolver(string) func(context.Context) (*roster.Wanted, error) {
	return func(context.Context) (*roster.Wanted, error) { return new(roster.Wanted), nil }
}
func (noObjects) Gone(context.Context, string, *wire.ObjectRef) (bool, error) { return false, nil }
func (noObjects) Node(string) *corev1.Node                                    { return nil }
func (noObjects) Pods(string) ([]*corev1.Pod, error)                          { return nil, nil }

// slowReports lets one report wait at a gate, as behind an apiserver that is slow
// towards one hub.
type slowReports struct {
	*report.Writer
	waiting chan struct{} // closed when it waits
	gate    chan struct{}
}

const late = "late" // the message of the status that waits

func (s *slowReports) Write(ctx context.Context, node string, epoch report.Epoch, r *wire.Report) (*wire.ReportResult, error) {
	said := new(corev1.Pod)
	if r.GetKind() == wire.ReportKind_REPORT_POD_STATUS && said.Unmarshal(r.GetPayload()) == nil && said.Status.Message == late {
		close(s.waiting)
		select {
		case <-s.gate:
		case <-ctx.Done():
		}
	}
	return s.Writer.Write(ctx, node, epoch, r)
}

// oneHub is a hub beside the cloudcore of the place, with its rights.
type oneHub struct {
	*linktest.Hub
	hub     *hub.Hub
	reports *slowReports
}

func (p *place) hub(t *testing.T, name string) *oneHub {
	t.Helper()
	h := &oneHub{
		Hub:     linktest.StartHub(t, p.ca, link.Timing{KeepAlive: time.Hour, UserTimeout: edgetest.Patience, Write: edgetest.Patience, Dial: edgetest.Patience}.Complete()),
		reports: &slowReports{Writer: p.writer(t, name, time.Now), waiting: make(chan struct{}), gate: make(chan struct{})},
	}
	h.hub = hub.New(hub.Options{Cluster: noObjects{}, Reports: h.reports, Log: slog.New(slog.DiscardHandler), Version: "test"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.hub.Serve(ctx, h.Hub) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

// moves: a node goes from one hub to another while the first still believes in its
// session and has a report of it that is not written.
func (p *place) moves(t *testing.T) {
	const node, store = "till-10", "store of till-10"
	north, south := p.hub(t, "north"), p.hub(t, "south")
	proxy := linktest.NewProxy(t, north.Addr)
	old := edgetest.New(t, north.DialerVia(t, node, proxy), store)
	claimed := func(s edgetest.Seen) bool { return s.Claimed == 1 }
	old.Connect()
	old.Wait("the claim", claimed)
	if r := old.Report(wire.ReportKind_REPORT_NODE, nodeReport(node)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("register the node: %v", r)
	}
	made := p.create(t, pod("mover", node))
	says := func(message string) *corev1.Pod {
		said := running(made)
		said.Status.Message = message
		return said
	}
	accepted := func(e *edgetest.Edge, message string) {
		t.Helper()
		if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, says(message)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatalf("the report %q: %v", message, r)
		}
		if got := p.get(t, "mover").Status.Message; got != message {
			t.Fatalf("the status says %q, want %q", got, message)
		}
	}
	accepted(old, "one")

	old.Send(wire.ReportKind_REPORT_POD_STATUS, says(late))
	<-north.reports.waiting
	proxy.Cut() // half open: neither side is told

	moved := edgetest.New(t, south.Dialer(t, node), store)
	moved.Connect()
	moved.Wait("the claim of the other hub", claimed)
	accepted(moved, "two")
	if north.hub.Connected() != 1 {
		t.Error("the first hub has noticed something, and nothing is tested")
	}
	close(north.reports.gate)
	eventually(t, "the first hub ends its session", func() bool { return north.hub.Connected() == 0 })
	if got := p.get(t, "mover").Status.Message; got != "two" {
		t.Errorf("the late report was written: the status says %q", got)
	}
	accepted(moved, "three")
	lease, err := p.client.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if lease.Annotations[roster.AnnotationHub] != "south" || lease.Annotations[roster.AnnotationEpoch] != p.get(t, "mover").Annotations[roster.AnnotationEpoch] {
		t.Errorf("the lease says %v, the pod %v", lease.Annotations, p.get(t, "mover").Annotations)
	}

	// An epoch that is nobody's claim, as on a pod that was copied from another node,
	// ends one session and not the next.
	far := report.Epoch(time.Now().Add(365 * 24 * time.Hour).UnixMilli())
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, roster.AnnotationEpoch, far)
	if _, err := p.client.CoreV1().Pods("default").Patch(t.Context(), "mover", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	moved.Send(wire.ReportKind_REPORT_POD_STATUS, says("four"))
	moved.Wait("Goodbye", func(s edgetest.Seen) bool { return s.Goodbye != nil })
	if g := moved.Seen().Goodbye; g.Reason != wire.Goodbye_REASON_REPLACED {
		t.Errorf("told: %v", g)
	}
	moved.Connect()
	moved.Wait("the next claim", claimed)
	accepted(moved, "four")
}
