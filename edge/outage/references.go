package outage

import (
	corev1 "k8s.io/api/core/v1"
)

// reference is one place in which a pod refers to a ConfigMap or a Secret.
type reference struct {
	object   Object
	keys     []string // that must be in it; none: any will do
	optional bool
	volume   string // the volume that shows it; empty: the environment, or a pull
	pull     bool   // an imagePullSecret
}

// references lists all that a pod refers to.
func references(p *corev1.Pod) []reference {
	var out []reference
	add := func(secret bool, name, volume string, optional *bool, items []corev1.KeyToPath) {
		r := reference{object: Object{secret, p.Namespace, name}, volume: volume, optional: optional != nil && *optional}
		for _, it := range items {
			r.keys = append(r.keys, it.Key)
		}
		out = append(out, r)
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			add(false, v.ConfigMap.Name, v.Name, v.ConfigMap.Optional, v.ConfigMap.Items)
		case v.Secret != nil:
			add(true, v.Secret.SecretName, v.Name, v.Secret.Optional, v.Secret.Items)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add(false, s.ConfigMap.Name, v.Name, s.ConfigMap.Optional, s.ConfigMap.Items)
				}
				if s.Secret != nil {
					add(true, s.Secret.Name, v.Name, s.Secret.Optional, s.Secret.Items)
				}
			}
		}
	}
	for _, c := range containers(p) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				add(false, f.ConfigMapRef.Name, "", f.ConfigMapRef.Optional, nil)
			}
			if f.SecretRef != nil {
				add(true, f.SecretRef.Name, "", f.SecretRef.Optional, nil)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil || e.Value != "" {
				continue
			}
			if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
				add(false, ref.Name, "", ref.Optional, []corev1.KeyToPath{{Key: ref.Key}})
			}
			if ref := e.ValueFrom.SecretKeyRef; ref != nil {
				add(true, ref.Name, "", ref.Optional, []corev1.KeyToPath{{Key: ref.Key}})
			}
		}
	}
	for _, s := range p.Spec.ImagePullSecrets {
		if s.Name != "" {
			out = append(out, reference{object: Object{true, p.Namespace, s.Name}, pull: true})
		}
	}
	return out
}

// containers are those that a new sandbox of the pod starts.
func containers(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}
