package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const defaultMode int32 = 0o644

// content works out the files of a volume from the objects of now.
func (m *Manager) content(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, podIPs []string) (map[string]file, error) {
	c := collector{m: m, ctx: ctx, pod: pod, podIPs: podIPs, files: map[string]file{}}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return c.files, c.configMap(s.Name, s.Items, deref(s.DefaultMode, defaultMode), s.Optional)
	case v.Secret != nil:
		s := v.Secret
		return c.files, c.secret(s.SecretName, s.Items, deref(s.DefaultMode, defaultMode), s.Optional)
	case v.DownwardAPI != nil:
		return c.files, c.downward(v.DownwardAPI.Items, deref(v.DownwardAPI.DefaultMode, defaultMode))
	case v.Projected != nil:
		mode := deref(v.Projected.DefaultMode, defaultMode)
		for i := range v.Projected.Sources {
			if err := c.projection(&v.Projected.Sources[i], mode); err != nil {
				return nil, err
			}
		}
		return c.files, nil
	}
	return nil, fmt.Errorf("%s: %w", kind(v), ErrUnsupported)
}

type collector struct {
	m      *Manager
	ctx    context.Context
	pod    *corev1.Pod
	podIPs []string
	files  map[string]file
}

func (c *collector) projection(p *corev1.VolumeProjection, mode int32) error {
	switch {
	case p.ConfigMap != nil:
		return c.configMap(p.ConfigMap.Name, p.ConfigMap.Items, mode, p.ConfigMap.Optional)
	case p.Secret != nil:
		return c.secret(p.Secret.Name, p.Secret.Items, mode, p.Secret.Optional)
	case p.DownwardAPI != nil:
		return c.downward(p.DownwardAPI.Items, mode)
	case p.ServiceAccountToken != nil:
		return c.token(p.ServiceAccountToken, mode)
	case p.ClusterTrustBundle != nil:
		return fmt.Errorf("projected clusterTrustBundle: %w", ErrUnsupported)
	case p.PodCertificate != nil:
		return fmt.Errorf("projected podCertificate: %w", ErrUnsupported)
	}
	return fmt.Errorf("projected source of an unknown kind: %w", ErrUnsupported)
}

func (c *collector) configMap(name string, items []corev1.KeyToPath, mode int32, optional *bool) error {
	cm, err := c.m.sources.ConfigMap(c.ctx, c.pod.Namespace, name)
	if err != nil {
		return c.absent("configMap", name, err, optional)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return c.keys("configMap", name, data, items, mode, optional)
}

func (c *collector) secret(name string, items []corev1.KeyToPath, mode int32, optional *bool) error {
	s, err := c.m.sources.Secret(c.ctx, c.pod.Namespace, name)
	if err != nil {
		return c.absent("secret", name, err, optional)
	}
	return c.keys("secret", name, s.Data, items, mode, optional)
}

func (c *collector) absent(what, name string, err error, optional *bool) error {
	switch {
	case !missing(err):
		return fmt.Errorf("%s %s/%s: %w", what, c.pod.Namespace, name, err)
	case optional != nil && *optional:
		return nil
	}
	return fmt.Errorf("%s %s/%s: %w", what, c.pod.Namespace, name, ErrMissing)
}

// keys adds all keys of an object, or those that items choose.
func (c *collector) keys(what, name string, data map[string][]byte, items []corev1.KeyToPath, mode int32, optional *bool) error {
	if len(items) == 0 {
		for k, v := range data {
			c.files[k] = file{data: v, mode: perm(mode)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s %s/%s: key %s: %w", what, c.pod.Namespace, name, it.Key, ErrMissing)
		}
		c.files[it.Path] = file{data: v, mode: perm(deref(it.Mode, mode))}
	}
	return nil
}

// token adds a service-account token. Nobody but the container's user reads it where the pod says who that is.
func (c *collector) token(p *corev1.ServiceAccountTokenProjection, mode int32) error {
	t, err := c.m.sources.Token(c.ctx, c.pod, p)
	if err != nil {
		return fmt.Errorf("token of service account %s/%s: %w", c.pod.Namespace, c.pod.Spec.ServiceAccountName, err)
	}
	f := file{data: []byte(t), mode: perm(mode), uid: onlyUser(c.pod)}
	if f.uid != nil || c.pod.Spec.SecurityContext != nil && c.pod.Spec.SecurityContext.FSGroup != nil {
		f.mode = 0o600
	}
	c.files[p.Path] = f
	return nil
}

// onlyUser is the user as whom all containers of a pod run, or nil when they differ or the spec does not say.
func onlyUser(pod *corev1.Pod) *int64 {
	var user *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			var u *int64
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				u = sc.RunAsUser
			} else if sc := pod.Spec.SecurityContext; sc != nil {
				u = sc.RunAsUser
			}
			if u == nil || user != nil && *u != *user {
				return nil
			}
			user = u
		}
	}
	return user
}

func (c *collector) downward(items []corev1.DownwardAPIVolumeFile, mode int32) error {
	var errs []error
	for i := range items {
		it := &items[i]
		var text string
		var err error
		switch {
		case it.FieldRef != nil:
			text, err = c.field(it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			text, err = c.resource(it.ResourceFieldRef)
		default:
			err = fmt.Errorf("it names neither a field nor a resource: %w", ErrInvalid)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("downwardAPI %s: %w", it.Path, err))
			continue
		}
		c.files[it.Path] = file{data: []byte(text), mode: perm(deref(it.Mode, mode))}
	}
	return errors.Join(errs...)
}

func (c *collector) field(path string) (string, error) {
	if name, rest, ok := strings.Cut(path, "["); ok {
		key, ok := strings.CutSuffix(strings.TrimPrefix(rest, "'"), "']")
		if ok && strings.HasPrefix(rest, "'") {
			switch name {
			case "metadata.labels":
				return c.pod.Labels[key], nil
			case "metadata.annotations":
				return c.pod.Annotations[key], nil
			}
		}
		return "", fmt.Errorf("field %q: %w", path, ErrUnsupported)
	}
	switch path {
	case "metadata.name":
		return c.pod.Name, nil
	case "metadata.namespace":
		return c.pod.Namespace, nil
	case "metadata.uid":
		return string(c.pod.UID), nil
	case "metadata.labels":
		return lines(c.pod.Labels), nil
	case "metadata.annotations":
		return lines(c.pod.Annotations), nil
	case "spec.nodeName":
		return c.pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return c.pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		if len(c.podIPs) > 0 {
			return c.podIPs[0], nil
		}
		return "", nil
	case "status.podIPs":
		return strings.Join(c.podIPs, ","), nil
	}
	return "", fmt.Errorf("field %q: %w", path, ErrUnsupported)
}

// lines writes a map as the kubelet does: one key="value" a line, by key.
func lines(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(k + "=" + strconv.Quote(m[k]))
	}
	return b.String()
}

func (c *collector) resource(r *corev1.ResourceFieldSelector) (string, error) {
	var ct *corev1.Container
	for _, list := range [][]corev1.Container{c.pod.Spec.Containers, c.pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == r.ContainerName {
				ct = &list[i]
			}
		}
	}
	if ct == nil {
		return "", fmt.Errorf("the pod has no container %q: %w", r.ContainerName, ErrInvalid)
	}
	which, name, _ := strings.Cut(r.Resource, ".")
	var q resource.Quantity
	switch which {
	case "limits":
		q = ct.Resources.Limits[corev1.ResourceName(name)]
		if q.IsZero() {
			// A container without a limit may take what the node gives to pods.
			node, err := c.m.sources.Node(c.ctx)
			if err != nil {
				return "", fmt.Errorf("resource %s is not limited, and what the node has is not known: %w", r.Resource, err)
			}
			q = node.Status.Allocatable[corev1.ResourceName(name)]
		}
	case "requests":
		q = ct.Resources.Requests[corev1.ResourceName(name)]
	default:
		return "", fmt.Errorf("resource %q: %w", r.Resource, ErrInvalid)
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(corev1.ResourceCPU) {
		return ceil(q.MilliValue(), divisor.MilliValue()), nil
	}
	return ceil(q.Value(), divisor.Value()), nil
}

func ceil(value, divisor int64) string {
	return strconv.FormatInt(int64(math.Ceil(float64(value)/float64(divisor))), 10)
}

func perm(mode int32) fs.FileMode { return fs.FileMode(mode) & 0o777 }

func deref[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}

// Objects names the ConfigMaps and Secrets that a pod's volumes show: a change of one of them calls for Refresh.
func Objects(pod *corev1.Pod) (configMaps, secrets []string) {
	cms, scs := map[string]bool{}, map[string]bool{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			cms[v.ConfigMap.Name] = true
		case v.Secret != nil:
			scs[v.Secret.SecretName] = true
		case v.Projected != nil:
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					cms[p.ConfigMap.Name] = true
				}
				if p.Secret != nil {
					scs[p.Secret.Name] = true
				}
			}
		}
	}
	return names(cms), names(scs)
}

func names(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for n := range set {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}
