package runtime

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/edge/containerlog"
)

const (
	openNoFollow = syscall.O_NOFOLLOW
	openNonBlock = syscall.O_NONBLOCK
)

// Rotation bounds the logs of containers, as the kubelet's containerLogMaxSize and containerLogMaxFiles do.
type Rotation struct {
	MaxSize  int64         // bytes; 0 is 10 MiB
	MaxFiles int           // files of one container, the present one included; 0 is 5, and 2 is the least
	Interval time.Duration // between two looks; 0 is 10 seconds
}

func (o Rotation) withDefaults() Rotation {
	if o.MaxSize <= 0 {
		o.MaxSize = 10 << 20
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = 5
	}
	o.MaxFiles = max(o.MaxFiles, 2)
	if o.Interval <= 0 {
		o.Interval = 10 * time.Second
	}
	return o
}

// RotateLogs looks after the logs of running containers until ctx ends: one that has grown beyond MaxSize is renamed, the
// runtime opens a new one, and older ones are compressed and at last removed. A failure is logged once for each
// container and tried again at the next look.
func (r *Runtime) RotateLogs(ctx context.Context, o Rotation) error {
	o = o.withDefaults()
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	failing := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		failing = r.rotateAll(ctx, o, failing)
	}
}

func (r *Runtime) rotateAll(ctx context.Context, o Rotation, failing map[string]bool) map[string]bool {
	running := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	list, err := r.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: running})
	if err != nil {
		return failing // containerd is away; the event stream has said so
	}
	still := map[string]bool{}
	for _, c := range list.Containers {
		st, err := r.containerStatus(ctx, c)
		if err != nil || st.LogPath == "" {
			continue
		}
		if err := r.rotate(ctx, c.Id, st.LogPath, o, time.Now()); err != nil && ctx.Err() == nil {
			still[c.Id] = true
			if !failing[c.Id] {
				r.log.Warn("log of a container could not be rotated", "container", c.Id, "file", st.LogPath, "error", err)
			}
		}
	}
	return still
}

// rotate looks at one container's log.
func (r *Runtime) rotate(ctx context.Context, id, path string, o Rotation, now time.Time) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		// A rename without a reopen, by a crash between the two, leaves the runtime writing to the renamed file.
		return r.reopen(ctx, id)
	} else if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() < o.MaxSize {
		return nil
	}
	old, err := rotatedLogs(path)
	if err != nil {
		return err
	}
	// The present log and the one just renamed stay plain; of the older ones so many stay as fit.
	if excess := len(old) - (o.MaxFiles - 2); excess > 0 {
		for _, f := range old[:excess] {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		old = old[excess:]
	}
	for _, f := range old {
		if !strings.HasSuffix(f, ".gz") {
			if err := compress(f); err != nil {
				return err
			}
		}
	}
	renamed, err := freeName(path, now)
	if err != nil {
		return err
	}
	if err := os.Rename(path, renamed); err != nil {
		return err
	}
	if err := r.reopen(ctx, id); err != nil {
		// Back, unless the runtime has opened a new log all the same: that one must not be lost.
		back := unix.Renameat2(unix.AT_FDCWD, renamed, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if errors.Is(back, unix.EEXIST) {
			back = nil
		}
		return errors.Join(err, back)
	}
	return nil
}

// reopen goes on when ctx ends: a log that is renamed and not opened again would be written to in its old place.
func (r *Runtime) reopen(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	_, err := r.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
	if err != nil {
		if err = wrap(err); errors.Is(err, ErrNotFound) {
			return nil
		}
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}

// freeName is <log>.<time>; the clock of an edge may stand still or go back, so the name is made to sort behind those
// that are there.
func freeName(path string, now time.Time) (string, error) {
	old, err := rotatedLogs(path)
	if err != nil {
		return "", err
	}
	const layout = containerlog.RotatedLayout
	last := ""
	if len(old) > 0 {
		last = strings.TrimSuffix(strings.TrimPrefix(old[len(old)-1], path+"."), ".gz")
	}
	name := now.Format(layout)
	if name <= last {
		t, err := time.Parse(layout, last)
		if err != nil {
			return "", fmt.Errorf("rotated log %s has a name that is no time", old[len(old)-1])
		}
		name = t.Add(time.Second).Format(layout)
	}
	return path + "." + name, nil
}

// rotatedLogs lists the earlier files of a log, oldest first, and removes what a crash left half compressed. What is no
// file is passed over: a pod to which the directory is mounted may have put there what it likes.
func rotatedLogs(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	prefix := filepath.Base(path) + "."
	plain := map[string]bool{}
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !e.Type().IsRegular() {
			continue
		}
		full := filepath.Join(filepath.Dir(path), e.Name())
		suffix := strings.TrimPrefix(e.Name(), prefix)
		if strings.HasSuffix(suffix, ".tmp") {
			if err := os.Remove(full); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		if _, err := time.Parse(containerlog.RotatedLayout, strings.TrimSuffix(suffix, ".gz")); err != nil {
			continue // not ours
		}
		plain[full] = !strings.HasSuffix(full, ".gz")
		out = append(out, full)
	}
	sort.Strings(out)
	// A plain file beside its compressed form: the crash came before the plain one was removed.
	kept := out[:0]
	for _, f := range out {
		if plain[strings.TrimSuffix(f, ".gz")] && strings.HasSuffix(f, ".gz") {
			if err := os.Remove(strings.TrimSuffix(f, ".gz")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			kept = kept[:len(kept)-1] // the plain one sorts right before it
		}
		kept = append(kept, f)
	}
	return kept, nil
}

// compress follows no link and waits for no FIFO, whatever has been put in a file's place meanwhile: what a link leads to
// would be there for whoever may read logs, and a FIFO would stop the rotation of all.
func compress(path string) (err error) {
	in, err := os.OpenFile(path, os.O_RDONLY|openNoFollow|openNonBlock, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("compress %s: it is no file: remove it", path)
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_EXCL|openNoFollow, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("compress %s: %w", path, err)
	}
	if err := os.Rename(tmp, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}

// linkLog makes the link that log collectors follow: <logs>/containers/<pod>_<namespace>_<container>-<id>.log beside
// the directory of the pods' logs, which is /var/log/containers beside /var/log/pods.
func linkLog(logDir, logPath string, pod *corev1.Pod, container, id string) error {
	dir := linksDir(logDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := pod.Name + "_" + pod.Namespace + "_" + container
	if most := 255 - len("-.log") - len(id); len(name) > most {
		name = name[:max(most, 0)]
	}
	return os.Symlink(filepath.Join(logDir, logPath), filepath.Join(dir, name+"-"+id+".log"))
}

// linksDir is where links lie, of a pod's log directory.
func linksDir(logDir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(filepath.Clean(logDir))), "containers")
}

// removeLogs removes a container's log, its earlier files and the link to it.
func removeLogs(path, id string) error {
	old, err := rotatedLogs(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range append(old, path) {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// The directory stays for the container's next attempt, which may have been created already; RemovePodLogs ends it.
	links, err := filepath.Glob(filepath.Join(linksDir(filepath.Dir(filepath.Dir(path))), "*-"+id+".log"))
	if err != nil {
		return err
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == path {
			errs = append(errs, os.Remove(l))
		}
	}
	return errors.Join(errs...)
}

// RemovePodLogs removes a pod's log directory (LogDir) with all that is in it.
func RemovePodLogs(logDir string) error {
	if logDir == "" || filepath.Clean(logDir) == "/" {
		return fmt.Errorf("log directory %q: that is no pod's", logDir)
	}
	if err := os.RemoveAll(logDir); err != nil {
		return fmt.Errorf("remove log directory: %w", err)
	}
	return nil
}
