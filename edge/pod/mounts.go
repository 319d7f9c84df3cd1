package pod

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// etcHosts writes the pod's hosts file and returns its path; "" when the pod uses the node's own.
func (m *Manager) etcHosts(uid string, p *corev1.Pod, ips []string) (string, error) {
	file := filepath.Join(m.dir(uid), "etc-hosts")
	hostname, domain := runtime.Hostname(p, m.o.Domain)
	if err := runtime.WriteEtcHosts(file, p, ips, hostname, domain); err != nil {
		return "", fmt.Errorf("hosts file of pod %s: %w", podName(p), err)
	}
	return file, nil
}

// removeTree removes a pod's own directory. Whatever was mounted under it has been unmounted before; if a
// mount is left, its contents are not touched and an error says so.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return nil
}

// refers tells whether a pod uses the ConfigMap or Secret that changed.
func refers(p *corev1.Pod, c store.Change) bool {
	secret := c.Kind == wire.Kind_KIND_SECRET
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if secret && v.Secret != nil && v.Secret.SecretName == c.Name || !secret && v.ConfigMap != nil && v.ConfigMap.Name == c.Name {
			return true
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if secret && s.Secret != nil && s.Secret.Name == c.Name || !secret && s.ConfigMap != nil && s.ConfigMap.Name == c.Name {
				return true
			}
		}
	}
	for _, ref := range p.Spec.ImagePullSecrets {
		if secret && ref.Name == c.Name {
			return true
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if envRefers(&list[i], secret, c.Name) {
				return true
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if envRefers((*corev1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon), secret, c.Name) {
			return true
		}
	}
	return false
}

func envRefers(c *corev1.Container, secret bool, name string) bool {
	for _, e := range c.EnvFrom {
		if secret && e.SecretRef != nil && e.SecretRef.Name == name || !secret && e.ConfigMapRef != nil && e.ConfigMapRef.Name == name {
			return true
		}
	}
	for _, e := range c.Env {
		f := e.ValueFrom
		if f == nil {
			continue
		}
		if secret && f.SecretKeyRef != nil && f.SecretKeyRef.Name == name || !secret && f.ConfigMapKeyRef != nil && f.ConfigMapKeyRef.Name == name {
			return true
		}
	}
	return false
}

// addressed is the pod with the addresses in its status that the downward API shows.
func addressed(p *corev1.Pod, podIPs, hostIPs []string) *corev1.Pod {
	q := *p
	q.Status.PodIPs, q.Status.HostIPs = nil, nil
	for i, ip := range podIPs {
		if i == 0 {
			q.Status.PodIP = ip
		}
		q.Status.PodIPs = append(q.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	for i, ip := range hostIPs {
		if i == 0 {
			q.Status.HostIP = ip
		}
		q.Status.HostIPs = append(q.Status.HostIPs, corev1.HostIP{IP: ip})
	}
	return &q
}

// showsOther says whether a pod's volumes show labels or annotations that have changed.
func showsOther(before, now *corev1.Pod) bool {
	if maps.Equal(before.Labels, now.Labels) && maps.Equal(before.Annotations, now.Annotations) {
		return false
	}
	return slices.ContainsFunc(now.Spec.Volumes, func(v corev1.Volume) bool {
		return v.DownwardAPI != nil || v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.DownwardAPI != nil })
	})
}

// refresh brings the volumes of a running pod up to date with what they show.
func (w *worker) refresh(ctx context.Context) {
	if w.record.Ending != nil || w.record.Memory.Outcome != nil || w.sandbox() == nil {
		w.tokensDue = 0 // nobody reads them now; left as it is, it would be due again at once and for ever
		return
	}
	p := addressed(w.pod, w.podIPs(), w.m.o.HostIPs())
	if _, err := w.m.o.Volumes.Refresh(ctx, p); err != nil && ctx.Err() == nil {
		w.log.Warn("pod's volumes cannot be brought up to date", "err", err)
	}
	w.planTokens(ctx)
}

// planTokens decides when the pod's tokens are looked at again.
func (w *worker) planTokens(ctx context.Context) {
	w.tokensDue = 0
	if w.m.o.Tokens == nil || w.sandbox() == nil || w.record.Ending != nil || w.record.Memory.Outcome != nil {
		return
	}
	d, err := w.m.o.Tokens.Due(ctx, w.pod)
	if err != nil {
		d = time.Minute
	}
	if d > 0 {
		w.tokensDue = w.m.clock.Mono() + d
	}
}

// renew refreshes the volumes when a token wants it.
func (w *worker) renew(ctx context.Context) {
	switch {
	case w.tokensDue == 0 && projectsTokens(w.pod):
		w.planTokens(ctx)
	case w.tokensDue > 0 && w.m.clock.Mono() >= w.tokensDue:
		w.refresh(ctx)
	}
}

// mounts are the container's.
func (m *Manager) mounts(ctx context.Context, p *corev1.Pod, c *corev1.Container, vars map[string]string) ([]runtime.Mount, error) {
	if len(c.VolumeMounts) == 0 {
		return nil, nil
	}
	expanded := func(s string) (string, error) {
		unknown := ""
		out := expand(s, func(name string) (string, bool) {
			v, ok := vars[name]
			if !ok {
				unknown = name
			}
			return v, ok
		})
		if unknown != "" {
			return "", configErrorf("subPathExpr %q: there is no environment variable %s", s, unknown)
		}
		return out, nil
	}
	mounts, err := m.o.Volumes.ContainerMounts(ctx, p, c, expanded)
	if err != nil {
		return nil, err
	}
	list := make([]runtime.Mount, len(mounts))
	for i, v := range mounts {
		list[i] = runtime.Mount(v)
	}
	return list, nil
}
