package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
)

// door is the two ports: the hub's, and the one for health.
type door struct {
	public, health net.Listener
	log            *slog.Logger
}

// Limits of the HTTP side; a link leaves HTTP when it is established.
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10
	stopTimeout   = 5 * time.Second
)

func openDoor(ctx context.Context, cfg config.Cloud, log *slog.Logger) (*door, error) {
	d := &door{log: log}
	var err error
	if d.public, err = link.Listen(ctx, cfg.Listen); err != nil {
		return nil, fmt.Errorf("open the hub's port (listen: %s): %w", cfg.Listen, err)
	}
	if cfg.HealthListen == "" {
		return d, nil
	}
	if d.health, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.HealthListen); err != nil {
		return nil, errors.Join(fmt.Errorf("open the port for health (healthListen: %s): %w", cfg.HealthListen, err), d.public.Close())
	}
	return d, nil
}

func (d *door) close() {
	_ = d.public.Close()
	if d.health != nil {
		_ = d.health.Close()
	}
}

// serve serves both ports until ctx ends.
func (d *door) serve(ctx context.Context, tlsConfig *tls.Config, links, joins http.Handler, healthy func() bool) error {
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
	public.Handle("/healthz", health)
	local := http.NewServeMux()
	local.Handle("/healthz", health)

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
