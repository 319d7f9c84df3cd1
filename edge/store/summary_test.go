package store

import (
	"os"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func TestTheSummaryCountsByKindAndKnowsTheOldest(t *testing.T) {
	s := openTemp(t)
	ctx := t.Context()
	empty, err := s.Summary(ctx)
	if err != nil || len(empty.Objects)+len(empty.Reports) > 0 || !empty.Oldest.IsZero() || empty.Copy != 0 || empty.Database == 0 {
		t.Errorf("a new store: %+v, %v", empty, err)
	}
	err = s.Apply(ctx, []*wire.Object{
		podObject(t, "shop", "a", "1", "x"), podObject(t, "shop", "b", "2", "x"), configMapObject(t, "shop", "c", "3", "v"),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	event := func(at int64) []byte {
		b, err := (&corev1.Event{LastTimestamp: metav1.Unix(at, 0)}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, r := range []Report{
		{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: "1"},
		{Kind: wire.ReportKind_REPORT_EVENT, Payload: event(5_000)},
		{Kind: wire.ReportKind_REPORT_EVENT, Payload: event(6_000)},
	} {
		if err := s.PutReport(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Copy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.goodPath(), time.Unix(9_000, 0), time.Unix(9_000, 0)); err != nil {
		t.Fatal(err)
	}
	s.keepReserve()
	got, err := s.Summary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[wire.Kind]int64{wire.Kind_KIND_POD: 2, wire.Kind_KIND_CONFIG_MAP: 1}; !reflect.DeepEqual(got.Objects, want) {
		t.Errorf("objects %v, want %v", got.Objects, want)
	}
	if want := map[wire.ReportKind]int64{wire.ReportKind_REPORT_POD_STATUS: 1, wire.ReportKind_REPORT_EVENT: 2}; !reflect.DeepEqual(got.Reports, want) {
		t.Errorf("reports %v, want %v", got.Reports, want)
	}
	if got.Oldest.Unix() != 5_000 || got.CopyTime.Unix() != 9_000 || got.Copy == 0 || got.Reserve != reserveBytes {
		t.Errorf("summary %+v", got)
	}
	// A message that is older than every event.
	if err := s.PutMessages(ctx, &MessageBatch{Add: []*Message{{Route: "r", Topic: "t", At: 4_000_000}}}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Summary(ctx); err != nil || got.Messages != 1 || got.Oldest.Unix() != 4_000 {
		t.Errorf("with a message: %+v, %v", got, err)
	}
}
