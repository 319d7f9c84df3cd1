package mqtt

import (
	"testing"

	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

const hw = "$hw/events/device/plant/boiler/"

func text(v *payload.Value) string {
	if v == nil || v.Value == nil {
		return "-"
	}
	return *v.Value
}

func TestAProgramForKubeEdgeRunsUnchanged(t *testing.T) {
	n := newNode(t, Config{}, thermostats("plant"), thermostat("plant", "boiler", desires("target", "21")))
	c := dial(t, n.address(), "mapper", nil)
	c.sub(hw+"twin/update/result", hw+"twin/update/delta", hw+"twin/update/document", hw+"twin/get/result",
		hw+"twin/cloud_updated", hw+"state/update/result", hw+"state/get/result", hw+"updated")

	c.pub(hw+"twin/get", `{"event_id":"e0","timestamp":1}`)
	// What is desired is said when the broker starts, too.
	got := unmarshal[payload.TwinMessage](t, c.await(hw+"twin/get/result"))
	if target := got.Twin["target"]; got.EventID != "e0" || len(got.Twin) != 4 || text(target.Expected) != "21" || text(target.Actual) != "-" || target.Metadata.Type != "int" {
		t.Errorf("twin/get: %+v", got)
	}

	c.pub(hw+"twin/update", `{"event_id":"e1","timestamp":2,"twin":{"temperature":{"actual":{"value":"20.5","metadata":{"timestamp":1700000000000}},"metadata":{"type":"float"}}}}`)
	result := unmarshal[payload.TwinMessage](t, c.next(hw+"twin/update/result"))
	temperature := result.Twin["temperature"]
	if result.EventID != "e1" || len(result.Twin) != 1 || text(temperature.Actual) != "20.5" || temperature.Actual.Metadata.Timestamp != 1700000000000 || temperature.Expected != nil {
		t.Errorf("twin/update/result: %+v", result)
	}
	document := unmarshal[payload.Document](t, c.next(hw+"twin/update/document"))
	if step := document.Twin["temperature"]; document.EventID != "e1" || text(step.Last.Actual) != "-" || text(step.Current.Actual) != "20.5" {
		t.Errorf("twin/update/document: %+v", document)
	}
	delta := unmarshal[payload.Delta](t, c.next(hw+"twin/update/delta"))
	if len(delta.Delta) != 1 || delta.Delta["target"] != "21" || text(delta.Twin["target"].Expected) != "21" {
		t.Errorf("twin/update/delta: %+v", delta)
	}

	c.pub(hw+"twin/update", `{"event_id":"e2","twin":{"target":{"actual":{"value":"21"}}}}`)
	c.next(hw + "twin/update/result")
	c.next(hw + "twin/update/document")
	c.pub(hw+"twin/update", `{"event_id":"e3","twin":{"on":{"expected":{"value":"true"}}}}`) // no delta came before
	if r := unmarshal[payload.TwinMessage](t, c.next(hw+"twin/update/result")); text(r.Twin["on"].Expected) != "true" {
		t.Errorf("expected, set by a program: %+v", r)
	}
	c.next(hw + "twin/update/document")
	if d := unmarshal[payload.Delta](t, c.next(hw+"twin/update/delta")); d.Delta["on"] != "true" || len(d.Delta) != 1 {
		t.Errorf("delta of what a program set: %+v", d)
	}

	d := thermostat("plant", "boiler", desires("target", "25"))
	d.Generation = 2
	n.apply(d)
	c.next(hw + "updated")
	cloud := unmarshal[payload.TwinMessage](t, c.next(hw+"twin/cloud_updated"))
	if target := cloud.Twin["target"]; len(cloud.Twin) != 1 || text(target.Expected) != "25" || target.ExpectedVersion.Cloud != 2 {
		t.Errorf("twin/cloud_updated: %+v", cloud)
	}
	c.next(hw + "twin/update/document")
	if d := unmarshal[payload.Delta](t, c.next(hw+"twin/update/delta")); d.Delta["target"] != "25" {
		t.Errorf("delta of what the cloud set: %+v", d)
	}

	c.pub(hw+"state/update", `{"event_id":"e4","state":"online"}`)
	state := unmarshal[payload.StateMessage](t, c.next(hw+"state/update/result"))
	if state.EventID != "e4" || state.Device.Name != "boiler" || state.Device.State != "online" || state.Device.LastOnline == "" {
		t.Errorf("state/update/result: %+v", state)
	}
	c.pub(hw+"state/get", ``)
	if s := unmarshal[payload.StateMessage](t, c.next(hw+"state/get/result")); s.Device.State != "online" {
		t.Errorf("state/get/result: %+v", s)
	}
	c.sub("marker/#")
	c.silent()
}

func TestErrorsOnKubeEdgesTopics(t *testing.T) {
	n := newNode(t, Config{})
	c := dial(t, n.address(), "mapper", nil)
	c.sub("$hw/events/device/#")
	for _, r := range []struct {
		device, suffix, payload, id string
		code                        int
		says                        string
	}{
		{"plant/boiler", "twin/update", `{"event_id":"a","twin":{"temperature":{"actual":{"value":"500"}}}}`, "a", 400, "above the maximum"},
		{"plant/boiler", "twin/update", `{"event_id":"b","twin":{"temperature":null}}`, "b", 400, "cannot delete a property"},
		{"plant/boiler", "twin/update", `{"event_id":"c","twin":{"temperature":{"actual":{}}}}`, "c", 400, "has no value"},
		{"plant/boiler", "twin/update", `{"event_id":"d"}`, "d", 400, "no key twin"},
		{"plant/boiler", "twin/update", `{"event_id":"d","twin":{"temperature":{}}}`, "d", 400, "no property has expected or actual"},
		{"plant/boiler", "twin/update", `{"event_id":"e","twin":{"temperature":{"expected":{"value":"1"}}}}`, "e", 400, "read-only"},
		{"plant/boiler", "twin/update", `nothing`, "", 400, "no JSON"},
		{"plant/gone", "twin/update", `{"event_id":"f","twin":{"a":{"actual":{"value":"1"}}}}`, "f", 404, "no such device"},
		{"plant/gone", "twin/get", `{"event_id":"g"}`, "g", 404, "no such device"},
		{"plant/boiler", "state/update", `{"event_id":"h","state":"ill"}`, "h", 400, "neither online nor offline"},
	} {
		c.pub("$hw/events/device/"+r.device+"/"+r.suffix, r.payload)
		got := unmarshal[payload.Result](t, c.next("$hw/events/device/"+r.device+"/"+r.suffix+"/result"))
		if got.Code != r.code || r.id != "" && got.EventID != r.id {
			t.Errorf("%s: %+v", r.payload, got)
		}
		contains(t, got.Reason, r.says)
	}
	orphan := thermostat("plant", "new")
	orphan.Spec.DeviceModelRef.Name = "missing"
	n.put(orphan)
	eventually(t, "the device is there", func() bool {
		_, err := n.devices.Get(twin.Key{Namespace: "plant", Name: "new"})
		return err == nil
	})
	c.pub("$hw/events/device/plant/new/twin/update", `{"twin":{"a":{"actual":{"value":"1"}}}}`)
	if got := unmarshal[payload.Result](t, c.next("$hw/events/device/plant/new/twin/update/result")); got.Code != 409 {
		t.Errorf("a device without its model: %+v", got)
	}
}

func TestKubeEdgesOldTopicsMeanTheNamespaceDefault(t *testing.T) {
	n := newNode(t, Config{}, thermostats("default"), thermostat("default", "pump", desires("target", "21")))
	c := dial(t, n.address(), "mapper", nil)
	const old = "$hw/events/device/pump/"
	c.sub(old + "#")
	c.pub(old+"twin/update", `{"event_id":"e1","twin":{"temperature":{"actual":{"value":"20.5"}}}}`)
	c.await(old + "twin/update/result")
	c.next(old + "twin/update/document")
	c.next(old + "twin/update/delta")
	c.next(old + "twin/update") // others see it when it is stored
	d := thermostat("default", "pump", desires("target", "25"))
	d.Generation = 2
	n.apply(d)
	c.next(old + "updated")
	c.next(old + "twin/cloud_updated")
	c.next(old + "twin/update/document")
	c.next(old + "twin/update/delta")
}

func TestMembership(t *testing.T) {
	n := newNode(t, Config{})
	c := dial(t, n.address(), "mapper", nil)
	const node = "$hw/events/node/pi/membership/"
	c.sub(node+"get/result", node+"detail/result", node+"updated")
	c.pub(node+"get", `{"event_id":"m1"}`)
	all := unmarshal[payload.Devices](t, c.next(node+"get/result"))
	if all.EventID != "m1" || len(all.Devices) != 1 || all.Devices[0].ID != "plant/boiler" || all.Devices[0].State != "unknown" || all.Devices[0].Twin != nil {
		t.Errorf("membership/get/result: %+v", all)
	}
	c.pub(node+"detail", `{"event_id":"m2"}`)
	if d := unmarshal[payload.Devices](t, c.next(node+"detail/result")); len(d.Devices) != 1 || len(d.Devices[0].Twin) != 4 {
		t.Errorf("membership/detail/result: %+v", d)
	}
	c.pub(node+"get", `{`)
	if r := unmarshal[payload.Result](t, c.next(node+"get/result")); r.Code != 400 {
		t.Errorf("invalid: %+v", r)
	}
	added := thermostat("plant", "second")
	n.apply(added)
	if m := unmarshal[payload.Membership](t, c.next(node+"updated")); len(m.Added) != 1 || m.Added[0].Name != "second" || len(m.Removed) != 0 {
		t.Errorf("added: %+v", m)
	}
	n.remove(added)
	if m := unmarshal[payload.Membership](t, c.next(node+"updated")); len(m.Removed) != 1 || m.Removed[0].ID != "plant/second" || len(m.Added) != 0 {
		t.Errorf("removed: %+v", m)
	}
}
