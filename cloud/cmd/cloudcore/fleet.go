package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/cloud/fleet"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/cloud/watch"
	"github.com/holdfast-edge/holdfast/common/config"
	documents "github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// onlookers is what this hub tells people of the fleet.
type onlookers struct {
	*fleet.Fleet
	cfg config.Cloud
	log *slog.Logger
}

func newOnlookers(cfg config.Cloud, c *clients, cluster *watch.Cluster, log *slog.Logger) *onlookers {
	return &onlookers{fleet.New(fleet.Options{Client: c.own, AsNode: c.asNode, Cluster: cluster, Hub: hubName(cfg), Version: version, Log: log}), cfg, log}
}

// run serves the fleet's documents on the socket and behind the web page until ctx
// ends. Nodes need neither: where one cannot be served, it is tried again, and the hub
// goes on.
func (o *onlookers) run(ctx context.Context, d *door, nodes *hub.Hub, self *identity.Identity, who *access.Access) error {
	o.Follow(nodes)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return o.Run(ctx) })
	if o.cfg.RunDir != "" {
		path := filepath.Join(o.cfg.RunDir, documents.SocketName)
		group.Go(func() error {
			return o.patiently(ctx, "socket (runDir)", path, func(context.Context) (net.Listener, error) { return unixsocket.Listen(path, 0o600) },
				func(l net.Listener) error { return d.serveOne(ctx, l, o.Socket(), nil) })
		})
	}
	if o.cfg.FleetListen != "" {
		group.Go(func() error {
			return o.patiently(ctx, "web page (fleetListen)", o.cfg.FleetListen, func(ctx context.Context) (net.Listener, error) {
				return new(net.ListenConfig).Listen(ctx, "tcp", o.cfg.FleetListen)
			}, func(l net.Listener) error { return o.servePage(ctx, d, l, self, who) })
		})
	}
	return group.Wait()
}

// listenAgain is how often what could not be listened on is tried again.
const listenAgain = 10 * time.Second

func (o *onlookers) patiently(ctx context.Context, what, where string, listen func(context.Context) (net.Listener, error), serve func(net.Listener) error) error {
	for told := false; ; {
		l, err := listen(ctx)
		if err == nil {
			o.log.Info("the fleet can be looked at", "by", what, "listen", l.Addr().String())
			err = serve(l)
			told = false
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !told {
			told = true
			o.log.Error("the fleet cannot be looked at; the hub goes on without, and it is tried again", "by", what, "at", where, "err", err)
		}
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
			return nil
		}
	}
}

// servePage serves the page in plain HTTP where only this machine can reach it.
func (o *onlookers) servePage(ctx context.Context, d *door, l net.Listener, self *identity.Identity, who *access.Access) error {
	defer l.Close()
	token, err := fleet.LocalToken(filepath.Join(o.cfg.DataDir, documents.TokenFile))
	if err != nil {
		// The apiserver's own tokens are good for it all the same.
		o.log.Error("the fleet's page takes no local token", "err", err)
	}
	options := fleet.ServerOptions{Access: who, Token: token}
	if loopback(l.Addr()) {
		options.Hosts = append([]string{}, o.cfg.AdvertiseAddresses...)
		return d.serveOne(ctx, l, o.Page(options), nil)
	}
	secured := self.TLSConfig()
	secured.ClientAuth = tls.NoClientCert // a node's certificate says nothing here
	return d.serveOne(ctx, l, o.Page(options), secured)
}

func loopback(a net.Addr) bool {
	to, err := netip.ParseAddrPort(a.String())
	return err == nil && to.Addr().Unmap().IsLoopback()
}
