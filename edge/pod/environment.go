package pod

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-edge/holdfast/edge/store"
)

// configError says that a container cannot be made from what the pod names: CreateContainerConfigError.
type configError struct{ text string }

func (e *configError) Error() string { return e.text }

func configErrorf(format string, args ...any) error {
	return &configError{text: fmt.Sprintf(format, args...)}
}

// variable is one entry of a container's environment.
type variable struct{ name, value string }

// placement is what the downward API tells of where the pod runs.
type placement struct {
	nodeName string
	hostIPs  []string
	podIPs   []string
	capacity corev1.ResourceList // what the node can give: for limits that are not set
}

// environment is a container's, in the order and with the precedence of the kubelet: envFrom, then env,
// a later entry of a name wins, and $(NAME) refers to what came before.
func environment(ctx context.Context, objects Objects, p *corev1.Pod, c *corev1.Container, at placement) ([]variable, error) {
	e := &env{values: map[string]string{}}
	for i := range c.EnvFrom {
		if err := e.from(ctx, objects, p, &c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		v := &c.Env[i]
		value, found, err := e.value(ctx, objects, p, c, v, at)
		if err != nil {
			return nil, err
		}
		if found {
			e.set(v.Name, value)
		}
	}
	list := make([]variable, 0, len(e.order))
	for _, name := range e.order {
		list = append(list, variable{name, e.values[name]})
	}
	return list, nil
}

type env struct {
	order  []string
	values map[string]string
}

func (e *env) set(name, value string) {
	if _, known := e.values[name]; !known {
		e.order = append(e.order, name)
	}
	e.values[name] = value
}

func (e *env) lookup(name string) (string, bool) {
	v, ok := e.values[name]
	return v, ok
}

// from takes over all keys of a ConfigMap or Secret.
func (e *env) from(ctx context.Context, objects Objects, p *corev1.Pod, s *corev1.EnvFromSource) error {
	data := map[string]string{}
	switch {
	case s.ConfigMapRef != nil:
		cm, err := objects.ConfigMap(ctx, p.Namespace, s.ConfigMapRef.Name)
		if missing(err) {
			if optional(s.ConfigMapRef.Optional) {
				return nil
			}
			return configErrorf("configmap %q not found", s.ConfigMapRef.Name)
		}
		if err != nil {
			return err
		}
		data = cm.Data
	case s.SecretRef != nil:
		secret, err := objects.Secret(ctx, p.Namespace, s.SecretRef.Name)
		if missing(err) {
			if optional(s.SecretRef.Optional) {
				return nil
			}
			return configErrorf("secret %q not found", s.SecretRef.Name)
		}
		if err != nil {
			return err
		}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	keys := make([]string, 0, len(data))
	for k := range data {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if name := s.Prefix + k; name != "" && !strings.ContainsAny(name, "=\x00") {
			e.set(name, data[k])
		}
	}
	return nil
}

func optional(b *bool) bool { return b != nil && *b }

func missing(err error) bool { return errors.Is(err, store.ErrNotFound) }

func (e *env) value(ctx context.Context, objects Objects, p *corev1.Pod, c *corev1.Container, v *corev1.EnvVar, at placement) (string, bool, error) {
	from := v.ValueFrom
	if from == nil || v.Value != "" {
		return expand(v.Value, e.lookup), true, nil
	}
	switch {
	case from.FieldRef != nil:
		value, err := field(p, from.FieldRef.FieldPath, at)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err := resourceField(p, c, from.ResourceFieldRef, at)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := objects.ConfigMap(ctx, p.Namespace, ref.Name)
		if err != nil && !missing(err) {
			return "", false, err
		}
		if err == nil {
			if value, ok := cm.Data[ref.Key]; ok {
				return value, true, nil
			}
		}
		switch {
		case optional(ref.Optional):
			return "", false, nil
		case err != nil:
			return "", false, configErrorf("configmap %q not found", ref.Name)
		}
		return "", false, configErrorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, p.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret, err := objects.Secret(ctx, p.Namespace, ref.Name)
		if err != nil && !missing(err) {
			return "", false, err
		}
		if err == nil {
			if value, ok := secret.Data[ref.Key]; ok {
				return string(value), true, nil
			}
		}
		switch {
		case optional(ref.Optional):
			return "", false, nil
		case err != nil:
			return "", false, configErrorf("secret %q not found", ref.Name)
		}
		return "", false, configErrorf("couldn't find key %s in Secret %s/%s", ref.Key, p.Namespace, ref.Name)
	}
	return "", false, configErrorf("environment variable %s has a source that this node does not know", v.Name)
}

// field is one field of the downward API.
func field(p *corev1.Pod, path string, at placement) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return p.Labels[key], nil
		case "metadata.annotations":
			return p.Annotations[key], nil
		}
		return "", configErrorf("field path %q is not supported", path)
	}
	first := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[0]
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return at.nodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(at.hostIPs), nil
	case "status.hostIPs":
		return strings.Join(at.hostIPs, ","), nil
	case "status.podIP":
		return first(at.podIPs), nil
	case "status.podIPs":
		return strings.Join(at.podIPs, ","), nil
	}
	return "", configErrorf("field path %q is not supported", path)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (base, key string, ok bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	base, key, ok = strings.Cut(strings.TrimSuffix(path, "']"), "['")
	return base, key, ok && key != ""
}

// resourceField is a request or limit, divided and rounded up. A limit that is not set is the node's.
func resourceField(p *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector, at placement) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		c = named(p, ref.ContainerName)
		if c == nil {
			return "", configErrorf("resourceFieldRef names container %q, which the pod does not have", ref.ContainerName)
		}
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	if !ok || kind != "limits" && kind != "requests" {
		return "", configErrorf("resource %q is not supported", ref.Resource)
	}
	amount := c.Resources.Requests[corev1.ResourceName(name)]
	if kind == "limits" {
		if amount = c.Resources.Limits[corev1.ResourceName(name)]; amount.IsZero() {
			amount = at.capacity[corev1.ResourceName(name)]
		}
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if corev1.ResourceName(name) == corev1.ResourceCPU {
		return strconv.FormatInt(int64(math.Ceil(float64(amount.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	}
	return strconv.FormatInt(int64(math.Ceil(float64(amount.Value())/float64(divisor.Value()))), 10), nil
}

// named is the pod's container of that name, or nil.
func named(p *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// expand replaces $(NAME) by NAME's value. A name that is not known stays as it is written, and $$
// stands for one dollar sign: $$(NAME) is the text $(NAME).
func expand(s string, lookup func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				out.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if value, ok := lookup(name); ok {
				out.WriteString(value)
			} else {
				out.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			out.WriteByte('$')
			out.WriteByte(s[i+1])
			i++
		}
	}
	return out.String()
}

func expandAll(list []string, vars []variable) []string {
	values := make(map[string]string, len(vars))
	for _, v := range vars {
		values[v.name] = v.value
	}
	lookup := func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	}
	var out []string
	for _, s := range list {
		out = append(out, expand(s, lookup))
	}
	return out
}
