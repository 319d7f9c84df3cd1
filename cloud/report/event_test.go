package report

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAnEventSaysNoTimeThatCannotBe: one of the year 300,000 would be in every list of
// its namespace's events, and no client could read those.
func TestAnEventSaysNoTimeThatCannotBe(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]time.Time{time.Unix(1<<43, 0): now, time.Unix(-1<<43, 0): now, now.Add(-time.Hour): now.Add(-time.Hour)} {
		e := &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{Time: &metav1.Time{Time: at}}}},
			FirstTimestamp: metav1.NewTime(at), LastTimestamp: metav1.NewTime(at), EventTime: metav1.NewMicroTime(at),
			Series: &corev1.EventSeries{LastObservedTime: metav1.NewMicroTime(at)},
		}
		correctTimes(e, now)
		for _, got := range []time.Time{e.FirstTimestamp.Time, e.LastTimestamp.Time, e.EventTime.Time, e.Series.LastObservedTime.Time} {
			if !got.Equal(want) {
				t.Errorf("%s: %s is written", at, got)
			}
		}
		if e.ManagedFields != nil {
			t.Error("the edge says who manages which field")
		}
	}
	e := new(corev1.Event)
	if correctTimes(e, now); !e.EventTime.IsZero() || e.Series != nil {
		t.Errorf("%+v", e)
	}
}
