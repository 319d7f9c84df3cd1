package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Carrier is what the hub asks of cloud/device and cloud/route: to write a report
// of the session that has that epoch, from the edge's database store. It returns
// as Reports.Write does.
type Carrier interface {
	Write(ctx context.Context, node, store string, epoch report.Epoch, r *wire.Report) (*wire.ReportResult, error)
}

// write has a report written by the room whose it is.
func (s *session) write(ctx context.Context, r *wire.Report) (*wire.ReportResult, error) {
	var to Carrier
	switch r.GetKind() {
	case wire.ReportKind_REPORT_DEVICE:
		to = s.hub.devices
	case wire.ReportKind_REPORT_MESSAGES:
		to = s.hub.routes
	default:
		return s.hub.reports.Write(ctx, s.node, s.claim.epoch, r)
	}
	if to == nil {
		return report.Answer(r.GetId(), fmt.Errorf("report of kind %s: this hub does not carry it: %w", r.GetKind(), report.ErrNotYet)), nil
	}
	return to.Write(ctx, s.node, s.storeID, s.claim.epoch, r)
}

// Why a node cannot be asked something; test with errors.Is.
var (
	// ErrNotConnected: the node has no session with this hub, or it ended before the
	// node answered: the message may have been published.
	ErrNotConnected = errors.New("the node is not connected to this hub")
	// ErrTooOld: the node's edgecore knows no routes.
	ErrTooOld = errors.New("the node's edgecore is too old for routes")
	// ErrBusy: too many messages wait for the node's answer.
	ErrBusy = errors.New("too many messages wait for the node's answer")
)

// maxPublishing is how many messages wait for one node's answer.
const maxPublishing = 16

// publishing is what waits for the node's answers; owned by run.
type publishing struct {
	last    uint64
	waiting map[uint64]chan<- *wire.Published
}

// Publish has a node publish a message on its broker, and returns the node's
// answer. The id of p is not looked at.
func (h *Hub) Publish(ctx context.Context, node string, p *wire.Publish) (*wire.Published, error) {
	h.mu.Lock()
	s := h.sessions[node]
	h.mu.Unlock()
	if s == nil {
		return nil, fmt.Errorf("publish at node %s: %w", node, ErrNotConnected)
	}
	answer, begun := make(chan *wire.Published, 1), make(chan error, 1)
	var id uint64
	if !s.within(ctx, func() {
		var err error
		id, err = s.publish(p, answer)
		begun <- err
	}) {
		return nil, fmt.Errorf("publish at node %s: %w", node, s.why(ctx))
	}
	if err := <-begun; err != nil {
		return nil, fmt.Errorf("publish at node %s: %w", node, err)
	}
	select {
	case a := <-answer:
		return a, nil
	case <-s.ended:
		return nil, fmt.Errorf("publish at node %s: %w", node, ErrNotConnected)
	case <-ctx.Done():
		s.within(context.Background(), func() { s.abandon(id) })
		return nil, fmt.Errorf("publish at node %s: no answer: %w", node, context.Cause(ctx))
	}
}

// within has f run in the session's goroutine; false: it does not.
func (s *session) within(ctx context.Context, f func()) bool {
	select {
	case s.posts <- f:
		return true
	case <-s.ended:
	case <-ctx.Done():
	}
	return false
}

func (s *session) why(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrNotConnected
}

func (s *session) publish(p *wire.Publish, answer chan<- *wire.Published) (id uint64, err error) {
	w := &s.publishes
	switch {
	case !s.delivery.Welcomed():
		return 0, ErrNotConnected
	case s.knows < uint32(wire.Kind_KIND_ROUTE):
		return 0, ErrTooOld
	case len(w.waiting) >= maxPublishing:
		return 0, ErrBusy
	}
	if w.waiting == nil {
		w.waiting = make(map[uint64]chan<- *wire.Published)
	}
	w.last++
	w.waiting[w.last] = answer
	s.reply(&wire.HubMessage{Body: &wire.HubMessage_Publish{Publish: &wire.Publish{
		Id: w.last, RouteUid: p.GetRouteUid(), Topic: p.GetTopic(), Payload: p.GetPayload(),
	}}})
	return w.last, nil
}

// abandon forgets a message that nobody waits for any more, and does not send it if
// it was not handed to the line yet: a line that takes nothing would fill the hub.
func (s *session) abandon(id uint64) {
	delete(s.publishes.waiting, id)
	s.replies = slices.DeleteFunc(s.replies, func(m *wire.HubMessage) bool { return m.GetPublish() != nil && m.GetPublish().GetId() == id })
}

// published takes a node's answer. One that nobody waits for came too late.
func (s *session) published(p *wire.Published) {
	if answer := s.publishes.waiting[p.GetId()]; answer != nil {
		answer <- p
		delete(s.publishes.waiting, p.GetId())
	}
}
