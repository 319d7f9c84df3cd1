package convert

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// alphaType is a property's type in v1alpha2, where the type is the key.
type alphaType struct {
	AccessMode   v1beta1.PropertyAccessMode `json:"accessMode"`
	DefaultValue json.RawMessage            `json:"defaultValue"`
	Minimum      json.RawMessage            `json:"minimum"`
	Maximum      json.RawMessage            `json:"maximum"`
	Unit         string                     `json:"unit"`
}

// alphaModel converts a DeviceModel of v1alpha2.
func (c *conversion) alphaModel(meta metav1.ObjectMeta) {
	for _, field := range c.at.others("spec", "status") {
		c.warn("field %s has no place here and is left out", field)
	}
	var from struct {
		Protocol   string `json:"protocol"`
		Properties []struct {
			Name        string               `json:"name"`
			Description string               `json:"description"`
			Type        map[string]alphaType `json:"type"`
		} `json:"properties"`
	}
	if !c.decode("spec", c.at.Fields["spec"], &from) {
		return
	}
	spec := v1beta1.DeviceModelSpec{Protocol: from.Protocol}
	for _, p := range from.Properties {
		if len(p.Type) != 1 {
			c.fail("property %s has %d types (spec.properties[].type); it needs one, such as int", p.Name, len(p.Type))
			return
		}
		for name, t := range p.Type {
			if len(t.DefaultValue) > 0 {
				c.warn("property %s: defaultValue %s is left out; where a device shall have it, add a desired value to that Device", p.Name, t.DefaultValue)
			}
			spec.Properties = append(spec.Properties, v1beta1.ModelProperty{
				Name: p.Name, Description: p.Description, Type: v1beta1.PropertyType(name), AccessMode: t.AccessMode,
				Minimum: bound(t.Minimum), Maximum: bound(t.Maximum), Unit: t.Unit,
			})
		}
	}
	c.addModel(meta, spec)
}

func bound(raw json.RawMessage) string { return strings.Trim(string(raw), `"`) }

// alphaVisitor says how a property is reached in v1alpha2.
type alphaVisitor struct {
	PropertyName     string                 `json:"propertyName"`
	ReportCycle      int64                  `json:"reportCycle"`
	CollectCycle     int64                  `json:"collectCycle"`
	CustomizedValues map[string]any         `json:"customizedValues"`
	OPCUA            map[string]any         `json:"opcua"`
	Modbus           map[string]any         `json:"modbus"`
	Bluetooth        map[string]any         `json:"bluetooth"`
	Customized       *v1beta1.VisitorConfig `json:"customizedProtocol"`
}

// alphaTwin is a property's state in v1alpha2, where what is desired is in the status.
type alphaTwin struct {
	PropertyName string                `json:"propertyName"`
	Desired      *v1beta1.TwinProperty `json:"desired"`
	Reported     *v1beta1.TwinProperty `json:"reported"`
}

// alphaInstance converts a Device of v1alpha2.
func (c *conversion) alphaInstance(meta metav1.ObjectMeta) {
	for _, field := range c.at.others("spec", "status") {
		c.warn("field %s has no place here and is left out", field)
	}
	var from struct {
		DeviceModelRef *v1beta1.LocalObjectReference `json:"deviceModelRef"`
		NodeName       string                        `json:"nodeName"` // for those who add it
		NodeSelector   *corev1.NodeSelector          `json:"nodeSelector"`
		Protocol       struct {
			OPCUA      map[string]any          `json:"opcua"`
			Modbus     map[string]any          `json:"modbus"`
			Bluetooth  map[string]any          `json:"bluetooth"`
			Common     map[string]any          `json:"common"`
			Customized *v1beta1.ProtocolConfig `json:"customizedProtocol"`
		} `json:"protocol"`
		Visitors []alphaVisitor `json:"propertyVisitors"`
		Data     *struct {
			Properties []struct {
				PropertyName string            `json:"propertyName"`
				Metadata     map[string]string `json:"metadata"`
			} `json:"dataProperties"`
			Topic string `json:"dataTopic"`
		} `json:"data"`
	}
	var status struct {
		Twins []alphaTwin `json:"twins"`
	}
	if !c.decode("spec", c.at.Fields["spec"], &from) || !c.decode("status", c.at.Fields["status"], &status) {
		return
	}
	spec := v1beta1.DeviceSpec{DeviceModelRef: from.DeviceModelRef, NodeName: from.NodeName}
	if spec.NodeName == "" {
		spec.NodeName = c.onlyNode(from.NodeSelector)
	}
	config := map[string]any{}
	spec.Protocol.ProtocolName = c.protocol(config, map[string]map[string]any{"opcua": from.Protocol.OPCUA, "modbus": from.Protocol.Modbus, "bluetooth": from.Protocol.Bluetooth})
	if p := from.Protocol.Customized; p != nil {
		spec.Protocol.ProtocolName = p.ProtocolName
		c.include(config, p.ConfigData)
	}
	c.merge(config, from.Protocol.Common)
	spec.Protocol.ConfigData = c.raw(config)
	spec.Properties = c.alphaProperties(spec.Protocol.ProtocolName, from.Visitors, status.Twins)
	if from.Data != nil {
		c.warn("spec.data is left out: a program that publishes readings at the node can go on doing so, and a Route carries them to the cloud")
	}
	if len(config) > 0 || len(from.Visitors) > 0 {
		c.warn("spec.protocol and the visitors of v1alpha2 are put into configData; compare that with what your mapper reads")
	}
	c.addDevice(meta, spec)
}

// protocol puts what is said of the one protocol into config, and names it.
func (c *conversion) protocol(config map[string]any, of map[string]map[string]any) string {
	name := ""
	for _, n := range slices.Sorted(maps.Keys(of)) {
		if of[n] == nil {
			continue
		}
		if name != "" {
			c.fail("it has two protocols, %s and %s; take one out", name, n)
		}
		name = n
		c.merge(config, of[n])
	}
	return name
}

// merge adds fields; what is there already stays, which is said.
func (c *conversion) merge(config, more map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(more)) {
		if _, taken := config[key]; taken {
			c.warn("field %s is in two places of the protocol; that of common is left out", key)
			continue
		}
		config[key] = more[key]
	}
}

func (c *conversion) include(config map[string]any, o *v1beta1.RawObject) {
	if o == nil {
		return
	}
	more := map[string]any{}
	if err := unmarshal(o.RawMessage, &more); err != nil {
		c.fail("configData is no object: %w", err)
		return
	}
	c.merge(config, more)
}

func (c *conversion) raw(config map[string]any) *v1beta1.RawObject {
	if len(config) == 0 {
		return nil
	}
	text, err := json.Marshal(config)
	if err != nil {
		c.fail("configData: %w", err)
		return nil
	}
	return &v1beta1.RawObject{RawMessage: text}
}

// onlyNode is the node that a selector of v1alpha2 names: KubeEdge takes the one value
// of the one expression for the name of a node, whatever its key.
func (c *conversion) onlyNode(s *corev1.NodeSelector) string {
	if s == nil {
		return ""
	}
	if len(s.NodeSelectorTerms) == 1 && len(s.NodeSelectorTerms[0].MatchExpressions) == 1 && len(s.NodeSelectorTerms[0].MatchFields) == 0 {
		if e := s.NodeSelectorTerms[0].MatchExpressions[0]; e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
			return e.Values[0]
		}
	}
	c.warn("spec.nodeSelector names more than one node and is left out")
	return ""
}

// alphaProperties joins the visitors with the twins: KubeEdge tells the cloud of the
// properties that have a twin.
func (c *conversion) alphaProperties(protocol string, visitors []alphaVisitor, twins []alphaTwin) []v1beta1.DeviceProperty {
	var all []v1beta1.DeviceProperty
	at := func(name string) *v1beta1.DeviceProperty {
		i := slices.IndexFunc(all, func(p v1beta1.DeviceProperty) bool { return p.Name == name })
		if i < 0 {
			i = len(all)
			all = append(all, v1beta1.DeviceProperty{Name: name, ReportToCloud: new(bool)})
		}
		return &all[i]
	}
	for _, v := range visitors {
		p := at(v.PropertyName)
		p.ReportCycle, p.CollectCycle = v.ReportCycle, v.CollectCycle
		config := map[string]any{}
		p.Visitors.ProtocolName = c.protocol(config, map[string]map[string]any{"opcua": v.OPCUA, "modbus": v.Modbus, "bluetooth": v.Bluetooth})
		if v.Customized != nil {
			p.Visitors.ProtocolName = v.Customized.ProtocolName
			c.include(config, v.Customized.ConfigData)
		}
		if p.Visitors.ProtocolName == "" {
			p.Visitors.ProtocolName = protocol
		}
		c.merge(config, v.CustomizedValues)
		p.Visitors.ConfigData = c.raw(config)
	}
	for _, t := range twins {
		p := at(t.PropertyName)
		*p.ReportToCloud = true
		p.Desired = t.Desired
	}
	return all
}
