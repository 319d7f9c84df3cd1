package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/dmi"
	"github.com/holdfast-edge/holdfast/edge/event"
	"github.com/holdfast-edge/holdfast/edge/mqtt"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/route"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/uplink"
)

// devices are the rooms that serve what is connected to the node. A node without
// devices and routes pays next to nothing for them, and none of their troubles ends
// edgecore.
type devices struct {
	cfg    config.Edge
	log    *slog.Logger
	events *event.Recorder
	twins  *device.Manager
	routes *route.Router
	mqtt   *mqtt.Server
}

func newDevices(cfg config.Edge, st *store.Store, clock pod.Clock, log *slog.Logger) (*devices, error) {
	d := &devices{cfg: cfg, log: log, events: event.New(st, clock, cfg.NodeName, log, nil)}
	d.twins = device.New(device.Options{Store: st, Clock: clock, Events: d, Log: log})
	d.routes = route.New(route.Options{Store: st, Clock: clock, Log: log, Publish: func(ctx context.Context, topic string, payload []byte) error {
		return d.mqtt.Publish(ctx, topic, payload)
	}})
	c := cfg.MQTT
	var err error
	d.mqtt, err = mqtt.New(mqtt.Options{Node: cfg.NodeName, Devices: d.twins, Routes: d.routes, Log: log, Config: mqtt.Config{
		Mode: c.Mode, Listen: c.Listen, TLSCert: c.TLSCert, TLSKey: c.TLSKey, ClientCA: c.ClientCA, PasswordFile: c.PasswordFile,
		Broker: c.Broker, User: c.User, Password: c.Password, UserPasswordFile: c.UserPasswordFile,
		CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile,
	}})
	if err != nil {
		// The pods do not wait for whoever mends the config.
		log.Error("no MQTT is served: mend the config and restart edgecore (the pods keep running)", "err", err)
		d.mqtt, err = mqtt.New(mqtt.Options{Node: cfg.NodeName, Devices: d.twins, Config: mqtt.Config{Mode: mqtt.Off}, Log: log})
	}
	return d, err
}

// Device records an event about a device.
func (d *devices) Device(of *v1beta1.Device, kind, reason, message string) {
	d.events.Put(corev1.ObjectReference{Kind: "Device", APIVersion: v1beta1.GroupVersion().String(),
		Namespace: of.Namespace, Name: of.Name, UID: of.UID}, kind, reason, message)
}

func (d *devices) sources() []uplink.Source { return []uplink.Source{d.twins, d.routes.Reports()} }

// publishDown publishes what the cloud sends by a Route.
func (d *devices) publishDown(ctx context.Context, p *wire.Publish) error {
	err := d.routes.PublishDown(ctx, p)
	if errors.Is(err, route.ErrNoRoute) {
		return fmt.Errorf("%w: %w", uplink.ErrRefused, err)
	}
	return err
}

func (d *devices) writeMetrics(w io.Writer) {
	d.twins.WriteMetrics(w)
	d.routes.WriteMetrics(w)
	d.mqtt.WriteMetrics(w)
}

func (d *devices) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { d.events.Run(ctx); return nil })
	group.Go(func() error { return d.twins.Run(ctx) })
	group.Go(func() error { return d.routes.Run(ctx) })
	group.Go(func() error { return d.keep(ctx, "MQTT", d.mqtt.Run) })
	group.Go(func() error {
		if !d.awaitDevice(ctx) {
			return nil
		}
		return d.keep(ctx, "the mappers' socket", d.serveMappers)
	})
	group.Go(func() error { return d.keep(ctx, "the devices' HTTP API", d.serveHTTP) })
	return group.Wait()
}

// keep runs f, again and again where it fails: nothing that serves devices is worth
// the pods.
func (d *devices) keep(ctx context.Context, what string, f func(context.Context) error) error {
	for said := ""; ; {
		err := f(ctx)
		if ctx.Err() != nil || err == nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			d.log.Error(what+" cannot be served; it is tried again", "err", err)
		}
		if sleep(ctx, listenAgain) != nil {
			return nil
		}
	}
}

// awaitDevice waits for the node's first device; false: ctx ended before.
func (d *devices) awaitDevice(ctx context.Context) bool {
	changes, stop := d.twins.Listen(1)
	defer stop()
	select {
	case <-d.twins.Started():
	case <-ctx.Done():
		return false
	}
	for len(d.twins.List()) == 0 {
		select {
		case <-changes:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (d *devices) serveMappers(ctx context.Context) error {
	socket := d.cfg.DMISocket
	if socket == "" {
		socket = filepath.Join(d.cfg.RunDir, "dmi.sock")
	}
	return dmi.New(dmi.Options{Socket: socket, Devices: d.twins, StateFile: filepath.Join(d.cfg.DataDir, "mappers.json"), Log: d.log}).Run(ctx)
}

// serveHTTP serves the devices on their socket, and on an address where one is
// configured.
func (d *devices) serveHTTP(ctx context.Context) error {
	socket, err := unixsocket.Listen(filepath.Join(d.cfg.RunDir, localstatus.DevicesSocketName), 0o660)
	if err != nil {
		return err
	}
	listeners := []net.Listener{socket}
	if d.cfg.DevicesListen != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.cfg.DevicesListen)
		if err != nil {
			return errors.Join(fmt.Errorf("devicesListen: %w", err), socket.Close())
		}
		d.log.Info("the devices' HTTP API is served", "listen", l.Addr().String())
		listeners = append(listeners, l)
	}
	server := &http.Server{Handler: d.twins.Handler(), ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	group := new(errgroup.Group)
	for _, l := range listeners {
		group.Go(func() error {
			defer server.Close()
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}
