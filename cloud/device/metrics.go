package device

import (
	"io"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// WriteMetrics writes what the Writer has done, in Prometheus' text format
// (docs/metrics.md).
func (w *Writer) WriteMetrics(to io.Writer) {
	metrics.WriteCounterUint64(to, "holdfast_hub_device_writes_total", w.writes.Load())
	metrics.WriteCounterUint64(to, "holdfast_hub_device_unchanged_total", w.unchanged.Load())
	metrics.WriteCounterUint64(to, "holdfast_hub_device_live_reads_total", w.reads.Load())
}

// WriteMetrics writes what the Keeper has done.
func (k *Keeper) WriteMetrics(to io.Writer) {
	metrics.WriteCounterUint64(to, "holdfast_hub_devices_bound_total", k.bound.Load())
	metrics.WriteCounterUint64(to, "holdfast_hub_devices_silenced_total", k.silenced.Load())
	metrics.WriteCounterUint64(to, "holdfast_hub_devices_restored_total", k.restored.Load())
	metrics.WriteCounterUint64(to, "holdfast_hub_devices_failures_total", k.refused.Load())
}
