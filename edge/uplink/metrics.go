package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/common/metrics"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
)

// counters count since the start of the process. Their zero value is ready.
type counters struct {
	meter    wire.Meter
	sessions atomic.Uint64 // opened
	ended    [endings]atomic.Uint64
	accepted atomic.Uint64 // reports by the hub's answer
	rejected atomic.Uint64
	retried  atomic.Uint64
}

// ending is why an attempt led to no session, or why a session ended.
type ending int

const (
	endingUnreachable ending = iota // no hub answered
	endingRefused                   // a hub said no to this node
	endingLost                      // an open session's line went down
	endingHub                       // the hub ended it and said why
	endingProtocol                  // the edge ended it: the hub broke the protocol, or the digests differ
	endings
)

func (e ending) String() string {
	return [endings]string{"unreachable", "refused", "lost", "hub", "protocol"}[e]
}

func endingOf(err error, hadSession bool) ending {
	var bye *resume.GoodbyeError
	switch {
	case refused(err):
		return endingRefused
	case errors.As(err, &bye):
		return endingHub
	case errors.Is(err, resume.ErrProtocol), errors.Is(err, resume.ErrDifference), errors.Is(err, wire.ErrMalformed):
		return endingProtocol
	case hadSession:
		return endingLost
	}
	return endingUnreachable
}

// scrapeTimeout bounds the one look at the store.
const scrapeTimeout = 5 * time.Second

// WriteMetrics writes the line's metrics in Prometheus' text format; see
// docs/metrics.md.
func (u *Uplink) WriteMetrics(w io.Writer) {
	state := u.State()
	metrics.WriteGaugeUint64(w, "holdfast_edge_line_up", number(state.Connected))
	metrics.WriteGaugeUint64(w, "holdfast_edge_line_synced", number(state.Synced))
	metrics.WriteGaugeUint64(w, "holdfast_edge_line_held", number(!state.HeldUntil.IsZero()))
	metrics.WriteGaugeFloat64(w, "holdfast_edge_line_since_seconds", time.Since(state.Since).Seconds())
	metrics.WriteCounterUint64(w, "holdfast_edge_line_sessions_total", u.count.sessions.Load())
	for e := range endings {
		metrics.WriteCounterUint64(w, fmt.Sprintf("holdfast_edge_line_failures_total{reason=%q}", e), u.count.ended[e].Load())
	}
	u.count.meter.Each(func(c wire.Class, sent, received uint64) {
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_edge_line_bytes_total{kind=%q,direction="sent"}`, c), sent)
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_edge_line_bytes_total{kind=%q,direction="received"}`, c), received)
	})
	for code, n := range map[wire.ResultCode]uint64{
		wire.ResultCode_RESULT_ACCEPTED: u.count.accepted.Load(),
		wire.ResultCode_RESULT_REJECTED: u.count.rejected.Load(),
		wire.ResultCode_RESULT_RETRY:    u.count.retried.Load(),
	} {
		result := strings.ToLower(strings.TrimPrefix(code.String(), "RESULT_"))
		metrics.WriteCounterUint64(w, fmt.Sprintf("holdfast_edge_reports_total{result=%q}", result), n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	if n, err := u.opts.Store.OutboxLen(ctx); err == nil { // else the store says so louder elsewhere
		metrics.WriteGaugeUint64(w, "holdfast_edge_outbox_reports", uint64(n))
	}
}

func number(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func (c *counters) answered(code wire.ResultCode) {
	switch code {
	case wire.ResultCode_RESULT_ACCEPTED:
		c.accepted.Add(1)
	case wire.ResultCode_RESULT_REJECTED:
		c.rejected.Add(1)
	default:
		c.retried.Add(1)
	}
}
