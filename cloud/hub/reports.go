package hub

import (
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Lanes of reports: a device that says much, or an endpoint of a route that does
// not answer, delays no status of a pod.
const (
	laneCluster = iota // nodes, pods and events
	laneDevices
	laneMessages
	lanes
)

// maxRunning is how many reports of a lane are written for one node at a time.
func maxRunning(lane int) int {
	if lane == laneDevices {
		return 8
	}
	return 4
}

func laneOf(r *wire.Report) int {
	switch r.GetKind() {
	case wire.ReportKind_REPORT_DEVICE:
		return laneDevices
	case wire.ReportKind_REPORT_MESSAGES:
		return laneMessages
	}
	return laneCluster
}

// waiting is how many reports are taken and not written.
func (s *session) waiting() (n int) {
	for i := range s.reports {
		n += s.reports[i].total
	}
	return n
}

// reportQueue keeps the reports of one node: about one subject one after the
// other, about several subjects a few at a time.
type reportQueue struct {
	chains  map[string][]*wire.Report
	ready   []string // subjects whose first report may be written
	running int
	total   int
}

func (q *reportQueue) add(r *wire.Report) {
	if q.chains == nil {
		q.chains = make(map[string][]*wire.Report)
	}
	subject := report.Subject(r)
	q.chains[subject] = append(q.chains[subject], r)
	if len(q.chains[subject]) == 1 {
		q.ready = append(q.ready, subject)
	}
	q.total++
}

// next returns a report to write and what to call when it is written, or nil when
// there is none, or as many run already.
func (q *reportQueue) next(most int) (*wire.Report, func()) {
	if q.running >= most || len(q.ready) == 0 {
		return nil, nil
	}
	subject := q.ready[0]
	q.ready = q.ready[1:]
	q.running++
	return q.chains[subject][0], func() {
		q.running--
		q.total--
		if rest := q.chains[subject][1:]; len(rest) > 0 {
			q.chains[subject] = rest
			q.ready = append(q.ready, subject)
		} else {
			delete(q.chains, subject)
		}
	}
}
