package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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
	hubs      *rota
	quic      *quicDialer
	websocket *websocketDialer

	mu    sync.Mutex
	again map[string]time.Time // of a hub: until then QUIC is left alone; guarded by mu
}

// DialAuto returns an edge's end that tries QUIC at each hub, and websocket where
// QUIC does not connect within a second and a half. Where only websocket did, it
// leaves QUIC alone for ten minutes; the first Dial after those tries it again,
// while a connection that stands is not given up for it. Behind an HTTP proxy it
// uses websocket alone.
func DialAuto(o DialOptions) Dialer {
	o = o.complete()
	d := &autoDialer{DialOptions: o, hubs: o.rota(), again: make(map[string]time.Time)}
	d.websocket = DialWebsocket(o).(*websocketDialer)
	hasty := o
	hasty.Timing.Dial = min(quicWait, o.Timing.Dial)
	d.quic = newQUICDialer(hasty, d.ended)
	return d
}

func (d *autoDialer) Dial(ctx context.Context) (Conn, error) {
	certificate, err := d.certificate()
	if err != nil {
		return nil, err
	}
	return d.hubs.dial(ctx, func(ctx context.Context, hub string) (Conn, error) {
		return d.dialHub(ctx, hub, certificate)
	})
}

func (d *autoDialer) dialHub(ctx context.Context, hub string, certificate tls.Certificate) (Conn, error) {
	if d.proxied(hub) || d.resting(hub) {
		return d.websocket.dialHub(ctx, hub, certificate)
	}
	c, failed := d.quic.dialHub(ctx, hub, certificate)
	if failed == nil || ctx.Err() != nil {
		return c, failed
	}
	c, err := d.websocket.dialHub(ctx, hub, certificate)
	if err != nil {
		return nil, fmt.Errorf("over QUIC: %w; over websocket: %w", failed, err)
	}
	d.Log.Info("QUIC does not get through to the hub: using websocket", "hub", hub, "again", quicRest, "err", failed)
	d.rest(hub)
	return c, nil
}

func (d *autoDialer) resting(hub string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.again[hub])
}

func (d *autoDialer) rest(hub string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.again[hub] = time.Now().Add(quicRest)
}

// ended is told how each connection over QUIC ended.
func (d *autoDialer) ended(hub string, cause error, age time.Duration) {
	if errors.Is(cause, ErrSilent) && age < quicYoung {
		d.rest(hub)
	}
}
