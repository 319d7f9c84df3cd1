// Command cloudcore connects edge nodes with a Kubernetes cluster. It is only a
// front door: it reads the config, reaches the apiserver, and starts the rooms
// below cloud/. systemd (or `holdfast init --foreground`) starts it. It keeps
// nothing that cannot be made again: edges go on while it is down, and the next
// cloudcore finds out what each of them holds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/cloud/autonomy"
	"github.com/holdfast-edge/holdfast/cloud/device"
	"github.com/holdfast-edge/holdfast/cloud/enroll"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/route"
	"github.com/holdfast-edge/holdfast/cloud/watch"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
)

// version is set by the linker.
var version = "unreleased"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cloudcore:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, logs io.Writer) error {
	flags := flag.NewFlagSet("cloudcore", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "cloudcore connects Holdfast edge nodes with a Kubernetes cluster.\n\nUsage: cloudcore [--config FILE]\n\n")
		flags.PrintDefaults()
	}
	file := flags.String("config", config.CloudPath, "the config `file`")
	profile := flags.Bool("profiling", false, "serve Go's profiles beside /metrics, as profiling: true in the config file does")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unknown argument %q: see cloudcore --help", flags.Arg(0))
	case *showVersion:
		fmt.Fprintf(out, "cloudcore %s\n", version)
		return nil
	}
	cfg, err := config.LoadCloud(*file)
	if err != nil {
		return err
	}
	cfg.Profiling = cfg.Profiling || *profile
	log, err := config.NewLog(logs, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return fmt.Errorf("config file %s: %w", *file, err)
	}
	processLogs.Do(func() {
		// net/http tells of what an edge does wrong, in the edge's words: not for everybody.
		stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
		stdlog.SetFlags(0)
		klog.SetSlogLogger(log.With("from", "client-go"))
	})
	return serve(ctx, cfg, log)
}

// processLogs sends the logs that a process has once to the first cloudcore's: they
// cannot be sent elsewhere while somebody logs, as another one in a test does.
var processLogs sync.Once

func serve(ctx context.Context, cfg config.Cloud, log *slog.Logger) error {
	log.Info("cloudcore starts", "version", version)
	clients, err := newClients(cfg)
	if err != nil {
		return err
	}
	// The ports first: a port that is taken must not show after minutes.
	door, err := openDoor(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer door.close()

	cluster, err := watch.New(watch.Options{Client: clients.own, AsNode: clients.asNode, Metadata: clients.metadata, Devices: clients.devices, Log: log})
	if err != nil {
		return err
	}
	looking := newOnlookers(cfg, clients, cluster, log)
	self, err := openIdentity(ctx, cfg, clients, log)
	if err != nil {
		return err
	}
	var nodes *hub.Hub
	way, err := newReach(cfg, clients, self, func() *hub.Hub { return nodes }, cluster, log)
	if err != nil {
		return err
	}
	reports := report.New(report.Options{Client: clients.own, AsNode: clients.asNode, Hub: hubName(cfg), Endpoint: way.endpoint(), Log: log})
	twins := device.NewWriter(device.WriterOptions{Client: clients.devices, AsNode: clients.devicesAsNode, Known: cluster, Reports: reports})
	devices := device.NewKeeper(device.KeeperOptions{Client: clients.devices, Nodes: clients.own, Cluster: cluster, Log: log})
	routing := route.Options{Client: clients.devices, Cluster: clients.own, AsNode: clients.asNode, Known: cluster, Reports: reports, Version: version}
	routes := route.NewCarrier(routing)
	revoked := enroll.NewRevocations(enroll.RevocationsOptions{Client: clients.own, Log: log,
		OnRevoked: func(node string, before time.Time) { nodes.Revoke(node, before) }})
	joins := enroll.New(enroll.Options{Client: clients.own, CA: self.CA(), TTL: cfg.NodeCertificateTTL.Duration, RenewGrace: cfg.RenewGrace.Duration, Revocations: revoked, Log: log})
	nodes = hub.New(hub.Options{Cluster: cluster, Reports: reports, Devices: twins, Routes: routes, Certificates: joins, Admit: revoked.Admit, OnSession: looking.OnSession, Log: log, Version: version})
	publish := route.NewDoor(routing, nodes, access.New(access.Options{Client: clients.own, Log: log}))
	keeper := autonomy.New(autonomy.Options{Client: clients.own, Cluster: cluster, Log: log, Hub: hubName(cfg), Also: devices.Lead})
	acceptor, links, err := door.accept(link.AcceptOptions{Timing: link.Timing{KeepAlive: cfg.KeepAlive.Duration, UserTimeout: cfg.LineTimeout.Duration}, Admit: revoked.Admit, Log: log}, self)
	if err != nil {
		return err
	}
	defer acceptor.Close()
	figures := metricsHandler(clients.requests, cluster.Synced, nodes.WriteMetrics, cluster.WriteMetrics, keeper.WriteMetrics, twins.WriteMetrics, devices.WriteMetrics, routes.WriteMetrics, publish.WriteMetrics, door.strangers.WriteMetrics, way.writeMetrics, looking.WriteMetrics)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cluster.Run(ctx) })
	group.Go(func() error { return self.Run(ctx) })
	group.Go(func() error { return revoked.Run(ctx) })
	group.Go(func() error { return joins.Run(ctx) })
	group.Go(func() error { return way.run(ctx) })
	group.Go(func() error { return keeper.Run(ctx) })
	group.Go(func() error {
		return looking.run(ctx, door, nodes, self, access.New(access.Options{Client: clients.own, Log: log}))
	})
	group.Go(func() error { return nodes.Serve(ctx, acceptor) })
	group.Go(func() error { return door.serve(ctx, self.TLSConfig(), links, joins, publish, figures, cluster.Synced) })
	group.Go(func() error {
		if cluster.WaitSynced(ctx) == nil {
			log.Info("ready", "listen", door.public.Addr().String())
		}
		return nil
	})
	err = group.Wait()
	log.Info("cloudcore stops", "err", err)
	return err
}

// openIdentity waits for the apiserver: cloudcore may start before it.
func openIdentity(ctx context.Context, cfg config.Cloud, c *clients, log *slog.Logger) (*identity.Identity, error) {
	const wait = 2 * time.Second
	for told := false; ; told = true {
		self, err := identity.Open(ctx, identity.Options{Client: c.own, DataDir: cfg.DataDir, Hosts: cfg.AdvertiseAddresses, Log: log})
		if err == nil {
			return self, nil
		}
		if !told {
			log.Warn("the hub's identity cannot be read from the cluster yet; trying until it can", "err", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("stopped before the cluster answered: %w", err)
		}
	}
}

// hubName names this hub, unlike every other of the cluster: its machine, and the
// address by which edges reach it.
func hubName(cfg config.Cloud) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	address := cfg.Listen
	if _, port, err := net.SplitHostPort(cfg.Listen); err == nil && len(cfg.AdvertiseAddresses) > 0 {
		address = net.JoinHostPort(cfg.AdvertiseAddresses[0], port)
	}
	return host + "/" + address
}
