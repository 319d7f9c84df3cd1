package roster

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

func device(name string) *v1beta1.Device {
	return &v1beta1.Device{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 4, ResourceVersion: "17",
			Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}, CreationTimestamp: metav1.Now(),
		},
		Spec:   v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "m"}, Protocol: v1beta1.ProtocolConfig{ConfigData: &v1beta1.RawObject{RawMessage: json.RawMessage(`{"port": 1}`)}}},
		Status: v1beta1.DeviceStatus{State: v1beta1.StateOnline, Twins: []v1beta1.Twin{{PropertyName: "p"}}},
	}
}

func TestADeviceTravelsWithoutWhatIsTheCloudsOwn(t *testing.T) {
	item, err := Device(device("d"))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"metadata":{"name":"d","namespace":"shop","uid":"uid-d","generation":4,"labels":{"a":"1","b":"2"}},"spec":{"deviceModelRef":{"name":"m"},"protocol":{"configData":{"port":1}}}}`
	if got := string(item.Payload()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	other := device("d")
	other.ResourceVersion, other.Status, other.Annotations = "18", v1beta1.DeviceStatus{}, nil
	again, err := Device(other)
	if err != nil || string(again.Ref.Version) != string(item.Ref.Version) {
		t.Errorf("what does not travel makes another version: %v", err)
	}
	for kind, make := range map[wire.Kind]func() (*Item, error){
		wire.Kind_KIND_DEVICE_MODEL: func() (*Item, error) { return Model(&v1beta1.DeviceModel{ObjectMeta: other.ObjectMeta}) },
		wire.Kind_KIND_ROUTE: func() (*Item, error) {
			return Route(&v1beta1.Route{ObjectMeta: other.ObjectMeta, Status: v1beta1.RouteStatus{Nodes: []v1beta1.RouteNode{{Node: "n"}}}})
		},
	} {
		item, err := make()
		if err != nil || item.Ref.GetKind() != kind || strings.Contains(string(item.Payload()), "status") {
			t.Errorf("%s: %v, %s", kind, err, item.Payload())
		}
	}
}

func TestARouteTravelsWithoutItsEndpoint(t *testing.T) {
	r := &v1beta1.Route{Spec: v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "till/#", HTTP: &v1beta1.HTTPTarget{URL: "https://user:secret@sales.example/?key=secret"}}}}
	item, err := Route(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(item.Payload()); strings.Contains(got, "secret") || !strings.Contains(got, "till/#") {
		t.Errorf("a node is told %s", got)
	}
	if r.Spec.Up.HTTP.URL == "" {
		t.Error("the route itself has lost its endpoint")
	}
}

func TestModelsComeBeforeDevicesAndGoAfterThem(t *testing.T) {
	d, err := Device(device("d"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := Model(&v1beta1.DeviceModel{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "m", UID: "uid-m"}})
	if err != nil {
		t.Fatal(err)
	}
	pod := &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Namespace: "d", Name: "p", Uid: "uid-p", Version: d.Ref.Version}
	w := &Wanted{Items: map[ID]*Item{IDOf(d.Ref): d, IDOf(m.Ref): m}}
	if c := Diff(w, Held{}, nil); len(c.Upserts) != 2 || c.Upserts[0] != m {
		t.Errorf("upserts %v", c.Upserts)
	}
	// A pod whose end nobody has confirmed keeps what it may need, and no device is that.
	have := HeldOf([]*wire.ObjectRef{d.Ref, m.Ref, pod})
	c := Diff(&Wanted{}, have, nil)
	if len(c.Deletes) != 2 || c.Deletes[0].GetKind() != wire.Kind_KIND_DEVICE || len(c.Unconfirmed) != 1 {
		t.Errorf("deletes %v, unconfirmed %v", c.Deletes, c.Unconfirmed)
	}
	if c := Diff(&Wanted{DevicesUnknown: true}, have, nil); len(c.Deletes) != 0 {
		t.Errorf("nothing is known of devices, and yet deleted: %v", c.Deletes)
	}
	// An old edge is wanted to hold none, and keeps what it has.
	old := w.UpTo(wire.Kind_KIND_NODE)
	if c := Diff(old, have, map[ID]bool{IDOf(pod): true}); len(old.Items) != 0 || len(c.Upserts) != 0 || len(c.Deletes) != 1 {
		t.Errorf("an old edge: %v", c)
	}
	if _, ok := old.Matches(wire.Digest(nil)); !ok {
		t.Error("an old edge that holds nothing is not in sync")
	}
	if w.UpTo(wire.KindMax) != w {
		t.Error("a new edge is wanted to hold something else")
	}
}

func TestARouteSelectsNodes(t *testing.T) {
	labels := map[string]string{"floor": "2"}
	for what, c := range map[string]struct {
		spec v1beta1.RouteSpec
		want bool
	}{
		"all":           {v1beta1.RouteSpec{}, true},
		"by name":       {v1beta1.RouteSpec{NodeName: "n", NodeSelector: map[string]string{"floor": "3"}}, true},
		"another name":  {v1beta1.RouteSpec{NodeName: "m"}, false},
		"by label":      {v1beta1.RouteSpec{NodeSelector: map[string]string{"floor": "2"}}, true},
		"another value": {v1beta1.RouteSpec{NodeSelector: map[string]string{"floor": "3"}}, false},
		"another label": {v1beta1.RouteSpec{NodeSelector: map[string]string{"floor": "2", "shop": ""}}, false},
	} {
		if got := Selected(&c.spec, "n", labels); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
