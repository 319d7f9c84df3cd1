package mqtt

import (
	"io"
	"sync/atomic"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// WriteMetrics writes in Prometheus' text format; see docs/metrics.md.
func (s *Server) WriteMetrics(w io.Writer) {
	var up, clients uint64
	switch b := s.current().(type) {
	case *embedded:
		up, clients = 1, uint64(max(0, atomic.LoadInt64(&b.server.Info.ClientsConnected)))
	case *external:
		up = 1
	}
	c := &s.desk.count
	refused, failed := c.refused.Load(), c.failed.Load()
	metrics.WriteGaugeUint64(w, "holdfast_edge_mqtt_up", up)
	metrics.WriteGaugeUint64(w, "holdfast_edge_mqtt_clients", clients)
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_connections_total", c.connections.Load())
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_connections_refused_total", c.rejected.Load())
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_messages_total", c.messages.Load())
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_messages_refused_total", refused)
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_messages_failed_total", failed)
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_published_total", c.published.Load())
	metrics.WriteCounterUint64(w, "holdfast_edge_mqtt_dropped_total", c.dropped.Load())
}
