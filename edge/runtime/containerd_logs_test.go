package runtime_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// writer prints numbered lines, and now and then one that is longer than the runtime puts into one log entry, until
// /tmp/stop appears.
const writer = `i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1)); echo line $i
  if [ $((i % 50)) = 0 ]; then head -c 40000 /dev/zero | tr '\0' x; echo; fi
done
echo end $i
touch /tmp/done; sleep 100000`

func (n *node) rotation(t *testing.T) {
	rotate := func(t *testing.T, maxFiles int, enough func(log string) error) string {
		r := n.run(t, newPod("rotation-"+strconv.Itoa(maxFiles), "sh", "-c", writer))
		id := r.start(t)
		log := r.inspect(t).Containers[0].LogPath
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- n.rt.RotateLogs(ctx, runtime.Rotation{MaxSize: 64 << 10, MaxFiles: maxFiles, Interval: 10 * time.Millisecond})
		}()
		eventually(t, "logs are rotated", func() error { return enough(log) })
		n.sh(t, id, "touch /tmp/stop")
		eventually(t, "the writer ends", func() error {
			res, err := n.rt.Exec(t.Context(), id, []string{"test", "-e", "/tmp/done"}, time.Minute)
			if err == nil && res.ExitCode != 0 {
				err = errors.New("not yet")
			}
			return err
		})
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return log
	}

	t.Run("EveryLineIsThere", func(t *testing.T) {
		log := rotate(t, 1000, func(log string) error {
			if f := files(t, log); len(f) < 5 {
				return fmt.Errorf("%d files", len(f))
			}
			return nil
		})
		next, long := 1, 0
		for _, line := range lines(t, log) {
			switch {
			case strings.HasPrefix(line, "x"):
				if long++; line != strings.Repeat("x", 40000) {
					t.Fatalf("a long line came as %d bytes", len(line))
				}
			case line == "end "+strconv.Itoa(next-1):
				next = -1
			case line != "line "+strconv.Itoa(next):
				t.Fatalf("%.60q where line %d should be", line, next)
			default:
				next++
			}
		}
		if next != -1 || long == 0 {
			t.Errorf("the log ends before the writer did (next %d, %d long lines)", next, long)
		}
	})
	t.Run("FilesAreBounded", func(t *testing.T) {
		newest := map[string]bool{}
		log := rotate(t, 3, func(log string) error {
			for _, f := range files(t, log) {
				newest[strings.TrimSuffix(f, ".gz")] = true
			}
			if len(newest) < 6 {
				return fmt.Errorf("%d files so far", len(newest))
			}
			return nil
		})
		// Two when the end came between the removal of the oldest and the renaming of the present one.
		f := files(t, log)
		if len(f) < 2 || len(f) > 3 || !strings.HasSuffix(f[0], ".gz") || f[len(f)-1] != log {
			t.Errorf("files: %v", f)
		}
	})
}

// files lists a log and its earlier parts, oldest first.
func files(t *testing.T, log string) []string {
	t.Helper()
	parts, err := filepath.Glob(log + ".*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range parts {
		if !strings.HasSuffix(p, ".tmp") {
			out = append(out, p)
		}
	}
	sort.Strings(out)
	return append(out, log)
}

// lines reads a log and its earlier parts and joins the entries of a line by their tags.
func lines(t *testing.T, log string) []string {
	t.Helper()
	var out []string
	var partial string
	for _, name := range files(t, log) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if b, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		s := bufio.NewScanner(bytes.NewReader(b))
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			f := strings.SplitN(s.Text(), " ", 4)
			if len(f) != 4 || f[1] != "stdout" {
				t.Fatalf("%s: no log entry: %.80q", name, s.Text())
			}
			partial += f[3]
			if f[2] == "F" {
				out, partial = append(out, partial), ""
			}
		}
	}
	return out
}

func (n *node) pull(t *testing.T) {
	ctx := t.Context()
	serve := func(host, user string) *image.Registry {
		l, err := n.c.Netns().Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		reg, err := image.NewRegistry(image.RegistryOptions{Listener: l, Username: user, Password: "s3cret"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reg.Close() })
		if err := n.c.SetMirror(host, reg.URL()); err != nil {
			t.Fatal(err)
		}
		img, err := image.Busybox(host + "/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		reg.Add(img)
		return reg
	}
	open, closed := serve("open.example.test", ""), serve("closed.example.test", "bob")

	const app = "open.example.test/team/app:1"
	if id, present, err := n.rt.Image(ctx, app); id != "" || present || err != nil {
		t.Errorf("before the pull: %q, %v, %v", id, present, err)
	}
	pulled, err := n.rt.Pull(ctx, app, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, present, err := n.rt.Image(ctx, app); id != pulled || !present || err != nil {
		t.Errorf("after the pull of %q: %q, %v, %v", pulled, id, present, err)
	}
	all, err := n.rt.Images(ctx)
	if err != nil {
		t.Fatal(err)
	}
	listed := false
	for _, i := range all {
		listed = listed || i.ID == pulled && strings.Contains(strings.Join(i.Names, " "), app) && i.Size > 0
	}
	if !listed {
		t.Errorf("%s is not among the node's images: %+v", app, all)
	}
	pod := newPod("pulled")
	pod.Spec.Containers[0].Image = app
	r := n.run(t, pod)
	r.start(t, func(s *runtime.ContainerSpec) { s.ImageRef = pulled })

	if _, err := n.rt.Pull(ctx, "open.example.test/team/none:1", nil); !errors.Is(err, runtime.ErrImageNotFound) || !strings.Contains(err.Error(), "team/none:1") {
		t.Errorf("an image that does not exist: %v", err)
	}
	if _, err := n.rt.Pull(ctx, "UPPER/case", nil); !errors.Is(err, runtime.ErrInvalidImage) {
		t.Errorf("a name that cannot be: %v", err)
	}
	open.SetDown(true)
	if _, err := n.rt.Pull(ctx, "open.example.test/team/other:1", nil); err == nil || errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("a mirror that is down: %v", err)
	}
	// Nothing listens on port 1, neither here nor on the node.
	if _, err := n.rt.Pull(ctx, "127.0.0.1:1/team/app:1", nil); !errors.Is(err, runtime.ErrRegistryUnreachable) {
		t.Errorf("a registry that cannot be connected to: %v", err)
	}

	const guarded = "closed.example.test/team/app:1"
	if !n.rt.RegistryReachable(ctx, guarded) {
		t.Error("a registry with a mirror counts as not reachable")
	}
	if _, err := n.rt.Pull(ctx, guarded, nil); err == nil || errors.Is(err, runtime.ErrRegistryUnreachable) {
		t.Errorf("without credentials: %v", err)
	}
	wrong := runtime.Auth{Username: "bob", Password: "wrong"}
	if _, err := n.rt.Pull(ctx, guarded, []runtime.Auth{wrong}); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
	var ring runtime.Keyring
	if err := ring.Add(&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
		corev1.DockerConfigJsonKey: []byte(`{"auths":{"https://closed.example.test/v1/":{"username":"bob","password":"s3cret"}}}`),
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.rt.Pull(ctx, guarded, append([]runtime.Auth{wrong}, ring.For(guarded)...)); err != nil {
		t.Errorf("with the right password second: %v", err)
	}
	for _, q := range closed.Requests() {
		if q.Status == 200 {
			return
		}
	}
	t.Error("the registry served nothing")
}

func (n *node) containerdKilled(t *testing.T) {
	ctx := t.Context()
	r := n.run(t, newPod("survivor"))
	id := r.start(t)
	before := r.inspect(t)
	events := n.rt.Events(ctx)
	waitEvent(t, events, runtime.Event{Kind: runtime.Resync})
	if err := n.c.Kill9(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.rt.List(ctx); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("the list while containerd is down: %v", err)
	}
	if err := n.c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// The first Resyncs may be those of the stream that broke; one after the container's end proves the new stream.
	after := r.inspectWhenUp(t)
	if len(after.Containers) != 1 || after.Containers[0].ID != id || after.Containers[0].State != runtime.Running ||
		!after.Containers[0].StartedAt.Equal(before.Containers[0].StartedAt) || !after.Sandboxes[0].Ready {
		t.Errorf("before %+v, after %+v", before, after)
	}
	waitEvent(t, events, runtime.Event{Kind: runtime.Resync})
	if err := n.rt.StopContainer(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	// Told either by its own event or by the Resync of a stream that was opened after it.
	eventually(t, "the end is told", func() error {
		select {
		case e := <-events:
			if e.ContainerID == id && e.Kind == runtime.ContainerExited || e.Kind == runtime.Resync && r.inspect(t).Containers[0].State == runtime.Exited {
				return nil
			}
		default:
		}
		return errors.New("not yet")
	})
}

// inspectWhenUp is inspect for a containerd that is only just answering.
func (r *running) inspectWhenUp(t *testing.T) *runtime.Pod {
	t.Helper()
	var out *runtime.Pod
	eventually(t, "containerd answers again", func() (err error) {
		out, err = r.n.rt.Inspect(t.Context(), string(r.pod.UID))
		if err == nil && out == nil {
			err = errors.New("the pod is gone")
		}
		return err
	})
	return out
}

func (n *node) terminationMessages(t *testing.T) {
	cases := map[string]struct {
		script string
		policy corev1.TerminationMessagePolicy
		want   string
		reason string
		exit   int32
	}{
		"file":       {"echo from file > /dev/termination-log", corev1.TerminationMessageReadFile, "from file\n", "Completed", 0},
		"longfile":   {"yes 0123456 | head -c 9000 > /dev/termination-log", corev1.TerminationMessageReadFile, strings.Repeat("0123456\n", 512), "Completed", 0},
		"nolog":      {"echo in the log; exit 3", corev1.TerminationMessageReadFile, "", "Error", 3},
		"log":        {"echo one >&2; echo two >&2; exit 3", corev1.TerminationMessageFallbackToLogsOnError, "one\ntwo\n", "Error", 3},
		"fileisbest": {"echo in the log; echo in file > /dev/termination-log; exit 3", corev1.TerminationMessageFallbackToLogsOnError, "in file\n", "Error", 3},
		"success":    {"echo in the log", corev1.TerminationMessageFallbackToLogsOnError, "", "Completed", 0},
		"lines":      {"seq 1000; exit 3", corev1.TerminationMessageFallbackToLogsOnError, numbers(921, 1000), "Error", 3},
	}
	pod := newPod("messages")
	pod.Spec.Containers = nil
	for name, c := range cases {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
			Name: name, Image: image.BusyboxName, Command: []string{"sh", "-c", c.script},
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: c.policy,
		})
	}
	r := n.run(t, pod)
	dir := t.TempDir()
	for i := range pod.Spec.Containers {
		spec := r.spec(i)
		spec.TerminationLog = runtime.TerminationLogPath(dir, spec.Container.Name, 0)
		id, err := n.rt.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.rt.StartContainer(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		want, got := cases[spec.Container.Name], r.exited(t, id)
		if got.Message != want.want || got.Reason != want.reason || got.ExitCode != want.exit {
			t.Errorf("%s: message %q, reason %s, exit code %d; want %q, %s, %d", spec.Container.Name, got.Message, got.Reason, got.ExitCode,
				want.want, want.reason, want.exit)
		}
	}
}

func numbers(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}
