package runtime

import (
	"context"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxSpec is what RunSandbox needs beside the pod itself.
type SandboxSpec struct {
	Pod          *corev1.Pod
	Attempt      uint32
	LogDir       string // LogDir(root, pod)
	CgroupParent string // CgroupParent(root, driver, pod)
	Hostname     string // Hostname(pod); ignored with host networking
	DNS          *DNS   // PodDNS(...); nil leaves the runtime's default, the node's own resolv.conf
	Handler      string // the RuntimeClass's handler; "" is the runtime's default
}

// RunSandbox creates and starts a pod's sandbox, network included, and returns its ID.
func (r *Runtime) RunSandbox(ctx context.Context, spec SandboxSpec) (string, error) {
	name := podName(spec.Pod)
	cfg, err := sandboxConfig(spec)
	if err != nil {
		return "", fmt.Errorf("sandbox of pod %s: %w", name, err)
	}
	if spec.LogDir != "" {
		if err := os.MkdirAll(spec.LogDir, 0o755); err != nil {
			return "", fmt.Errorf("sandbox of pod %s: log directory: %w", name, err)
		}
	}
	resp, err := r.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg, RuntimeHandler: spec.Handler})
	if err != nil {
		return "", fmt.Errorf("start sandbox of pod %s: %w", name, wrap(err))
	}
	return resp.PodSandboxId, nil
}

// StopSandbox stops every container of a sandbox and gives its network back. Stopping one that is stopped or gone is no
// error.
func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	_, err := r.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	r.forget(id)
	return unlessGone("stop sandbox", id, err)
}

// RemoveSandbox removes a stopped sandbox and its containers. Removing one that is gone is no error.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	_, err := r.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	r.forget(id)
	return unlessGone("remove sandbox", id, err)
}

func podName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// sandboxConfig says a pod in CRI's words, as the kubelet's generatePodSandboxConfig does.
func sandboxConfig(spec SandboxSpec) (*cri.PodSandboxConfig, error) {
	pod := spec.Pod
	cfg := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: spec.Attempt},
		LogDirectory: spec.LogDir,
		Labels:       podLabels(pod),
		Annotations:  pod.Annotations,
		PortMappings: portMappings(pod),
	}
	if !pod.Spec.HostNetwork {
		cfg.Hostname = spec.Hostname
	}
	if d := spec.DNS; d != nil {
		cfg.DnsConfig = &cri.DNSConfig{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	sec, err := sandboxSecurity(pod)
	if err != nil {
		return nil, err
	}
	sysctls := map[string]string{}
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			sysctls[s.Name] = s.Value
		}
	}
	cfg.Linux = &cri.LinuxPodSandboxConfig{
		CgroupParent:    spec.CgroupParent,
		SecurityContext: sec,
		Sysctls:         sysctls,
		Overhead:        &cri.LinuxContainerResources{},
		Resources:       podResources(pod),
	}
	return cfg, nil
}

func portMappings(pod *corev1.Pod) []*cri.PortMapping {
	var out []*cri.PortMapping
	add := func(c *corev1.Container) {
		for i := range c.Ports {
			p := &c.Ports[i]
			out = append(out, &cri.PortMapping{
				Protocol: protocol(p.Protocol), ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP,
			})
		}
	}
	for i := range pod.Spec.InitContainers {
		// A sidecar serves for as long as the pod lives; an ordinary init container's ports are never mapped.
		if p := pod.Spec.InitContainers[i].RestartPolicy; p != nil && *p == corev1.ContainerRestartPolicyAlways {
			add(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return out
}

func protocol(p corev1.Protocol) cri.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return cri.Protocol_UDP
	case corev1.ProtocolSCTP:
		return cri.Protocol_SCTP
	default:
		return cri.Protocol_TCP
	}
}

// Hostname is the name that the pod's containers see, as the kubelet derives it: spec.hostname or the pod's name, cut
// to the 63 characters that a label may have; spec.hostnameOverride goes before both. The second result is the
// domain that /etc/hosts shows (spec.subdomain), and is empty without one.
func Hostname(pod *corev1.Pod, clusterDomain string) (name, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	name = pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc"
		if clusterDomain != "" {
			domain += "." + clusterDomain
		}
	}
	if f := pod.Spec.SetHostnameAsFQDN; f != nil && *f && domain != "" {
		if full := name + "." + domain; len(full) <= 64 {
			return full, domain
		}
	}
	return name, domain
}
