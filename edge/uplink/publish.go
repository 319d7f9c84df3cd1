package uplink

import (
	"context"
	"errors"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// maxPublishing is how many messages of the hub may be on their way to the broker.
const maxPublishing = 16

// ErrRefused is what Options.Publish wraps when it will never publish a message.
var ErrRefused = errors.New("refused")

// publish hands a message of the hub to the node's broker beside the conversation,
// and answers when the broker has it.
func (c *conversation) publish(ctx context.Context, p *wire.Publish) {
	answer := func(code wire.ResultCode, message string) *wire.EdgeMessage {
		return &wire.EdgeMessage{Body: &wire.EdgeMessage_Published{Published: &wire.Published{Id: p.GetId(), Code: code, Message: message}}}
	}
	if c.u.opts.Publish == nil {
		c.reply(ctx, answer(wire.ResultCode_RESULT_REJECTED, "this node serves no MQTT"))
		return
	}
	if c.publishing.Add(1) > maxPublishing {
		c.publishing.Add(-1)
		c.reply(ctx, answer(wire.ResultCode_RESULT_RETRY, "too many messages at a time"))
		return
	}
	go func() {
		defer c.publishing.Add(-1)
		result := answer(wire.ResultCode_RESULT_ACCEPTED, "")
		if err := c.u.opts.Publish(ctx, p); err != nil {
			code := wire.ResultCode_RESULT_RETRY
			if errors.Is(err, ErrRefused) {
				code = wire.ResultCode_RESULT_REJECTED
			}
			result = answer(code, err.Error())
		}
		select {
		case c.published <- result:
		case <-ctx.Done():
		}
	}()
}

// reply has an answer sent by the conversation's goroutine, which calls it and so
// must not wait.
func (c *conversation) reply(ctx context.Context, m *wire.EdgeMessage) {
	go func() {
		select {
		case c.published <- m:
		case <-ctx.Done():
		}
	}()
}
