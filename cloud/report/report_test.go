package report

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

func TestOnlyWhatIsCertainlyFinalIsNotRetried(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, test := range map[string]struct {
		err  error
		want wire.ResultCode
	}{
		"written":                {nil, wire.ResultCode_RESULT_ACCEPTED},
		"about something gone":   {fmt.Errorf("pod: %w", ErrNothingLeft), wire.ResultCode_RESULT_ACCEPTED},
		"refused by the hub":     {fmt.Errorf("pod: %w", ErrRejected), wire.ResultCode_RESULT_REJECTED},
		"forbidden":              {fmt.Errorf("w: %w", apierrors.NewForbidden(pods, "p", errors.New("no"))), wire.ResultCode_RESULT_REJECTED},
		"forbidden for now":      {fmt.Errorf("%w: %w", ErrNotYet, apierrors.NewForbidden(pods, "p", errors.New("no"))), wire.ResultCode_RESULT_RETRY},
		"invalid":                {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "p", nil), wire.ResultCode_RESULT_REJECTED},
		"malformed":              {apierrors.NewBadRequest("no"), wire.ResultCode_RESULT_REJECTED},
		"too large":              {apierrors.NewRequestEntityTooLargeError("no"), wire.ResultCode_RESULT_REJECTED},
		"too many requests":      {apierrors.NewTooManyRequests("later", 1), wire.ResultCode_RESULT_RETRY},
		"an apiserver's failure": {apierrors.NewInternalError(errors.New("disk")), wire.ResultCode_RESULT_RETRY},
		"cloudcore locked out":   {apierrors.NewUnauthorized("no"), wire.ResultCode_RESULT_RETRY},
		"a conflict":             {apierrors.NewConflict(pods, "p", errors.New("rv")), wire.ResultCode_RESULT_RETRY},
		"unreachable":            {errors.New("dial tcp: connection refused"), wire.ResultCode_RESULT_RETRY},
		"no time left":           {context.DeadlineExceeded, wire.ResultCode_RESULT_RETRY},
	} {
		if got, _ := result(test.err); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestANodeSetsOnItselfWhatNodeRestrictionAllows(t *testing.T) {
	for label, want := range map[string]bool{
		"shop": true, "example.test/floor": true, "holdfast.io/edge": true,
		"kubernetes.io/hostname": true, "kubernetes.io/arch": true, "topology.kubernetes.io/zone": true,
		"node.kubernetes.io/instance-type": true, "kubelet.kubernetes.io/x": true, "x.node.kubernetes.io/y": true,
		"node-role.kubernetes.io/edge": false, "node-restriction.kubernetes.io/pci": false, "kubernetes.io/other": false,
		"k8s.io/x": false, "foo.k8s.io/x": false, "notk8s.io/x": true,
	} {
		if got := mayLabel(label); got != want {
			t.Errorf("%s: %v", label, got)
		}
	}
}

func TestAnEdgesClockIsNotTrusted(t *testing.T) {
	born := metav1.NewTime(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	now := born.Add(time.Hour)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: born}}
	for at, kept := range map[time.Time]bool{
		time.Unix(0, 0):            false, // a board without a battery
		born.Add(10 * time.Minute): true,
		now.Add(time.Hour):         false,
	} {
		stamp := metav1.NewTime(at)
		s := mergeStatus(p, &corev1.PodStatus{StartTime: &stamp, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: stamp}}}, now)
		for _, got := range []time.Time{s.StartTime.Time, s.Conditions[0].LastTransitionTime.Time} {
			if kept && !got.Equal(at) || !kept && !got.Equal(now) {
				t.Errorf("an edge says %s, the cluster reads %s", at, got)
			}
		}
	}
	later := mergeConditions(nil, []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(0, 0))}}, now)
	if !later[0].LastTransitionTime.Time.Equal(now) {
		t.Errorf("a node's condition changed at %s", later[0].LastTransitionTime)
	}
}

func TestAStatusKeepsWhatOthersSay(t *testing.T) {
	const gate, theirs = corev1.PodConditionType("example.test/gate"), corev1.DisruptionTarget
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p := &corev1.Pod{Status: corev1.PodStatus{
		QOSClass: corev1.PodQOSBurstable,
		Conditions: []corev1.PodCondition{
			{Type: gate, Status: corev1.ConditionTrue}, {Type: theirs, Status: corev1.ConditionTrue},
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, Reason: "Scheduler"},
			{Type: corev1.PodReady, Status: corev1.ConditionFalse},
		},
	}}
	s := mergeStatus(p, &corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, Reason: "Edge"}, {Type: corev1.PodReady, Status: corev1.ConditionTrue},
	}}, now)
	got := map[corev1.PodConditionType]string{}
	for _, c := range s.Conditions {
		got[c.Type] = string(c.Status) + c.Reason
	}
	want := map[corev1.PodConditionType]string{gate: "True", theirs: "True", corev1.PodScheduled: "TrueScheduler", corev1.PodReady: "True"}
	if fmt.Sprint(got) != fmt.Sprint(want) || s.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("got %v %s, want %v", got, s.QOSClass, want)
	}
}

func TestAnEpochIsRefusedWhereAHigherOneIs(t *testing.T) {
	carries := func(epoch string) map[string]string { return map[string]string{roster.AnnotationEpoch: epoch} }
	for _, c := range []struct {
		there  map[string]string
		own    Epoch
		fenced bool
	}{
		{nil, 1, false}, {carries("7"), 7, false}, {carries("7"), 8, false}, {carries("8"), 7, true},
		{carries("10"), 9, true}, // as numbers, not as texts
		{carries("x"), 1, false}, {carries("-1"), 1, false}, {carries("18446744073709551615"), 1, false}, {carries("18446744073709551616"), 1, false},
		{carries(maxEpoch.String()), 1, true},
	} {
		err := fence(c.there, c.own, "it")
		if errors.Is(err, ErrFenced) != c.fenced || (err != nil) != c.fenced {
			t.Errorf("%v, written under epoch %d: %v", c.there, c.own, err)
		}
	}
	o := &metav1.ObjectMeta{}
	for i, want := range []bool{true, false, false} {
		if mark(o, 7) != want || epochOf(o.Annotations) != 7 {
			t.Errorf("marked %d times: %v", i+1, o.Annotations)
		}
	}
	if !mark(o, 8) || epochOf(o.Annotations) != 8 {
		t.Errorf("marked anew: %v", o.Annotations)
	}
}

func TestMessagesThatQuoteAnEdgeAreBounded(t *testing.T) {
	for _, message := range []string{"", "short", strings.Repeat("x", 4<<20), strings.Repeat("é", 2000), "a\xffb"} {
		if got := brief(message); len(got) > 1100 || !utf8.ValidString(got) || len(message) < 1000 && utf8.ValidString(message) && got != message {
			t.Errorf("%d bytes became %d: %.20q", len(message), len(got), got)
		}
	}
}
