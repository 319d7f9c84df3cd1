package modbus

import (
	"cmp"
	"slices"
	"time"
)

// request reads neighbouring registers, or bits, at once.
type request struct {
	table  table
	start  uint16
	count  int
	points []int // of config.points
}

// poll is what is read in one cycle.
type poll struct {
	every    time.Duration
	requests []request
	next     time.Time // the line's
}

// plan groups the points by cycle, and those of one cycle that lie side by side, or
// with no more than gap between, into one request each. Whatever gap says, no more
// is read than one request may ask for.
func plan(points []point, gap int) []*poll {
	var polls []*poll
	order := make([]int, len(points))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		p, q := &points[a], &points[b]
		return cmp.Or(cmp.Compare(p.collect, q.collect), cmp.Compare(p.table, q.table), cmp.Compare(p.address, q.address))
	})
	for _, i := range order {
		p := &points[i]
		var in *poll
		if n := len(polls); n > 0 && polls[n-1].every == p.collect {
			in = polls[n-1]
		} else {
			in = &poll{every: p.collect}
			polls = append(polls, in)
		}
		most := maxRegisters
		if p.table.bits() {
			most = maxBits
		}
		if n := len(in.requests); n > 0 {
			r := &in.requests[n-1]
			end := int(r.start) + r.count
			if r.table == p.table && int(p.address) <= end+gap && max(end, p.end())-int(r.start) <= most {
				r.count = max(end, p.end()) - int(r.start)
				r.points = append(r.points, i)
				continue
			}
		}
		in.requests = append(in.requests, single(points, i))
	}
	return polls
}

// single reads one point alone.
func single(points []point, i int) request {
	p := &points[i]
	return request{table: p.table, start: p.address, count: int(p.count), points: []int{i}}
}
