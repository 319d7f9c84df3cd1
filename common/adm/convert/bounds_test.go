package convert

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/common/adm/install"
)

// TestBoundsAreThoseOfTheDefinitions: what is let through here a cluster takes.
func TestBoundsAreThoseOfTheDefinitions(t *testing.T) {
	all, err := install.Objects(manifests.Files)
	must(t, err)
	schemas := map[string]any{}
	for _, o := range all {
		if versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions"); len(versions) == 1 {
			kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
			schemas[kind], _, _ = unstructured.NestedFieldNoCopy(versions[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "spec")
		}
	}
	for _, tt := range []struct {
		kind string
		path []string
		want float64
	}{
		{"DeviceModel", []string{"properties", "properties", "maxItems"}, maxProperties},
		{"DeviceModel", []string{"properties", "protocol", "maxLength"}, maxProtocol},
		{"DeviceModel", []string{"properties", "properties", "items", "properties", "description", "maxLength"}, maxDescription},
		{"DeviceModel", []string{"properties", "properties", "items", "properties", "unit", "maxLength"}, maxUnit},
		{"DeviceModel", []string{"properties", "properties", "items", "properties", "minimum", "maxLength"}, maxBound},
		{"DeviceModel", []string{"properties", "properties", "items", "properties", "maximum", "maxLength"}, maxBound},
		{"Device", []string{"properties", "properties", "maxItems"}, maxProperties},
		{"Device", []string{"properties", "protocol", "properties", "protocolName", "maxLength"}, maxProtocol},
		{"Device", []string{"properties", "properties", "items", "properties", "visitors", "properties", "protocolName", "maxLength"}, maxProtocol},
		{"Device", []string{"properties", "properties", "items", "properties", "desired", "properties", "value", "maxLength"}, maxValue},
		{"Device", []string{"properties", "properties", "items", "properties", "desired", "properties", "metadata", "additionalProperties", "maxLength"}, maxMetadata},
		{"Device", []string{"properties", "properties", "items", "properties", "reportCycle", "maximum"}, maxCycle},
		{"Device", []string{"properties", "properties", "items", "properties", "collectCycle", "maximum"}, maxCycle},
		{"Route", []string{"properties", "up", "properties", "topic", "maxLength"}, maxTopic},
		{"Route", []string{"properties", "down", "properties", "topic", "maxLength"}, maxTopic},
		{"Route", []string{"properties", "up", "properties", "http", "properties", "url", "maxLength"}, maxURL},
	} {
		schema, _ := schemas[tt.kind].(map[string]any)
		if got, _, err := unstructured.NestedFieldNoCopy(schema, tt.path...); err != nil || got != tt.want {
			t.Errorf("%s, %v: %v in the definition, %v here (%v)", tt.kind, tt.path, got, tt.want, err)
		}
	}
}
