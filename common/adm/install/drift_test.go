package install_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// schemas are those of the definitions, by kind.
func schemas(t *testing.T) map[string]map[string]any {
	t.Helper()
	objects, err := install.Objects(manifests.Files)
	must(t, err)
	all := make(map[string]map[string]any)
	for _, o := range objects {
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
		versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
		if len(versions) != 1 {
			t.Fatalf("the definition of %s has %d versions", kind, len(versions))
		}
		schema, found, err := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema")
		if err != nil || !found {
			t.Fatalf("the definition of %s has no schema: %v", kind, err)
		}
		all[kind] = schema
	}
	return all
}

// TestDefinitionsAreThoseOfTheTypes: every field of a Go type is in the schema, with
// its type, and nothing else is.
func TestDefinitionsAreThoseOfTheTypes(t *testing.T) {
	all := schemas(t)
	types := map[string]reflect.Type{
		"DeviceModel": reflect.TypeFor[v1beta1.DeviceModel](),
		"Device":      reflect.TypeFor[v1beta1.Device](),
		"Route":       reflect.TypeFor[v1beta1.Route](),
	}
	if have, want := slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(types)); !slices.Equal(have, want) {
		t.Fatalf("the definitions are of %v, the types %v", have, want)
	}
	for kind, goType := range types {
		for _, problem := range differ(kind, goType, all[kind]) {
			t.Error(problem)
		}
	}
}

// TestDriftIsSeen: the comparison itself finds what differs.
func TestDriftIsSeen(t *testing.T) {
	type item struct {
		Kept string `json:"kept"`
		New  int32  `json:"new,omitempty"`
	}
	text := map[string]any{"type": "string", "description": "x"}
	schema := map[string]any{"type": "array", "description": "x", "items": map[string]any{
		"type": "object", "required": []any{"gone"}, "properties": map[string]any{"kept": text, "old": text},
	}}
	got := strings.Join(differ("x", reflect.TypeFor[[]item](), schema), "\n")
	for _, want := range []string{"x[].new: not in the schema", "x[].old: not in the Go type", "x[].kept: the Go type always has it, the schema does not require it", "x[].gone: required, and not in the Go type"} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
}

// differ walks a Go type and a schema together and says where they part.
func differ(path string, goType reflect.Type, schema map[string]any) []string {
	if goType.Kind() == reflect.Pointer {
		goType = goType.Elem()
	}
	var problems []string
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(path+": "+format, args...)) }
	want := map[string]any{}
	switch {
	case goType == reflect.TypeFor[metav1.ObjectMeta]():
		want["type"] = "object"
	case goType == reflect.TypeFor[metav1.Time]():
		want["type"], want["format"] = "string", "date-time"
	case goType == reflect.TypeFor[v1beta1.RawObject]():
		want["type"], want["x-kubernetes-preserve-unknown-fields"] = "object", true
	case goType.Kind() == reflect.String:
		want["type"] = "string"
	case goType.Kind() == reflect.Bool:
		want["type"] = "boolean"
	case goType.Kind() == reflect.Int64 || goType.Kind() == reflect.Int32:
		want["type"], want["format"] = "integer", goType.Kind().String()
	case goType.Kind() == reflect.Map:
		want["type"] = "object"
		value, _ := schema["additionalProperties"].(map[string]any)
		problems = append(problems, undescribed(differ(path+"{}", goType.Elem(), value))...)
	case goType.Kind() == reflect.Slice:
		want["type"] = "array"
		items, _ := schema["items"].(map[string]any)
		problems = append(problems, undescribed(differ(path+"[]", goType.Elem(), items))...)
	case goType.Kind() == reflect.Struct:
		want["type"] = "object"
		problems = append(problems, fieldsDiffer(path, goType, schema)...)
	default:
		complain("a %s has no place in a schema", goType)
	}
	for key, value := range want {
		if schema[key] != value {
			complain("%s is %v in the schema, and should be %v", key, schema[key], value)
		}
	}
	if schema["description"] == nil && goType != reflect.TypeFor[metav1.ObjectMeta]() {
		complain("%s", noDescription)
	}
	return problems
}

const noDescription = "has no description"

// undescribed takes out that an item itself has no description: its list has one.
func undescribed(problems []string) []string {
	return slices.DeleteFunc(problems, func(p string) bool {
		where, what, _ := strings.Cut(p, ": ")
		return what == noDescription && (strings.HasSuffix(where, "[]") || strings.HasSuffix(where, "{}"))
	})
}

func fieldsDiffer(path string, goType reflect.Type, schema map[string]any) (problems []string) {
	properties, _ := schema["properties"].(map[string]any)
	fields := make(map[string]bool) // and whether JSON always has it
	for i := range goType.NumField() {
		field := goType.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Type == reflect.TypeFor[metav1.TypeMeta]() {
			fields["apiVersion"], fields["kind"] = false, false
			continue
		}
		fields[name] = options == ""
		property, found := properties[name].(map[string]any)
		if !found {
			problems = append(problems, fmt.Sprintf("%s.%s: not in the schema", path, name))
			continue
		}
		problems = append(problems, differ(path+"."+name, field.Type, property)...)
	}
	for name := range properties {
		if _, found := fields[name]; !found {
			problems = append(problems, fmt.Sprintf("%s.%s: not in the Go type", path, name))
		}
	}
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, found := fields[name.(string)]; !found {
			problems = append(problems, fmt.Sprintf("%s.%s: required, and not in the Go type", path, name))
		}
	}
	for name, always := range fields {
		if always && !slices.Contains(required, any(name)) {
			problems = append(problems, fmt.Sprintf("%s.%s: the Go type always has it, the schema does not require it", path, name))
		}
	}
	return problems
}

// TestDefinitionsHaveTheConstantsOfTheTypes: enums and bounds are those in Go.
func TestDefinitionsHaveTheConstantsOfTheTypes(t *testing.T) {
	all := schemas(t)
	for _, tt := range []struct {
		kind, path, key string
		want            any
	}{
		{"DeviceModel", "spec.properties.type", "enum", []any{
			string(v1beta1.TypeInt), string(v1beta1.TypeFloat), string(v1beta1.TypeDouble), string(v1beta1.TypeString),
			string(v1beta1.TypeBoolean), string(v1beta1.TypeBytes), string(v1beta1.TypeStream),
		}},
		{"DeviceModel", "spec.properties.accessMode", "enum", []any{string(v1beta1.ReadWrite), string(v1beta1.ReadOnly)}},
		{"Device", "spec.properties.history.limit", "maximum", float64(v1beta1.MaxHistory)},
		{"Device", "status.twins.history", "maxItems", float64(v1beta1.MaxHistory)},
		{"Device", "status.twins.desiredBy", "enum", []any{v1beta1.ByCloud, v1beta1.ByEdge}},
		{"Device", "status.state", "enum", []any{string(v1beta1.StateOnline), string(v1beta1.StateOffline), string(v1beta1.StateUnknown)}},
		{"Route", "spec.up.buffer.messages", "description", fmt.Sprintf("How many messages; 0 means %d.", v1beta1.DefaultRouteMessages)},
		{"Route", "spec.up.buffer.kib", "description", fmt.Sprintf("How much, in KiB; 0 means %d.", v1beta1.DefaultRouteKiB)},
	} {
		schema := all[tt.kind]
		for name := range strings.SplitSeq(tt.path, ".") {
			if items, ok := schema["items"].(map[string]any); ok {
				schema = items
			}
			properties, _ := schema["properties"].(map[string]any)
			schema, _ = properties[name].(map[string]any)
		}
		if got := schema[tt.key]; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s, %s: %s is %v in the definition, and %v in Go", tt.kind, tt.path, tt.key, got, tt.want)
		}
	}
}
