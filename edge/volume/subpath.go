package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// ContainerMounts says what of a pod's volumes a container sees and where, after Mount. expand replaces $(NAME) in a
// subPathExpr by the container's environment, and fails for a name that the environment does not have; it may be nil
// for a container without subPathExpr.
//
// A subPath is followed by the kernel within its volume and no further: a link that a container planted there cannot
// lead out, also when it is changed at this very moment. What was found is bound to a place of its own, so that
// what the container sees is what was checked. Directories of a subPath that are not there yet are made.
func (m *Manager) ContainerMounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, expand func(string) (string, error)) ([]Mount, error) {
	defer m.lock(string(pod.UID))()
	out := make([]Mount, 0, len(c.VolumeMounts))
	if len(c.VolumeDevices) > 0 {
		return nil, fmt.Errorf("pod %s/%s: container %s: volumeDevices: %w", pod.Namespace, pod.Name, c.Name, ErrUnsupported)
	}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		mt, err := m.containerMount(ctx, pod, c, i, vm, expand)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: container %s: volume %s at %s: %w", pod.Namespace, pod.Name, c.Name, vm.Name, vm.MountPath, err)
		}
		out = append(out, mt)
	}
	return out, nil
}

func (m *Manager) containerMount(ctx context.Context, pod *corev1.Pod, c *corev1.Container, index int, vm *corev1.VolumeMount,
	expand func(string) (string, error)) (Mount, error) {
	if err := ctx.Err(); err != nil {
		return Mount{}, err
	}
	var v *corev1.Volume
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == vm.Name {
			v = &pod.Spec.Volumes[i]
		}
	}
	if v == nil {
		return Mount{}, fmt.Errorf("the pod has no such volume: %w", ErrInvalid)
	}
	base, err := m.path(pod, v)
	if err != nil {
		return Mount{}, err
	}
	if r := vm.RecursiveReadOnly; r != nil && *r == corev1.RecursiveReadOnlyEnabled {
		// A containerd that does not know the field would pass over it, and the volume would be less closed than asked.
		return Mount{}, fmt.Errorf("recursiveReadOnly Enabled (use IfPossible): %w", ErrUnsupported)
	}
	out := Mount{
		HostPath: base, ContainerPath: vm.MountPath, ReadOnly: vm.ReadOnly || hasContent(v), SELinuxRelabel: v.HostPath == nil,
	}
	if !path.IsAbs(out.ContainerPath) {
		out.ContainerPath = path.Join("/", out.ContainerPath)
	}
	if p := vm.MountPropagation; p != nil {
		out.Propagation = *p
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		if expand == nil {
			return Mount{}, fmt.Errorf("subPathExpr %q: there is no environment to expand it with: %w", vm.SubPathExpr, ErrInvalid)
		}
		if sub, err = expand(vm.SubPathExpr); err != nil {
			return Mount{}, fmt.Errorf("subPathExpr %q: %w", vm.SubPathExpr, err)
		}
	}
	if sub == "" {
		return out, nil
	}
	if path.IsAbs(sub) || hasDotDot(sub) {
		return Mount{}, fmt.Errorf("subPath %q must be relative and without ..: %w", sub, ErrInvalid)
	}
	if sub = path.Clean(sub); sub == "." {
		return out, nil
	}
	dir, err := m.podDir(string(pod.UID))
	if err != nil {
		return Mount{}, err
	}
	target := filepath.Join(dir, "volume-subpaths", vm.Name, c.Name, strconv.Itoa(index))
	if err := bindSubPath(base, sub, target, !hasContent(v)); err != nil {
		return Mount{}, fmt.Errorf("subPath %q: %w", sub, err)
	}
	out.HostPath = target
	return out, nil
}

// bindSubPath binds what lies at sub within base to target.
func bindSubPath(base, sub, target string, create bool) error {
	root, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", base, err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, sub)
	if errors.Is(err, unix.ENOENT) && create {
		if err = makeBeneath(root, sub); err == nil {
			fd, err = openBeneath(root, sub)
		}
	}
	switch {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("it leads out of its volume: %w", ErrInvalid)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the volume has no such file: %w", ErrMissing)
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("its links go round in circles: %w", ErrInvalid)
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	// A file of this name may have been a directory for the attempt before, and the file behind it another one.
	if err := unmountAll(target); err != nil {
		return err
	}
	if err := removeTree(target); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(target, 0o750)
	} else {
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return err
	}
	// The descriptor is what was checked; its name may be something else by now.
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind to %s: %w", target, err)
	}
	// A bind is a peer of what it shows: unmounting something below one would unmount it below the other, on the node. As
	// a slave it follows the node's mounts and never leads; shared besides, it still passes on what a container mounts.
	for _, flags := range []uintptr{unix.MS_SLAVE | unix.MS_REC, unix.MS_SHARED | unix.MS_REC} {
		if err := unix.Mount("", target, "", flags, ""); err != nil {
			return errors.Join(fmt.Errorf("bind to %s: propagation: %w", target, err), unmountAll(target))
		}
	}
	return nil
}

// openBeneath opens a path without leaving root, by any link, mount trick or rename on the way.
func openBeneath(root int, sub string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, sub, how)
		// The kernel gives up when something on the way is renamed meanwhile.
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && try < 64 {
			continue
		}
		return fd, err
	}
}

// makeBeneath makes the directories of a path that are not there, with the permissions of the volume itself.
func makeBeneath(root int, sub string) error {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	parent, err := openBeneath(root, ".")
	if err != nil {
		return err
	}
	defer func() { unix.Close(parent) }()
	walked := ""
	for _, part := range strings.Split(sub, "/") {
		walked = path.Join(walked, part)
		// From the root each time: the kernel has to see the whole way to know whether a link leaves the volume.
		next, err := openBeneath(root, walked)
		if errors.Is(err, unix.ENOENT) {
			if err := unix.Mkdirat(parent, part, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			how := &unix.OpenHow{
				Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
				Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
			}
			next, err = unix.Openat2(parent, part, how)
			if err != nil {
				return err
			}
			if err := errors.Join(unix.Fchown(next, -1, int(st.Gid)), unix.Fchmod(next, st.Mode&0o7777)); err != nil {
				unix.Close(next)
				return err
			}
		} else if err != nil {
			return err
		}
		unix.Close(parent)
		parent = next
	}
	return nil
}
