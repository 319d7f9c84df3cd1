package roster

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// References lists the ConfigMaps and Secrets that a pod names, optional ones
// too, each once and in order: those which the kubelet would read for it.
func References(p *corev1.Pod) []Key {
	var keys []Key
	add := func(kind wire.Kind, name string) {
		if name != "" {
			keys = append(keys, Key{kind, p.Namespace, name})
		}
	}
	configMap := func(name string) { add(wire.Kind_KIND_CONFIG_MAP, name) }
	secret := func(name string) { add(wire.Kind_KIND_SECRET, name) }

	for _, s := range p.Spec.ImagePullSecrets {
		secret(s.Name)
	}
	for i := range p.Spec.InitContainers {
		environment(p.Spec.InitContainers[i].Env, p.Spec.InitContainers[i].EnvFrom, configMap, secret)
	}
	for i := range p.Spec.Containers {
		environment(p.Spec.Containers[i].Env, p.Spec.Containers[i].EnvFrom, configMap, secret)
	}
	for i := range p.Spec.EphemeralContainers {
		c := &p.Spec.EphemeralContainers[i].EphemeralContainerCommon
		environment(c.Env, c.EnvFrom, configMap, secret)
	}
	for i := range p.Spec.Volumes {
		volume(&p.Spec.Volumes[i].VolumeSource, configMap, secret)
	}
	slices.SortFunc(keys, compareKeys)
	return slices.Compact(keys)
}

func environment(env []corev1.EnvVar, from []corev1.EnvFromSource, configMap, secret func(string)) {
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			configMap(r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			secret(r.Name)
		}
	}
	for _, e := range from {
		if e.ConfigMapRef != nil {
			configMap(e.ConfigMapRef.Name)
		}
		if e.SecretRef != nil {
			secret(e.SecretRef.Name)
		}
	}
}

// volume covers the volume plugins whose secrets the node itself reads from the
// pod's own namespace.
func volume(v *corev1.VolumeSource, configMap, secret func(string)) {
	local := func(r *corev1.LocalObjectReference) {
		if r != nil {
			secret(r.Name)
		}
	}
	switch {
	case v.ConfigMap != nil:
		configMap(v.ConfigMap.Name)
	case v.Secret != nil:
		secret(v.Secret.SecretName)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				configMap(s.ConfigMap.Name)
			}
			if s.Secret != nil {
				secret(s.Secret.Name)
			}
		}
	case v.CSI != nil:
		local(v.CSI.NodePublishSecretRef)
	case v.ISCSI != nil:
		local(v.ISCSI.SecretRef)
	case v.CephFS != nil:
		local(v.CephFS.SecretRef)
	case v.RBD != nil:
		local(v.RBD.SecretRef)
	case v.FlexVolume != nil:
		local(v.FlexVolume.SecretRef)
	case v.ScaleIO != nil:
		local(v.ScaleIO.SecretRef)
	case v.StorageOS != nil:
		local(v.StorageOS.SecretRef)
	case v.Cinder != nil:
		local(v.Cinder.SecretRef)
	case v.AzureFile != nil:
		secret(v.AzureFile.SecretName)
	}
}

func compareKeys(a, b Key) int {
	if a.Kind != b.Kind {
		return int(a.Kind) - int(b.Kind)
	}
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
