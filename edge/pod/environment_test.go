package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-edge/holdfast/edge/store"
)

func TestExpansion(t *testing.T) {
	values := map[string]string{"A": "one", "EMPTY": "", "N": "$(A)"}
	lookup := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	for in, want := range map[string]string{
		"":               "",
		"plain":          "plain",
		"$(A)":           "one",
		"x$(A)y$(A)":     "xoney" + "one",
		"$(EMPTY)":       "",
		"$(NONE)":        "$(NONE)",
		"$$(A)":          "$(A)",
		"$$$(A)":         "$one",
		"$A":             "$A",
		"$":              "$",
		"a$":             "a$",
		"$(A":            "$(A",
		"$(N)":           "$(A)", // what is put in is not looked at again
		"$()":            "$()",
		"$($(A))":        "$($(A))",
		"100$ and 5$(A)": "100$ and 5one",
	} {
		if got := expand(in, lookup); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

// objects holds ConfigMaps and Secrets by name.
type objects map[string]any

func (o objects) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	if cm, ok := o[name].(*corev1.ConfigMap); ok {
		return cm, nil
	}
	return nil, fmt.Errorf("configmap %s: %w", name, store.ErrNotFound)
}

func (o objects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	if s, ok := o[name].(*corev1.Secret); ok {
		return s, nil
	}
	return nil, fmt.Errorf("secret %s: %w", name, store.ErrNotFound)
}

func TestEnvironmentPrecedenceAndSources(t *testing.T) {
	have := objects{
		"settings": &corev1.ConfigMap{Data: map[string]string{"A": "from config", "B": "b"}},
		"keys":     &corev1.Secret{Data: map[string][]byte{"A": []byte("from secret"), "K": []byte("k")}},
	}
	yes := true
	ref := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	c := &corev1.Container{Name: "web"}
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}
	c.EnvFrom = []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("settings")}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref("keys")}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref("none"), Optional: &yes}},
	}
	c.Env = []corev1.EnvVar{
		{Name: "B", Value: "own"}, {Name: "USES", Value: "$(A)/$(B)/$(LATER)"}, {Name: "LATER", Value: "x"},
		{Name: "MAYBE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref("settings"), Key: "none", Optional: &yes}}},
		{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIPs"}}},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
		{Name: "CORES", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
	}
	at := placement{podIPs: []string{"10.0.0.2", "fd00::2"}, capacity: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")}}
	got, err := environment(t.Context(), have, &corev1.Pod{}, c, at)
	if err != nil {
		t.Fatal(err)
	}
	want := []variable{{"A", "from secret"}, {"B", "own"}, {"K", "k"}, {"USES", "from secret/own/$(LATER)"}, {"LATER", "x"},
		{"POD", "10.0.0.2,fd00::2"}, {"CPU", "250"}, {"CORES", "4"}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for name, e := range map[string]corev1.EnvVar{
		`configmap "none" not found`:              {Name: "X", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref("none"), Key: "k"}}},
		"couldn't find key z in Secret shop/keys": {Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref("keys"), Key: "z"}}},
		`field path "spec.x" is not supported`:    {Name: "X", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.x"}}},
	} {
		p := &corev1.Pod{}
		p.Namespace = "shop"
		_, err := environment(t.Context(), have, p, &corev1.Container{Name: "web", Env: []corev1.EnvVar{e}}, at)
		var config *configError
		if !errors.As(err, &config) || err.Error() != name {
			t.Errorf("got %v, want %s", err, name)
		}
	}
}
