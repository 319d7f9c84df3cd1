package autonomy

import (
	"io"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// WriteMetrics writes what the Keeper has done, in Prometheus' text format
// (docs/metrics.md).
func (k *Keeper) WriteMetrics(w io.Writer) {
	leads := uint64(0)
	if k.leading.Load() {
		leads = 1
	}
	metrics.WriteGaugeUint64(w, "holdfast_hub_autonomy_leader", leads)
	metrics.WriteCounterUint64(w, "holdfast_hub_autonomy_patches_total", k.patches.Load())
	metrics.WriteCounterUint64(w, "holdfast_hub_autonomy_failures_total", k.refused.Load())
}
