package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/store"
)

// ErrMissing is wrapped when a ConfigMap, a Secret or a key in one is not on this node; it may come.
var ErrMissing = errors.New("it is not on this node")

// ErrUnsupported is wrapped for what this node cannot do for any pod.
var ErrUnsupported = errors.New("not supported on an edge node")

// ErrInvalid is wrapped for what no node could do; it stays so until the pod changes.
var ErrInvalid = errors.New("invalid")

// ErrBusy is wrapped when a mount is still in use. Unmount may be called again.
var ErrBusy = errors.New("still in use")

// Sources are the objects that volumes show. A ConfigMap or Secret that is not there is an error wrapping ErrMissing or
// edge/store's ErrNotFound.
type Sources interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	Token(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, error)
	Node(ctx context.Context) (*corev1.Node, error)
}

// Mount shows a file or directory of the node inside a container. Its fields are those of runtime.Mount, so that one
// converts to the other.
type Mount struct {
	HostPath          string
	ContainerPath     string
	ReadOnly          bool
	RecursiveReadOnly bool
	SELinuxRelabel    bool
	Propagation       corev1.MountPropagationMode // "" is None
}

// Manager keeps the volumes of all pods. It is safe for use by many goroutines; calls for one pod wait for each other.
type Manager struct {
	root    string
	sources Sources
	log     *slog.Logger

	mu    sync.Mutex
	locks map[string]*podLock
}

type podLock struct {
	mu    sync.Mutex
	users int
}

// New keeps volumes below root, which is <data-dir>/pods: a pod's lie in root/<uid>/volumes. The directory is made when
// the first pod needs it.
func New(root string, s Sources, log *slog.Logger) *Manager {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{root: filepath.Clean(root), sources: s, log: log, locks: map[string]*podLock{}}
}

// lock serialises the work on one pod.
func (m *Manager) lock(uid string) (unlock func()) {
	m.mu.Lock()
	l := m.locks[uid]
	if l == nil {
		l = &podLock{}
		m.locks[uid] = l
	}
	l.users++
	m.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		m.mu.Lock()
		if l.users--; l.users == 0 {
			delete(m.locks, uid)
		}
		m.mu.Unlock()
	}
}

// podDir is root/<uid>. A UID comes from the cloud and becomes a path: it may be nothing but a name.
func (m *Manager) podDir(uid string) (string, error) {
	if uid == "" || uid == "." || uid == ".." || strings.ContainsAny(uid, "/\x00") {
		return "", fmt.Errorf("pod UID %q: %w", uid, ErrInvalid)
	}
	return filepath.Join(m.root, uid), nil
}

// plugin is the directory below volumes/ in which a kind of volume lies, as the kubelet names it; "" for a hostPath,
// which has none, and for what is not supported.
func plugin(v *corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		return "kubernetes.io~empty-dir"
	case v.ConfigMap != nil:
		return "kubernetes.io~configmap"
	case v.Secret != nil:
		return "kubernetes.io~secret"
	case v.Projected != nil:
		return "kubernetes.io~projected"
	case v.DownwardAPI != nil:
		return "kubernetes.io~downward-api"
	}
	return ""
}

// hasContent says whether a volume's files are written from objects; containers cannot write to it.
func hasContent(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil
}

func (m *Manager) path(pod *corev1.Pod, v *corev1.Volume) (string, error) {
	if v.HostPath != nil {
		return v.HostPath.Path, nil
	}
	dir, err := m.podDir(string(pod.UID))
	if err != nil {
		return "", err
	}
	p := plugin(v)
	if p == "" {
		return "", fmt.Errorf("%s: %w", kind(v), ErrUnsupported)
	}
	if v.Name == "" || v.Name == "." || v.Name == ".." || strings.ContainsAny(v.Name, "/\x00") {
		return "", fmt.Errorf("its name: %w", ErrInvalid)
	}
	return filepath.Join(dir, "volumes", p, v.Name), nil
}

// kind names a volume's type for people.
func kind(v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return "persistentVolumeClaim"
	case v.Ephemeral != nil:
		return "ephemeral"
	case v.CSI != nil:
		return "csi"
	case v.NFS != nil:
		return "nfs"
	case v.ISCSI != nil:
		return "iscsi"
	case v.Image != nil:
		return "image"
	default:
		return "this kind of volume"
	}
}

// Paths says where each volume of a pod lies on the node, by name, whether it has been mounted or not. Volumes of
// unsupported kinds are left out.
func (m *Manager) Paths(pod *corev1.Pod) map[string]string {
	out := make(map[string]string, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		if p, err := m.path(pod, &pod.Spec.Volumes[i]); err == nil {
			out[pod.Spec.Volumes[i].Name] = p
		}
	}
	return out
}

// Mount makes all volumes of a pod ready and says where they lie, by name. It may be called for volumes that are ready:
// they stay, and their content is brought up to date. podIPs may be nil when no address is known yet. A volume whose
// object has gone but whose content is there keeps that content. The error wraps ErrMissing, ErrUnsupported or
// ErrInvalid where one of them holds.
func (m *Manager) Mount(ctx context.Context, pod *corev1.Pod, podIPs []string) (map[string]string, error) {
	defer m.lock(string(pod.UID))()
	out := make(map[string]string, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, err := m.path(pod, v)
		if err == nil {
			err = m.mountOne(ctx, pod, v, path, podIPs)
		}
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: volume %s: %w", pod.Namespace, pod.Name, v.Name, err)
		}
		out[v.Name] = path
	}
	return out, nil
}

func (m *Manager) mountOne(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, path string, podIPs []string) error {
	switch {
	case v.HostPath != nil:
		return checkHostPath(v.HostPath)
	case v.EmptyDir != nil:
		return mountEmptyDir(pod, v.EmptyDir, path)
	}
	files, err := m.content(ctx, pod, v, podIPs)
	if errors.Is(err, ErrMissing) && written(path) {
		m.log.Warn("volume keeps its last content", "pod", pod.Namespace+"/"+pod.Name, "volume", v.Name, "error", err)
		return nil
	} else if err != nil {
		return err
	}
	_, err = writeAtomically(path, files, ownerOf(pod))
	return err
}

// Refresh brings the content of a pod's volumes up to date with the objects of now; a running container sees either the
// old files or the new ones of a volume, never both. changed says whether any file did. A volume that cannot be brought
// up to date keeps its files, the others are refreshed all the same. Volumes that Mount has not made yet are left out.
func (m *Manager) Refresh(ctx context.Context, pod *corev1.Pod) (changed bool, err error) {
	defer m.lock(string(pod.UID))()
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !hasContent(v) {
			continue
		}
		path, err := m.path(pod, v)
		if err == nil && !written(path) {
			continue
		}
		var files map[string]file
		if err == nil {
			files, err = m.content(ctx, pod, v, podIPs(pod))
		}
		var wrote bool
		if err == nil {
			wrote, err = writeAtomically(path, files, ownerOf(pod))
			changed = changed || wrote
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: volume %s: %w", pod.Namespace, pod.Name, v.Name, err))
		}
	}
	return changed, errors.Join(errs...)
}

func podIPs(pod *corev1.Pod) []string {
	var out []string
	for _, ip := range pod.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// missing says whether a source has no such object.
func missing(err error) bool { return errors.Is(err, ErrMissing) || errors.Is(err, store.ErrNotFound) }

// checkHostPath holds a hostPath against its type and makes what the type says may be made.
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	want := corev1.HostPathUnset
	if h.Type != nil {
		want = *h.Type
	}
	if !filepath.IsAbs(h.Path) || hasDotDot(h.Path) {
		return fmt.Errorf("hostPath %q must be an absolute path without ..: %w", h.Path, ErrInvalid)
	}
	info, err := os.Stat(h.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hostPath: %w", err)
	}
	there := err == nil
	is := func(ok bool, what string) error {
		switch {
		case !there:
			return fmt.Errorf("hostPath %s: there is no such %s on this node: %w", h.Path, what, ErrMissing)
		case !ok:
			return fmt.Errorf("hostPath %s is not a %s, as its type %s demands: %w", h.Path, what, want, ErrInvalid)
		}
		return nil
	}
	mode := fs.FileMode(0)
	if there {
		mode = info.Mode()
	}
	switch want {
	case corev1.HostPathUnset:
		return nil // the runtime makes a directory where there is nothing, as it does for a kubelet
	case corev1.HostPathDirectoryOrCreate:
		if !there {
			if err := os.MkdirAll(h.Path, 0o755); err != nil {
				return fmt.Errorf("hostPath: %w", err)
			}
			return nil
		}
		return is(mode.IsDir(), "directory")
	case corev1.HostPathDirectory:
		return is(mode.IsDir(), "directory")
	case corev1.HostPathFileOrCreate:
		if !there {
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return fmt.Errorf("hostPath: %w", err)
			}
			return f.Close()
		}
		return is(mode.IsRegular(), "file")
	case corev1.HostPathFile:
		return is(mode.IsRegular(), "file")
	case corev1.HostPathSocket:
		return is(mode&fs.ModeSocket != 0, "socket")
	case corev1.HostPathCharDev:
		return is(mode&fs.ModeCharDevice != 0, "character device")
	case corev1.HostPathBlockDev:
		return is(mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "block device")
	}
	return fmt.Errorf("hostPath %s: type %q: %w", h.Path, want, ErrInvalid)
}

func hasDotDot(path string) bool {
	for _, part := range strings.Split(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
