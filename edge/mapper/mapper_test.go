package mapper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/dmi"
)

// edgecore notes what it is told, and answers as it is set to.
type edgecore struct {
	dmi.UnimplementedDeviceManagerServiceServer
	server *grpc.Server

	mu      sync.Mutex
	answer  *dmi.MapperRegisterResponse
	heard   []string
	reports int
	refuse  func(property string) error
}

func (e *edgecore) start(t *testing.T, socket string) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	dmi.RegisterDeviceManagerServiceServer(server, e)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	e.server = server
}

func (e *edgecore) MapperRegister(_ context.Context, in *dmi.MapperRegisterRequest) (*dmi.MapperRegisterResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, "register")
	return e.answer, nil
}

func (e *edgecore) ReportDeviceStatus(_ context.Context, in *dmi.ReportDeviceStatusRequest) (*dmi.ReportDeviceStatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reports++
	for _, tw := range in.ReportedDevice.Twins {
		if e.refuse != nil {
			if err := e.refuse(tw.PropertyName); err != nil {
				return nil, err
			}
		}
	}
	for _, tw := range in.ReportedDevice.Twins {
		e.heard = append(e.heard, in.DeviceName+"."+tw.PropertyName+"="+tw.Reported.Value)
	}
	return &dmi.ReportDeviceStatusResponse{}, nil
}

func (e *edgecore) ReportDeviceStates(_ context.Context, in *dmi.ReportDeviceStatesRequest) (*dmi.ReportDeviceStatesResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, in.DeviceName+" is "+in.State)
	return &dmi.ReportDeviceStatesResponse{}, nil
}

func (e *edgecore) said() []string { e.mu.Lock(); defer e.mu.Unlock(); return slices.Clone(e.heard) }

func (e *edgecore) set(change func()) { e.mu.Lock(); defer e.mu.Unlock(); change() }

// driver keeps what it is told.
type driver struct {
	mu      sync.Mutex
	devices map[Key]Device
	refuse  error
}

func (d *driver) Set(device Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		delete(d.devices, device.Key)
		return d.refuse
	}
	d.devices[device.Key] = device
	return nil
}

func (d *driver) Remove(key Key) { d.mu.Lock(); defer d.mu.Unlock(); delete(d.devices, key) }

func (d *driver) names() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for key := range d.devices {
		names = append(names, key.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
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

func registered(names ...string) *dmi.MapperRegisterResponse {
	answer := &dmi.MapperRegisterResponse{ModelList: []*dmi.DeviceModel{{
		Name: "m", Namespace: "ns", Spec: &dmi.DeviceModelSpec{Properties: []*dmi.ModelProperty{{Name: "p", Type: "int", AccessMode: "ReadWrite"}}},
	}}}
	for _, name := range names {
		answer.DeviceList = append(answer.DeviceList, described(name))
	}
	return answer
}

func described(name string) *dmi.Device {
	config, err := dmi.Pack([]byte(`{"offset":1}`))
	if err != nil {
		panic(err)
	}
	return &dmi.Device{Name: name, Namespace: "ns", Spec: &dmi.DeviceSpec{DeviceModelReference: "m", Properties: []*dmi.DeviceProperty{
		{Name: "p", Visitors: &dmi.VisitorConfig{ConfigData: config}, Desired: &dmi.TwinProperty{Value: "7"}, CollectCycle: 250},
		{Name: "not in the model"},
	}}}
}

type scene struct {
	edge   *edgecore
	driver *driver
	mapper *Mapper
	client dmi.DeviceMapperServiceClient
	dir    string
}

func newScene(t *testing.T, names ...string) *scene {
	t.Helper()
	s := &scene{edge: &edgecore{answer: registered(names...)}, driver: &driver{devices: map[Key]Device{}}, dir: t.TempDir()}
	s.edge.start(t, s.dmi())
	s.mapper = New(Options{Name: "m", Protocol: "test", Edgecore: s.dmi(), Socket: filepath.Join(s.dir, "m.sock"), Driver: s.driver})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.mapper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix://"+filepath.Join(s.dir, "m.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.client = dmi.NewDeviceMapperServiceClient(conn)
	await(t, "the registration", func() bool {
		return slices.Contains(s.edge.said(), "register") && s.driver.names() == strings.Join(names, " ")
	})
	return s
}

func (s *scene) dmi() string { return filepath.Join(s.dir, "dmi.sock") }

func TestADriverIsToldWhatEdgecoreSays(t *testing.T) {
	s := newScene(t, "a", "b")
	a := s.driver.devices[Key{"ns", "a"}]
	if len(a.Properties) != 1 || a.Properties[0].Type != Int || !a.Properties[0].Writable || a.Properties[0].Desired != "7" ||
		a.Properties[0].Collect != 250*time.Millisecond || fmt.Sprint(a.Properties[0].Config["offset"]) != "1" {
		t.Errorf("device a: %+v", a)
	}
	ctx := context.Background()
	if _, err := s.client.RegisterDevice(ctx, &dmi.RegisterDeviceRequest{Device: described("c")}); err != nil {
		t.Error(err)
	}
	if _, err := s.client.RemoveDevice(ctx, &dmi.RemoveDeviceRequest{DeviceName: "b", DeviceNamespace: "ns"}); err != nil {
		t.Error(err)
	}
	if got := s.driver.names(); got != "a c" {
		t.Errorf("the driver has %s", got)
	}
	if d, err := s.client.GetDevice(ctx, &dmi.GetDeviceRequest{DeviceName: "c", DeviceNamespace: "ns"}); err != nil || d.Device.Name != "c" {
		t.Errorf("GetDevice: %v, %v", d, err)
	}
	if _, err := s.client.GetDevice(ctx, &dmi.GetDeviceRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("GetDevice of none: %v", err)
	}
	s.driver.mu.Lock()
	s.driver.refuse = errors.New("no address")
	s.driver.mu.Unlock()
	if _, err := s.client.UpdateDevice(ctx, &dmi.UpdateDeviceRequest{Device: described("a")}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "no address") {
		t.Errorf("a device that cannot be served: %v", err)
	}
	if _, err := s.client.RegisterDevice(ctx, &dmi.RegisterDeviceRequest{}); err == nil {
		t.Error("a registration of nothing is taken")
	}
	if _, err := s.client.CreateDeviceModel(ctx, &dmi.CreateDeviceModelRequest{}); err != nil {
		t.Error(err)
	}
}

// TestAReconnectMakesEdgecoresWordTheMappers: what it does not name any more goes.
func TestAReconnectMakesEdgecoresWordTheMappers(t *testing.T) {
	s := newScene(t, "a", "b")
	s.edge.server.Stop()
	s.mapper.Values(Key{"ns", "a"}, Value{Property: "p", Text: "1"}) // it waits
	s.mapper.Values(Key{"ns", "b"}, Value{Property: "p", Text: "2"})
	s.edge.set(func() { s.edge.answer = registered("a", "c") })
	s.edge.start(t, s.dmi())
	await(t, "a and c", func() bool { return s.driver.names() == "a c" })
	await(t, "the value that waited", func() bool { return slices.Contains(s.edge.said(), "a.p=1") })
}

func TestValuesAndStatesKeepTheirOrder(t *testing.T) {
	s := newScene(t, "a")
	a := Key{"ns", "a"}
	s.edge.server.Stop()
	var want []string
	for i := range 300 {
		s.mapper.Values(a, Value{Property: "p", Text: fmt.Sprint(i)})
		want = append(want, fmt.Sprintf("a.p=%d", i))
	}
	s.mapper.State(a, Offline)
	s.mapper.Values(a, Value{Property: "p", Text: "last"})
	want = append(want, "a is offline", "a.p=last")
	s.mapper.Values(Key{"ns", "unknown"}, Value{Property: "p", Text: "x"})
	s.edge.set(func() { s.edge.heard, s.edge.reports = nil, 0 })
	s.edge.start(t, s.dmi())
	await(t, "the last", func() bool { return slices.Contains(s.edge.said(), "a.p=last") })
	got := slices.DeleteFunc(s.edge.said(), func(s string) bool { return s == "register" })
	if !slices.Equal(got, want) {
		t.Errorf("edgecore heard %d words, not %d in order: %q", len(got), len(want), got)
	}
	if s.edge.reports > 10 {
		t.Errorf("300 values made %d reports", s.edge.reports)
	}
}

func TestOneBadValueTakesNoOtherWithIt(t *testing.T) {
	s := newScene(t, "a")
	s.edge.set(func() {
		s.edge.refuse = func(property string) error {
			if property == "bad" {
				return status.Error(codes.InvalidArgument, "above the maximum")
			}
			return nil
		}
	})
	s.mapper.Values(Key{"ns", "a"}, Value{Property: "p", Text: "1"}, Value{Property: "bad", Text: "2"}, Value{Property: "q", Text: "3"})
	await(t, "the good ones", func() bool { return slices.Contains(s.edge.said(), "a.q=3") })
	if got := s.edge.said(); !slices.Contains(got, "a.p=1") || slices.Contains(got, "a.bad=2") {
		t.Errorf("edgecore heard %q", got)
	}
}

// TestWhatWaitsIsBounded, and the oldest goes.
func TestWhatWaitsIsBounded(t *testing.T) {
	s := newScene(t, "a")
	s.edge.server.Stop()
	for i := range 3 * maxQueue {
		s.mapper.Values(Key{"ns", "a"}, Value{Property: "p", Text: fmt.Sprint(i)})
	}
	s.mapper.up.mu.Lock()
	n := len(s.mapper.up.queues[Key{"ns", "a"}].items)
	s.mapper.up.mu.Unlock()
	if n > maxQueue {
		t.Errorf("%d values wait", n)
	}
	s.edge.start(t, s.dmi())
	await(t, "the newest", func() bool { return slices.Contains(s.edge.said(), fmt.Sprintf("a.p=%d", 3*maxQueue-1)) })
}
