package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/edge/credential"
)

// dialer dials the hub with the certificates in the data directory, which it
// reads when they are needed: a node that has lost them still runs its pods.
type dialer struct {
	cfg        config.Edge
	credential *credential.Credential
	log        *slog.Logger
	dialer     link.Dialer // nil until the CA could be read
}

func newDialer(cfg config.Edge, c *credential.Credential, log *slog.Logger) *dialer {
	return &dialer{cfg: cfg, credential: c, log: log}
}

// Dial is called by one goroutine, edge/uplink's. Where the hub says that the
// node's certificate has ended, it is renewed by its key first.
func (d *dialer) Dial(ctx context.Context) (link.Conn, error) {
	if d.dialer == nil {
		pool, err := d.credential.Roots()
		if err != nil {
			return nil, err
		}
		dial := link.DialWebsocket
		switch d.cfg.Transport {
		case "auto":
			dial = link.DialAuto
		case "quic":
			dial = link.DialQUIC
		}
		d.dialer = dial(link.DialOptions{
			Hubs: d.cfg.Hub, RootCAs: pool, Certificate: d.credential.Certificate, Since: d.credential.Since,
			Timing: link.Timing{KeepAlive: d.cfg.KeepAlive.Duration, UserTimeout: d.cfg.LineTimeout.Duration}, Log: d.log,
		})
	}
	conn, err := d.dialer.Dial(ctx)
	if !errors.Is(err, link.ErrExpired) {
		return conn, err
	}
	if rerr := d.credential.Recover(ctx); rerr != nil {
		return nil, fmt.Errorf("%w; renew it by its key: %w", err, rerr)
	}
	return d.dialer.Dial(ctx)
}
