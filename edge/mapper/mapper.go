package mapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/dmi"
)

// Key names a device.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Device is what a Driver is told.
type Device struct {
	Key
	Config     map[string]any // as dmi.Unpack returns it
	Properties []Property
}

// Property is one property of a device.
type Property struct {
	Name     string
	Type     Type
	Writable bool
	Collect  time.Duration  // how often to read it; 0: as the Driver likes
	Config   map[string]any // as dmi.Unpack returns it
	// Desired is what it shall be; empty: nothing is said. The interface to mappers
	// cannot tell an empty text from none.
	Desired string
}

// Driver speaks to devices. Its methods are called one at a time and do not block.
type Driver interface {
	// Set takes a device that is new or has changed; the same one once more changes
	// nothing. An error says why it cannot be served at all; it is then not kept, and
	// neither is what was known of it before.
	Set(Device) error
	Remove(Key)
}

// Options are what a Mapper needs.
type Options struct {
	Name, Version, Protocol string
	Edgecore                string // the path of edgecore's socket
	Socket                  string // where edgecore calls back; the path is edgecore's too
	Driver                  Driver
	Log                     *slog.Logger
}

// MaxDevices bounds the devices of one mapper.
const MaxDevices = 4096

// Mapper stands between edgecore and a Driver.
type Mapper struct {
	dmi.UnimplementedDeviceMapperServiceServer
	o  Options
	up *upward

	mu      sync.Mutex
	models  map[Key]*dmi.DeviceModel
	devices map[Key]*dmi.Device
}

// New returns a Mapper that does nothing until Run; values may be handed to it.
func New(o Options) *Mapper {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Mapper{o: o, up: newUpward(o.Log), models: make(map[Key]*dmi.DeviceModel), devices: make(map[Key]*dmi.Device)}
}

// Run serves until ctx ends.
func (m *Mapper) Run(ctx context.Context) error {
	listener, err := m.listen(ctx)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", m.o.Socket, err)
	}
	if listener == nil {
		return nil
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(8<<20), grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10))
	dmi.RegisterDeviceMapperServiceServer(server, m)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer server.Stop()

	conn, err := grpc.NewClient("unix://"+m.o.Edgecore,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithDisableHealthCheck(),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
	)
	if err != nil {
		return fmt.Errorf("edgecore's socket %s: %w", m.o.Edgecore, err)
	}
	defer conn.Close()
	client := dmi.NewDeviceManagerServiceClient(conn)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { m.up.run(ctx, client) })
	running.Go(func() { m.keepRegistered(ctx, conn, client) })
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", m.o.Socket, err)
	case <-ctx.Done():
		return nil
	}
}

// keepRegistered registers whenever the connection to edgecore is made anew.
func (m *Mapper) keepRegistered(ctx context.Context, conn *grpc.ClientConn, client dmi.DeviceManagerServiceClient) {
	told := false // that edgecore does not answer
	for ctx.Err() == nil {
		conn.Connect()
		is := conn.GetState()
		if is == connectivity.Ready {
			err := m.register(ctx, client)
			if err == nil {
				told = false
				for is == connectivity.Ready && conn.WaitForStateChange(ctx, is) {
					is = conn.GetState()
				}
				continue
			}
			if ctx.Err() == nil && !told {
				told = true
				m.o.Log.Warn("edgecore does not take the mapper; trying again", "socket", m.o.Edgecore, "err", err)
			}
			pause(ctx, time.Second)
			continue
		}
		if is == connectivity.TransientFailure && !told {
			told = true
			m.o.Log.Warn("edgecore does not answer; trying again", "socket", m.o.Edgecore)
		}
		conn.WaitForStateChange(ctx, is)
	}
}

// register makes edgecore's word the mapper's, all of it. Calls that come meanwhile
// wait: they are newer than the answer.
func (m *Mapper) register(ctx context.Context, client dmi.DeviceManagerServiceClient) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, err := client.MapperRegister(limited, &dmi.MapperRegisterRequest{WithData: true, Mapper: &dmi.MapperInfo{
		Name: m.o.Name, Version: m.o.Version, ApiVersion: "v1beta1", Protocol: m.o.Protocol, Address: []byte(m.o.Socket), State: "ok",
	}}, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return err
	}
	m.models = make(map[Key]*dmi.DeviceModel, len(answer.GetModelList()))
	for _, model := range answer.GetModelList() {
		m.models[Key{model.GetNamespace(), model.GetName()}] = model
	}
	gone := maps.Clone(m.devices)
	for _, d := range answer.GetDeviceList() {
		delete(gone, keyOf(d))
		if err := m.set(d); err != nil {
			m.o.Log.Error("a device cannot be served", "device", keyOf(d), "err", err)
		}
	}
	for key := range gone {
		m.remove(key)
	}
	m.o.Log.Info("registered with edgecore", "socket", m.o.Edgecore, "devices", len(m.devices))
	return nil
}

func keyOf(d *dmi.Device) Key { return Key{d.GetNamespace(), d.GetName()} }

// set hands a device to the driver. m.mu is held.
func (m *Mapper) set(d *dmi.Device) error {
	key := keyOf(d)
	model := m.models[Key{key.Namespace, d.GetSpec().GetDeviceModelReference()}]
	if model == nil {
		return status.Errorf(codes.FailedPrecondition, "device %s: its model %q is not known", key, d.GetSpec().GetDeviceModelReference())
	}
	if m.devices[key] == nil && len(m.devices) >= MaxDevices {
		return status.Errorf(codes.ResourceExhausted, "device %s: a mapper serves %d devices at most", key, MaxDevices)
	}
	m.up.know(key) // the driver may read at once
	if err := m.o.Driver.Set(deviceOf(d, model)); err != nil {
		m.remove(key)
		return status.Errorf(codes.InvalidArgument, "device %s: %s", key, strings.ToValidUTF8(err.Error(), "?"))
	}
	m.devices[key] = d
	return nil
}

func (m *Mapper) remove(key Key) {
	if m.devices[key] != nil {
		delete(m.devices, key)
		m.o.Driver.Remove(key)
	}
	m.up.forget(key)
}

func deviceOf(d *dmi.Device, model *dmi.DeviceModel) Device {
	properties := make(map[string]*dmi.ModelProperty)
	for _, p := range model.GetSpec().GetProperties() {
		properties[p.GetName()] = p
	}
	out := Device{Key: keyOf(d), Config: dmi.Unpack(d.GetSpec().GetProtocol().GetConfigData())}
	for _, p := range d.GetSpec().GetProperties() {
		of := properties[p.GetName()]
		if of == nil {
			continue
		}
		out.Properties = append(out.Properties, Property{
			Name: p.GetName(), Type: Type(strings.ToUpper(of.GetType())), Writable: of.GetAccessMode() == readWrite,
			Collect: time.Duration(max(0, min(p.GetCollectCycle(), 1<<40))) * time.Millisecond,
			Config:  dmi.Unpack(p.GetVisitors().GetConfigData()), Desired: p.GetDesired().GetValue(),
		})
	}
	return out
}

// Values hands on what was read of a device, in order. It does not block: of what
// waits, the oldest is dropped when it is too much.
func (m *Mapper) Values(key Key, values ...Value) { m.up.values(key, values) }

// State hands on whether the device answers.
func (m *Mapper) State(key Key, s State) { m.up.state(key, s) }

// Devices returns the names of those that are served.
func (m *Mapper) Devices() []Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Keys(m.devices), func(a, b Key) int { return strings.Compare(a.String(), b.String()) })
}

// pause waits, or for ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// listen makes the mapper's socket; nil when ctx ends before. edgecore makes the
// folder for mappers when the node gets its first device, which may be later.
func (m *Mapper) listen(ctx context.Context) (net.Listener, error) {
	for told := false; ; told = true {
		listener, err := listen(m.o.Socket)
		if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return listener, err
		}
		if !told {
			m.o.Log.Warn("the mapper's socket cannot be made yet; trying again", "socket", m.o.Socket, "err", err)
		}
		if pause(ctx, time.Second); ctx.Err() != nil {
			return nil, nil
		}
	}
}

// listen replaces a socket that is left over.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o770); err != nil {
		return nil, err
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, errors.New("another mapper answers there already: stop it, or give this one another --socket")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}
