package convert

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Run the tests with -update to write testdata anew, and read what has changed.
var update = flag.Bool("update", false, "write the expected files anew")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestManifestsBecomeOurs: each in.yaml becomes its out.yaml, with the warnings of
// warnings.txt. common/adm/install puts every out.yaml into a real cluster.
func TestManifestsBecomeOurs(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*/in.yaml")
	must(t, err)
	if len(inputs) < 4 {
		t.Fatalf("%d inputs: too few to be all", len(inputs))
	}
	for _, in := range inputs {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			text, err := os.ReadFile(in)
			must(t, err)
			objects, err := Read("in.yaml", text)
			must(t, err)
			result, err := Convert(objects, false)
			must(t, err)
			out, err := Write(result.Objects)
			must(t, err)
			same(t, filepath.Join(filepath.Dir(in), "out.yaml"), string(out))
			same(t, filepath.Join(filepath.Dir(in), "warnings.txt"), strings.Join(append(result.Warnings, ""), "\n"))
		})
	}
}

func same(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s is not what came:\n%s", file, got)
	}
}

// TestWhatCannotBecomeOursSaysTheRemedy: an error names the object, the field and
// what to do, and nothing is converted to what a cluster would refuse.
func TestWhatCannotBecomeOursSaysTheRemedy(t *testing.T) {
	device := func(spec string) string {
		return "apiVersion: devices.kubeedge.io/v1beta1\nkind: Device\nmetadata: {name: d, namespace: plant}\nspec: " + spec
	}
	model := func(property string) string {
		return "apiVersion: devices.kubeedge.io/v1beta1\nkind: DeviceModel\nmetadata: {name: d, namespace: plant}\nspec: {properties: [" + property + "]}"
	}
	many := strings.Repeat("{name: x, type: INT}, ", 257)
	for _, tt := range []struct{ name, in, say string }{
		{"nothing", "# nothing\n", "the input holds no object"},
		{"another kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n", "Pod p (f.yaml): Pod of v1 is nothing that is converted; take it out, or pass --skip-others"},
		{"an old version", "apiVersion: devices.kubeedge.io/v1alpha1\nkind: Device\nmetadata: {name: d}\n", "is neither v1beta1 nor v1alpha2; have a cluster with a newer KubeEdge give it out"},
		{"no name", "apiVersion: devices.kubeedge.io/v1beta1\nkind: Device\nmetadata: {}\n", "it has no metadata.name; give it one"},
		{"no model", device("{nodeName: x}"), "Device plant/d (f.yaml): it names no model; add spec.deviceModelRef.name"},
		{"no node", device("{deviceModelRef: {name: m}}"), "it names no node; add spec.nodeName"},
		{"a property's name", device("{deviceModelRef: {name: m}, nodeName: x, properties: [{name: a/b}]}"), `property "a/b" cannot have that name; rename it, in the model and in its devices`},
		{"a property twice", device("{deviceModelRef: {name: m}, nodeName: x, properties: [{name: a}, {name: a}]}"), "property a is there twice; take one out"},
		{"a number for a text", device("{deviceModelRef: {name: m}, nodeName: x, properties: [{name: a, desired: {value: 30}}]}"), "field spec.properties.desired.value is a number, and must be a string; put it in quotes"},
		{"configData", device("{deviceModelRef: {name: m}, nodeName: x, protocol: {configData: tcp}}"), "spec.protocol.configData is no object; write it as KEY: VALUE"},
		{"a long value", device("{deviceModelRef: {name: m}, nodeName: x, properties: [{name: a, desired: {value: " + strings.Repeat("é", 5000) + "}}]}"), "the desired value has 10000 bytes and its metadata 0; shorten them to 8192 and 1024"},
		{"a type", model("{name: a, type: ENUM}"), `property a: "ENUM" is no type; choose one of [INT FLOAT`},
		{"an access mode", model("{name: a, type: INT, accessMode: Write}"), `property a: "Write" is no accessMode; choose ReadWrite or ReadOnly`},
		{"bounds", model(`{name: a, type: INT, accessMode: ReadOnly, minimum: "9", maximum: "1"}`), "property a: minimum 9 is above maximum 1"},
		{"a long description", model("{name: a, type: INT, description: " + strings.Repeat("x", 1025) + "}"), "property a: description has 1025 characters; shorten it to 1024"},
		{"many properties", model(many), "it has 257 properties; make several models of it"},
		{"a type of v1alpha2", "apiVersion: devices.kubeedge.io/v1alpha2\nkind: DeviceModel\nmetadata: {name: d}\nspec: {properties: [{name: a}]}", "property a has 0 types"},
		{"two nodes", "apiVersion: devices.kubeedge.io/v1alpha2\nkind: Device\nmetadata: {name: d}\nspec: {deviceModelRef: {name: m}, nodeSelector: {nodeSelectorTerms: [{matchExpressions: [{key: '', operator: In, values: [a, b]}]}]}}", "it names no node; add spec.nodeName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects, err := Read("f.yaml", []byte(tt.in))
			must(t, err)
			if _, err = Convert(objects, false); err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("the error is %v, and should say %q", err, tt.say)
			}
		})
	}
}

func TestTextsThatAreNoManifestsAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, in, say string }{
		{"no YAML", "a: [", "f.yaml: document 1: "},
		{"a key twice", "kind: Device\nkind: Device\n", `"kind" already set`},
		{"a list", "- a\n", "document 1 is no object"},
		{"another file", "kind: Device\n---\nhub: x\n", "document 1: it has no kind or no apiVersion; is it a manifest?"},
		{"an item", "apiVersion: v1\nkind: List\nitems: [a]\n", "item 0 of the List is no object"},
	} {
		if _, err := Read("f.yaml", []byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: the error is %v, and should say %q", tt.name, err, tt.say)
		}
	}
}

func TestOthersArePassedOver(t *testing.T) {
	objects, err := Read("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n---\napiVersion: devices.kubeedge.io/v1beta1\nkind: DeviceModel\nmetadata: {name: m}\nspec: {}\n"))
	must(t, err)
	result, err := Convert(objects, true)
	must(t, err)
	if len(result.Objects) != 1 {
		t.Errorf("%d objects, want the model alone", len(result.Objects))
	}
}
