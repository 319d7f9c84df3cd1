package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Unmount takes away the volumes of a pod: what is mounted below its directory, deepest first, then the files. Nothing is
// deleted through a mount or a link: what a hostPath showed, or what a container with bidirectional propagation
// mounted, stays as it is. It may be called for a pod that has no volumes and again after an error; ErrBusy is wrapped
// when a mount is still in use, and nothing is deleted then.
func (m *Manager) Unmount(ctx context.Context, podUID string) error {
	defer m.lock(podUID)()
	dir, err := m.podDir(podUID)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, part := range []string{"volume-subpaths", "volumes"} {
		if err := unmountAll(filepath.Join(dir, part)); err != nil {
			return fmt.Errorf("volumes of pod %s: %w", podUID, err)
		}
	}
	for _, part := range []string{"volume-subpaths", "volumes"} {
		if err := removeTree(filepath.Join(dir, part)); err != nil {
			return fmt.Errorf("volumes of pod %s: %w", podUID, err)
		}
	}
	return nil
}

// unmountAll unmounts what is mounted at path and below it. Several mounts may lie on one place.
func unmountAll(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	real = filepath.Join(real, filepath.Base(path))
	for round := 0; ; round++ {
		points, err := mountsBelow(real)
		if err != nil || len(points) == 0 {
			return err
		}
		if round == 16 {
			return fmt.Errorf("%s is mounted again as often as it is unmounted: %w", points[0], ErrBusy)
		}
		for _, p := range points {
			switch err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW); {
			case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // EINVAL: it has gone by itself
			case errors.Is(err, unix.EBUSY):
				return fmt.Errorf("unmount %s: a process has a file open there: %w", p, ErrBusy)
			default:
				return fmt.Errorf("unmount %s: %w", p, err)
			}
		}
	}
}

// mountsBelow lists the mount points at path and below it, deepest first, and of several at one place the last first.
func mountsBelow(path string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		p := unescape(f[4])
		if p == path || strings.HasPrefix(p, path+"/") {
			out = append(out, p)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return strings.Count(out[i], "/") > strings.Count(out[j], "/") })
	return out, nil
}

// unescape undoes the octal escapes that the kernel writes for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// isMountPoint asks the kernel whether something is mounted on path itself.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// removeTree removes path and what is below it, one open directory at a time: links are removed and never followed, and
// a directory or file on which something is mounted is an error.
func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	defer unix.Close(parent)
	return removeAt(parent, filepath.Base(path), path)
}

func removeAt(parent int, name, path string) error {
	var st unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("remove %s: something is mounted there: %w", path, ErrBusy)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return gone("remove", path, unix.Unlinkat(parent, name, 0))
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone("open", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeAt(fd, e, path+"/"+e); err != nil {
			return err
		}
	}
	return gone("remove", path, unix.Unlinkat(parent, name, unix.AT_REMOVEDIR))
}

func gone(what, path string, err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s %s: %w", what, path, ErrBusy)
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}
