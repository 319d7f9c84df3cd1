package dmi

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// stateCycle is how often a mapper is asked to report the state of a device.
const stateCycle = 10_000 // milliseconds

// deviceMessage is a device as mappers want it: its properties with the desired
// values that are in force, which may have been set at the node. Mappers look into
// every part without a check, so none is nil. An error names configuration that
// cannot be sent; the rest of the message is good.
func deviceMessage(v device.View) (*dmi.Device, error) {
	spec := &v.Device.Spec
	var firstErr error
	pack := func(what string, raw *v1beta1.RawObject) *dmi.CustomizedValue {
		var object []byte
		if raw != nil {
			object = raw.RawMessage
		}
		packed, err := dmi.Pack(object)
		if err != nil && firstErr == nil {
			firstErr = fmt.Errorf("device %s: %s: %w", v.Key, what, err)
		}
		return packed
	}
	d := &dmi.Device{
		Name: v.Name, Namespace: v.Namespace,
		Spec: &dmi.DeviceSpec{Protocol: &dmi.ProtocolConfig{
			ProtocolName: spec.Protocol.ProtocolName,
			ConfigData:   pack("spec.protocol.configData", spec.Protocol.ConfigData),
		}},
		Status: &dmi.DeviceStatus{ReportToCloud: true, ReportCycle: stateCycle},
	}
	if spec.DeviceModelRef != nil {
		d.Spec.DeviceModelReference = spec.DeviceModelRef.Name
	}
	for i := range spec.Properties {
		p := &spec.Properties[i]
		if v.Properties[p.Name] == nil {
			continue // not of the model; v.Problem tells of it
		}
		desired := desiredMessage(v.Twin, p.Name)
		method, err := pushMethod(p.PushMethod)
		if err != nil && firstErr == nil {
			firstErr = fmt.Errorf("device %s: pushMethod of property %s: %w", v.Key, p.Name, err)
		}
		protocol := p.Visitors.ProtocolName
		if protocol == "" {
			protocol = spec.Protocol.ProtocolName
		}
		d.Spec.Properties = append(d.Spec.Properties, &dmi.DeviceProperty{
			Name: p.Name, Desired: desired,
			Visitors:    &dmi.VisitorConfig{ProtocolName: protocol, ConfigData: pack("visitors of property "+p.Name, p.Visitors.ConfigData)},
			ReportCycle: p.ReportCycle, CollectCycle: p.CollectCycle,
			ReportToCloud: p.ReportToCloud == nil || *p.ReportToCloud,
			PushMethod:    method,
		})
		reported := &dmi.TwinProperty{}
		if e := v.Twin.Properties[p.Name]; e != nil && e.Reported != nil {
			reported = valueMessage(e.Reported)
		}
		d.Status.Twins = append(d.Status.Twins, &dmi.Twin{PropertyName: p.Name, ObservedDesired: desired, Reported: reported})
	}
	return d, firstErr
}

func desiredMessage(t *twin.Twin, property string) *dmi.TwinProperty {
	if want, _ := t.Properties[property].Desired(); want != nil {
		return valueMessage(want)
	}
	return &dmi.TwinProperty{}
}

func valueMessage(v *twin.Value) *dmi.TwinProperty {
	p := &dmi.TwinProperty{Value: v.Text, Metadata: maps.Clone(v.Metadata)}
	if v.At > 0 {
		if p.Metadata == nil {
			p.Metadata = map[string]string{}
		}
		p.Metadata[v1beta1.MetadataTimestamp] = strconv.FormatInt(v.At, 10)
	}
	return p
}

// value is the reverse of valueMessage. A time that is none counts as not given.
func value(p *dmi.TwinProperty) twin.Value {
	v := twin.Value{Text: p.GetValue()}
	for key, m := range p.GetMetadata() {
		if key == v1beta1.MetadataTimestamp {
			if at, err := strconv.ParseInt(m, 10, 64); err == nil && at > 0 {
				v.At = at
			}
			continue
		}
		if v.Metadata == nil {
			v.Metadata = make(map[string]string, len(p.Metadata))
		}
		v.Metadata[key] = m
	}
	return v
}

// pushMethod reads what a Device says of it; nil when it says nothing. Names are
// those of KubeEdge's Device, which differ from those of the messages in their case
// alone, and so does encoding/json read them.
func pushMethod(raw *v1beta1.RawObject) (*dmi.PushMethod, error) {
	if raw == nil || len(raw.RawMessage) == 0 {
		return nil, nil
	}
	var fields struct {
		HTTP             *dmi.PushMethodHTTP `json:"http"`
		MQTT             *dmi.PushMethodMQTT `json:"mqtt"`
		OTEL             *dmi.PushMethodOTEL `json:"otel"`
		DBMethod         *dmi.DBMethod       `json:"dbMethod"`
		AnomalyDetection json.RawMessage     `json:"anomalyDetection"`
	}
	if err := json.Unmarshal(raw.RawMessage, &fields); err != nil {
		return nil, err
	}
	method := &dmi.PushMethod{Http: fields.HTTP, Mqtt: fields.MQTT, Otel: fields.OTEL, DbMethod: fields.DBMethod}
	if len(fields.AnomalyDetection) > 0 {
		packed, err := dmi.Pack(fields.AnomalyDetection)
		if err != nil {
			return method, fmt.Errorf("anomalyDetection: %w", err)
		}
		method.AnomalyDetection = &dmi.AnomalyDetection{Data: map[string]*anypb.Any(packed.Data)}
	}
	return method, nil
}

func modelMessage(m *v1beta1.DeviceModel) *dmi.DeviceModel {
	out := &dmi.DeviceModel{Name: m.Name, Namespace: m.Namespace, Spec: &dmi.DeviceModelSpec{}}
	for _, p := range m.Spec.Properties {
		out.Spec.Properties = append(out.Spec.Properties, &dmi.ModelProperty{
			Name: p.Name, Description: p.Description, Type: string(p.Type), AccessMode: string(p.AccessMode),
			Minimum: p.Minimum, Maximum: p.Maximum, Unit: p.Unit,
		})
	}
	return out
}

// digest tells two messages apart.
type digest [16]byte

func digestOf(messages ...proto.Message) (d digest) {
	h := sha256.New()
	for _, m := range messages {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			continue // text that is not UTF-8: the call will say so
		}
		h.Write(b)
	}
	return digest(h.Sum(nil)[:len(d)])
}

// state is what a mapper's word for a device's connection means.
func state(word string) (s v1beta1.DeviceState, known bool) {
	switch word {
	case "online", "ok", "OK", "Online":
		return v1beta1.StateOnline, true
	case "offline", "disconnected", "Offline":
		return v1beta1.StateOffline, true
	case "unknown", "unhealthy", "Unknown":
		return v1beta1.StateUnknown, true
	}
	return v1beta1.StateUnknown, false
}

func sortedKeys[V any](m map[twin.Key]V) []twin.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b twin.Key) int {
		switch {
		case a == b:
			return 0
		case a.Namespace < b.Namespace || a.Namespace == b.Namespace && a.Name < b.Name:
			return -1
		}
		return 1
	})
}
