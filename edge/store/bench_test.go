package store

import (
	"context"
	"fmt"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// BenchmarkPutReport measures one durable write.
func BenchmarkPutReport(b *testing.B) {
	s, err := Open(b.TempDir()+"/store.db", Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	payload := make([]byte, 1500)
	for i := 0; b.Loop(); i++ {
		if err := s.PutReport(context.Background(), Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: fmt.Sprint(i % 20), Payload: payload}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutReportParallel measures durable writes of many at once.
func BenchmarkPutReportParallel(b *testing.B) {
	s, err := Open(b.TempDir()+"/store.db", Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	payload := make([]byte, 1500)
	b.SetParallelism(8)
	b.RunParallel(func(p *testing.PB) {
		for i := 0; p.Next(); i++ {
			if err := s.PutReport(context.Background(), Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: fmt.Sprint(i % 20), Payload: payload}); err != nil {
				b.Error(err)
			}
		}
	})
}
