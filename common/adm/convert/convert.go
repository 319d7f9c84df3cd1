package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	strict "sigs.k8s.io/json"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// KubeEdge's API groups.
const (
	devicesGroup = "devices.kubeedge.io"
	rulesGroup   = "rules.kubeedge.io"
)

// Bounds of the definitions in build/manifests; a test holds both together.
const (
	maxProperties  = 256
	maxValue       = 8192 // bytes
	maxMetadata    = 1024 // bytes
	maxDescription = 1024 // characters
	maxUnit        = 64
	maxBound       = 32
	maxProtocol    = 128
	maxTopic       = 1024
	maxURL         = 2048
	maxCycle       = 24 * 60 * 60 * 1000 // milliseconds
)

// Result is what became of a set of manifests.
type Result struct {
	// Objects are DeviceModels, Devices and Routes, in the order of the input.
	Objects []any
	// Warnings say what has no place in the objects, or should be looked at.
	Warnings []string
}

// Convert turns objects into Holdfast's. Those of other kinds are an error, or, with
// skipOthers, passed over. The error names everything that is wrong.
func Convert(objects []Object, skipOthers bool) (*Result, error) {
	c := &conversion{result: new(Result), endpoints: make(map[string]string)}
	for _, o := range objects {
		c.at = o
		if o.group() == rulesGroup && o.Kind == "RuleEndpoint" {
			c.endpoint()
		}
	}
	for _, o := range objects {
		c.at = o
		switch group := o.group(); {
		case group == devicesGroup && (o.Kind == "Device" || o.Kind == "DeviceModel"):
			c.device()
		case group == devicesGroup && o.Kind == "DeviceStatus":
			c.warn("left out: the nodes report every status anew")
		case group == rulesGroup && o.Kind == "Rule":
			c.rule()
		case group == rulesGroup && o.Kind == "RuleEndpoint":
		case !skipOthers:
			c.fail("%s of %s is nothing that is converted; take it out, or pass --skip-others", o.Kind, o.APIVersion)
		}
	}
	if len(objects) == 0 {
		return nil, errors.New("the input holds no object")
	}
	return c.result, errors.Join(c.errs...)
}

// conversion is one run; at is the object that it is at.
type conversion struct {
	at        Object
	result    *Result
	errs      []error
	endpoints map[string]string // types of rule endpoints, by namespace and name
}

func (c *conversion) warn(format string, args ...any) {
	c.result.Warnings = append(c.result.Warnings, c.at.String()+": "+fmt.Sprintf(format, args...))
}

func (c *conversion) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %w", c.at, fmt.Errorf(format, args...)))
}

// device converts a Device or a DeviceModel of any version.
func (c *conversion) device() {
	convert := map[string]func(metav1.ObjectMeta){
		"v1beta1/DeviceModel":  c.model,
		"v1beta1/Device":       c.instance,
		"v1alpha2/DeviceModel": c.alphaModel,
		"v1alpha2/Device":      c.alphaInstance,
	}[c.at.version()+"/"+c.at.Kind]
	if convert == nil {
		c.fail("%s is neither v1beta1 nor v1alpha2; have a cluster with a newer KubeEdge give it out, or write it anew after `holdfast convert devices --help`", c.at.APIVersion)
		return
	}
	if meta, ok := c.meta(); ok {
		convert(meta)
	}
}

func (c *conversion) add(o any) { c.result.Objects = append(c.result.Objects, o) }

// typeMeta is that of our kinds.
func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: v1beta1.GroupVersion().String(), Kind: kind}
}

// meta is the object's metadata: what the user wrote, without what the apiserver and
// kubectl added.
func (c *conversion) meta() (metav1.ObjectMeta, bool) {
	from := maps.Clone(c.at.Metadata)
	for _, ofServer := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"} {
		delete(from, ofServer)
	}
	var meta struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	}
	if !c.decode("metadata", from, &meta) {
		return metav1.ObjectMeta{}, false
	}
	delete(meta.Annotations, "kubectl.kubernetes.io/last-applied-configuration")
	if meta.Name == "" {
		c.fail("it has no metadata.name; give it one")
		return metav1.ObjectMeta{}, false
	}
	return metav1.ObjectMeta{Name: meta.Name, Namespace: meta.Namespace, Labels: meta.Labels, Annotations: meta.Annotations}, true
}

// decode reads a part of the object. Fields that the target does not have are warned
// of; one of a wrong type is an error.
func (c *conversion) decode(part string, from, into any) bool {
	text, err := json.Marshal(map[string]any{part: from})
	if err != nil {
		c.fail("%s: %w", part, err)
		return false
	}
	// Decoded below its name, so that messages show the whole path.
	whole := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &whole); err != nil {
		c.fail("%s: %w", part, err)
		return false
	}
	unknown, err := strict.UnmarshalStrict(whole[part], into)
	var mistyped *json.UnmarshalTypeError
	if errors.As(err, &mistyped) {
		remedy := ""
		if mistyped.Type.Kind() == reflect.String {
			remedy = "; put it in quotes"
		}
		c.fail("field %s.%s is a %s, and must be a %s%s", part, mistyped.Field, mistyped.Value, mistyped.Type.Kind(), remedy)
		return false
	}
	if err != nil {
		c.fail("%s: %w", part, err)
		return false
	}
	for _, u := range unknown {
		field := strings.TrimSuffix(strings.TrimPrefix(u.Error(), `unknown field "`), `"`)
		c.warn("field %s.%s has no place here and is left out", part, field)
	}
	return true
}

// name says whether a property may have a name.
func (c *conversion) name(name string, among map[string]bool) bool {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$`).MatchString(name) {
		c.fail("property %q cannot have that name; rename it, in the model and in its devices: a letter or digit first, then also _ . : and -, at most 128 in all", name)
		return false
	}
	if among[name] {
		c.fail("property %s is there twice; take one out", name)
		return false
	}
	among[name] = true
	return true
}

// short says whether a text is within a bound.
func (c *conversion) short(field, text string, most int) bool {
	if n := utf8.RuneCountInString(text); n > most {
		c.fail("%s has %d characters; shorten it to %d", field, n, most)
		return false
	}
	return true
}

// Object is one object of the input.
type Object struct {
	File       string // where it is from, for messages
	APIVersion string
	Kind       string
	Metadata   map[string]any
	Fields     map[string]any // the others
}

func (o Object) group() string {
	group, _, _ := strings.Cut(o.APIVersion, "/")
	return group
}

func (o Object) version() string {
	_, version, _ := strings.Cut(o.APIVersion, "/")
	return version
}

// String names the object and its file.
func (o Object) String() string {
	name, _ := o.Metadata["name"].(string)
	if namespace, _ := o.Metadata["namespace"].(string); namespace != "" {
		name = namespace + "/" + name
	}
	return fmt.Sprintf("%s %s (%s)", o.Kind, name, o.File)
}

// others are the fields of the object beside those that are known.
func (o Object) others(known ...string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(o.Fields)), func(k string) bool { return slices.Contains(known, k) })
}
