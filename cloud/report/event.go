package report

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// event writes an event as the node; one that exists already only counts up.
func (w *Writer) event(ctx context.Context, node string, payload []byte) error {
	e := new(corev1.Event)
	if err := e.Unmarshal(payload); err != nil {
		return fmt.Errorf("decode an event: %w: %w", err, ErrRejected)
	}
	// An event about a node lives in the default namespace, others with their object.
	if e.Namespace = e.InvolvedObject.Namespace; e.Namespace == "" {
		e.Namespace = metav1.NamespaceDefault
	}
	e.ResourceVersion, e.UID = "", ""
	e.Source.Host = node
	e.ReportingInstance = node
	correctTimes(e, w.now())
	_, err := w.asNode.CoreV1().Events(e.Namespace).Create(as(ctx, node), e, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		var patch []byte
		patch, err = json.Marshal(map[string]any{"count": max(e.Count, 1), "lastTimestamp": e.LastTimestamp, "message": e.Message})
		if err == nil {
			_, err = w.asNode.CoreV1().Events(e.Namespace).Patch(as(ctx, node), e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("event %s/%s: its namespace is gone: %w", e.Namespace, e.Name, ErrNothingLeft)
	case err != nil:
		return fmt.Errorf("write event %s/%s: %w", e.Namespace, e.Name, err)
	}
	return nil
}

// correctTimes takes no time from an edge that cannot be: one beyond the year 9999
// would make every list of the namespace's events unreadable as JSON.
func correctTimes(e *corev1.Event, now time.Time) {
	wrong := func(t time.Time) bool { return t.After(now) || t.Before(now.Add(-maxEventAge)) }
	for _, t := range []*metav1.Time{&e.FirstTimestamp, &e.LastTimestamp} {
		if wrong(t.Time) {
			*t = metav1.NewTime(now)
		}
	}
	if !e.EventTime.IsZero() && wrong(e.EventTime.Time) {
		e.EventTime = metav1.NewMicroTime(now)
	}
	if e.Series != nil && wrong(e.Series.LastObservedTime.Time) {
		e.Series.LastObservedTime = metav1.NewMicroTime(now)
	}
	e.ManagedFields = nil // the apiserver's
}

// maxEventAge is how old an event's time may be before it is taken for the work
// of a wrong clock. Nodes stay offline for weeks; clocks go wrong by decades.
const maxEventAge = 90 * 24 * time.Hour
