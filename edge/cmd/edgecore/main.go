// Command edgecore runs the pods of an edge node. It is only a front door: it
// reads the config, opens the store, and starts the rooms in the order that
// brings the pods back soonest. Pods start from the store alone; the line to the
// hub comes up beside them and nothing waits for it.
//
// systemd (or `holdfast join --foreground`) starts it. When it stops, the
// containers go on running, and the next edgecore adopts them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/node"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/stream"
	"github.com/holdfast-edge/holdfast/edge/uplink"
)

// version is set by the linker.
var version = "unreleased"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "edgecore:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("edgecore", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "edgecore runs the pods of a Holdfast edge node.\n\nUsage: edgecore [--config FILE] [--check]\n\n")
		flags.PrintDefaults()
	}
	file := flags.String("config", config.EdgePath, "the config `file`")
	check := flags.Bool("check", false, "read the config, open the database, say what was found, and exit")
	profile := flags.Bool("profiling", false, "serve Go's profiles on the socket in runDir, as profiling: true in the config file does")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unknown argument %q: see edgecore --help", flags.Arg(0))
	case *showVersion:
		fmt.Fprintf(out, "edgecore %s (Kubernetes %s)\n", version, node.KubernetesVersion)
		return nil
	}
	cfg, err := config.LoadEdge(*file)
	if err != nil {
		return err
	}
	if *check {
		return checkOnly(ctx, cfg, *file, out)
	}
	cfg.Profiling = cfg.Profiling || *profile
	return serve(ctx, cfg)
}

func serve(ctx context.Context, cfg config.Edge) error {
	started := time.Now()
	// A Pi has little memory and edgecore little garbage: collect it early.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(35)
	}
	output, ring := logOutput()
	log, err := config.NewLog(output, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	log = log.With("node", cfg.NodeName)
	log.Info("edgecore starts", "version", version)

	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := store.Open(databasePath(cfg), store.Options{Log: log})
	if err != nil {
		return err
	}

	wake := make(chan struct{}, 1)
	certificate := credential.New(credential.Options{DataDir: cfg.DataDir, Hubs: cfg.Hub, Log: log})
	var line *uplink.Uplink
	clock, err := pod.NewClock(func() time.Time { return floor(line) })
	if err != nil {
		return errors.Join(err, st.Close())
	}
	devices, err := newDevices(cfg, st, clock, log)
	if err != nil {
		return errors.Join(err, st.Close())
	}
	var api *stream.Server
	line = uplink.New(uplink.Options{Dialer: newDialer(cfg, certificate, log), Credential: certificate, Store: st, Log: log, Version: version, Wake: wake,
		Sources: devices.sources(), Publish: devices.publishDown,
		Serve: func(ctx context.Context, s link.Stream) { api.Serve(ctx, s) }})
	engine := &engine{cfg: cfg, log: log, store: st, line: line, clock: clock, devices: devices, credential: certificate}
	engine.tokens = pod.NewTokens(st, line.AskToken, clock)
	engine.outage = newOutage(engine)
	engine.node, err = node.New(node.Options{
		Name: cfg.NodeName, NodeIP: cfg.NodeIP, Hubs: cfg.Hub, DataDir: cfg.DataDir, MaxPods: cfg.MaxPods,
		Labels: cfg.Labels, Taints: cfg.Taints, Interval: cfg.StatusInterval.Duration, Version: version,
		Store: st, Runtime: engine.runtimeInfo, Log: log,
		Line:      func() (bool, time.Time) { s := line.State(); return s.Connected, s.Since },
		LineEvent: line.Changed, Outage: engine.offlineReady,
	})
	if err != nil {
		return errors.Join(err, st.Close())
	}

	api = newStreams(engine, ring)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return engine.run(ctx) })
	group.Go(func() error { return engine.node.Run(ctx) })
	group.Go(func() error { return engine.outage.Run(ctx) })
	group.Go(func() error { return line.Run(ctx) })
	group.Go(func() error { return devices.run(ctx) })
	group.Go(func() error { return watchNetwork(ctx, wake) })
	group.Go(func() error {
		select {
		case <-st.Damaged():
			return errors.New("the node's database was found damaged: ending, so that the next start sets it aside and restores the last good copy")
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error {
		return localstatus.Serve(ctx, cfg.RunDir, func(ctx context.Context) localstatus.Status { return engine.status(ctx, started) }, engine.metrics(), devices.twins.Handler(),
			append(engine.outageRoutes(), append(profiles(cfg), localstatus.NodeRoute(api.Handler()))...)...)
	})
	group.Go(func() error { return serveMetrics(ctx, cfg.MetricsListen, engine.metrics(), log) })
	if err := notifySystemd("READY=1"); err != nil {
		log.Warn("systemd could not be told that edgecore is up", "err", err)
	}
	err = settle(ctx, group)
	log.Info("edgecore stops; the containers go on running", "err", err)
	return errors.Join(err, st.Close())
}

// settle waits for the group; once it is told to stop, not for ever: a runtime
// that hangs must not keep the store from being closed.
func settle(ctx context.Context, group *errgroup.Group) error {
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	select {
	case err := <-done:
		return ignoreStop(err)
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return ignoreStop(err)
	case <-time.After(20 * time.Second):
		return errors.New("something did not stop within 20 s of being told to")
	}
}

func ignoreStop(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// floor is the latest time of which the hub has told.
func floor(line *uplink.Uplink) time.Time {
	if line == nil { // it is being made
		return time.Time{}
	}
	t, _ := line.HubTime()
	return t
}
