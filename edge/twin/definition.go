package twin

import (
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// Key names a device at its node.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Definition is the cloud's word about a device: the Device and its model in one.
// It is never changed once made.
type Definition struct {
	Key
	UID        string
	Generation int64
	// Problem says why the device cannot be used yet; empty when it can.
	Problem string
	// Device and Model are what it was made of; Model is nil while it is missing.
	Device *v1beta1.Device
	Model  *v1beta1.DeviceModel
	// Properties are those of the model, by name.
	Properties map[string]*Property
}

// Property is one property of a device.
type Property struct {
	v1beta1.ModelProperty
	// Desired is the cloud's desired value; nil: it has none.
	Desired                   *Value
	ReportToCloud             bool
	ReportCycle, CollectCycle time.Duration // 0: the default
	History                   int           // how many values are kept; 0: the latest alone
}

// Value is one value of a property, as text.
type Value struct {
	Text string `json:"v"`
	// At is in milliseconds since 1970, by the clock of whoever set it; 0: not known.
	At       int64             `json:"t,omitempty"`
	Metadata map[string]string `json:"m,omitempty"`
}

// Define makes a definition. model is nil when the node does not hold it (yet).
func Define(d *v1beta1.Device, model *v1beta1.DeviceModel) *Definition {
	def := &Definition{
		Key: Key{d.Namespace, d.Name}, UID: string(d.UID), Generation: d.Generation, Device: d, Model: model,
		Properties: make(map[string]*Property),
	}
	switch {
	case d.Spec.DeviceModelRef == nil:
		def.Problem = "the device names no model (spec.deviceModelRef)"
	case model == nil:
		def.Problem = fmt.Sprintf("there is no device model %s/%s", d.Namespace, d.Spec.DeviceModelRef.Name)
	}
	if def.Problem != "" {
		return def
	}
	for _, p := range model.Spec.Properties {
		def.Properties[p.Name] = &Property{ModelProperty: p, ReportToCloud: true}
	}
	for _, c := range d.Spec.Properties {
		p := def.Properties[c.Name]
		if p == nil {
			def.Problem = fmt.Sprintf("property %q is not in device model %s/%s", c.Name, d.Namespace, model.Name)
			continue
		}
		p.ReportCycle = time.Duration(max(0, c.ReportCycle)) * time.Millisecond
		p.CollectCycle = time.Duration(max(0, c.CollectCycle)) * time.Millisecond
		p.ReportToCloud = c.ReportToCloud == nil || *c.ReportToCloud
		if c.History != nil {
			p.History = int(min(max(0, c.History.Limit), v1beta1.MaxHistory))
		}
		if c.Desired != nil {
			p.Desired = &Value{Text: c.Desired.Value, Metadata: c.Desired.Metadata}
		}
	}
	return def
}
