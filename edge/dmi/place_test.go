package dmi

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

type clock struct{ start time.Time }

func (c clock) Wall() time.Time     { return time.Now() }
func (c clock) Mono() time.Duration { return time.Since(c.start) }

type noEvents struct{}

func (noEvents) Device(*v1beta1.Device, string, string, string) {}

// place is a node: a store, a Manager, a Server.
type place struct {
	t       *testing.T
	dir     string
	store   *store.Store
	manager *device.Manager
	server  *Server
	stop    func() // the server alone
	version int
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir()}
	var err error
	if p.store, err = store.Open(filepath.Join(p.dir, "edge.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.store.Close() })
	p.manager = device.New(device.Options{Store: p.store, Clock: clock{time.Now()}, Events: noEvents{}})
	p.background(p.manager.Run)
	<-p.manager.Started()
	p.serve()
	return p
}

// background runs until the returned function or the end of the test.
func (p *place) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(stop)
	return stop
}

func (p *place) socket() string { return filepath.Join(p.dir, "run", "dmi.sock") }

// serve starts a Server, as a restarted edgecore has it.
func (p *place) serve() {
	p.server = New(Options{
		Socket: p.socket(), Devices: p.manager, StateFile: filepath.Join(p.dir, "mappers.json"),
		Silence: 600 * time.Millisecond, Patience: 300 * time.Millisecond, Log: slog.New(slog.NewTextHandler(testLog{p.t}, nil)),
	})
	p.stop = p.background(p.server.Run)
	await(p.t, "the socket answers", func() bool {
		conn, err := net.Dial("unix", p.socket())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (p *place) apply(kind wire.Kind, meta *metav1.ObjectMeta, object any) {
	p.t.Helper()
	p.version++
	meta.Namespace = "plant"
	if meta.UID == "" {
		meta.UID = types.UID("uid-" + meta.Name)
	}
	b, err := json.Marshal(object)
	if err != nil {
		p.t.Fatal(err)
	}
	ref := &wire.ObjectRef{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Uid: string(meta.UID), Version: fmt.Append(nil, p.version)}
	if err := p.store.Apply(context.Background(), []*wire.Object{{Ref: ref, Payload: b}}, nil); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) delete(kind wire.Kind, name string) {
	p.t.Helper()
	ref := &wire.ObjectRef{Kind: kind, Namespace: "plant", Name: name, Uid: "uid-" + name}
	if err := p.store.Apply(context.Background(), nil, []*wire.ObjectRef{ref}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) model(name string) {
	p.t.Helper()
	m := &v1beta1.DeviceModel{ObjectMeta: metav1.ObjectMeta{Name: name}}
	m.Spec.Properties = []v1beta1.ModelProperty{
		{Name: "temperature", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadOnly, Minimum: "-40", Maximum: "120"},
		{Name: "target", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite},
	}
	p.apply(wire.Kind_KIND_DEVICE_MODEL, &m.ObjectMeta, m)
}

// device applies a device; change may alter it before.
func (p *place) device(name, model string, change func(*v1beta1.Device)) {
	p.t.Helper()
	raw := func(s string) *v1beta1.RawObject { return &v1beta1.RawObject{RawMessage: json.RawMessage(s)} }
	d := &v1beta1.Device{ObjectMeta: metav1.ObjectMeta{Name: name}}
	d.Spec.DeviceModelRef = &v1beta1.LocalObjectReference{Name: model}
	d.Spec.Protocol = v1beta1.ProtocolConfig{ProtocolName: "test", ConfigData: raw(`{"ip":"192.0.2.1","port":502}`)}
	d.Spec.Properties = []v1beta1.DeviceProperty{
		{Name: "temperature", Visitors: v1beta1.VisitorConfig{ConfigData: raw(`{"register":"InputRegister","offset":7,"scale":0.1}`)}},
		{Name: "target", Visitors: v1beta1.VisitorConfig{ConfigData: raw(`{"offset":8}`)}, PushMethod: raw(`{"mqtt":{"address":"tcp://127.0.0.1:1","qos":1},"dbMethod":{"TDEngine":{"TDEngineClientConfig":{"addr":"a","dbName":"b"}}}}`)},
	}
	if change != nil {
		change(d)
	}
	p.apply(wire.Kind_KIND_DEVICE, &d.ObjectMeta, d)
	p.known(name)
}

// known waits until the Manager has the device.
func (p *place) known(name string) {
	p.t.Helper()
	await(p.t, "device "+name, func() bool { _, err := p.manager.Get(twin.Key{Namespace: "plant", Name: name}); return err == nil })
}

func (p *place) get(name string) device.View {
	p.t.Helper()
	v, err := p.manager.Get(twin.Key{Namespace: "plant", Name: name})
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

func (p *place) client() dmi.DeviceManagerServiceClient {
	p.t.Helper()
	conn, err := grpc.NewClient("unix://"+p.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return dmi.NewDeviceManagerServiceClient(conn)
}

// mapper notes what it is told, in the way of KubeEdge's mapper framework: it takes
// no notice of the registration of a device that it has, and wants the model first.
type mapper struct {
	dmi.UnimplementedDeviceMapperServiceServer
	socket string
	server *grpc.Server

	mu      sync.Mutex
	calls   []string
	devices map[string]*dmi.Device
	models  map[string]*dmi.DeviceModel
	refuse  error         // of RegisterDevice
	hang    chan struct{} // calls wait until it is closed
}

func newMapper(t *testing.T, socket string) *mapper {
	t.Helper()
	m := &mapper{socket: socket, devices: map[string]*dmi.Device{}, models: map[string]*dmi.DeviceModel{}}
	m.start(t)
	return m
}

func (m *mapper) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	m.server = grpc.NewServer()
	dmi.RegisterDeviceMapperServiceServer(m.server, m)
	server := m.server
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
}

func (m *mapper) register(t *testing.T, p *place, withData bool) *dmi.MapperRegisterResponse {
	t.Helper()
	answer, err := p.client().MapperRegister(context.Background(), &dmi.MapperRegisterRequest{
		WithData: withData,
		Mapper:   &dmi.MapperInfo{Name: "m", Version: "v1", ApiVersion: "v1beta1", Protocol: "test", Address: []byte(m.socket), State: "ok"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// note begins a call.
func (m *mapper) note(call string) func() {
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang != nil {
		<-hang
	}
	m.mu.Lock()
	m.calls = append(m.calls, call)
	return m.mu.Unlock
}

func (m *mapper) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// heard returns the calls so far, and forgets them.
func (m *mapper) heard() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := strings.Join(m.calls, " ")
	m.calls = nil
	return all
}

func (m *mapper) has(name string) *dmi.Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices["plant/"+name]
}

func (m *mapper) RegisterDevice(_ context.Context, in *dmi.RegisterDeviceRequest) (*dmi.RegisterDeviceResponse, error) {
	defer m.note("register:" + in.Device.Name)()
	id := in.Device.Namespace + "/" + in.Device.Name
	if m.refuse != nil {
		return nil, m.refuse
	}
	if m.models[in.Device.Namespace+"/"+in.Device.Spec.DeviceModelReference] == nil {
		return nil, status.Error(codes.Unknown, "no such model")
	}
	if m.devices[id] == nil {
		m.devices[id] = in.Device
	}
	return &dmi.RegisterDeviceResponse{DeviceName: in.Device.Name}, nil
}

func (m *mapper) UpdateDevice(_ context.Context, in *dmi.UpdateDeviceRequest) (*dmi.UpdateDeviceResponse, error) {
	defer m.note("update:" + in.Device.Name)()
	m.devices[in.Device.Namespace+"/"+in.Device.Name] = in.Device
	return &dmi.UpdateDeviceResponse{}, nil
}

func (m *mapper) RemoveDevice(_ context.Context, in *dmi.RemoveDeviceRequest) (*dmi.RemoveDeviceResponse, error) {
	defer m.note("remove:" + in.DeviceName)()
	delete(m.devices, in.DeviceNamespace+"/"+in.DeviceName)
	return &dmi.RemoveDeviceResponse{}, nil
}

func (m *mapper) CreateDeviceModel(_ context.Context, in *dmi.CreateDeviceModelRequest) (*dmi.CreateDeviceModelResponse, error) {
	defer m.note("create-model:" + in.Model.Name)()
	m.models[in.Model.Namespace+"/"+in.Model.Name] = in.Model
	return &dmi.CreateDeviceModelResponse{DeviceModelName: in.Model.Name}, nil
}

func (m *mapper) UpdateDeviceModel(_ context.Context, in *dmi.UpdateDeviceModelRequest) (*dmi.UpdateDeviceModelResponse, error) {
	defer m.note("update-model:" + in.Model.Name)()
	m.models[in.Model.Namespace+"/"+in.Model.Name] = in.Model
	return &dmi.UpdateDeviceModelResponse{}, nil
}

func (m *mapper) RemoveDeviceModel(_ context.Context, in *dmi.RemoveDeviceModelRequest) (*dmi.RemoveDeviceModelResponse, error) {
	defer m.note("remove-model:" + in.ModelName)()
	delete(m.models, in.ModelNamespace+"/"+in.ModelName)
	return &dmi.RemoveDeviceModelResponse{}, nil
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
