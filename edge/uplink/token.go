package uplink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// ErrOffline: there is no line to the hub now.
var ErrOffline = errors.New("there is no line to the hub")

type tokenAsk struct {
	ask    *wire.TokenAsk
	answer chan<- *wire.TokenAnswer // room for one
}

// AskToken asks the hub for a service account token and waits for the answer,
// whose code may also be a refusal. Without a line, or when it goes down
// meanwhile, the error is ErrOffline, at once. The ask's id is set here.
func (u *Uplink) AskToken(ctx context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
	offline := func() error {
		return fmt.Errorf("ask for a token of service account %s/%s: %w", ask.GetNamespace(), ask.GetServiceAccount(), ErrOffline)
	}
	u.mu.Lock()
	open := u.open
	u.mu.Unlock()
	if open == nil {
		return nil, offline()
	}
	ctx, cancel := context.WithTimeout(ctx, u.opts.Timing.Token)
	defer cancel()
	answer := make(chan *wire.TokenAnswer, 1)
	select {
	case u.asks <- tokenAsk{proto.CloneOf(ask), answer}:
	case <-open:
		return nil, offline()
	case <-ctx.Done():
		return nil, fmt.Errorf("ask for a token of service account %s/%s: %w", ask.GetNamespace(), ask.GetServiceAccount(), ctx.Err())
	}
	select {
	case a := <-answer:
		return a, nil
	case <-open:
		return nil, offline()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a token of service account %s/%s: %w", ask.GetNamespace(), ask.GetServiceAccount(), ctx.Err())
	}
}

// askable is the channel of requests while there is a session to ask in.
func (c *conversation) askable() <-chan tokenAsk {
	if !c.session.Welcomed() {
		return nil
	}
	return c.u.asks
}

func (c *conversation) ask(a tokenAsk) {
	c.lastAsk++
	a.ask.Id = c.lastAsk
	if err := c.send(&wire.EdgeMessage{Body: &wire.EdgeMessage_TokenAsk{TokenAsk: a.ask}}); err != nil {
		a.answer <- &wire.TokenAnswer{Id: a.ask.Id, Code: wire.ResultCode_RESULT_REJECTED, Message: err.Error()}
		return
	}
	c.tokens[a.ask.Id] = a.answer
}

// metaHubTime keeps the latest time of the hub, in Unix milliseconds.
const metaHubTime = "hub-time"

// hubClock is the hub's time as last heard, carried on by this machine's
// monotonic clock. A Pi that boots in 1970 still knows that it is later than
// this.
type hubClock struct {
	mu    sync.Mutex
	hub   time.Time // zero: never heard
	at    time.Time // when it was heard, with the monotonic reading
	saved time.Time // what is in the store
}

// load takes the stored time as a floor.
func (c *hubClock) load(ctx context.Context, s Store) {
	b, err := s.Meta(ctx, metaHubTime)
	if err != nil {
		return // never heard, or the store will say so louder elsewhere
	}
	if ms, err := strconv.ParseInt(string(b), 10, 64); err == nil {
		c.mu.Lock()
		c.hub, c.at = time.UnixMilli(ms), time.Now()
		c.saved = c.hub
		c.mu.Unlock()
	}
}

// learn hears the hub's time; it is stored at most once an hour, for that is as
// exact as a floor need be.
func (c *hubClock) learn(ctx context.Context, s Store, ms int64) {
	if ms <= 0 {
		return
	}
	c.mu.Lock()
	c.hub, c.at = time.UnixMilli(ms), time.Now()
	save := c.hub.Sub(c.saved).Abs() >= time.Hour
	if save {
		c.saved = c.hub
	}
	c.mu.Unlock()
	if save {
		// Without this the floor is an hour older after a reboot, no worse.
		_ = s.SetMeta(ctx, metaHubTime, strconv.AppendInt(nil, ms, 10))
	}
}

// HubTime is the hub's time now as far as is known: exact while a session is
// open, a floor after a reboot. false when the hub was never heard.
func (u *Uplink) HubTime() (time.Time, bool) {
	u.clock.mu.Lock()
	defer u.clock.mu.Unlock()
	if u.clock.hub.IsZero() {
		return time.Time{}, false
	}
	return u.clock.hub.Add(time.Since(u.clock.at)), true
}
