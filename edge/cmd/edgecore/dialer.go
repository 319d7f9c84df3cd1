package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// dialer dials the hub with the certificates in the data directory, which it
// reads when they are needed: a node that has lost them still runs its pods.
type dialer struct {
	cfg    config.Edge
	log    *slog.Logger
	dialer link.Dialer // nil until the CA could be read
}

func newDialer(cfg config.Edge, log *slog.Logger) *dialer { return &dialer{cfg: cfg, log: log} }

func (d *dialer) path(name string) string { return filepath.Join(d.cfg.DataDir, "pki", name) }

// Dial is called by one goroutine, edge/uplink's.
func (d *dialer) Dial(ctx context.Context) (link.Conn, error) {
	if d.dialer == nil {
		ca, err := os.ReadFile(d.path("ca.crt"))
		if err != nil {
			return nil, fmt.Errorf("read the hub's CA (holdfast join fetches it): %w", err)
		}
		pool, err := pki.Pool(ca)
		if err != nil {
			return nil, fmt.Errorf("read the hub's CA from %s: %w", d.path("ca.crt"), err)
		}
		dial := link.DialWebsocket
		switch d.cfg.Transport {
		case "auto":
			dial = link.DialAuto
		case "quic":
			dial = link.DialQUIC
		}
		d.dialer = dial(link.DialOptions{
			Hubs: d.cfg.Hub, RootCAs: pool, Certificate: d.certificate,
			Timing: link.Timing{KeepAlive: d.cfg.KeepAlive.Duration, UserTimeout: d.cfg.LineTimeout.Duration}, Log: d.log,
		})
	}
	return d.dialer.Dial(ctx)
}

func (d *dialer) certificate() (tls.Certificate, error) {
	cert, err := os.ReadFile(d.path("node.crt"))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the node's certificate (holdfast join fetches it): %w", err)
	}
	key, err := os.ReadFile(d.path("node.key"))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the node's key (holdfast join makes it): %w", err)
	}
	return pki.KeyPair(cert, key)
}
