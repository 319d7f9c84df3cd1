package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/cloud/route"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/metrics"
	"github.com/holdfast-edge/holdfast/common/profiling"
)

// door is the ports: the hub's, over TCP and over UDP, and the one for health and
// metrics.
type door struct {
	public, health net.Listener
	udp            net.PacketConn // nil: no QUIC
	strangers      *link.Strangers
	log            *slog.Logger
	profiling      bool
}

// Limits of the HTTP side; a link leaves HTTP when it is established.
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10
	stopTimeout   = 5 * time.Second
)

func openDoor(ctx context.Context, cfg config.Cloud, log *slog.Logger) (*door, error) {
	d := &door{log: log, strangers: link.NewStrangers(0, log), profiling: cfg.Profiling}
	if err := d.openPublic(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open the hub's port (listen: %s): %w", cfg.Listen, err)
	}
	if cfg.HealthListen == "" {
		return d, nil
	}
	var err error
	if d.health, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.HealthListen); err != nil {
		d.close()
		return nil, fmt.Errorf("open the port for health (healthListen: %s): %w", cfg.HealthListen, err)
	}
	return d, nil
}

// openPublic opens the hub's TCP port and the UDP port of the same number. Where
// the system chooses the number (port 0), it may choose one whose twin is taken:
// then it is asked again.
func (d *door) openPublic(ctx context.Context, cfg config.Cloud) error {
	_, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return err
	}
	for attempts := 0; ; attempts++ {
		if d.public, err = link.Listen(ctx, cfg.Listen, d.strangers); err != nil || !cfg.QUIC {
			return err
		}
		if d.udp, err = link.ListenUDP(ctx, d.public.Addr().String()); err == nil {
			return nil
		}
		_ = d.public.Close()
		if port != "0" || attempts == 20 {
			return err
		}
	}
}

// accept returns what takes edges over both transports, and the handler for
// those that come over websocket.
func (d *door) accept(o link.AcceptOptions, self *identity.Identity) (link.Acceptor, http.Handler, error) {
	o.Strangers = d.strangers
	acceptor, links := link.AcceptWebsocket(o)
	if d.udp == nil {
		return acceptor, links, nil
	}
	key, err := resetKey(self.Serving())
	if err != nil {
		return nil, nil, err
	}
	quic, err := link.AcceptQUIC(d.udp, link.QUICOptions{AcceptOptions: o, TLS: self.TLSConfig(), ResetKey: key})
	if err != nil {
		return nil, nil, err
	}
	return link.AcceptBoth(acceptor, quic), links, nil
}

// resetKey is derived from the hub's private key, which outlives a restart and
// which no other hub has.
func resetKey(serving *tls.Certificate) (key [32]byte, err error) {
	secret, err := x509.MarshalPKCS8PrivateKey(serving.PrivateKey)
	if err != nil {
		return key, fmt.Errorf("derive a key from the hub's own: %w", err)
	}
	derived, err := hkdf.Key(sha256.New, secret, nil, "holdfast quic stateless reset", len(key))
	copy(key[:], derived)
	return key, err
}

func (d *door) close() {
	_ = d.public.Close()
	if d.udp != nil {
		_ = d.udp.Close()
	}
	if d.health != nil {
		_ = d.health.Close()
	}
}

// serve serves both ports until ctx ends.
func (d *door) serve(ctx context.Context, tlsConfig *tls.Config, links, joins, publish, figures http.Handler, healthy func() bool) error {
	health := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy() {
			http.Error(w, "the cluster's objects are not known yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	public := http.NewServeMux()
	public.Handle(link.Path, links)
	public.Handle(enrollment.Path, joins)
	public.Handle(enrollment.RenewPath, joins)
	public.Handle(route.Pattern, publish)
	public.Handle("/healthz", health)
	local := http.NewServeMux()
	local.Handle("/healthz", health)
	local.Handle("GET "+metrics.Path, figures)
	if d.profiling {
		local.Handle(profiling.Path, profiling.Handler())
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.serveOne(ctx, d.public, public, tlsConfig) })
	if d.health != nil {
		group.Go(func() error { return d.serveOne(ctx, d.health, local, nil) })
	}
	return group.Wait()
}

func (d *door) serveOne(ctx context.Context, l net.Listener, handler http.Handler, tlsConfig *tls.Config) error {
	server := &http.Server{
		Handler: handler, TLSConfig: tlsConfig,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: 2 * headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		// Every port scanner breaks a handshake; that is nobody's business.
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		_ = server.Shutdown(stop)
	}()
	var err error
	if tlsConfig != nil {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}
