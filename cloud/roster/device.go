package roster

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Device is the item of a device: what it is and what it shall do. What it
// reports is the node's own.
func Device(d *v1beta1.Device) (*Item, error) {
	m := named(d.ObjectMeta)
	return newJSONItem(wire.Kind_KIND_DEVICE, m, &v1beta1.Device{ObjectMeta: m, Spec: d.Spec})
}

// Model is the item of a device model.
func Model(d *v1beta1.DeviceModel) (*Item, error) {
	m := named(d.ObjectMeta)
	return newJSONItem(wire.Kind_KIND_DEVICE_MODEL, m, &v1beta1.DeviceModel{ObjectMeta: m, Spec: d.Spec})
}

// Route is the item of a route. Where messages are posted to is no node's business:
// a URL may have a password in it.
func Route(r *v1beta1.Route) (*Item, error) {
	m, spec := named(r.ObjectMeta), r.Spec
	if spec.Up != nil && spec.Up.HTTP != nil {
		up := *spec.Up
		up.HTTP = &v1beta1.HTTPTarget{}
		spec.Up = &up
	}
	return newJSONItem(wire.Kind_KIND_ROUTE, m, &v1beta1.Route{ObjectMeta: m, Spec: spec})
}

func named(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, Generation: m.Generation, Labels: m.Labels}
}

// newJSONItem makes an item of an object that has no protobuf. encoding/json
// writes one object always in the same bytes.
func newJSONItem(kind wire.Kind, m metav1.ObjectMeta, source any) (*Item, error) {
	ref := &wire.ObjectRef{Kind: kind, Namespace: m.Namespace, Name: m.Name, Uid: string(m.UID)}
	payload, err := json.Marshal(source)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", wire.Describe(ref), err)
	}
	ref.Version = wire.Version(payload)
	return &Item{Ref: ref, payload: payload}, nil
}

// Payload is the item's object as it travels; it must not be changed.
func (i *Item) Payload() []byte { return i.payload }

// Selected says that a route is one of the node: it names the node, or its
// selector matches the node's labels, or it has neither.
func Selected(s *v1beta1.RouteSpec, node string, labels map[string]string) bool {
	if s.NodeName != "" {
		return s.NodeName == node
	}
	return Matching(s.NodeSelector, labels)
}

// Matching says that labels hold all that a selector asks for.
func Matching(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
