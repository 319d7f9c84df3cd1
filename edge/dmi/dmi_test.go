package dmi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

func TestARegistrationReturnsWhatTheMapperServes(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", func(d *v1beta1.Device) { d.Spec.Properties[1].Desired = &v1beta1.TwinProperty{Value: "21"} })
	p.device("other", "sensor", func(d *v1beta1.Device) { d.Spec.Protocol.ProtocolName = "opcua" })
	p.device("mqtt", "sensor", func(d *v1beta1.Device) { d.Spec.Protocol = v1beta1.ProtocolConfig{} })
	p.device("no-model", "missing", nil)
	m := newMapper(t, filepath.Join(p.dir, "m.sock"))
	answer := m.register(t, p, true)
	if len(answer.DeviceList) != 1 || answer.DeviceList[0].Name != "a" || answer.DeviceList[0].Namespace != "plant" || len(answer.ModelList) != 1 {
		t.Fatalf("registered with %v", answer)
	}
	d := answer.DeviceList[0]
	if got := dmi.Unpack(d.Spec.Protocol.ConfigData); got["ip"] != "192.0.2.1" || got["port"] != json.Number("502") {
		t.Errorf("configData: %v", got)
	}
	target := d.Spec.Properties[1]
	if target.Desired.Value != "21" || !target.ReportToCloud || target.PushMethod.Mqtt.Qos != 1 || target.PushMethod.DbMethod.Tdengine.TdEngineClientConfig.Dbname != "b" {
		t.Errorf("property target: %v", target)
	}
	for _, property := range d.Spec.Properties { // mappers dereference these
		if property.Desired == nil || property.Visitors.ConfigData.Data == nil {
			t.Errorf("property %s lacks a part", property.Name)
		}
	}
	for _, tw := range d.Status.Twins {
		if tw.Reported == nil || tw.ObservedDesired == nil {
			t.Errorf("twin %s lacks a part", tw.PropertyName)
		}
	}
	if model := answer.ModelList[0]; model.Spec.Properties[0].Type != "INT" || model.Spec.Properties[0].Maximum != "120" {
		t.Errorf("model: %v", model)
	}
	// What was in the answer is not told again.
	m.set(func() { m.models["plant/sensor"] = answer.ModelList[0] })
	p.device("b", "sensor", nil)
	await(t, "b", func() bool { return m.has("b") != nil })
	if calls := m.heard(); calls != "register:b" {
		t.Errorf("the mapper heard %s", calls)
	}
}

func TestAMapperIsToldOfEveryChangeInOrder(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	m := newMapper(t, filepath.Join(p.dir, "m.sock"))
	if answer := m.register(t, p, false); len(answer.DeviceList)+len(answer.ModelList) != 0 {
		t.Errorf("an answer without data has %v", answer)
	}
	await(t, "a", func() bool { return m.has("a") != nil })
	if calls := m.heard(); calls != "create-model:sensor register:a" {
		t.Errorf("the mapper heard %s", calls)
	}
	// A value that is set on the node, as with the line cut.
	key := twin.Key{Namespace: "plant", Name: "a"}
	if _, _, err := p.manager.Do(context.Background(), device.Operation{Key: key, Desired: []device.Update{{Property: "target", Value: twin.Value{Text: "19"}}}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the local desired value", func() bool { return m.has("a").Spec.Properties[1].Desired.Value == "19" })
	// What the device reports is no news to its mapper.
	if _, _, err := p.manager.Do(context.Background(), device.Operation{Key: key, Reported: []device.Update{{Property: "target", Value: twin.Value{Text: "19"}}}}); err != nil {
		t.Fatal(err)
	}
	p.device("a", "sensor", func(d *v1beta1.Device) { d.Spec.Properties[0].CollectCycle = 500 })
	await(t, "the new cycle", func() bool { return m.has("a").Spec.Properties[0].CollectCycle == 500 })
	if calls := m.heard(); calls != "update:a update:a" {
		t.Errorf("the mapper heard %s", calls)
	}
	p.delete(wire.Kind_KIND_DEVICE, "a")
	await(t, "the removal", func() bool { return m.has("a") == nil })
	p.device("a", "sensor", func(d *v1beta1.Device) { d.UID = "another" })
	await(t, "its successor", func() bool { return m.has("a") != nil })
	if calls := m.heard(); calls != "remove:a remove-model:sensor create-model:sensor register:a" {
		t.Errorf("the mapper heard %s", calls)
	}
	p.device("a", "sensor", func(d *v1beta1.Device) { d.UID = "another"; d.Spec.Protocol.ProtocolName = "opcua" })
	await(t, "the removal", func() bool { return m.has("a") == nil })
}

func TestReportsAreCommittedBeforeTheyAreAnswered(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	report := func(namespace, name, property, text string, metadata map[string]string) error {
		_, err := p.client().ReportDeviceStatus(context.Background(), &dmi.ReportDeviceStatusRequest{
			DeviceName: name, DeviceNamespace: namespace,
			ReportedDevice: &dmi.DeviceStatus{Twins: []*dmi.Twin{{PropertyName: property, Reported: &dmi.TwinProperty{Value: text, Metadata: metadata}}}},
		})
		return err
	}
	if err := report("plant", "a", "temperature", "21", map[string]string{"timestamp": "1700000000123", "type": "int"}); err != nil {
		t.Fatal(err)
	}
	got := p.get("a").Twin
	if r := got.Properties["temperature"].Reported; r.Text != "21" || r.At != 1700000000123 || r.Metadata["type"] != "int" || len(r.Metadata) != 1 {
		t.Errorf("reported %+v", r)
	}
	if got.State != v1beta1.StateOnline {
		t.Errorf("a device that reports is %s", got.State)
	}
	// Older mappers name no namespace.
	if err := report("", "a", "temperature", "22", nil); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		name, property, value string
		code                  codes.Code
		says                  string
	}{
		{"a", "temperature", "121", codes.InvalidArgument, "above the maximum 120"},
		{"a", "temperature", "warm", codes.InvalidArgument, "not a whole number"},
		{"a", "colour", "1", codes.InvalidArgument, "no such property"},
		{"b", "temperature", "1", codes.NotFound, "no such device"},
	} {
		err := report("plant", c.name, c.property, c.value, nil)
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s=%s: %v; want %s, %q", c.name, c.property, c.value, err, c.code, c.says)
		}
	}
	if _, err := p.client().ReportDeviceStatus(context.Background(), &dmi.ReportDeviceStatusRequest{DeviceName: "a", DeviceNamespace: "plant"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty report: %v", err)
	}
}

func TestStatesOfMappersAreUnderstood(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	for word, want := range map[string]v1beta1.DeviceState{
		"ok": v1beta1.StateOnline, "online": v1beta1.StateOnline, "offline": v1beta1.StateOffline,
		"disconnected": v1beta1.StateOffline, "unhealthy": v1beta1.StateUnknown, "purple": v1beta1.StateUnknown,
	} {
		if _, err := p.client().ReportDeviceStates(context.Background(), &dmi.ReportDeviceStatesRequest{DeviceName: "a", DeviceNamespace: "plant", State: word}); err != nil {
			t.Fatal(err)
		}
		if got := p.get("a").Twin.State; got != want {
			t.Errorf("state %q is taken as %s, want %s", word, got, want)
		}
	}
}

func TestRefusalsHaveTheirCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{&twin.RejectedError{}, codes.InvalidArgument}, {device.ErrTooLarge, codes.InvalidArgument},
		{device.ErrUnknownDevice, codes.NotFound}, {device.ErrTooMany, codes.ResourceExhausted},
		{store.ErrDiskFull, codes.Unavailable}, {device.ErrEnded, codes.Unavailable}, {errors.New("else"), codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded}, {context.Canceled, codes.Canceled},
	} {
		if got := status.Code(refusal(fmt.Errorf("device a: %w", c.err))); got != c.want {
			t.Errorf("%v has code %s, want %s", c.err, got, c.want)
		}
	}
}

func TestBadRegistrationsAreRefused(t *testing.T) {
	p := newPlace(t)
	for _, m := range []*dmi.MapperInfo{
		nil, {Name: "m", Address: []byte("/x.sock")}, {Protocol: "test", Address: []byte("/x.sock")},
		{Name: "m", Protocol: "test"}, {Name: "m", Protocol: "test", Address: []byte("x.sock")},
		{Name: "m", Protocol: "test", Address: []byte("/" + strings.Repeat("x", 107))},
		{Name: strings.Repeat("m", 300), Protocol: "test", Address: []byte("/x.sock")},
	} {
		if _, err := p.client().MapperRegister(context.Background(), &dmi.MapperRegisterRequest{Mapper: m}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("registration of %v: %v", m, err)
		}
	}
}

// TestASilentMappersDevicesGoOffline, and hear everything when it is back.
func TestASilentMappersDevicesGoOffline(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	m := newMapper(t, filepath.Join(p.dir, "m.sock"))
	m.register(t, p, false)
	await(t, "a", func() bool { return m.has("a") != nil })
	if _, err := p.client().ReportDeviceStates(context.Background(), &dmi.ReportDeviceStatesRequest{DeviceName: "a", DeviceNamespace: "plant", State: "online"}); err != nil {
		t.Fatal(err)
	}
	m.server.Stop()
	await(t, "offline", func() bool { return p.get("a").Twin.State == v1beta1.StateOffline })
	p.device("b", "sensor", nil) // it cannot be told now
	m.start(t)
	await(t, "b", func() bool { return m.has("b") != nil })
	await(t, "the mapper answers", func() bool { all := p.server.Mappers(); return len(all) == 1 && all[0].Answers && all[0].Devices == 2 })
}

// TestAHangingMapperBlocksNobody: neither another one, nor the end of edgecore.
func TestAHangingMapperBlocksNobody(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	hung := newMapper(t, filepath.Join(p.dir, "hung.sock"))
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hung.set(func() { hung.hang = release })
	hung.register(t, p, false)

	well := newMapper(t, filepath.Join(p.dir, "well.sock"))
	if _, err := p.client().MapperRegister(context.Background(), &dmi.MapperRegisterRequest{
		Mapper: &dmi.MapperInfo{Name: "w", Protocol: "opcua", Address: []byte(well.socket)},
	}); err != nil {
		t.Fatal(err)
	}
	p.device("other", "sensor", func(d *v1beta1.Device) { d.Spec.Protocol.ProtocolName = "opcua" })
	await(t, "the device of the other mapper", func() bool { return well.has("other") != nil })
	begun := time.Now()
	p.stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
}

func TestARefusedDeviceHoldsUpNoOther(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	m := newMapper(t, filepath.Join(p.dir, "m.sock"))
	m.set(func() { m.refuse = status.Error(codes.Unknown, "not today") })
	m.register(t, p, false)
	await(t, "a second try", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.calls) >= 3 })
	m.set(func() { m.refuse = nil })
	await(t, "a", func() bool { return m.has("a") != nil })
}

// TestARestartOfEdgecoreNeedsNoneOfTheMapper: it hears what has changed meanwhile,
// and what has gone.
func TestARestartOfEdgecoreNeedsNoneOfTheMapper(t *testing.T) {
	p := newPlace(t)
	p.model("sensor")
	p.device("a", "sensor", nil)
	p.device("gone", "sensor", nil)
	m := newMapper(t, filepath.Join(p.dir, "m.sock"))
	m.register(t, p, true)
	m.mu.Lock() // the mapper takes the answer
	m.devices["plant/a"], m.devices["plant/gone"] = &dmi.Device{}, &dmi.Device{}
	m.models["plant/sensor"] = &dmi.DeviceModel{}
	m.mu.Unlock()
	await(t, "the state file", func() bool {
		b, _ := os.ReadFile(filepath.Join(p.dir, "mappers.json"))
		return strings.Contains(string(b), "gone")
	})
	p.stop()
	if _, err := os.Stat(p.socket()); err == nil {
		t.Error("the socket is still there")
	}
	p.delete(wire.Kind_KIND_DEVICE, "gone")
	await(t, "the deletion", func() bool { return len(p.manager.List()) == 1 })
	p.device("a", "sensor", func(d *v1beta1.Device) { d.Spec.Properties[0].CollectCycle = 700 })
	await(t, "the change", func() bool { return p.get("a").Device.Spec.Properties[0].CollectCycle == 700 })
	p.serve()
	await(t, "a as it is now", func() bool { d := m.has("a"); return d.GetSpec() != nil && d.Spec.Properties[0].CollectCycle == 700 })
	await(t, "the removal", func() bool { return m.has("gone") == nil })
}

func TestADamagedStateFileIsNone(t *testing.T) {
	p := newPlace(t)
	p.stop()
	if err := os.WriteFile(filepath.Join(p.dir, "mappers.json"), []byte(`{"mappers":[{"name":"x","protocol":"p","socket":"relative"},`), 0o600); err != nil {
		t.Fatal(err)
	}
	p.serve()
	if all := p.server.Mappers(); len(all) != 0 {
		t.Errorf("mappers: %v", all)
	}
}

func TestTheSocketIsForRootAndItsGroup(t *testing.T) {
	p := newPlace(t)
	info, err := os.Stat(p.socket())
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	info, err = os.Stat(filepath.Join(filepath.Dir(p.socket()), "mappers"))
	if err != nil || info.Mode().Perm() != 0o770 {
		t.Errorf("the folder for mappers: %v, %v", info.Mode(), err)
	}
	if err := New(Options{Socket: p.socket(), Devices: p.manager}).Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another edgecore") {
		t.Errorf("a second server on the socket: %v", err)
	}
	p.stop()
	stale, err := net.Listen("unix", p.socket()) // as a killed process leaves it
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	p.serve()
}
