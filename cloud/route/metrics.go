package route

import (
	"io"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// WriteMetrics writes what the Carrier has done, in Prometheus' text format
// (docs/metrics.md).
func (c *Carrier) WriteMetrics(w io.Writer) {
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="up",result="accepted"}`, c.delivered.Load()-min(c.refused.Load(), c.delivered.Load()))
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="up",result="rejected"}`, c.refused.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="up",result="retry"}`, c.failed.Load())
}

// WriteMetrics writes what the Door has done.
func (d *Door) WriteMetrics(w io.Writer) {
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="down",result="accepted"}`, d.accepted.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="down",result="rejected"}`, d.refused.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_route_messages_total{direction="down",result="retry"}`, d.failed.Load())
}
