package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrRunAsNonRoot is wrapped when a container must not run as root and would.
var ErrRunAsNonRoot = errors.New("container has runAsNonRoot and would run as root")

// ErrInvalidSpec is wrapped when a pod asks for what this node cannot do; it stays wrong until the pod changes.
var ErrInvalidSpec = errors.New("the pod asks for what this node cannot do")

// seccompRoot is where Localhost profiles lie: the kubelet's place, so that a converted node keeps its profiles.
const seccompRoot = "/var/lib/kubelet/seccomp"

// maskedPaths and readonlyPaths hide what a container must not see or write, as the kubelet does for procMount Default.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func namespaces(pod *corev1.Pod) *cri.NamespaceOption {
	n := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Ipc: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER}
	if pod.Spec.HostNetwork {
		n.Network = cri.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		n.Ipc = cri.NamespaceMode_NODE
	}
	if s := pod.Spec.ShareProcessNamespace; s != nil && *s {
		n.Pid = cri.NamespaceMode_POD
	}
	if pod.Spec.HostPID {
		n.Pid = cri.NamespaceMode_NODE
	}
	return n
}

func sandboxSecurity(pod *corev1.Pod) (*cri.LinuxSandboxSecurityContext, error) {
	if u := pod.Spec.HostUsers; u != nil && !*u {
		return nil, fmt.Errorf("spec.hostUsers is false, and user namespaces are not supported: %w", ErrInvalidSpec)
	}
	sec := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod),
		Privileged:       anyPrivileged(pod),
		// The pause process runs with the runtime's profile whatever the containers ask for.
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return sec, nil
	}
	sec.SelinuxOptions = selinux(sc.SELinuxOptions)
	// CRI refuses a group without a user.
	if sc.RunAsUser != nil {
		sec.RunAsUser = &cri.Int64Value{Value: *sc.RunAsUser}
		if sc.RunAsGroup != nil {
			sec.RunAsGroup = &cri.Int64Value{Value: *sc.RunAsGroup}
		}
	}
	var err error
	sec.SupplementalGroups, sec.SupplementalGroupsPolicy, err = groups(sc)
	return sec, err
}

func groups(sc *corev1.PodSecurityContext) ([]int64, cri.SupplementalGroupsPolicy, error) {
	var out []int64
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	out = append(out, sc.SupplementalGroups...)
	if p := sc.SupplementalGroupsPolicy; p != nil {
		v, ok := cri.SupplementalGroupsPolicy_value[string(*p)]
		if !ok {
			return nil, 0, fmt.Errorf("supplementalGroupsPolicy %q: %w", *p, ErrInvalidSpec)
		}
		return out, cri.SupplementalGroupsPolicy(v), nil
	}
	return out, cri.SupplementalGroupsPolicy_Merge, nil
}

func anyPrivileged(pod *corev1.Pod) bool {
	privileged := func(sc *corev1.SecurityContext) bool { return sc != nil && truth(sc.Privileged) }
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if privileged(list[i].SecurityContext) {
				return true
			}
		}
	}
	// The sandbox is there already; it is named with each container, and containerd compares the two.
	for i := range pod.Spec.EphemeralContainers {
		if privileged(pod.Spec.EphemeralContainers[i].SecurityContext) {
			return true
		}
	}
	return false
}

func selinux(o *corev1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// imageUser is the user that the image names: a number or, when uid is nil, a name.
type imageUser struct {
	uid  *int64
	name string
}

// effectiveUser says as whom a container runs when its spec does not, and refuses one that would be root although it must
// not. The image is asked only when the spec leaves the user open.
func (r *Runtime) effectiveUser(ctx context.Context, pod *corev1.Pod, c *corev1.Container, image string) (imageUser, error) {
	runAs, nonRoot := runAsUser(pod, c), runAsNonRoot(pod, c)
	if runAs != nil {
		if nonRoot && *runAs == 0 {
			return imageUser{}, fmt.Errorf("container %s: runAsUser is 0: %w", c.Name, ErrRunAsNonRoot)
		}
		return imageUser{}, nil
	}
	resp, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		return imageUser{}, fmt.Errorf("image %s: %w", image, wrap(err))
	}
	if resp.GetImage() == nil {
		return imageUser{}, fmt.Errorf("image %s: %w", image, ErrNotFound)
	}
	var user imageUser
	switch {
	case resp.Image.GetUid() != nil:
		uid := resp.Image.Uid.Value
		user.uid = &uid
	case resp.Image.GetUsername() != "":
		user.name = resp.Image.Username
	default:
		user.uid = new(int64)
	}
	if nonRoot {
		switch {
		case user.uid != nil && *user.uid == 0:
			return user, fmt.Errorf("container %s: image %s runs as root: set runAsUser or use another image: %w", c.Name, c.Image, ErrRunAsNonRoot)
		case user.uid == nil:
			return user, fmt.Errorf("container %s: image %s names its user (%s) rather than numbering it, so it cannot be shown not to be root: set runAsUser: %w",
				c.Name, c.Image, user.name, ErrRunAsNonRoot)
		}
	}
	return user, nil
}

func runAsUser(pod *corev1.Pod, c *corev1.Container) *int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser
	}
	return nil
}

func runAsNonRoot(pod *corev1.Pod, c *corev1.Container) bool {
	if c.SecurityContext != nil && c.SecurityContext.RunAsNonRoot != nil {
		return *c.SecurityContext.RunAsNonRoot
	}
	psc := pod.Spec.SecurityContext
	return psc != nil && psc.RunAsNonRoot != nil && *psc.RunAsNonRoot
}

// containerSecurity merges the pod's security context with the container's; the container's goes first, field by field.
func containerSecurity(pod *corev1.Pod, c *corev1.Container, user imageUser) (*cri.LinuxContainerSecurityContext, error) {
	psc, csc := pod.Spec.SecurityContext, c.SecurityContext
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	if csc == nil {
		csc = &corev1.SecurityContext{}
	}
	sec := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(pod),
		SelinuxOptions:   selinux(first(csc.SELinuxOptions, psc.SELinuxOptions)),
		Privileged:       truth(csc.Privileged),
		ReadonlyRootfs:   truth(csc.ReadOnlyRootFilesystem),
		NoNewPrivs:       csc.AllowPrivilegeEscalation != nil && !*csc.AllowPrivilegeEscalation,
	}
	if cap := csc.Capabilities; cap != nil {
		sec.Capabilities = &cri.Capability{AddCapabilities: names(cap.Add), DropCapabilities: names(cap.Drop)}
	}
	if csc.ProcMount == nil || *csc.ProcMount != corev1.UnmaskedProcMount {
		sec.MaskedPaths, sec.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	switch u := runAsUser(pod, c); {
	case u != nil:
		sec.RunAsUser = &cri.Int64Value{Value: *u}
	case user.uid != nil:
		sec.RunAsUser = &cri.Int64Value{Value: *user.uid}
	default:
		sec.RunAsUsername = user.name
	}
	if g := first(csc.RunAsGroup, psc.RunAsGroup); g != nil {
		sec.RunAsGroup = &cri.Int64Value{Value: *g}
	}
	var err error
	if sec.SupplementalGroups, sec.SupplementalGroupsPolicy, err = groups(psc); err != nil {
		return nil, err
	}
	if sec.Seccomp, err = seccomp(first(csc.SeccompProfile, psc.SeccompProfile)); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	if err := apparmor(sec, first(csc.AppArmorProfile, psc.AppArmorProfile)); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return sec, nil
}

// seccomp translates a profile; without one a container is unconfined, which is the kubelet's default too.
func seccomp(p *corev1.SeccompProfile) (*cri.SecurityProfile, error) {
	if p == nil {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case corev1.SeccompProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case corev1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || !filepath.IsLocal(*p.LocalhostProfile) {
			return nil, fmt.Errorf("seccompProfile Localhost needs a localhostProfile below %s: %w", seccompRoot, ErrInvalidSpec)
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: filepath.Join(seccompRoot, *p.LocalhostProfile)}, nil
	default:
		return nil, fmt.Errorf("seccompProfile type %q: %w", p.Type, ErrInvalidSpec)
	}
}

// apparmor sets the profile in CRI's present field and in the older one that containerd 1.6 reads.
func apparmor(sec *cri.LinuxContainerSecurityContext, p *corev1.AppArmorProfile) error {
	if p == nil {
		return nil // the runtime's default where AppArmor is on
	}
	var old string
	switch p.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		sec.Apparmor, old = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, "runtime/default"
	case corev1.AppArmorProfileTypeUnconfined:
		sec.Apparmor, old = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, "unconfined"
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return fmt.Errorf("appArmorProfile Localhost needs a localhostProfile: %w", ErrInvalidSpec)
		}
		sec.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
		old = "localhost/" + *p.LocalhostProfile
	default:
		return fmt.Errorf("appArmorProfile type %q: %w", p.Type, ErrInvalidSpec)
	}
	//lint:ignore SA1019 containerd 1.6 knows only this field
	sec.ApparmorProfile = old
	return nil
}

func first[T any](values ...*T) *T {
	for _, v := range values {
		if v != nil {
			return v
		}
	}
	return nil
}

func truth(b *bool) bool { return b != nil && *b }

func names(list []corev1.Capability) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = string(c)
	}
	return out
}
