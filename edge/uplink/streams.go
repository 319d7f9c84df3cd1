package uplink

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
)

// acceptStreams serves the streams that the hub opens until the session ends. How
// many there are at a time is bounded by link.MaxStreams.
func (c *conversation) acceptStreams(ctx context.Context) {
	for {
		s, err := c.conn.AcceptStream(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, link.ErrClosed) && !errors.Is(err, link.ErrSilent) {
				c.u.log.Debug("no more streams of this session are taken", "session", c.session.ID(), "err", err)
			}
			return
		}
		c.streams.Go(func() { c.u.opts.Serve(ctx, s) })
	}
}

// streamsEnd is how long the next session waits for the streams of the last one.
const streamsEnd = 3 * time.Second

// awaitStreams waits until the streams have ended, but not for ever: one that is served
// from an SD card that has stalled must not keep the node off the line.
func (c *conversation) awaitStreams() {
	ended := make(chan struct{})
	go func() {
		c.streams.Wait()
		close(ended)
	}()
	timer := time.NewTimer(streamsEnd)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		c.u.log.Warn("streams of the session are still served after its end; they are not waited for", "session", c.session.ID(), "waited", streamsEnd)
	}
}
