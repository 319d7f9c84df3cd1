package link_test

import (
	"runtime"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
)

// BenchmarkIdleConnections reports what one idle connection takes in memory, both
// ends of it and the goroutine that listens at each.
func BenchmarkIdleConnections(b *testing.B) {
	hub := linktest.StartHub(b, linktest.NewCA(b), quiet())
	dialer := hub.Dialer(b, "pi-1")
	var conns []link.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	for b.Loop() {
		accepted := make(chan link.Conn, 1)
		go func() {
			c, err := hub.Accept(b.Context())
			if err != nil {
				b.Errorf("accept: %v", err)
			}
			accepted <- c
		}()
		edge, err := dialer.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, edge, <-accepted)
		for _, c := range conns[len(conns)-2:] {
			go func() { _, _ = c.Recv(b.Context()) }()
		}
	}
	b.ReportMetric(float64(used()-before)/1024/float64(b.N), "KiB/connection")
}
