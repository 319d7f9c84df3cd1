package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/config"
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
