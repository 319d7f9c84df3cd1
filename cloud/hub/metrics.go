package hub

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/metrics"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// NodeInfo is what the hub knows of a node that is connected.
type NodeInfo struct {
	Node, Session     string
	Transport, Remote string
	State             delivery.State
	Since, LastHeard  time.Time
	Meter             *wire.Meter // of this session's messages
	Traffic           link.Traffic
	RTT               time.Duration // 0: not known
	Version           string        // edgecore's
}

// Each calls f for every node that is connected, in no order.
func (h *Hub) Each(f func(NodeInfo)) {
	h.mu.Lock()
	all := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		all = append(all, s)
	}
	h.mu.Unlock()
	for _, s := range all {
		f(s.info())
	}
}

// Session is what the hub knows of one node; false where it is not connected.
func (h *Hub) Session(node string) (NodeInfo, bool) {
	h.mu.Lock()
	s := h.sessions[node]
	h.mu.Unlock()
	if s == nil {
		return NodeInfo{}, false
	}
	return s.info(), true
}

func (s *session) info() NodeInfo {
	return NodeInfo{
		Node: s.node, Session: s.id, Transport: s.conn.Transport(), Remote: s.conn.RemoteAddr(),
		State: delivery.State(s.state.Load()), Since: s.began, LastHeard: s.conn.LastHeard(),
		Meter: &s.meter, Traffic: s.conn.Traffic(), RTT: s.conn.RTT(), Version: s.version,
	}
}

// counts are of the hub since it started.
type counts struct {
	begun, turnedAway          atomic.Uint64
	ended                      [len(endings)]atomic.Uint64
	results                    [wire.ResultCode_RESULT_RETRY + 1]atomic.Uint64
	claimed, unclaimed         atomic.Uint64
	leaseRenewed, leaseRefused atomic.Uint64
	meter                      wire.Meter
}

// endings are the reasons for which sessions end, as a metric's label.
var endings = [...]struct {
	name   string
	reason wire.Goodbye_Reason
}{
	{"line", wire.Goodbye_REASON_UNSPECIFIED}, // cut, silent, or closed by the edge
	{"replaced", wire.Goodbye_REASON_REPLACED},
	{"duplicate", wire.Goodbye_REASON_DUPLICATE},
	{"shutdown", wire.Goodbye_REASON_SHUTDOWN},
	{"protocol_error", wire.Goodbye_REASON_PROTOCOL_ERROR},
	{"revoked", wire.Goodbye_REASON_REVOKED},
	{"busy", wire.Goodbye_REASON_BUSY},
}

func (c *counts) end(err error) {
	var g *goodbye
	reason := wire.Goodbye_REASON_UNSPECIFIED
	if errors.As(err, &g) {
		reason = g.reason
	}
	for i := range endings {
		if endings[i].reason == reason {
			c.ended[i].Add(1)
		}
	}
}

func (c *counts) reported(code wire.ResultCode) {
	if code >= 0 && int(code) < len(c.results) {
		c.results[code].Add(1)
	}
}

func (c *counts) renewed(err error) {
	if err != nil {
		c.leaseRefused.Add(1)
	} else {
		c.leaseRenewed.Add(1)
	}
}

// WriteMetrics writes the hub's metrics as Prometheus reads them. Nothing is kept
// for it: a node's figures are its session's, and begin anew with the next one.
func (h *Hub) WriteMetrics(w io.Writer) {
	c := &h.counts
	metrics.WriteCounterUint64(w, "holdfast_hub_sessions_begun_total", c.begun.Load())
	metrics.WriteCounterUint64(w, "holdfast_hub_connections_turned_away_total", c.turnedAway.Load())
	for i := range endings {
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_sessions_ended_total{reason=%q}`, endings[i].name), c.ended[i].Load())
	}
	for code, name := range map[wire.ResultCode]string{
		wire.ResultCode_RESULT_ACCEPTED: "accepted", wire.ResultCode_RESULT_REJECTED: "rejected", wire.ResultCode_RESULT_RETRY: "retry",
	} {
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_reports_total{result=%q}`, name), c.results[code].Load())
	}
	metrics.WriteGaugeUint64(w, "holdfast_hub_reports_held_bytes", uint64(max(h.held.Load(), 0)))
	metrics.WriteCounterUint64(w, `holdfast_hub_claims_total{result="claimed"}`, c.claimed.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_claims_total{result="failed"}`, c.unclaimed.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_lease_renewals_total{result="renewed"}`, c.leaseRenewed.Load())
	metrics.WriteCounterUint64(w, `holdfast_hub_lease_renewals_total{result="failed"}`, c.leaseRefused.Load())
	c.meter.Each(func(class wire.Class, sent, received uint64) {
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_message_bytes_total{kind=%q,direction="down"}`, class), sent)
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_message_bytes_total{kind=%q,direction="up"}`, class), received)
	})
	var sessions [delivery.States]map[string]uint64
	for i := range sessions {
		sessions[i] = map[string]uint64{"websocket": 0, "quic": 0}
	}
	h.Each(func(n NodeInfo) {
		sessions[n.State][n.Transport]++
		n.Meter.Each(func(class wire.Class, sent, received uint64) {
			if sent > 0 {
				metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_node_message_bytes_total{node=%q,kind=%q,direction="down"}`, n.Node, class), sent)
			}
			if received > 0 {
				metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_node_message_bytes_total{node=%q,kind=%q,direction="up"}`, n.Node, class), received)
			}
		})
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_node_line_bytes_total{node=%q,direction="down"}`, n.Node), n.Traffic.Sent)
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_node_line_bytes_total{node=%q,direction="up"}`, n.Node), n.Traffic.Received)
	})
	for state := range sessions {
		for transport, n := range sessions[state] {
			metrics.WriteGaugeUint64(w, fmt.Sprintf(`holdfast_hub_sessions{state=%q,transport=%q}`, delivery.State(state), transport), n)
		}
	}
}
