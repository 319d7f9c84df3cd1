// Package payload reads and writes what travels in MQTT messages about devices:
// KubeEdge's JSON documents and Holdfast's own plain ones. edge/mqtt calls it. It is
// pure: it knows no broker, and whether a value is right is edge/twin's to say.
package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Max bounds the payload of a message that is about a device, in bytes.
const Max = 64 << 10

// ErrInvalid is what all errors about a payload are; the text says what to do.
var ErrInvalid = errors.New("invalid payload")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// decode reads JSON that must be one value.
func decode(b []byte, into any, example string) error {
	switch {
	case len(b) > Max:
		return invalid("it has %d bytes, and %d is the limit: send fewer properties at once", len(b), Max)
	case !utf8.Valid(b):
		return invalid("it is not UTF-8: send bytes as base64")
	}
	if err := json.Unmarshal(b, into); err != nil {
		return invalid("it is no JSON such as %s: %v", example, err)
	}
	return nil
}

// Base begins every document of KubeEdge.
type Base struct {
	EventID string `json:"event_id"`
	// Timestamp is in milliseconds since 1970.
	Timestamp int64 `json:"timestamp"`
}

// Result says why something was refused.
type Result struct {
	Base
	Code   int    `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Codes of Result.
const (
	BadRequest = 400
	NotFound   = 404
	Conflict   = 409
	TooLarge   = 413
	TooMany    = 429
	Internal   = 500
)

// Device is a device in documents about a node's devices and about a state.
type Device struct {
	ID          string           `json:"id,omitempty"`
	Name        string           `json:"name,omitempty"`
	Description string           `json:"description,omitempty"`
	State       string           `json:"state,omitempty"`
	LastOnline  string           `json:"last_online,omitempty"`
	Twin        map[string]*Twin `json:"twin,omitempty"`
}

// Twin is one property.
type Twin struct {
	Expected        *Value    `json:"expected,omitempty"`
	Actual          *Value    `json:"actual,omitempty"`
	Optional        *bool     `json:"optional,omitempty"`
	Metadata        *TypeMeta `json:"metadata,omitempty"`
	ExpectedVersion *Version  `json:"expected_version,omitempty"`
	ActualVersion   *Version  `json:"actual_version,omitempty"`
}

// Value is a value, which is always text.
type Value struct {
	Value    *string    `json:"value,omitempty"`
	Metadata *ValueMeta `json:"metadata,omitempty"`
}

// TypeMeta says what type a property has.
type TypeMeta struct {
	Type string `json:"type,omitempty"`
}

// ValueMeta says when a value was set.
type ValueMeta struct {
	Timestamp int64 `json:"timestamp,omitempty"`
}

// Version counts changes.
type Version struct {
	Cloud int64 `json:"cloud"`
	Edge  int64 `json:"edge"`
}

// TwinMessage is twin/update, twin/update/result, twin/get/result and
// twin/cloud_updated.
type TwinMessage struct {
	Base
	Twin map[string]*Twin `json:"twin"`
}

// Delta is twin/update/delta.
type Delta struct {
	Base
	Twin  map[string]*Twin  `json:"twin"`
	Delta map[string]string `json:"delta"`
}

// Document is twin/update/document.
type Document struct {
	Base
	Twin map[string]*Step `json:"twin"`
}

// Step is a property before and after.
type Step struct {
	Last    *Twin `json:"last"`
	Current *Twin `json:"current"`
}

// StateMessage is state/update/result and state/get/result.
type StateMessage struct {
	Base
	Device Device `json:"device"`
}

// Attributes is `updated`: the cloud has another definition of the device.
type Attributes struct {
	Base
	Attributes map[string]string `json:"attributes"`
}

// Devices is membership/get/result and membership/detail/result.
type Devices struct {
	Base
	Devices []Device `json:"devices"`
}

// Membership is membership/updated.
type Membership struct {
	Base
	Added   []Device `json:"added_devices"`
	Removed []Device `json:"removed_devices"`
}

// EventID reads what every request of KubeEdge has. An empty payload is a request
// too.
func EventID(b []byte) (string, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return "", nil
	}
	var base struct {
		EventID string `json:"event_id"`
	}
	if err := decode(b, &base, `{"event_id":"1"}`); err != nil {
		return "", err
	}
	return base.EventID, nil
}

// TwinUpdate reads twin/update. expected becomes desired, actual reported.
func TwinUpdate(b []byte) (eventID string, reported, desired []device.Update, err error) {
	// timestamp is of no use here, and may be anything.
	var m struct {
		EventID string           `json:"event_id"`
		Twin    map[string]*Twin `json:"twin"`
	}
	const example = `{"event_id":"1","twin":{"temperature":{"actual":{"value":"21.5"}}}}`
	if err := decode(b, &m, example); err != nil {
		return "", nil, nil, err
	}
	if len(m.Twin) == 0 {
		return m.EventID, nil, nil, invalid("it has no key twin with properties, such as %s", example)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Twin)) {
		t := m.Twin[name]
		if t == nil {
			return m.EventID, nil, nil, invalid("property %s is null, and a program cannot delete a property: the device model says which there are", clip(name))
		}
		for _, side := range []struct {
			value *Value
			list  *[]device.Update
		}{{t.Actual, &reported}, {t.Expected, &desired}} {
			if side.value == nil {
				continue
			}
			if side.value.Value == nil {
				return m.EventID, nil, nil, invalid("property %s has no value: values are texts, such as %s", clip(name), example)
			}
			v := twin.Value{Text: *side.value.Value}
			if side.value.Metadata != nil {
				v.At = side.value.Metadata.Timestamp
			}
			*side.list = append(*side.list, device.Update{Property: name, Value: v})
		}
	}
	if len(reported)+len(desired) == 0 {
		return m.EventID, nil, nil, invalid("no property has expected or actual, such as %s", example)
	}
	return m.EventID, reported, desired, nil
}

// StateUpdate reads state/update.
func StateUpdate(b []byte) (eventID string, state v1beta1.DeviceState, err error) {
	var m struct {
		EventID string `json:"event_id"`
		State   string `json:"state"`
	}
	if err := decode(b, &m, `{"event_id":"1","state":"online"}`); err != nil {
		return "", "", err
	}
	state, err = parseState(m.State)
	return m.EventID, state, err
}

func parseState(s string) (v1beta1.DeviceState, error) {
	switch state := v1beta1.DeviceState(s); state {
	case v1beta1.StateOnline, v1beta1.StateOffline, v1beta1.StateUnknown:
		return state, nil
	}
	return "", invalid("the state %s is neither online nor offline nor unknown", clip(s))
}

func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// Marshal writes a document. All of them can be written.
func Marshal(document any) []byte {
	b, err := json.Marshal(document)
	if err != nil {
		return fmt.Appendf(nil, `{"code":500,"reason":%q}`, err)
	}
	return b
}

func kubeEdgeType(t v1beta1.PropertyType) string { return strings.ToLower(string(t)) }

func value(v *twin.Value) *Value {
	if v == nil {
		return nil
	}
	out := &Value{Value: &v.Text}
	if v.At != 0 {
		out.Metadata = &ValueMeta{Timestamp: v.At}
	}
	return out
}

// Property is one property of a device as KubeEdge shows it; nil when the device
// has none of that name.
func Property(v device.View, name string) *Twin {
	if v.Definition == nil || v.Twin == nil {
		return nil
	}
	p := v.Properties[name]
	if p == nil {
		return nil
	}
	optional := false
	t := &Twin{Optional: &optional, Metadata: &TypeMeta{Type: kubeEdgeType(p.Type)}}
	if e := v.Twin.Properties[name]; e != nil {
		want, _ := e.Desired()
		t.Expected, t.Actual = value(want), value(e.Reported)
	}
	return t
}

// Properties are all properties of a device.
func Properties(v device.View) map[string]*Twin {
	all := make(map[string]*Twin)
	if v.Definition != nil {
		for name := range v.Properties {
			all[name] = Property(v, name)
		}
	}
	return all
}

// DeltaOf says what of a device's desired values it has not reported; ok is false
// when there is nothing.
func DeltaOf(v device.View, base Base) (d Delta, ok bool) {
	d = Delta{Base: base, Twin: make(map[string]*Twin), Delta: make(map[string]string)}
	if v.Definition == nil || v.Twin == nil {
		return d, false
	}
	for name, want := range v.Twin.Delta() {
		d.Delta[name] = want.Text
	}
	if len(d.Delta) == 0 {
		return d, false
	}
	for name, e := range v.Twin.Properties {
		if want, _ := e.Desired(); want != nil {
			if t := Property(v, name); t != nil {
				d.Twin[name] = t
			}
		}
	}
	return d, true
}

// DocumentOf says what became of properties.
func DocumentOf(before, after device.View, names []string, base Base) Document {
	d := Document{Base: base, Twin: make(map[string]*Step, len(names))}
	for _, name := range names {
		d.Twin[name] = &Step{Last: Property(before, name), Current: Property(after, name)}
	}
	return d
}

// CloudUpdated says what the cloud wants of properties.
func CloudUpdated(v device.View, names []string, base Base) TwinMessage {
	m := TwinMessage{Base: base, Twin: make(map[string]*Twin, len(names))}
	for _, name := range names {
		t := Property(v, name)
		if t == nil {
			continue
		}
		version := &Version{Cloud: v.Generation}
		if e := v.Twin.Properties[name]; e != nil {
			version.Edge = int64(e.Version)
		}
		t.Actual, t.ExpectedVersion = nil, version
		m.Twin[name] = t
	}
	return m
}

// DeviceOf describes a device; with its twin if detail.
func DeviceOf(v device.View, detail bool) Device {
	d := Device{ID: v.Key.String(), Name: v.Name, State: string(v1beta1.StateUnknown)}
	if v.Twin != nil {
		d.State = string(v.Twin.State)
		if v.Twin.Heard != 0 {
			d.LastOnline = time.UnixMilli(v.Twin.Heard).Format(time.DateTime)
		}
	}
	if detail {
		d.Twin = Properties(v)
	}
	return d
}
