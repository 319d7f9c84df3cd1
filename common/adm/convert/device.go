package convert

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// model converts a DeviceModel of v1beta1.
func (c *conversion) model(meta metav1.ObjectMeta) {
	for _, field := range c.at.others("spec", "status") {
		c.warn("field %s has no place here and is left out", field)
	}
	var spec v1beta1.DeviceModelSpec
	if c.decode("spec", c.at.Fields["spec"], &spec) {
		c.addModel(meta, spec)
	}
}

// addModel checks a model and adds it.
func (c *conversion) addModel(meta metav1.ObjectMeta, spec v1beta1.DeviceModelSpec) {
	names, good := make(map[string]bool), c.short("spec.protocol", spec.Protocol, maxProtocol)
	for i := range spec.Properties {
		p := &spec.Properties[i]
		good = c.name(p.Name, names) && c.modelProperty(p) && good
	}
	if len(spec.Properties) > maxProperties {
		c.fail("it has %d properties; make several models of it, each of at most %d", len(spec.Properties), maxProperties)
		good = false
	}
	if good {
		c.add(&v1beta1.DeviceModel{TypeMeta: typeMeta("DeviceModel"), ObjectMeta: meta, Spec: spec})
	}
}

func (c *conversion) modelProperty(p *v1beta1.ModelProperty) bool {
	types := []v1beta1.PropertyType{
		v1beta1.TypeInt, v1beta1.TypeFloat, v1beta1.TypeDouble, v1beta1.TypeString, v1beta1.TypeBoolean, v1beta1.TypeBytes, v1beta1.TypeStream,
	}
	p.Type = v1beta1.PropertyType(strings.ToUpper(string(p.Type)))
	if !slices.Contains(types, p.Type) {
		c.fail("property %s: %q is no type; choose one of %v", p.Name, p.Type, types)
		return false
	}
	switch p.AccessMode {
	case v1beta1.ReadWrite, v1beta1.ReadOnly:
	case "":
		c.warn("property %s has no accessMode; it is made %s", p.Name, v1beta1.ReadOnly)
		p.AccessMode = v1beta1.ReadOnly
	default:
		c.fail("property %s: %q is no accessMode; choose %s or %s", p.Name, p.AccessMode, v1beta1.ReadWrite, v1beta1.ReadOnly)
		return false
	}
	number := slices.Contains(types[:3], p.Type)
	for _, bound := range []struct {
		name string
		text *string
	}{{"minimum", &p.Minimum}, {"maximum", &p.Maximum}} {
		if *bound.text != "" && (!number || !isBound(*bound.text)) {
			c.warn("property %s: the %s %q is left out: it bounds no value of type %s", p.Name, bound.name, *bound.text, p.Type)
			*bound.text = ""
		}
	}
	if p.Minimum != "" && p.Maximum != "" {
		low, errLow := strconv.ParseFloat(p.Minimum, 64)
		high, errHigh := strconv.ParseFloat(p.Maximum, 64)
		if errLow == nil && errHigh == nil && low > high {
			c.fail("property %s: minimum %s is above maximum %s, so that no value would do; exchange them", p.Name, p.Minimum, p.Maximum)
			return false
		}
	}
	return c.short("property "+p.Name+": description", p.Description, maxDescription) && c.short("property "+p.Name+": unit", p.Unit, maxUnit)
}

func isBound(s string) bool {
	return len(s) <= maxBound && regexp.MustCompile(`^[+-]?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]{1,2})?$`).MatchString(s)
}

// instance converts a Device of v1beta1.
func (c *conversion) instance(meta metav1.ObjectMeta) {
	for _, field := range c.at.others("spec", "status") {
		c.warn("field %s has no place here and is left out", field)
	}
	var spec v1beta1.DeviceSpec
	if !c.decode("spec", c.at.Fields["spec"], &spec) {
		return
	}
	for i := range spec.Properties {
		// KubeEdge tells the cloud of what says so, Holdfast of what does not say no.
		if p := &spec.Properties[i]; p.ReportToCloud == nil {
			p.ReportToCloud = new(bool)
		}
	}
	c.addDevice(meta, spec)
}

// addDevice checks a device and adds it.
func (c *conversion) addDevice(meta metav1.ObjectMeta, spec v1beta1.DeviceSpec) {
	good := c.short("spec.protocol.protocolName", spec.Protocol.ProtocolName, maxProtocol) && c.isObject("spec.protocol.configData", spec.Protocol.ConfigData)
	if spec.DeviceModelRef == nil || spec.DeviceModelRef.Name == "" {
		c.fail("it names no model; add spec.deviceModelRef.name")
		good = false
	}
	if spec.NodeName == "" && len(spec.NodeSelector) == 0 {
		c.fail("it names no node; add spec.nodeName, the edge node that it is connected to")
		good = false
	}
	names, noDesired := make(map[string]bool), []string(nil)
	for i := range spec.Properties {
		p := &spec.Properties[i]
		good = c.name(p.Name, names) && c.property(p) && good
		if p.Desired != nil && p.Desired.Value == "" && len(p.Desired.Metadata) == 0 {
			p.Desired, noDesired = nil, append(noDesired, p.Name)
		}
	}
	if len(noDesired) > 0 {
		c.warn("the empty desired value of %s, which is none to KubeEdge, is left out", strings.Join(noDesired, ", "))
	}
	if len(spec.Properties) > maxProperties {
		c.fail("it has %d properties; make several devices of it, each of at most %d", len(spec.Properties), maxProperties)
		good = false
	}
	if good {
		c.add(&v1beta1.Device{TypeMeta: typeMeta("Device"), ObjectMeta: meta, Spec: spec})
	}
}

func (c *conversion) property(p *v1beta1.DeviceProperty) bool {
	in := "property " + p.Name + ": "
	good := c.short(in+"visitors.protocolName", p.Visitors.ProtocolName, maxProtocol)
	good = c.isObject(in+"visitors.configData", p.Visitors.ConfigData) && c.isObject(in+"pushMethod", p.PushMethod) && good
	p.ReportCycle = c.cycle(in+"reportCycle", p.ReportCycle)
	p.CollectCycle = c.cycle(in+"collectCycle", p.CollectCycle)
	if d := p.Desired; d != nil {
		size := 0
		for k, v := range d.Metadata {
			size += len(k) + len(v)
		}
		if len(d.Value) > maxValue || size > maxMetadata {
			c.fail("%sthe desired value has %d bytes and its metadata %d; shorten them to %d and %d", in, len(d.Value), size, maxValue, maxMetadata)
			good = false
		}
	}
	return good
}

func (c *conversion) isObject(field string, o *v1beta1.RawObject) bool {
	if o != nil && !strings.HasPrefix(strings.TrimSpace(string(o.RawMessage)), "{") {
		c.fail("%s is no object; write it as KEY: VALUE", field)
		return false
	}
	return true
}

// cycle makes a cycle milliseconds. KubeEdge's are, but many manifests have
// nanoseconds, as its documentation had: no cycle is longer than a day.
func (c *conversion) cycle(field string, n int64) int64 {
	const nanoseconds = 1_000_000
	switch {
	case n < 0:
		c.warn("%s is %d; it is left out, so that the default holds", field, n)
		return 0
	case n <= maxCycle:
		return n
	case n <= maxCycle*nanoseconds:
		c.warn("%s is %d, more than a day of milliseconds: it is taken for nanoseconds and becomes %d", field, n, n/nanoseconds)
		return n / nanoseconds
	}
	c.warn("%s is %d, more than a day; it becomes a day, %d milliseconds", field, n, maxCycle)
	return maxCycle
}
