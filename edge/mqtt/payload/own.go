package payload

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Values reads an object of properties, as in {"temperature": 21.5, "on": true} or
// {"temperature": {"value": 21.5, "timestamp": 1735689600000}}.
func Values(b []byte) ([]device.Update, error) {
	const example = `{"temperature":21.5}`
	var m map[string]json.RawMessage
	if err := decode(b, &m, example+` (to send one value as text, append /PROPERTY to the topic)`); err != nil {
		return nil, err
	}
	if len(m) == 0 {
		return nil, invalid("it names no property: send an object such as %s", example)
	}
	updates := make([]device.Update, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		v, err := one(name, m[name])
		if err != nil {
			return nil, err
		}
		updates = append(updates, device.Update{Property: name, Value: v})
	}
	return updates, nil
}

func one(name string, raw json.RawMessage) (twin.Value, error) {
	if !bytes.HasPrefix(raw, []byte("{")) {
		text, err := scalar(name, raw)
		return twin.Value{Text: text}, err
	}
	var timed struct {
		Value     json.RawMessage `json:"value"`
		Timestamp *int64          `json:"timestamp"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&timed); err != nil || timed.Value == nil {
		return twin.Value{}, invalid("property %s is an object, and may have a value and a timestamp in whole milliseconds since 1970 only", clip(name))
	}
	text, err := scalar(name, timed.Value)
	v := twin.Value{Text: text}
	if timed.Timestamp != nil {
		v.At = *timed.Timestamp
	}
	return v, err
}

// scalar is a JSON scalar as text: numbers as they were written.
func scalar(name string, raw json.RawMessage) (string, error) {
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "", invalid("property %s is null, which is no value", clip(name))
	case raw[0] == '[' || raw[0] == '{':
		return "", invalid("property %s is no text, number, true or false: send anything else as text", clip(name))
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	}
	return string(raw), nil
}

// Text reads a payload that is one value.
func Text(b []byte) (twin.Value, error) {
	switch {
	case len(b) > twin.MaxValue:
		return twin.Value{}, invalid("it has %d bytes, and %d is the limit of a value", len(b), twin.MaxValue)
	case !utf8.Valid(b):
		return twin.Value{}, invalid("it is not UTF-8: send bytes as base64")
	}
	return twin.Value{Text: string(b)}, nil
}

// State reads online or offline, as text or as a JSON text.
func State(b []byte) (v1beta1.DeviceState, error) {
	if len(b) > 64 {
		b = b[:64]
	}
	return parseState(strings.Trim(strings.TrimSpace(string(b)), `"`))
}

// Answer is what edgecore says to one update on the result topic.
type Answer struct {
	OK       bool   `json:"ok,omitempty"`
	Error    string `json:"error,omitempty"`
	Code     int    `json:"code,omitempty"`
	Property string `json:"property,omitempty"`
	Topic    string `json:"topic,omitempty"`
	// ID is the "id" of the update, as it came.
	ID json.RawMessage `json:"id,omitempty"`
}

// ID is the property "id" of an object, which is the update's own name where the
// device has no such property; nil when there is none.
func ID(b []byte) json.RawMessage {
	var m struct {
		ID json.RawMessage `json:"id"`
	}
	if len(b) > Max || json.Unmarshal(b, &m) != nil || len(m.ID) > 128 || len(m.ID) == 0 || m.ID[0] == '{' || m.ID[0] == '[' {
		return nil
	}
	return m.ID
}

// Desired are the desired values in force of a device, as text by property.
func Desired(v device.View) map[string]string {
	all := make(map[string]string)
	if v.Definition == nil || v.Twin == nil {
		return all
	}
	for name, e := range v.Twin.Properties {
		if want, _ := e.Desired(); want != nil {
			all[name] = want.Text
		}
	}
	return all
}

// Typed writes values as an object: numbers and truth values as such where the
// property's type says so and JSON can hold the text, everything else as text.
func Typed(v device.View, values map[string]string) []byte {
	out := make(map[string]any, len(values))
	for name, text := range values {
		out[name] = text
		p := v.Properties[name]
		if p == nil {
			continue
		}
		switch p.Type {
		case v1beta1.TypeInt, v1beta1.TypeFloat, v1beta1.TypeDouble, v1beta1.TypeBoolean:
			if json.Valid([]byte(text)) {
				out[name] = json.RawMessage(text)
			}
		}
	}
	return Marshal(out)
}
