package stats

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// start is when the tests' containers were started.
var start = time.UnixMilli(1_700_000_000_123).UTC()

// fakeRuntime answers what a test says.
type fakeRuntime struct {
	calls atomic.Int32
	usage func(ctx context.Context) ([]runtime.Usage, error)
}

func (f *fakeRuntime) Usage(ctx context.Context) ([]runtime.Usage, error) {
	f.calls.Add(1)
	return f.usage(ctx)
}

func (f *fakeRuntime) ImageUsage(context.Context) (runtime.FilesystemUsage, error) {
	return runtime.FilesystemUsage{MountPoint: "/", Bytes: ptr(5000)}, nil
}

func ptr(n uint64) *uint64 { return &n }

// machine is a Stats on a machine of files.
type machine struct {
	*Stats
	t       *testing.T
	root    string
	runtime *fakeRuntime
	pods    []*corev1.Pod
}

func newMachine(t *testing.T, unified bool, now func() time.Time) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), runtime: &fakeRuntime{}}
	m.runtime.usage = func(context.Context) ([]runtime.Usage, error) { return nil, nil }
	m.Stats = New(Options{
		Node: "edge-1", Pods: func() []*corev1.Pod { return m.pods }, Runtime: func() (Runtime, error) { return m.runtime, nil },
		DataDir: m.root, PodLogsDir: filepath.Join(m.root, "logs"), Now: now, Log: slog.New(slog.DiscardHandler), root: m.root,
	})
	m.cgroups.unified = unified
	return m
}

// write makes files of the kernel's.
func (m *machine) write(files map[string]string) {
	m.t.Helper()
	for name, content := range files {
		path := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			m.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) get(path string, header ...string) *httptest.ResponseRecorder {
	m.t.Helper()
	r := httptest.NewRequestWithContext(m.t.Context(), http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	return w
}

func (m *machine) summaryOf(path string) statsapi.Summary {
	m.t.Helper()
	w := m.get(path)
	var s statsapi.Summary
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != http.StatusOK {
		m.t.Fatalf("%s: %d %s: %v", path, w.Code, w.Body, err)
	}
	return s
}

func unpacked(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func newPod(name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.NewTime(start)}}
	p.Spec.Containers = []corev1.Container{{Name: "main"}}
	p.Status.Phase, p.Status.QOSClass = corev1.PodRunning, corev1.PodQOSBestEffort
	return p
}

func used(p *corev1.Pod, container string, cpu, memory uint64) runtime.Usage {
	return runtime.Usage{
		ID: "id-" + p.Name + "-" + container, PodUID: string(p.UID), Namespace: p.Namespace, Pod: p.Name, Name: container, Image: "example.test/shop:1",
		StartedAt: start, CPUTime: start.Add(time.Minute), CPU: &cpu, MemoryTime: start.Add(time.Minute), WorkingSet: &memory, Memory: ptr(2 * memory),
		RSS: ptr(memory / 2), Available: ptr(0), Layer: &runtime.FilesystemUsage{Time: start, Bytes: ptr(700), Inodes: ptr(7)},
	}
}
