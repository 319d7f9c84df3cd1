package uplink

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Source has reports beside the outbox: about things that change faster than it is
// worth telling, so that a report is made only when it is sent. Of each key one
// report at most is under way. edge/device and edge/route are sources.
type Source interface {
	// Begin says that a session begins: nothing is under way.
	Begin()
	// Changed is signalled (capacity 1) when Take may have something.
	Changed() <-chan struct{}
	// Take returns keys that have something to report, each once until it is settled
	// or Report found nothing.
	Take() []string
	// Report makes the report for a key, and a receipt that says what is in it;
	// store.ErrNotFound: there is nothing to say any more.
	Report(ctx context.Context, key string) (r *wire.Report, receipt any, err error)
	// Settle says that the hub accepted a report, or refused it for good.
	Settle(key string, receipt any)
}

// sourced is a key of a source in a conversation.
type sourced struct {
	source  Source
	key     string
	receipt any
}

// begin starts the sources, and returns what is signalled when any has changed.
func (c *conversation) begin(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	for _, s := range c.u.opts.Sources {
		s.Begin()
		go func() {
			for {
				select {
				case <-s.Changed():
				case <-ctx.Done():
					return
				}
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}()
	}
	return changed
}

// collect takes over what the sources have ready.
func (c *conversation) collect() {
	for i, s := range c.u.opts.Sources {
		for _, key := range s.Take() {
			id := resume.SourcedID(i, c.lastSourced)
			c.lastSourced++
			c.sourced[id] = &sourced{source: s, key: key}
			c.window.Add([]resume.Waiting{{ID: id, Key: key}})
		}
	}
}

// compose makes the report that the window lets go.
func (c *conversation) compose(ctx context.Context, id uint64) (*wire.Report, error) {
	of := c.sourced[id]
	if of == nil {
		return c.u.opts.Store.OutboxReport(ctx, id)
	}
	r, receipt, err := of.source.Report(ctx, of.key)
	if err != nil {
		if errors.Is(err, store.ErrNotFound) {
			delete(c.sourced, id)
		}
		return nil, err
	}
	of.receipt, r.Id = receipt, id
	return r, nil
}

// answeredSource takes the hub's answer to a source's report, and says whether it was one.
func (c *conversation) answeredSource(r *wire.ReportResult) bool {
	of := c.sourced[r.GetId()]
	if of == nil {
		return false
	}
	if c.window.Answer(r.GetId(), r.GetCode(), time.Now()) {
		delete(c.sourced, r.GetId())
		of.source.Settle(of.key, of.receipt)
		if r.GetCode() == wire.ResultCode_RESULT_REJECTED {
			c.u.log.Warn("the hub refused a report for good; it is dropped", "about", of.key, "reason", r.GetMessage(), "session", c.session.ID())
		}
	}
	return true
}
