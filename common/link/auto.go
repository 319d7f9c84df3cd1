package link

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// How DialAuto chooses.
const (
	// quicWait is how long QUIC may take to connect before websocket is tried.
	quicWait = 1500 * time.Millisecond
	// quicRest is how long QUIC is left alone where websocket worked and it did not.
	quicRest = 10 * time.Minute
	// quicYoung is the age below which a connection over QUIC that fell silent
	// counts as one that did not work: some gateways let only the first packets by.
	quicYoung = 2 * time.Minute
)

// autoDialer prefers QUIC and lives with websocket.
type autoDialer struct {
	DialOptions
	quic, websocket Dialer

	mu    sync.Mutex
	again time.Time // until then QUIC is left alone; guarded by mu
}

// DialAuto returns an edge's end that tries QUIC, and websocket where QUIC does
// not connect within a second and a half. Where only websocket did, it leaves
// QUIC alone for ten minutes; the first Dial after those tries it again. Behind
// an HTTP proxy it uses websocket alone.
func DialAuto(o DialOptions) Dialer {
	o = o.complete()
	d := &autoDialer{DialOptions: o, websocket: DialWebsocket(o)}
	hasty := o
	hasty.Timing.Dial = min(quicWait, o.Timing.Dial)
	d.quic = newQUICDialer(hasty, d.ended)
	return d
}

func (d *autoDialer) Dial(ctx context.Context) (Conn, error) {
	if !d.tryQUIC() {
		return d.websocket.Dial(ctx)
	}
	c, failed := d.quic.Dial(ctx)
	if failed == nil || ctx.Err() != nil {
		return c, failed
	}
	c, err := d.websocket.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("over QUIC: %w; over websocket: %w", failed, err)
	}
	d.Log.Info("QUIC does not get through to the hub: using websocket", "again", quicRest, "err", failed)
	d.rest()
	return c, nil
}

func (d *autoDialer) tryQUIC() bool {
	for _, hub := range d.Hubs {
		if proxy, err := d.Proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: hub, Path: Path}}); err == nil && proxy != nil {
			return false
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return !time.Now().Before(d.again)
}

func (d *autoDialer) rest() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.again = time.Now().Add(quicRest)
}

// ended is told how each connection over QUIC ended.
func (d *autoDialer) ended(cause error, age time.Duration) {
	if errors.Is(cause, ErrSilent) && age < quicYoung {
		d.rest()
	}
}
