package pod

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// TestReportOfAPodThatIsBeingStartedWaitsABit: not for ever, not when something has failed, and never when the phase
// has changed.
func TestReportOfAPodThatIsBeingStartedWaitsABit(t *testing.T) {
	pending, running := &corev1.PodStatus{Phase: corev1.PodPending}, &corev1.PodStatus{Phase: corev1.PodRunning}
	starting := func() (*worker, *leapClock) {
		clock := newLeapClock()
		return &worker{m: &Manager{clock: clock}, hold: map[string]held{},
			flights: map[int]*flight{0: {action: plan.Action{Verb: plan.StartContainer, Name: "main"}}}}, clock
	}

	w, clock := starting()
	if wait := w.soon(pending); wait != pendingPatience {
		t.Errorf("the first report waits %s, want %s", wait, pendingPatience)
	}
	clock.leap.Add(int64(pendingPatience))
	if wait := w.soon(pending); wait != 0 {
		t.Errorf("after its patience the report waits %s more", wait)
	}

	w, _ = starting()
	w.soon(pending)
	if wait := w.soon(running); wait != 0 {
		t.Errorf("a pod that runs is reported after %s, want at once", wait)
	}

	w, _ = starting()
	w.hold["main"] = held{until: time.Hour}
	if wait := w.soon(pending); wait != 0 {
		t.Errorf("a start that failed is reported after %s, want at once", wait)
	}

	w, _ = starting()
	clear(w.flights)
	if wait := w.soon(pending); wait != 0 {
		t.Errorf("a pod that nobody starts is reported after %s, want at once", wait)
	}

	// A reboot: what was reported before stands in the record, and the pod does not run.
	w, _ = starting()
	w.record.Phase = corev1.PodRunning
	if wait := w.soon(running); wait != 0 {
		t.Errorf("after a reboot the first report waits %s, want at once", wait)
	}
	w.reported = running
	if wait := w.soon(running); wait != reportPatience {
		t.Errorf("a pod that runs and starts a container reports after %s, want %s", wait, reportPatience)
	}
}
