package device

import (
	"fmt"
	"io"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// counts are guarded by Manager.mu.
type counts struct {
	accepted, refused, unknown, flooded, failed uint64
	reported                                    uint64
}

func (m *Manager) count(f func(*counts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.counts)
}

// WriteMetrics writes the room's metrics (docs/metrics.md).
func (m *Manager) WriteMetrics(w io.Writer) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.devices) == 0 && m.counts == (counts{}) {
		return // a node without devices says nothing of them
	}
	states := map[v1beta1.DeviceState]int{v1beta1.StateOnline: 0, v1beta1.StateOffline: 0, v1beta1.StateUnknown: 0}
	unreported, history, dropped := 0, 0, uint64(0)
	for _, d := range m.devices {
		states[d.view.Twin.State]++
		if len(d.dirty()) > 0 {
			unreported++
		}
		for name := range d.queues {
			history += len(d.backlog(name))
		}
		for _, e := range d.view.Twin.Properties {
			dropped += e.Dropped
		}
	}
	for _, state := range []v1beta1.DeviceState{v1beta1.StateOnline, v1beta1.StateOffline, v1beta1.StateUnknown} {
		fmt.Fprintf(w, "holdfast_edge_devices{state=%q} %d\n", state, states[state])
	}
	fmt.Fprintf(w, "holdfast_edge_devices_unreported %d\n", unreported)
	fmt.Fprintf(w, "holdfast_edge_device_history_values %d\n", history)
	fmt.Fprintf(w, "holdfast_edge_device_history_dropped %d\n", dropped)
	for _, c := range []struct {
		result string
		n      uint64
	}{{"accepted", m.counts.accepted}, {"refused", m.counts.refused}, {"unknown_device", m.counts.unknown},
		{"too_many", m.counts.flooded}, {"not_stored", m.counts.failed}} {
		fmt.Fprintf(w, "holdfast_edge_device_operations_total{result=%q} %d\n", c.result, c.n)
	}
	fmt.Fprintf(w, "holdfast_edge_device_reports_total %d\n", m.counts.reported)
}
