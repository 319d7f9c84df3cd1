// Package report carries what edges say to the apiserver: node and pod status,
// the end of pods, events, leases and requests for tokens. It owns how each is
// written and which of the apiserver's answers means accepted, rejected or try
// again. cloud/hub calls it, once per report, and keeps the order; cloud/device
// and cloud/route write what is theirs within its bounds. Everything
// that a node could write itself is written in the node's name (cloud/asnode);
// cloudcore's own identity only adds what no node may set on itself. It keeps no
// queue, and nothing about nodes that are not connected.
package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Options are what a Writer needs.
type Options struct {
	Client kubernetes.Interface // cloudcore's own identity
	AsNode kubernetes.Interface // acts as the node of the context (cloud/asnode)
	Hub    string               // this hub's name, unlike every other's, for the annotation holdfast.io/hub
	// Endpoint is where a node's kubelet API is reached through this hub; false: not
	// known yet. nil: nowhere.
	Endpoint func(node string) (address string, port int32, ok bool)
	Log      *slog.Logger
	// Now is the hub's clock; nil means time.Now.
	Now func() time.Time
}

// Writer writes reports. Its methods may be called from many goroutines.
type Writer struct {
	client, asNode kubernetes.Interface
	hub            string
	endpoint       func(node string) (address string, port int32, ok bool)
	log            *slog.Logger
	now            func() time.Time
	slots          chan struct{}
}

// Limits of the work for all nodes together.
const (
	maxWrites    = 64               // reports being written at a time
	writeTimeout = 10 * time.Second // of all requests of one attempt at a report
)

// New returns a Writer.
func New(o Options) *Writer {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Writer{client: o.Client, asNode: o.AsNode, hub: o.Hub, endpoint: o.Endpoint, log: o.Log, now: o.Now, slots: make(chan struct{}, maxWrites)}
}

// What becomes of a report whose error wraps one of these, whatever else it wraps.
var (
	// ErrRejected marks what the apiserver will never accept.
	ErrRejected = errors.New("rejected")
	// ErrNothingLeft marks a report about something that is gone.
	ErrNothingLeft = errors.New("nothing is left to say")
	// ErrNotYet marks a refusal that time may mend.
	ErrNotYet = errors.New("refused for now")
)

// Subject names what a report is about. Reports about the same subject are to
// be written in their order, others may overtake each other.
func Subject(r *wire.Report) string {
	switch r.GetKind() {
	case wire.ReportKind_REPORT_NODE:
		return "node"
	case wire.ReportKind_REPORT_POD_STATUS, wire.ReportKind_REPORT_POD_GONE:
		pod := new(corev1.Pod)
		if pod.Unmarshal(r.GetPayload()) == nil {
			return "pod " + string(pod.UID)
		}
	case wire.ReportKind_REPORT_EVENT:
		event := new(corev1.Event)
		if event.Unmarshal(r.GetPayload()) == nil {
			return "event " + event.Namespace + "/" + event.Name
		}
	case wire.ReportKind_REPORT_DEVICE:
		device := new(wire.DeviceReport)
		if wire.DecodePayload(r.GetPayload(), device) == nil {
			return "device " + device.GetUid()
		}
	case wire.ReportKind_REPORT_MESSAGES:
		messages := new(wire.RoutedMessages)
		if wire.DecodePayload(r.GetPayload(), messages) == nil {
			return "route " + messages.GetRouteUid()
		}
	}
	return "malformed"
}

// Write writes one report of a node under the epoch of the session that it came
// by, and says how it went. When ctx ends first the answer is RETRY. The error is
// ErrFenced or nil: a report that is fenced is not written, and the next session
// brings it again, or something newer.
func (w *Writer) Write(ctx context.Context, node string, epoch Epoch, r *wire.Report) (*wire.ReportResult, error) {
	var note string
	err := w.guarded(ctx, node, func(ctx context.Context) error {
		var err error
		note, err = w.write(ctx, node, epoch, r)
		return err
	})
	if errors.Is(err, ErrFenced) {
		return nil, err
	}
	if apierrors.IsForbidden(err) && r.GetKind() != wire.ReportKind_REPORT_EVENT {
		// What a node says of itself and of its pods is its own to say. An
		// apiserver that has just started refuses it until its caches are full.
		err = fmt.Errorf("%w: %w", ErrNotYet, err)
	}
	code, message := result(err)
	if message == "" {
		message = note
	}
	return &wire.ReportResult{Id: r.GetId(), Code: code, Message: brief(message)}, nil
}

// Carry has another room write the report of that number: f runs within the bounds
// of Write, is repeated for a short time while it is refused or conflicts, and
// says with ErrRejected, ErrNothingLeft and ErrNotYet what the apiserver does not.
// It returns as Write does.
func (w *Writer) Carry(ctx context.Context, node string, id uint64, f func(context.Context) error) (*wire.ReportResult, error) {
	err := w.guarded(ctx, node, func(ctx context.Context) error { return w.patient(ctx, f) })
	if errors.Is(err, ErrFenced) {
		return nil, err
	}
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w: %w", ErrNotYet, err)
	}
	code, message := result(err)
	return &wire.ReportResult{Id: id, Code: code, Message: brief(message)}, nil
}

// Answer is the result of a report that was not carried to the apiserver.
func Answer(id uint64, err error) *wire.ReportResult {
	code, message := result(err)
	return &wire.ReportResult{Id: id, Code: code, Message: brief(message)}
}

// brief bounds a message that may quote what an edge said.
func brief(message string) string {
	const most = 1024
	if len(message) > most {
		message = message[:most] + "..."
	}
	return strings.ToValidUTF8(message, "?")
}

func (w *Writer) write(ctx context.Context, node string, epoch Epoch, r *wire.Report) (note string, err error) {
	switch r.GetKind() {
	case wire.ReportKind_REPORT_NODE:
		return w.node(ctx, node, epoch, r.GetPayload())
	case wire.ReportKind_REPORT_POD_STATUS:
		return "", w.podStatus(ctx, node, epoch, r.GetPayload())
	case wire.ReportKind_REPORT_POD_GONE:
		return "", w.podGone(ctx, node, r.GetPayload())
	case wire.ReportKind_REPORT_EVENT:
		return "", w.slot(ctx, func(ctx context.Context) error { return w.event(ctx, node, r.GetPayload()) })
	}
	// A newer edge keeps it until it finds a newer hub.
	return "", fmt.Errorf("report of kind %s: this hub does not know it: %w", r.GetKind(), ErrNotYet)
}

// slot runs f in one of the slots of all nodes, in a bounded time.
func (w *Writer) slot(ctx context.Context, f func(context.Context) error) error {
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.slots }()
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return f(ctx)
}

// result turns an error into the code for the edge. What is not certainly
// final is to be retried: an edge that drops a report never says it again.
func result(err error) (wire.ResultCode, string) {
	switch {
	case err == nil:
		return wire.ResultCode_RESULT_ACCEPTED, ""
	case errors.Is(err, ErrNothingLeft),
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return wire.ResultCode_RESULT_ACCEPTED, err.Error()
	case errors.Is(err, ErrNotYet):
		return wire.ResultCode_RESULT_RETRY, err.Error()
	case errors.Is(err, ErrRejected), apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err),
		apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err):
		return wire.ResultCode_RESULT_REJECTED, err.Error()
	}
	return wire.ResultCode_RESULT_RETRY, err.Error()
}

// patient runs f in a slot, and repeats it while it is refused or conflicts, for a
// short time: the Node authorizer learns of a new pod a little late, and others
// write too. Between two attempts the slot is somebody else's.
func (w *Writer) patient(ctx context.Context, f func(context.Context) error) error {
	const attempts = 6
	wait := 50 * time.Millisecond
	for n := 1; ; n++ {
		err := w.slot(ctx, f)
		if n == attempts || !apierrors.IsForbidden(err) && !apierrors.IsConflict(err) {
			return err
		}
		select {
		case <-time.After(wait):
			wait *= 2
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// as is a context for requests in the node's name.
func as(ctx context.Context, node string) context.Context { return asnode.With(ctx, node) }
