package device

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Known is what the Writer asks of cloud/watch.
type Known interface {
	// Device returns a device of a connected node as it is known last, or nil. The
	// caller may change it.
	Device(node, namespace, name string) *v1beta1.Device
	// Wrote takes what the apiserver made of a write.
	Wrote(node string, d *v1beta1.Device)
}

// Reports is what the Writer asks of cloud/report.
type Reports interface {
	Carry(ctx context.Context, node string, id uint64, f func(context.Context) error) (*wire.ReportResult, error)
}

// WriterOptions are what a Writer needs.
type WriterOptions struct {
	Client *crd.Client // cloudcore's own identity
	AsNode *crd.Client // acts as the node of the context (cloud/asnode)
	Known  Known
	// Reports bounds the writes of all nodes together.
	Reports Reports
	// Now is the hub's clock; nil means time.Now.
	Now func() time.Time
}

// Writer writes reports about devices. Its methods may be called from many
// goroutines; reports about one device must come one after the other.
type Writer struct {
	client, asNode *crd.Client
	known          Known
	reports        Reports
	now            func() time.Time

	writes, unchanged, reads atomic.Uint64
}

// NewWriter returns a Writer.
func NewWriter(o WriterOptions) *Writer {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Writer{client: o.Client, asNode: o.AsNode, known: o.Known, reports: o.Reports, now: o.Now}
}

// Write merges a report of a node into the status of its device; see
// report.Writer.Write for what it returns. The edge's database is store. In the
// common case it is one request: the object that is known is the one that is there,
// and the apiserver says when it is not.
func (w *Writer) Write(ctx context.Context, node, store string, epoch report.Epoch, r *wire.Report) (*wire.ReportResult, error) {
	said := new(wire.DeviceReport)
	if err := wire.DecodePayload(r.GetPayload(), said); err != nil {
		return report.Answer(r.GetId(), fmt.Errorf("decode a device's report: %w: %w", err, report.ErrRejected)), nil
	}
	if said.GetNamespace() == "" || said.GetName() == "" || said.GetUid() == "" {
		return report.Answer(r.GetId(), fmt.Errorf("report about device %q/%q with uid %q: %w: namespace, name and uid are needed",
			said.GetNamespace(), said.GetName(), said.GetUid(), report.ErrRejected)), nil
	}
	by := v1beta1.StatusWriter{Node: node, Epoch: int64(epoch), Store: wire.Lineage(store, said.GetLineage())}
	known := w.known.Device(node, said.GetNamespace(), said.GetName())
	return w.reports.Carry(ctx, node, r.GetId(), func(ctx context.Context) error {
		d := known
		known = nil // for one attempt
		if d != nil && string(d.UID) == said.GetUid() {
			err := w.put(ctx, d, said, by)
			if !stale(err) {
				return err
			}
		}
		d, err := w.live(ctx, node, said)
		if err != nil {
			return err
		}
		return w.put(ctx, d, said, by)
	})
}

// stale says that a write failed as one does whose object is no longer the one that
// was known.
func stale(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err)
}

// live reads the device that a report is about, in cloudcore's name: one that is
// gone must be told from one that the node may not write.
func (w *Writer) live(ctx context.Context, node string, said *wire.DeviceReport) (*v1beta1.Device, error) {
	w.reads.Add(1)
	d, err := w.client.Device(ctx, said.GetNamespace(), said.GetName())
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("device %s/%s (uid %s) is gone: %w", said.GetNamespace(), said.GetName(), said.GetUid(), report.ErrNothingLeft)
	case err != nil:
		return nil, fmt.Errorf("read device %s/%s: %w", said.GetNamespace(), said.GetName(), err)
	case string(d.UID) != said.GetUid():
		return nil, fmt.Errorf("device %s/%s (uid %s) is gone, another has its name: %w", said.GetNamespace(), said.GetName(), said.GetUid(), report.ErrNothingLeft)
	case d.Spec.NodeName != node:
		return nil, fmt.Errorf("device %s/%s (uid %s) is not bound to node %s: %w", d.Namespace, d.Name, d.UID, node, report.ErrRejected)
	}
	return d, nil
}

// put writes the merged status as the node. A status that is there already is
// written all the same under a new epoch, as report.Writer does it: an older
// session may hold another one.
func (w *Writer) put(ctx context.Context, d *v1beta1.Device, said *wire.DeviceReport, by v1beta1.StatusWriter) error {
	what := "the status of device " + d.Namespace + "/" + d.Name
	if was := d.Status.Writer; was != nil && was.Node == by.Node {
		if err := report.Fence(report.Epoch(max(was.Epoch, 0)), report.Epoch(by.Epoch), what); err != nil {
			return err
		}
	}
	now := w.now()
	merged := Merge(&d.Status, &d.Spec, said, by, now)
	if !news(&d.Status, merged) {
		w.unchanged.Add(1)
		return nil
	}
	if err := fit(merged); err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	at := metav1.NewTime(now).Rfc3339Copy()
	merged.LastReportTime = &at
	d.Status = *merged
	w.writes.Add(1)
	wrote, err := w.asNode.UpdateDeviceStatus(asnode.With(ctx, by.Node), d)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	w.known.Wrote(by.Node, wrote)
	return nil
}

// maxStatus bounds a status, in bytes, well below what an apiserver takes.
const maxStatus = 1 << 20

// fit drops the oldest values of the longest histories until a status can be
// written.
func fit(s *v1beta1.DeviceStatus) error {
	for size(s) > maxStatus {
		longest, most := -1, 0
		for i := range s.Twins {
			if n := historySize(s.Twins[i].History); n > most {
				longest, most = i, n
			}
		}
		if longest < 0 {
			return fmt.Errorf("it has more than %d bytes without any history: %w", maxStatus, report.ErrRejected)
		}
		t := &s.Twins[longest]
		t.History = t.History[(len(t.History)+1)/2:]
	}
	return nil
}

// size is about how many bytes a status takes.
func size(s *v1beta1.DeviceStatus) int {
	n := len(s.Reason)
	value := func(v *v1beta1.TwinProperty) {
		if v == nil {
			return
		}
		n += 64 + len(v.Value)
		for k, m := range v.Metadata {
			n += 8 + len(k) + len(m)
		}
	}
	for i := range s.Twins {
		t := &s.Twins[i]
		n += 128 + len(t.PropertyName) + historySize(t.History)
		value(t.Reported)
		value(t.ObservedDesired)
		value(t.Overridden)
		if t.Rejected != nil {
			n += 96 + len(t.Rejected.Value) + len(t.Rejected.Reason)
		}
	}
	return n
}

func historySize(h []v1beta1.HistoryValue) (n int) {
	for i := range h {
		n += 64 + len(h[i].Value)
	}
	return n
}
