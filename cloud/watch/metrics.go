package watch

import (
	"fmt"
	"io"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/common/metrics"
)

// WriteMetrics writes what the Cluster holds and has asked for, in Prometheus'
// text format (docs/metrics.md).
func (c *Cluster) WriteMetrics(w io.Writer) {
	followed, known, pods := c.pods.size()
	_, _, nodes := c.nodes.size()
	metrics.WriteGaugeUint64(w, "holdfast_hub_watch_followed_nodes", uint64(followed))
	metrics.WriteGaugeUint64(w, "holdfast_hub_watch_known_nodes", uint64(known))
	held := map[string]int{"pods": pods, "nodes": nodes, "configmaps": c.configMaps.size(), "secrets": c.secrets.size()}
	if d := c.devices; d != nil {
		_, _, held[crd.Devices] = d.shelf.size()
		held[crd.Models], held[crd.Routes] = d.models.size(), d.routes.size()
	}
	for kind, n := range held {
		metrics.WriteGaugeUint64(w, fmt.Sprintf("holdfast_hub_watch_objects{kind=%q}", kind), uint64(n))
	}
	metrics.WriteCounterUint64(w, "holdfast_hub_watch_loads_total", c.loads.Load())
	metrics.WriteCounterUint64(w, "holdfast_hub_watch_bulk_loads_total", c.pods.bulks.Load()+c.nodes.bulks.Load())
	metrics.WriteCounterUint64(w, "holdfast_hub_watch_live_reads_total", c.reads.Load())
	for _, s := range c.streams {
		up := uint64(0)
		if s.up.Load() {
			up = 1
		}
		metrics.WriteGaugeUint64(w, fmt.Sprintf("holdfast_hub_watch_up{kind=%q}", s.name), up)
		metrics.WriteCounterUint64(w, fmt.Sprintf("holdfast_hub_watch_events_total{kind=%q}", s.name), s.events.Load())
		metrics.WriteCounterUint64(w, fmt.Sprintf("holdfast_hub_watch_relists_total{kind=%q}", s.name), s.relists.Load())
		metrics.WriteCounterUint64(w, fmt.Sprintf("holdfast_hub_watch_interruptions_total{kind=%q}", s.name), s.interrupts.Load())
	}
}
