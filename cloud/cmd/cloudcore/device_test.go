package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestDevices shows cloudcore and devices, with a real control plane and its real
// rights. The parts share one.
func TestDevices(t *testing.T) {
	p := newPlace(t)
	t.Run("a device comes with its model, follows it, and goes before it", p.deviceComes)
	t.Run("a device that moves is the new node's alone", p.deviceMoves)
	t.Run("an old edge is given none", p.oldEdge)
	t.Run("what a device reports is in its status", p.deviceReports)
	t.Run("a report about a device that is not the node's", p.deviceOfAnother)
	t.Run("a device with a selector is bound, and again when its node is gone", p.deviceIsBound)
	t.Run("the devices of a silent node are unknown until it is heard", p.deviceOfSilentNode)
}

// objects of devices.holdfast.io, as the administrator.
func (p *place) devices(t testing.TB) rest.Interface {
	t.Helper()
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	return deviceClient(t, rc)
}

func deviceClient(t testing.TB, rc *rest.Config) rest.Interface {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1beta1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	rc, version := rest.CopyConfig(rc), v1beta1.GroupVersion()
	rc.APIPath, rc.GroupVersion, rc.NegotiatedSerializer = "/apis", &version, serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(rc)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (p *place) post(t testing.TB, resource string, obj runtime.Object, into runtime.Object) {
	t.Helper()
	if err := p.devices(t).Post().Namespace("default").Resource(resource).Body(obj).Do(t.Context()).Into(into); err != nil {
		t.Fatalf("create in %s: %v", resource, err)
	}
}

func (p *place) model(t testing.TB, name string) *v1beta1.DeviceModel {
	t.Helper()
	m := new(v1beta1.DeviceModel)
	p.post(t, "devicemodels", &v1beta1.DeviceModel{
		TypeMeta: metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "DeviceModel"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1beta1.DeviceModelSpec{Properties: []v1beta1.ModelProperty{
			{Name: "temperature", Type: v1beta1.TypeDouble, AccessMode: v1beta1.ReadOnly, Unit: "°C"},
			{Name: "limit", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Maximum: "90"},
		}},
	}, m)
	return m
}

func (p *place) device(t testing.TB, name, model, node string, more ...func(*v1beta1.Device)) *v1beta1.Device {
	t.Helper()
	d, made := &v1beta1.Device{
		TypeMeta: metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "Device"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: model}, NodeName: node, Properties: []v1beta1.DeviceProperty{
			{Name: "limit", Desired: &v1beta1.TwinProperty{Value: "40"}}, {Name: "temperature", History: &v1beta1.History{Limit: 3}},
		}},
	}, new(v1beta1.Device)
	for _, f := range more {
		f(d)
	}
	p.post(t, "devices", d, made)
	return made
}

func (p *place) getDevice(t testing.TB, name string) *v1beta1.Device {
	t.Helper()
	d := new(v1beta1.Device)
	if err := p.devices(t).Get().Namespace("default").Resource("devices").Name(name).Do(t.Context()).Into(d); err != nil {
		t.Fatalf("get device %s: %v", name, err)
	}
	return d
}

func (p *place) patchDevice(t testing.TB, resource, name, patch string) {
	t.Helper()
	if err := p.devices(t).Patch("application/merge-patch+json").Namespace("default").Resource(resource).Name(name).Body([]byte(patch)).Do(t.Context()).Error(); err != nil {
		t.Fatalf("patch %s %s: %v", resource, name, err)
	}
}

func (p *place) deleteOf(t testing.TB, resource, name string) {
	t.Helper()
	if err := p.devices(t).Delete().Namespace("default").Resource(resource).Name(name).Do(t.Context()).Error(); err != nil {
		t.Fatalf("delete %s %s: %v", resource, name, err)
	}
}

// decoded is a device that an edge holds.
func decoded(t testing.TB, o *wire.Object) *v1beta1.Device {
	t.Helper()
	d := new(v1beta1.Device)
	if o == nil {
		return d
	}
	if err := json.Unmarshal(o.GetPayload(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (p *place) deviceComes(t *testing.T) {
	e := p.join(t, "shop-1")
	p.model(t, "sensor")
	made := p.device(t, "s-1", "sensor", "shop-1", func(d *v1beta1.Device) {
		d.Labels = map[string]string{"floor": "2"}
		d.Spec.Protocol.ConfigData = &v1beta1.RawObject{RawMessage: json.RawMessage(`{"z": [1, 2.50], "a": {"b": null}}`)}
	})
	both := edgetest.Has("device/default/s-1", "devicemodel/default/sensor")
	e.WaitObjects("the device and its model", both)
	// Two watches tell of them, in any order; an edge that is told of both at once hears
	// of the model first.
	e.Disconnect()
	e.Forget()
	e.Connect()
	e.WaitObjects("the device and its model again", both)
	upserts := e.Seen().Upserts
	kind := func(k wire.Kind) int {
		return slices.IndexFunc(upserts, func(o *wire.Object) bool { return o.GetRef().GetKind() == k })
	}
	if kind(wire.Kind_KIND_DEVICE_MODEL) > kind(wire.Kind_KIND_DEVICE) {
		t.Error("the device came before its model")
	}
	got := decoded(t, e.Objects()["device/default/s-1"])
	if got.UID != made.UID || got.Generation != 1 || got.ResourceVersion != "" || got.ManagedFields != nil || got.Labels["floor"] != "2" || got.Spec.Properties[0].Desired.Value != "40" {
		t.Errorf("the device at the edge: %+v", got)
	}
	p.patchDevice(t, "devices", "s-1", `{"spec":{"properties":[{"name":"limit","desired":{"value":"50"}}]}}`)
	e.WaitObjects("the new desired value", func(o map[string]*wire.Object) bool {
		d := decoded(t, o["device/default/s-1"])
		return d.Generation == 2 && d.Spec.Properties[0].Desired.Value == "50"
	})
	p.patchDevice(t, "devicemodels", "sensor", `{"spec":{"protocol":"modbus"}}`)
	e.WaitObjects("the new model", func(o map[string]*wire.Object) bool {
		m := new(v1beta1.DeviceModel)
		return json.Unmarshal(o["devicemodel/default/sensor"].GetPayload(), m) == nil && m.Spec.Protocol == "modbus"
	})

	// A reconnect in which nothing changed asks for nothing.
	e.Disconnect()
	e.Connect()
	e.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome.GetInSync() || s.Synced > 0 })

	// A device that is deleted while its node is away is deleted with its model.
	e.Disconnect()
	p.deleteOf(t, "devices", "s-1")
	e.Connect()
	e.WaitObjects("that both are gone", edgetest.Lacks("device/default/s-1", "devicemodel/default/sensor"))
	deletes := e.Seen().Deletes
	if len(deletes) < 2 || deletes[0].GetKind() != wire.Kind_KIND_DEVICE {
		t.Errorf("deleted: %v", deletes)
	}
}

func (p *place) deviceMoves(t *testing.T) {
	a, b := p.join(t, "from"), p.join(t, "to")
	p.device(t, "mover", "sensor", "from")
	a.WaitObjects("the device", edgetest.Has("device/default/mover"))
	p.patchDevice(t, "devices", "mover", `{"spec":{"nodeName":"to"}}`)
	b.WaitObjects("the device", edgetest.Has("device/default/mover", "devicemodel/default/sensor"))
	a.WaitObjects("that it is gone", edgetest.Lacks("device/default/mover", "devicemodel/default/sensor"))
	p.deleteOf(t, "devices", "mover")
	b.WaitObjects("that it is gone", edgetest.Lacks("device/default/mover"))
}

func (p *place) oldEdge(t *testing.T) {
	p.device(t, "modern", "sensor", "old")
	e := p.edge(t, "old", "old")
	e.Knows(0)
	e.Connect()
	e.Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })
	if r := e.Report(wire.ReportKind_REPORT_NODE, nodeReport("old")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	p.create(t, pod("plain", "old"))
	e.WaitObjects("its pod", edgetest.Has("node//old", "pod/default/plain"))
	e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 || s.Welcome.GetInSync() })
	eventually(t, "a reconnect finds everything in sync", func() bool {
		e.Disconnect()
		e.Connect()
		e.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome.GetInSync() || s.Synced > 0 })
		return e.Seen().Welcome.InSync
	})
	for _, name := range e.Names() {
		if name != "node//old" && name != "pod/default/plain" {
			t.Errorf("an old edge holds %s", name)
		}
	}
	// The same node with a newer edgecore gets what it could not have.
	e.Disconnect()
	e.Knows(wire.KindMax)
	e.Connect()
	e.WaitObjects("its device", edgetest.Has("device/default/modern", "devicemodel/default/sensor"))
}

func said(d *v1beta1.Device, version uint64, temperature string) *wire.DeviceReport {
	return &wire.DeviceReport{
		Namespace: d.Namespace, Name: d.Name, Uid: string(d.UID), State: "online", LastHeardUnixMs: time.Now().UnixMilli(), ObservedGeneration: d.Generation,
		Properties: []*wire.PropertyReport{{
			Name: "temperature", Version: version, Reported: &wire.PropertyValue{Value: temperature, UnixMs: 1000},
			History: []*wire.HistoryValue{{Number: version, Value: temperature, UnixMs: 1000}},
		}},
	}
}

func reported(d *v1beta1.Device) string {
	for _, t := range d.Status.Twins {
		if t.PropertyName == "temperature" && t.Reported != nil {
			return t.Reported.Value
		}
	}
	return ""
}

func (p *place) deviceReports(t *testing.T) {
	e := p.join(t, "shop-2")
	d := p.device(t, "s-2", "sensor", "shop-2")
	e.WaitObjects("the device", edgetest.Has("device/default/s-2"))
	for i := range 5 {
		value := fmt.Sprint(20 + i)
		if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, uint64(i+1), value)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatalf("report %d: %v", i, r)
		}
		if got := reported(p.getDevice(t, "s-2")); got != value {
			t.Errorf("after report %d the status says %q", i, got)
		}
	}
	s := p.getDevice(t, "s-2").Status
	if s.State != v1beta1.StateOnline || s.LastReportTime == nil || s.LastOnlineTime == nil || s.Writer.Node != "shop-2" || s.Writer.Store != "store of shop-2" {
		t.Errorf("status: %+v", s)
	}
	if h := s.Twins[0].History; len(h) != 3 || h[0].Number != 3 || h[2].Value != "24" {
		t.Errorf("history: %v", h)
	}
	// An older report, from before: nothing of it is news.
	if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 2, "-1")); r.Code != wire.ResultCode_RESULT_ACCEPTED || reported(p.getDevice(t, "s-2")) != "24" {
		t.Errorf("an old report: %v, status %q", r, reported(p.getDevice(t, "s-2")))
	}
	// Somebody edits the device between two reports.
	p.patchDevice(t, "devices", "s-2", `{"metadata":{"labels":{"a":"b"}}}`)
	if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 6, "25")); r.Code != wire.ResultCode_RESULT_ACCEPTED || reported(p.getDevice(t, "s-2")) != "25" {
		t.Errorf("after an edit: %v", r)
	}
	for _, o := range e.Seen().Upserts {
		if o.GetRef().GetKind() == wire.Kind_KIND_DEVICE && len(decoded(t, o).Status.Twins) > 0 {
			t.Error("the status came back to the edge")
		}
	}

	// The database of the node is lost: it counts anew, and its word counts.
	e.Disconnect()
	anew := p.edge(t, "shop-2", "another store")
	eventually(t, "the hub has seen that the old database is gone", func() bool {
		anew.Connect()
		anew.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome != nil || s.Goodbye != nil })
		return anew.Seen().Welcome != nil
	})
	anew.WaitObjects("the device", edgetest.Has("device/default/s-2"))
	if r := anew.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 1, "7")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	if s := p.getDevice(t, "s-2").Status; len(s.Twins[0].History) != 1 || s.Twins[0].Reported.Value != "7" {
		t.Errorf("after the loss of a database: %+v", s.Twins[0])
	}
}

func (p *place) deviceOfAnother(t *testing.T) {
	e, other := p.join(t, "shop-3"), p.join(t, "shop-4")
	d := p.device(t, "s-3", "sensor", "shop-3")
	e.WaitObjects("the device", edgetest.Has("device/default/s-3"))
	if r := other.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 1, "66")); r.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("another node's device: %v", r)
	}
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	for node, allowed := range map[string]bool{"shop-3": true, "shop-4": false} {
		as := rest.CopyConfig(rc)
		as.Impersonate = rest.ImpersonationConfig{UserName: asnode.User(node), Groups: []string{asnode.Group}}
		now := p.getDevice(t, "s-3")
		now.Status.State = v1beta1.StateOffline
		now.TypeMeta = metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "Device"}
		err := deviceClient(t, as).Put().Namespace("default").Resource("devices").Name("s-3").SubResource("status").Body(now).Do(t.Context()).Error()
		if allowed != (err == nil) {
			t.Errorf("%s writes the status: %v", node, err)
		}
	}
	if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 1, "21")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("its own device: %v", r)
	}
	for what, report := range map[string]*wire.DeviceReport{
		"a device that never was":  {Namespace: "default", Name: "nowhere", Uid: "u"},
		"a device of another uid":  {Namespace: "default", Name: "s-3", Uid: "u"},
		"a namespace that is gone": {Namespace: "gone", Name: "s-3", Uid: string(d.UID)},
	} {
		if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, report); r.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Errorf("%s: %v", what, r)
		}
	}
	for what, payload := range map[string][]byte{"no report": []byte("\xff"), "nothing": nil} {
		if r := e.Result(e.SendBytes(wire.ReportKind_REPORT_DEVICE, payload)); r.Code != wire.ResultCode_RESULT_REJECTED {
			t.Errorf("%s: %v", what, r)
		}
	}
}

func (p *place) deviceIsBound(t *testing.T) {
	const floor = "example.test/floor"
	selects := func(d *v1beta1.Device) { d.Spec.NodeSelector = map[string]string{floor: "9"} }
	p.device(t, "free", "sensor", "", selects)
	eventually(t, "the device says that no node will have it", func() bool {
		return p.getDevice(t, "free").Status.Reason == v1beta1.ReasonNoNode
	})
	edges := map[string]*edgetest.Edge{}
	for _, name := range []string{"floor-a", "floor-b"} {
		edges[name] = p.join(t, name)
		if _, err := p.client.CoreV1().Nodes().Patch(t.Context(), name, "application/merge-patch+json",
			[]byte(`{"metadata":{"labels":{"`+floor+`":"9"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var node string
	eventually(t, "the device is bound", func() bool {
		node = p.getDevice(t, "free").Spec.NodeName
		return node != ""
	})
	edges[node].WaitObjects("the device", edgetest.Has("device/default/free"))

	edges[node].Disconnect()
	if err := p.client.CoreV1().Nodes().Delete(t.Context(), node, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"floor-a": "floor-b", "floor-b": "floor-a"}[node]
	eventually(t, "the device is bound to the other node", func() bool { return p.getDevice(t, "free").Spec.NodeName == other })
	edges[other].WaitObjects("the device", edgetest.Has("device/default/free"))
}

func (p *place) deviceOfSilentNode(t *testing.T) {
	e := p.join(t, "shop-5")
	d := p.device(t, "s-5", "sensor", "shop-5")
	e.WaitObjects("the device", edgetest.Has("device/default/s-5"))
	if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, said(d, 1, "21")); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	e.Disconnect()
	eventually(t, "the device is unknown", func() bool {
		s := p.getDevice(t, "s-5").Status
		return s.State == v1beta1.StateUnknown && s.Reason == v1beta1.ReasonNodeUnreachable && s.ReportedState == v1beta1.StateOnline
	})
	if got := reported(p.getDevice(t, "s-5")); got != "21" {
		t.Errorf("its last value is %q", got)
	}
	e.Connect()
	eventually(t, "the device is as it was", func() bool {
		s := p.getDevice(t, "s-5").Status
		return s.State == v1beta1.StateOnline && s.Reason == "" && s.ReportedState == ""
	})
}

// TestAClusterWithoutDevices: everything else works, and devices do once there are.
func TestAClusterWithoutDevices(t *testing.T) {
	p := newPlaceOf(t, &place{keepAlive: keepAlive})
	e := p.join(t, "plain")
	p.create(t, pod("first", "plain"))
	e.WaitObjects("its pod", edgetest.Has("pod/default/first"))
	eventually(t, "a reconnect finds everything in sync", func() bool {
		e.Disconnect()
		e.Connect()
		e.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome.GetInSync() || s.Synced > 0 })
		return e.Seen().Welcome.InSync
	})
	if r := e.ReportMessage(wire.ReportKind_REPORT_DEVICE, &wire.DeviceReport{Namespace: "default", Name: "x", Uid: "u"}); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("a report about a device where there are none: %v", r)
	}
	p.withDevices = true
	p.apply(t)
	p.model(t, "sensor")
	p.device(t, "late", "sensor", "plain")
	p.device(t, "free", "sensor", "", func(d *v1beta1.Device) { d.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "plain"} })
	e.WaitObjects("the devices", edgetest.Has("device/default/late", "device/default/free", "devicemodel/default/sensor", "pod/default/first"))

	// The CRDs go, and with them all devices.
	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	crds := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/devices.devices.holdfast.io"
	if err := deviceClient(t, rc).Delete().AbsPath(crds).Do(t.Context()).Error(); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	e.WaitObjects("that they are gone", edgetest.Lacks("device/default/late", "device/default/free"))
	p.create(t, pod("second", "plain"))
	e.WaitObjects("a further pod", edgetest.Has("pod/default/first", "pod/default/second"))
}
