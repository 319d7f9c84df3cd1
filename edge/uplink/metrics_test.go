package uplink

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// metric reads one value out of what WriteMetrics writes; false: it is not there.
func metric(u *Uplink, name string) (float64, bool) {
	var text bytes.Buffer
	u.WriteMetrics(&text)
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text.Bytes())
	if found == nil {
		return 0, false
	}
	value, err := strconv.ParseFloat(string(found[1]), 64)
	return value, err == nil
}

func TestMetricsFollowTheLine(t *testing.T) {
	r := newRig(t)
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "status")
	put(t, r.store, wire.ReportKind_REPORT_EVENT, "", "event")
	r.start(t)
	is := func(name string, want float64) {
		t.Helper()
		r.eventually(t, fmt.Sprint(name, " is ", want), func() bool { got, ok := metric(r.uplink, name); return ok && got == want })
	}
	p := r.accept(t)
	p.hello()
	is("holdfast_edge_line_up", 0)
	is("holdfast_edge_outbox_reports", 2)
	p.send(welcome(true))
	is("holdfast_edge_line_up", 1)
	is("holdfast_edge_line_synced", 1)
	is("holdfast_edge_line_sessions_total", 1)
	p.send(result(p.report().GetId(), wire.ResultCode_RESULT_ACCEPTED), result(p.report().GetId(), wire.ResultCode_RESULT_REJECTED))
	is("holdfast_edge_outbox_reports", 0)
	is(`holdfast_edge_reports_total{result="accepted"}`, 1)
	is(`holdfast_edge_reports_total{result="rejected"}`, 1)
	is(`holdfast_edge_reports_total{result="retry"}`, 0)
	p.send(changes(1, []*wire.Object{configMap(t, "a", "u1", "1")}))
	p.ack(1)
	for _, name := range []string{
		`holdfast_edge_line_bytes_total{kind="session",direction="sent"}`, `holdfast_edge_line_bytes_total{kind="session",direction="received"}`,
		`holdfast_edge_line_bytes_total{kind="pod_status",direction="sent"}`, `holdfast_edge_line_bytes_total{kind="event",direction="sent"}`,
		`holdfast_edge_line_bytes_total{kind="configmap",direction="received"}`,
	} {
		r.eventually(t, name, func() bool { got, ok := metric(r.uplink, name); return ok && got > 0 })
	}
	is(`holdfast_edge_line_bytes_total{kind="pod",direction="received"}`, 0)
	p.send(goodbye(wire.Goodbye_REASON_SHUTDOWN))
	is(`holdfast_edge_line_failures_total{reason="hub"}`, 1)
	p = r.accept(t)
	p.hello()
	p.send(welcome(true))
	is("holdfast_edge_line_sessions_total", 2)
	r.proxy.Break()
	is(`holdfast_edge_line_failures_total{reason="lost"}`, 1)
	p = r.accept(t)
	p.hello()
	p.send(goodbye(wire.Goodbye_REASON_REVOKED))
	is(`holdfast_edge_line_failures_total{reason="refused"}`, 1)
}
