package fleet

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestATimeThatANodeMadeUpHidesNothing: a document with one event of the year 300,000
// could not be written at all.
func TestATimeThatANodeMadeUpHidesNothing(t *testing.T) {
	for _, at := range []time.Time{time.Unix(1<<43, 0), time.Unix(-1<<43, 0)} {
		e := eventOf(&corev1.Event{Message: "hello", Series: &corev1.EventSeries{Count: 2, LastObservedTime: metav1.NewMicroTime(at)}})
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{LastTransitionTime: metav1.NewTime(at)}}}}
		for _, what := range []any{e, conditionsOf(n)} {
			if _, err := json.Marshal(what); err != nil {
				t.Error(err)
			}
		}
	}
}

// deadlined is a writer whose deadline shows.
type deadlined struct {
	*httptest.ResponseRecorder
	at time.Time
}

func (d *deadlined) SetWriteDeadline(at time.Time) error { d.at = at; return nil }

func TestAViewerWhoNeverReadsHoldsNoDocumentForEver(t *testing.T) {
	w := &deadlined{ResponseRecorder: httptest.NewRecorder()}
	newScene(t, nil).Socket().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fleet", nil))
	if w.Code != http.StatusOK || w.at.IsZero() {
		t.Errorf("%d, to be read until %s", w.Code, w.at)
	}
}
