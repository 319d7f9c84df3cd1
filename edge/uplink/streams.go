package uplink

import (
	"context"
	"errors"

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
		c.group.Go(func() { c.u.opts.Serve(ctx, s) })
	}
}
