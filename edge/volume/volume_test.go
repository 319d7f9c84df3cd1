package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/store"
)

// objects is a set of sources that a test changes.
type objects struct {
	configMaps map[string]map[string]string
	binary     map[string][]byte
	secrets    map[string]map[string]string
	token      string
	tokenErr   error
}

func (o *objects) ConfigMap(_ context.Context, ns, name string) (*corev1.ConfigMap, error) {
	d, ok := o.configMaps[ns+"/"+name]
	if !ok {
		return nil, fmt.Errorf("configmap: %w", store.ErrNotFound)
	}
	return &corev1.ConfigMap{Data: d, BinaryData: o.binary}, nil
}

func (o *objects) Secret(_ context.Context, ns, name string) (*corev1.Secret, error) {
	d, ok := o.secrets[ns+"/"+name]
	if !ok {
		return nil, fmt.Errorf("secret: %w", ErrMissing)
	}
	s := &corev1.Secret{Data: map[string][]byte{}}
	for k, v := range d {
		s.Data[k] = []byte(v)
	}
	return s, nil
}

func (o *objects) Token(context.Context, *corev1.Pod, *corev1.ServiceAccountTokenProjection) (string, error) {
	return o.token, o.tokenErr
}

func (o *objects) Node(context.Context) (*corev1.Node, error) {
	n := &corev1.Node{}
	n.Status.Allocatable = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi"), corev1.ResourceCPU: resource.MustParse("4")}
	return n, nil
}

func setup(t *testing.T) (*Manager, *objects) {
	t.Helper()
	o := &objects{
		configMaps: map[string]map[string]string{"ns/cm": {"a": "1", "b": "2"}},
		secrets:    map[string]map[string]string{"ns/sec": {"user": "bob", "pass": "x"}},
		token:      "token-1",
	}
	m := New(filepath.Join(t.TempDir(), "pods"), o, nil)
	t.Cleanup(func() {
		if err := m.Unmount(context.Background(), "uid"); err != nil {
			t.Error(err)
		}
	})
	return m, o
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web", Namespace: "ns", UID: "uid", Labels: map[string]string{"app": "web", "tier": `front "1"`},
			Annotations: map[string]string{"note": "x"},
		},
		Spec: corev1.PodSpec{
			NodeName: "edge-1", ServiceAccountName: "runner", Volumes: volumes,
			Containers: []corev1.Container{{Name: "main"}},
		},
	}
}

func vol(name string, s corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: s}
}

func configMap(name string) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}
}

func emptyDir() corev1.VolumeSource {
	return corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
}

func hostPath(path string, t corev1.HostPathType) corev1.VolumeSource {
	return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &t}}
}

func mount(t *testing.T, m *Manager, pod *corev1.Pod) map[string]string {
	t.Helper()
	paths, err := m.Mount(t.Context(), pod, []string{"192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func ptr[T any](v T) *T { return &v }

// tree reads what a container sees: every name that does not begin with "..", its mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(dir, prefix string)
	walk = func(dir, prefix string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			p := filepath.Join(dir, e.Name())
			info, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(p, prefix+e.Name()+"/")
				continue
			}
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			out[prefix+e.Name()] = fmt.Sprintf("%o %d:%d %s", info.Mode().Perm(), st.Uid, st.Gid, b)
		}
	}
	walk(dir, "")
	return out
}

func equal(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: %s is %q, want %q", what, k, got[k], w)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: %s is there: %q", what, k, got[k])
		}
	}
}

func TestContentOfEachKind(t *testing.T) {
	m, o := setup(t)
	o.binary = map[string][]byte{"bin": {0, 255}}
	expiry := int64(600)
	pod := podWith(
		vol("cm", configMap("cm")),
		vol("items", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, DefaultMode: ptr(int32(0o640)),
			Items: []corev1.KeyToPath{{Key: "a", Path: "deep/er/a.txt"}, {Key: "b", Path: "b", Mode: ptr(int32(0o400))}},
		}}),
		vol("sec", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec", DefaultMode: ptr(int32(0o400))}}),
		vol("none", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: ptr(true)}}),
		vol("all", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &expiry}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"},
				Items: []corev1.KeyToPath{{Key: "a", Path: "ca.crt"}, {Key: "lost", Path: "lost"}}, Optional: ptr(true)}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
		}}}),
		vol("down", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "tier", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['tier']"}},
			{Path: "ip", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}},
			{Path: "mem", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}},
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "requests.cpu", Divisor: resource.MustParse("1m")}},
		}}}),
	)
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}
	paths := mount(t, m, pod)
	for name, want := range map[string]map[string]string{
		"cm":    {"a": "644 0:0 1", "b": "644 0:0 2", "bin": "644 0:0 \x00\xff"},
		"items": {"deep/er/a.txt": "640 0:0 1", "b": "400 0:0 2"},
		"sec":   {"user": "400 0:0 bob", "pass": "400 0:0 x"},
		"none":  {},
		"all":   {"token": "644 0:0 token-1", "ca.crt": "644 0:0 1", "namespace": "644 0:0 ns"},
		"down": {"labels": "644 0:0 app=\"web\"\ntier=\"front \\\"1\\\"\"", "tier": `644 0:0 front "1"`, "ip": "644 0:0 192.0.2.7",
			"mem": "644 0:0 512", "cpu": "644 0:0 250"},
	} {
		equal(t, name, tree(t, paths[name]), want)
	}
	if want := filepath.Join(m.root, "uid", "volumes", "kubernetes.io~projected", "all"); paths["all"] != want || m.Paths(pod)["all"] != want {
		t.Errorf("path %s, %s, want %s", paths["all"], m.Paths(pod)["all"], want)
	}
	for dir := filepath.Dir(paths["sec"]); dir != filepath.Dir(m.root); dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("the node's users can pass %s: %v, %v", dir, info.Mode(), err)
		}
	}
	cms, secs := Objects(pod)
	if strings.Join(cms, " ") != "cm" || strings.Join(secs, " ") != "none sec" {
		t.Errorf("objects: %v, %v", cms, secs)
	}
}

func TestGroupAndUserOwnContent(t *testing.T) {
	m, _ := setup(t)
	pod := podWith(
		vol("cm", configMap("cm")),
		vol("tok", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}),
		vol("dir", emptyDir()),
	)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(3000)), RunAsUser: ptr(int64(1000))}
	paths := mount(t, m, pod)
	equal(t, "cm", tree(t, paths["cm"]), map[string]string{"a": "644 0:3000 1", "b": "644 0:3000 2"})
	equal(t, "tok", tree(t, paths["tok"]), map[string]string{"token": "640 1000:3000 token-1"})
	info, err := os.Stat(paths["dir"])
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Gid != 3000 || info.Mode()&fs.ModeSetgid == 0 || info.Mode().Perm() != 0o777 {
		t.Errorf("emptyDir: group %d, mode %s", st.Gid, info.Mode())
	}
	link, err := os.Readlink(filepath.Join(paths["tok"], dataLink))
	if err != nil {
		t.Fatal(err)
	}
	mount(t, m, pod)
	if again, err := os.Readlink(filepath.Join(paths["tok"], dataLink)); err != nil || again != link {
		t.Errorf("mounting again wrote anew: %s, %s, %v", link, again, err)
	}
}

func TestRefreshSwapsAllFilesAtOnce(t *testing.T) {
	m, o := setup(t)
	pod := podWith(vol("cm", configMap("cm")), vol("later", configMap("cm")))
	only := podWith(pod.Spec.Volumes[0])
	dir := mount(t, m, only)["cm"]
	if changed, err := m.Refresh(t.Context(), pod); changed || err != nil {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
	if _, err := os.Stat(m.Paths(pod)["later"]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a volume that was not mounted: %v", err)
	}
	// A reader who holds the old generation open goes on seeing it whole.
	old, err := os.Open(filepath.Join(dir, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	o.configMaps["ns/cm"] = map[string]string{"a": "new", "c": "3"}
	if changed, err := m.Refresh(t.Context(), pod); !changed || err != nil {
		t.Fatalf("after a change: %v, %v", changed, err)
	}
	equal(t, "cm", tree(t, dir), map[string]string{"a": "644 0:0 new", "c": "644 0:0 3"})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 { // ..data, its generation, a, c
		t.Errorf("left in the volume: %v", entries)
	}
	delete(o.configMaps, "ns/cm")
	if changed, err := m.Refresh(t.Context(), only); changed || !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "ns/web: volume cm") {
		t.Errorf("the object has gone: %v, %v", changed, err)
	}
	mount(t, m, only) // keeps what it has
	equal(t, "cm", tree(t, dir), map[string]string{"a": "644 0:0 new", "c": "644 0:0 3"})
}

func TestPowerCutIsRepaired(t *testing.T) {
	for name, damage := range map[string]func(dir, gen string) error{
		"torn file":           func(_, gen string) error { return os.Truncate(filepath.Join(gen, "a"), 0) },
		"other bytes":         func(_, gen string) error { return os.WriteFile(filepath.Join(gen, "a"), []byte("9"), 0o644) },
		"lost file":           func(_, gen string) error { return os.Remove(filepath.Join(gen, "a")) },
		"wrong mode":          func(_, gen string) error { return os.Chmod(filepath.Join(gen, "a"), 0o600) },
		"extra file":          func(_, gen string) error { return os.WriteFile(filepath.Join(gen, "z"), nil, 0o644) },
		"link to nothing":     func(_, gen string) error { return os.RemoveAll(gen) },
		"no link":             func(dir, _ string) error { return os.Remove(filepath.Join(dir, dataLink)) },
		"link elsewhere":      func(dir, _ string) error { return relink(dir, "/etc") },
		"swap not finished":   func(dir, _ string) error { return os.Symlink("..gen-x", filepath.Join(dir, dataLinkNew)) },
		"generation unlinked": func(dir, _ string) error { return os.MkdirAll(filepath.Join(dir, "..gen-half", "a"), 0o700) },
		"name not linked":     func(dir, _ string) error { return os.Remove(filepath.Join(dir, "a")) },
		"name is a file": func(dir, _ string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "a")), os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := setup(t)
			pod := podWith(vol("cm", configMap("cm")))
			dir := mount(t, m, pod)["cm"]
			gen, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(dir, filepath.Join(dir, gen)); err != nil {
				t.Fatal(err)
			}
			mount(t, m, pod)
			equal(t, "after the repair", tree(t, dir), map[string]string{"a": "644 0:0 1", "b": "644 0:0 2"})
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
				t.Errorf("left in the volume: %v, %v", entries, err)
			}
		})
	}
}

func relink(dir, to string) error {
	return errors.Join(os.Remove(filepath.Join(dir, dataLink)), os.Symlink(to, filepath.Join(dir, dataLink)))
}

func TestWhatCannotBeMountedIsNamed(t *testing.T) {
	m, o := setup(t)
	o.secrets["ns/dots"] = map[string]string{"..data": "x"}
	for name, c := range map[string]struct {
		source corev1.VolumeSource
		class  error
		text   string
	}{
		"no config map": {configMap("none"), ErrMissing, "configMap ns/none"},
		"no secret":     {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}}, ErrMissing, "secret ns/none"},
		"no key": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec",
			Items: []corev1.KeyToPath{{Key: "lost", Path: "x"}}}}, ErrMissing, "key lost"},
		"path out": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec",
			Items: []corev1.KeyToPath{{Key: "user", Path: "../../x"}}}}, ErrInvalid, "../../x"},
		"absolute path": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec",
			Items: []corev1.KeyToPath{{Key: "user", Path: "/x"}}}}, ErrInvalid, "/x"},
		"reserved name": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "dots"}}, ErrInvalid, "..data"},
		"claim":         {corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}, ErrUnsupported, "persistentVolumeClaim"},
		"huge pages":    {corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumHugePages}}, ErrUnsupported, "HugePages"},
		"field": {corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "f", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.dnsPolicy"}}}}}, ErrUnsupported, "spec.dnsPolicy"},
	} {
		_, err := m.Mount(t.Context(), podWith(vol("v", c.source)), nil)
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "pod ns/web: volume v") {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.tokenErr = errors.New("the line is down")
	_, err := m.Mount(t.Context(), podWith(vol("v", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}})), nil)
	if !errors.Is(err, o.tokenErr) || !strings.Contains(err.Error(), "service account ns/runner") {
		t.Errorf("token: %v", err)
	}
	bad := podWith(vol("v", emptyDir()))
	for _, uid := range []string{"", "..", "a/b", "../../etc"} {
		bad.UID = "x"
		if err := m.Unmount(t.Context(), uid); !errors.Is(err, ErrInvalid) {
			t.Errorf("UID %q: %v", uid, err)
		}
	}
	bad.Spec.Volumes[0].Name = "../v"
	if _, err := m.Mount(t.Context(), bad, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a volume name that leads out: %v", err)
	}
}

func TestHostPathTypes(t *testing.T) {
	m, _ := setup(t)
	dir := t.TempDir()
	plain, sock := filepath.Join(dir, "file"), filepath.Join(dir, "sock")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	device := filepath.Join(dir, "block")
	if err := unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 99))); err != nil {
		t.Fatal(err)
	}
	is := map[string][]corev1.HostPathType{
		dir:         {corev1.HostPathUnset, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate},
		plain:       {corev1.HostPathUnset, corev1.HostPathFile, corev1.HostPathFileOrCreate},
		sock:        {corev1.HostPathUnset, corev1.HostPathSocket},
		"/dev/null": {corev1.HostPathUnset, corev1.HostPathCharDev},
		device:      {corev1.HostPathUnset, corev1.HostPathBlockDev},
	}
	all := []corev1.HostPathType{corev1.HostPathUnset, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile,
		corev1.HostPathFileOrCreate, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev, "Other"}
	for path, fits := range is {
		for _, kind := range all {
			want := false
			for _, f := range fits {
				want = want || f == kind
			}
			paths, err := m.Mount(t.Context(), podWith(vol("h", hostPath(path, kind))), nil)
			switch {
			case want && (err != nil || paths["h"] != path):
				t.Errorf("%s as %q: %v, %v", path, kind, paths, err)
			case !want && !errors.Is(err, ErrInvalid):
				t.Errorf("%s as %q: %v", path, kind, err)
			}
		}
	}
	missing := filepath.Join(dir, "none")
	for _, kind := range []corev1.HostPathType{corev1.HostPathDirectory, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev} {
		if _, err := m.Mount(t.Context(), podWith(vol("h", hostPath(missing, kind))), nil); !errors.Is(err, ErrMissing) {
			t.Errorf("nothing as %s: %v", kind, err)
		}
	}
	made := filepath.Join(dir, "made", "deep")
	mount(t, m, podWith(vol("h", hostPath(made, corev1.HostPathDirectoryOrCreate))))
	mount(t, m, podWith(vol("h", hostPath(filepath.Join(made, "f"), corev1.HostPathFileOrCreate))))
	if info, err := os.Stat(filepath.Join(made, "f")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("created: %v, %v", info, err)
	}
	for _, path := range []string{"relative", "/a/../../b"} {
		if _, err := m.Mount(t.Context(), podWith(vol("h", hostPath(path, ""))), nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := m.Unmount(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(plain); err != nil {
		t.Errorf("the node's file after Unmount: %v", err)
	}
}

func TestEmptyDirKeepsItsFilesAndMemoryHasASize(t *testing.T) {
	m, _ := setup(t)
	limit := resource.MustParse("1Mi")
	pod := podWith(vol("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}),
		vol("memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit}}))
	paths := mount(t, m, pod)
	for _, p := range paths {
		if err := os.WriteFile(filepath.Join(p, "kept"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o777 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	if err := os.Chmod(paths["disk"], 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, m, pod)
	for _, p := range paths {
		if _, err := os.Stat(filepath.Join(p, "kept")); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(paths["disk"]); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the pod's own mode was changed to %v (%v)", info.Mode(), err)
	}
	if mounted, err := isMountPoint(paths["memory"]); !mounted || err != nil {
		t.Errorf("memory is mounted: %v, %v", mounted, err)
	}
	if err := os.WriteFile(filepath.Join(paths["memory"], "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("2 MiB in 1 MiB: %v", err)
	}
	if over, err := m.OverSize(pod); len(over) != 0 || err != nil {
		t.Errorf("within the limit: %v, %v", over, err)
	}
	if err := os.MkdirAll(filepath.Join(paths["disk"], "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths["disk"], "sub", "big"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if over, err := m.OverSize(pod); err != nil || len(over) != 1 || over[0].Volume != "disk" || over[0].Used < 2<<20 || over[0].Limit != 1<<20 {
		t.Errorf("beyond the limit: %v, %v", over, err)
	}
	if err := m.Unmount(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after Unmount: %v", p, err)
		}
	}
}
