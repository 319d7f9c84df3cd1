package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func mounts(t *testing.T, m *Manager, pod *corev1.Pod, vms ...corev1.VolumeMount) ([]Mount, error) {
	t.Helper()
	mount(t, m, pod)
	pod.Spec.Containers[0].VolumeMounts = vms
	return m.ContainerMounts(t.Context(), pod, &pod.Spec.Containers[0], func(s string) (string, error) {
		if strings.Contains(s, "$(NONE)") {
			return "", errors.New("NONE is not set")
		}
		return strings.ReplaceAll(s, "$(POD)", "web"), nil
	})
}

func TestContainerMountsCarryTheirOptions(t *testing.T) {
	m, _ := setup(t)
	host := t.TempDir()
	pod := podWith(vol("dir", emptyDir()), vol("cm", configMap("cm")), vol("host", hostPath(host, "")))
	got, err := mounts(t, m, pod,
		corev1.VolumeMount{Name: "dir", MountPath: "/d", ReadOnly: true},
		corev1.VolumeMount{Name: "cm", MountPath: "etc/app"},
		corev1.VolumeMount{Name: "host", MountPath: "/h", MountPropagation: ptr(corev1.MountPropagationBidirectional)},
		corev1.VolumeMount{Name: "dir", MountPath: "/e", RecursiveReadOnly: ptr(corev1.RecursiveReadOnlyIfPossible), ReadOnly: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	p := m.Paths(pod)
	want := []Mount{
		{HostPath: p["dir"], ContainerPath: "/d", ReadOnly: true, SELinuxRelabel: true},
		{HostPath: p["cm"], ContainerPath: "/etc/app", ReadOnly: true, SELinuxRelabel: true},
		{HostPath: host, ContainerPath: "/h", Propagation: corev1.MountPropagationBidirectional},
		{HostPath: p["dir"], ContainerPath: "/e", ReadOnly: true, SELinuxRelabel: true},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	if _, err := mounts(t, m, pod, corev1.VolumeMount{Name: "other", MountPath: "/x"}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "container main: volume other") {
		t.Errorf("a volume that the pod does not have: %v", err)
	}
	rro := corev1.VolumeMount{Name: "dir", MountPath: "/x", ReadOnly: true, RecursiveReadOnly: ptr(corev1.RecursiveReadOnlyEnabled)}
	if _, err := mounts(t, m, pod, rro); !errors.Is(err, ErrUnsupported) {
		t.Errorf("recursively read-only: %v", err)
	}
	pod.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "dir", DevicePath: "/dev/x"}}
	if _, err := mounts(t, m, pod); !errors.Is(err, ErrUnsupported) {
		t.Errorf("block device: %v", err)
	}
}

func TestSubPathStaysWithinItsVolume(t *testing.T) {
	m, _ := setup(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("of the node"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := podWith(vol("dir", emptyDir()), vol("cm", configMap("cm")))
	base := mount(t, m, pod)["dir"]
	up := strings.Repeat("../", 20)
	for name, to := range map[string]string{
		"absolute": outside, "relative": up + outside[1:], "chain": "absolute", "self": "self", "root": "/", "proc": "/proc/self/root",
	} {
		if err := os.Symlink(to, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"absolute", "relative", "chain", "self", "root/etc", "proc/etc", "absolute/secret", "absolute/new", "relative/new/deep", "root/new-by-subpath"} {
		got, err := mounts(t, m, pod, corev1.VolumeMount{Name: "dir", MountPath: "/d", SubPath: sub})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), sub) {
			t.Errorf("%s: %v, %v", sub, got, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("made outside the volume: %v, %v", entries, err)
	}
	for _, sub := range []string{"/etc", "..", "a/../../b", "../web"} {
		if _, err := mounts(t, m, pod, corev1.VolumeMount{Name: "dir", MountPath: "/d", SubPath: sub}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", sub, err)
		}
	}
	if _, err := mounts(t, m, pod, corev1.VolumeMount{Name: "cm", MountPath: "/d", SubPath: "none"}); !errors.Is(err, ErrMissing) {
		t.Errorf("a key that the ConfigMap does not have: %v", err)
	}
	if _, err := mounts(t, m, pod, corev1.VolumeMount{Name: "dir", MountPath: "/d", SubPathExpr: "$(NONE)"}); err == nil || !strings.Contains(err.Error(), "NONE is not set") {
		t.Errorf("an environment variable that is not set: %v", err)
	}
}

func TestSubPathShowsWhatWasChecked(t *testing.T) {
	m, o := setup(t)
	pod := podWith(vol("dir", emptyDir()), vol("cm", configMap("cm")))
	base := mount(t, m, pod)["dir"]
	if err := errors.Join(os.MkdirAll(filepath.Join(base, "real", "deep"), 0o755), os.Symlink("real/deep", filepath.Join(base, "inside"))); err != nil {
		t.Fatal(err)
	}
	vms := []corev1.VolumeMount{
		{Name: "cm", MountPath: "/a", SubPath: "a"},
		{Name: "dir", MountPath: "/i", SubPath: "inside"},
		{Name: "dir", MountPath: "/n", SubPathExpr: "logs/$(POD)/x"},
		{Name: "dir", MountPath: "/all", SubPath: "."},
	}
	got, err := mounts(t, m, pod, vms...)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(got[0].HostPath); err != nil || string(b) != "1" {
		t.Errorf("a file of a ConfigMap: %q, %v", b, err)
	}
	for i, real := range map[int]string{1: "real/deep", 2: "logs/web/x"} {
		if err := os.WriteFile(filepath.Join(got[i].HostPath, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(base, real, "f")); err != nil {
			t.Errorf("%s is not what %s shows: %v", real, got[i].HostPath, err)
		}
	}
	if info, err := os.Stat(filepath.Join(base, "logs", "web")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("a directory that was made: %v, %v", info.Mode(), err)
	}
	if got[3].HostPath != base {
		t.Errorf("the whole volume is at %s", got[3].HostPath)
	}
	// The container's link now leads out; what is mounted is still what was checked, and the next attempt is refused.
	if err := errors.Join(os.Remove(filepath.Join(base, "inside")), os.Symlink("/etc", filepath.Join(base, "inside"))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(got[1].HostPath, "passwd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount followed the link: %v", err)
	}
	if _, err := mounts(t, m, pod, vms...); !errors.Is(err, ErrInvalid) {
		t.Errorf("next attempt: %v", err)
	}
	// A new attempt sees the new content, although the old one's place was a mount.
	o.configMaps["ns/cm"]["a"] = "new"
	if got, err = mounts(t, m, pod, vms[0]); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(got[0].HostPath); err != nil || string(b) != "new" {
		t.Errorf("after a refresh: %q, %v", b, err)
	}
}

// sharedMount makes a tmpfs that is a shared mount, as a node's file systems under systemd are.
func sharedMount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestUnmountLeavesTheNodesMountsAlone(t *testing.T) {
	m, _ := setup(t)
	host := sharedMount(t)
	inner := filepath.Join(host, "disk", "inner")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(inner, "kept")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := podWith(vol("host", hostPath(host, "")), vol("dir", emptyDir()))
	got, err := mounts(t, m, pod, corev1.VolumeMount{Name: "host", MountPath: "/h", SubPath: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(got[0].HostPath, "inner", "kept")); err != nil {
		t.Errorf("a mount below the subPath is not shown: %v", err)
	}
	// What a privileged container mounted into its emptyDir, and links to the node's files.
	base := m.Paths(pod)["dir"]
	foreign := filepath.Join(base, `odd name\with`, "mount")
	if err := os.MkdirAll(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(host, foreign, "", unix.MS_BIND|unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", foreign, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "x" {
		t.Errorf("the node's file after Unmount: %q, %v", b, err)
	}
	if mounted, err := isMountPoint(inner); !mounted || err != nil {
		t.Errorf("the node's mount after Unmount: %v, %v", mounted, err)
	}
	if _, err := os.Lstat(base); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the volume after Unmount: %v", err)
	}
	if err := m.Unmount(t.Context(), "uid"); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestUnmountOfABusyVolumeIsToldAndTriedAgain(t *testing.T) {
	m, _ := setup(t)
	pod := podWith(vol("disk", emptyDir()), vol("memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}))
	paths := mount(t, m, pod)
	kept := filepath.Join(paths["disk"], "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open, err := os.Create(filepath.Join(paths["memory"], "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), "uid"); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), paths["memory"]) || !strings.Contains(err.Error(), "pod uid") {
		t.Errorf("while a file is open: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("something was deleted all the same: %v", err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
}

func TestRemovalStopsAtAMount(t *testing.T) {
	top := t.TempDir()
	at := filepath.Join(top, "tree", "mount")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	shown := t.TempDir()
	kept := filepath.Join(shown, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(shown, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountAll(at); err != nil {
			t.Error(err)
		}
	})
	if err := removeTree(filepath.Join(top, "tree")); !errors.Is(err, ErrBusy) {
		t.Errorf("across a mount of the same file system: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("removed through the mount: %v", err)
	}
}

func TestPodsDoNotWaitForEachOther(t *testing.T) {
	m, _ := setup(t)
	unlock := m.lock("other")
	defer unlock()
	done := make(chan error, 1)
	go func() {
		_, err := m.Mount(t.Context(), podWith(vol("cm", configMap("cm"))), nil)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(m.locks) != 1 {
		t.Errorf("%d locks are kept", len(m.locks))
	}
}

func TestMountPointsAreReadAsTheKernelWritesThem(t *testing.T) {
	for in, want := range map[string]string{
		`/plain`: `/plain`, `/a\040b`: `/a b`, `/t\011n\012`: "/t\tn\n", `/back\134slash`: `/back\slash`, `/cut\04`: `/cut\04`, `/no\9zz`: `/no\9zz`, `/end\`: `/end\`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func FuzzValidName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "..", "../a", "/a", "a/../b", "..data", "a//b", ".", "a\x00", ".hidden", "a/..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if validName(name) != nil {
			return
		}
		root := "/volume"
		if p := filepath.Join(root, name); !strings.HasPrefix(p, root+"/") || fmt.Sprint(p) != root+"/"+name || strings.HasPrefix(name, dataLink) {
			t.Errorf("%q becomes %q", name, p)
		}
	})
}
