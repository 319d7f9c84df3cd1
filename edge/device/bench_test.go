package device

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// BenchmarkAcceptedUpdates is how many updates a node accepts durably, from so many
// devices at once that each waits for its answer, and what they cost the disk.
func BenchmarkAcceptedUpdates(b *testing.B) {
	for _, devices := range []int{1, 50, 1000} {
		b.Run(fmt.Sprint("devices=", devices), func(b *testing.B) {
			n := newNode(b)
			n.o.Rate = 1e9
			n.apply(thermometer("shop"))
			for i := range devices {
				n.apply(aDevice(fmt.Sprint("d", i)))
			}
			n.await(fmt.Sprint("d", devices-1), "its model", usable)
			before := written(b)
			b.ResetTimer()
			var all sync.WaitGroup
			for d := range devices {
				all.Go(func() {
					for i := d; i < b.N; i += devices {
						if err := n.report(fmt.Sprint("d", d), "temperature", strconv.Itoa(i%100)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
			b.ReportMetric(float64(written(b)-before)/float64(b.N), "disk-B/update")
		})
	}
}

// written is what this process has had written to disks (proc(5), io).
func written(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/io")
	must(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			must(b, err)
			return n
		}
	}
	b.Fatal("no write_bytes in /proc/self/io")
	return 0
}
