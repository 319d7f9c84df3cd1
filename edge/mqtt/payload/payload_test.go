package payload

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

func TestValues(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":21.50,"b":true,"c":"x","d":-1e3}`: "[{a {21.50 0 map[]}} {b {true 0 map[]}} {c {x 0 map[]}} {d {-1e3 0 map[]}}]",
		`{"a":{"value":1,"timestamp":17}}`:      "[{a {1 17 map[]}}]",
		` { "a" : "\u00e9" } `:                  "[{a {é 0 map[]}}]",
		`{"a":12345678901234567890}`:            "[{a {12345678901234567890 0 map[]}}]",
		`{"a":{"value":"","timestamp":null}}`:   "[{a { 0 map[]}}]",
		`{"a":{"value":1,"time":1}}`:            "value and a timestamp",
		`{"a":{"value":1,"timestamp":1.5}}`:     "whole milliseconds",
		`{"a":{}}`:                              "value and a timestamp",
		`{"a":{"value":{}}}`:                    "no text, number, true or false",
		`{"a":{"value":null}}`:                  "is null",
		`[]`:                                    "no JSON such as",
		`null`:                                  "names no property",
		`{"a":1}{"b":2}`:                        "no JSON",
		``:                                      "no JSON",
		"{\"a\":\"\xff\"}":                      "UTF-8",
		`{"a":"` + strings.Repeat("x", Max) + `"}`: "is the limit",
	} {
		got, err := Values([]byte(in))
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%.40s: %v is no ErrInvalid", in, err)
			}
		}
		if text != want && (err == nil || !strings.Contains(text, want)) {
			t.Errorf("%.40s: %s, want %s", in, text, want)
		}
	}
}

func view(t testing.TB) device.View {
	t.Helper()
	model := &v1beta1.DeviceModel{Spec: v1beta1.DeviceModelSpec{Properties: []v1beta1.ModelProperty{
		{Name: "i", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite},
		{Name: "s", Type: v1beta1.TypeString, AccessMode: v1beta1.ReadWrite},
		{Name: "f", Type: v1beta1.TypeDouble, AccessMode: v1beta1.ReadWrite},
	}}}
	d := &v1beta1.Device{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "m"}}}
	def := twin.Define(d, model)
	tw := twin.New()
	for name, text := range map[string]string{"i": "5", "s": "5", "f": ".5"} {
		e, err := tw.SetDesired(def, name, twin.Value{Text: text}, 1)
		if err != nil {
			t.Fatal(err)
		}
		tw = tw.With(name, e)
	}
	return device.View{Definition: def, Twin: tw}
}

func TestDesiredValuesHaveTheirTypes(t *testing.T) {
	v := view(t)
	if got := string(Typed(v, Desired(v))); got != `{"f":".5","i":5,"s":"5"}` { // .5 is no JSON
		t.Error(got)
	}
	d, some := DeltaOf(v, Base{})
	if !some || len(d.Delta) != 3 || *d.Twin["i"].Expected.Value != "5" {
		t.Errorf("%+v", d)
	}
	if _, some := DeltaOf(device.View{}, Base{}); some || len(Desired(device.View{})) != 0 || Property(device.View{}, "i") != nil || len(Properties(device.View{})) != 0 {
		t.Error("a device that is gone wants something")
	}
}

func TestStateAndID(t *testing.T) {
	for in, want := range map[string]string{"online": "online", `"offline"`: "offline", " unknown\n": "unknown", "": "", "ONLINE": "", "\xff": ""} {
		if got, err := State([]byte(in)); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{`{"id":7}`: "7", `{"id":"x"}`: `"x"`, `{"id":{}}`: "", `{}`: "", `x`: "", `{"id":"` + strings.Repeat("x", 200) + `"}`: ""} {
		if got := ID([]byte(in)); string(got) != want {
			t.Errorf("%.40s: %s", in, got)
		}
	}
}

// FuzzPayloads: no decoder panics, and what is accepted can be answered in JSON.
func FuzzPayloads(f *testing.F) {
	for _, seed := range []string{
		`{"event_id":"1","timestamp":1,"twin":{"a":{"actual":{"value":"1","metadata":{"timestamp":2}},"expected":{"value":"3"}},"b":null}}`,
		`{"event_id":"1","state":"online"}`, `{"a":1,"b":{"value":true,"timestamp":5},"id":"x"}`, `online`, "\xff", `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(updates []device.Update, err error) {
			if err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is no ErrInvalid", err)
			}
			for _, u := range updates {
				if !json.Valid(Marshal(Answer{Error: u.Value.Text, Property: u.Property})) {
					t.Errorf("%q cannot be answered", u.Value.Text)
				}
			}
		}
		id, reported, desired, err := TwinUpdate(b)
		check(append(reported, desired...), err)
		if err == nil && len(reported)+len(desired) == 0 {
			t.Error("an update of nothing")
		}
		if !json.Valid(Marshal(Result{Base: Base{EventID: id}})) {
			t.Errorf("event id %q", id)
		}
		values, err := Values(b)
		check(values, err)
		_, _, err = StateUpdate(b)
		check(nil, err)
		_, err = EventID(b)
		check(nil, err)
		_, err = State(b)
		check(nil, err)
		v, err := Text(b)
		check([]device.Update{{Value: v}}, err)
		if raw := ID(b); raw != nil && !json.Valid(Marshal(Answer{ID: raw})) {
			t.Errorf("id %q", raw)
		}
	})
}
