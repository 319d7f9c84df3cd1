package stats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// deadline only ends what hangs.
const deadline = 3 * time.Minute

// realNode is a real containerd with one pod that works and talks to itself.
type realNode struct {
	t          *testing.T
	containerd *rig.Containerd
	runtime    *runtime.Runtime
	pod        *corev1.Pod
	sandbox    string
	stats      *Stats
}

func newRealNode(t *testing.T) *realNode {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	netns, err := rig.NewNetns("stats", rig.NetnsOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, netns.Close()) })
	n := &realNode{t: t}
	n.containerd, err = rig.StartContainerd(ctx, rig.Options{Netns: netns, CNI: true})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		must(t, n.containerd.Stop(ctx))
	})
	busybox, err := image.Busybox(image.BusyboxName)
	must(t, err)
	must(t, n.containerd.Import(ctx, busybox))
	n.runtime, err = runtime.Dial(ctx, n.containerd.Endpoint(), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { n.runtime.Close() })
	logs := filepath.Join(t.TempDir(), "pods")
	n.run(ctx, logs)
	n.stats = New(Options{
		Node: "edge-1", CgroupRoot: n.containerd.CgroupParent(), DataDir: t.TempDir(), PodLogsDir: logs, Log: slog.New(slog.DiscardHandler),
		Pods: func() []*corev1.Pod { return []*corev1.Pod{n.pod} }, Runtime: func() (Runtime, error) { return n.runtime, nil },
	})
	return n
}

// run starts the pod: it burns processor time, holds 20 MB, writes 5 MB and a log.
func (n *realNode) run(ctx context.Context, logs string) {
	n.t.Helper()
	script := `head -c 5000000 /dev/zero >/big; x=$(head -c 20000000 /dev/zero | tr '\0' x); i=0; while :; do i=$((i+1)); test $((i%100000)) = 0 && echo line $i; done`
	n.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: types.UID(uuid.NewUUID()), CreationTimestamp: metav1.Now()}}
	n.pod.Spec.Containers = []corev1.Container{{Name: "main", Image: image.BusyboxName, Command: []string{"sh", "-c", script}}}
	n.pod.Status.Phase = corev1.PodRunning
	root := n.containerd.CgroupParent()
	must(n.t, runtime.EnsurePodCgroup(root, "cgroupfs", n.pod))
	spec := runtime.SandboxSpec{Pod: n.pod, LogDir: runtime.LogDir(logs, n.pod), CgroupParent: runtime.CgroupParent(root, "cgroupfs", n.pod)}
	var err error
	n.sandbox, err = n.runtime.RunSandbox(ctx, spec)
	must(n.t, err)
	c := &n.pod.Spec.Containers[0]
	id, err := n.runtime.CreateContainer(ctx, runtime.ContainerSpec{Pod: n.pod, Container: c, SandboxID: n.sandbox, Sandbox: spec, ImageRef: c.Image, Command: c.Command})
	must(n.t, err)
	must(n.t, n.runtime.StartContainer(ctx, id))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *realNode) get(path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	n.stats.Handler().ServeHTTP(w, httptest.NewRequestWithContext(n.t.Context(), http.MethodGet, path, nil))
	return w
}

// await polls until check is content.
func (n *realNode) await(what string, check func() error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			n.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// sample is a value of a series and its time in milliseconds.
func sample(body, series string) (value float64, at int64, err error) {
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, series+" ")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if value, err = strconv.ParseFloat(f[0], 64); err != nil || len(f) < 2 {
			return value, 0, err
		}
		at, err = strconv.ParseInt(f[1], 10, 64)
		return value, at, err
	}
	return 0, 0, fmt.Errorf("no %s", series)
}

func TestRealFiguresArePlausibleAndGrow(t *testing.T) {
	n := newRealNode(t)
	const web = `{container="main",namespace="shop",pod="web"}`
	series := map[string]float64{ // what each is at least
		"node_cpu_usage_seconds_total": 0.01, "node_memory_working_set_bytes": 1 << 20,
		"container_cpu_usage_seconds_total" + web: 0.001, "container_memory_working_set_bytes" + web: 15e6,
		`pod_cpu_usage_seconds_total{namespace="shop",pod="web"}`: 0.001, `pod_memory_working_set_bytes{namespace="shop",pod="web"}`: 15e6,
		"container_start_time_seconds" + web: float64(n.pod.CreationTimestamp.Unix()),
	}
	first := map[string]float64{}
	n.await("all figures", func() error {
		body := n.get("/metrics/resource").Body.String()
		for s, least := range series {
			v, at, err := sample(body, s)
			if err == nil && v < least {
				err = fmt.Errorf("%s is %g, want %g at least", s, v, least)
			}
			if age := time.Since(time.UnixMilli(at)); err == nil && !strings.HasPrefix(s, "container_start") && (age < -time.Second || age > time.Minute) {
				err = fmt.Errorf("%s is of %s ago", s, age)
			}
			if err != nil {
				return err
			}
			first[s] = v
		}
		if v, _, err := sample(body, "resource_scrape_error"); err != nil || v != 0 {
			return fmt.Errorf("resource_scrape_error %g, %v", v, err)
		}
		return nil
	})
	n.await("processor time grows", func() error {
		body := n.get("/metrics/resource").Body.String()
		for s := range series {
			if v, _, err := sample(body, s); strings.Contains(s, "cpu_usage") && (err != nil || v <= first[s]) {
				return fmt.Errorf("%s is %g, was %g: %v", s, v, first[s], err)
			}
		}
		return nil
	})
	n.await("the summary", func() error { return n.checkSummary() })
	n.checkDeadRuntime()
}

func (n *realNode) checkSummary() error {
	w := n.get("/stats/summary")
	var s statsapi.Summary
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != http.StatusOK {
		return fmt.Errorf("%d %s: %w", w.Code, w.Body, err)
	}
	if len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 {
		return fmt.Errorf("pods %+v", s.Pods)
	}
	p, c := s.Pods[0], s.Pods[0].Containers[0]
	switch {
	case p.PodRef.UID != string(n.pod.UID) || c.Name != "main":
		return fmt.Errorf("pod %+v, container %s", p.PodRef, c.Name)
	case c.CPU.UsageNanoCores == nil || *c.CPU.UsageNanoCores < 1e6 || *c.CPU.UsageNanoCores > 64e9:
		return fmt.Errorf("the container's rate: %+v", c.CPU)
	case p.CPU.UsageNanoCores == nil || *p.CPU.UsageCoreNanoSeconds+uint64(time.Second) < *c.CPU.UsageCoreNanoSeconds:
		return fmt.Errorf("the pod used %d, its container %d", *p.CPU.UsageCoreNanoSeconds, *c.CPU.UsageCoreNanoSeconds)
	case p.Network == nil || p.Network.Name != "eth0":
		return fmt.Errorf("network %+v", p.Network)
	case c.Rootfs.UsedBytes == nil || *c.Rootfs.UsedBytes < 5e6 || *c.Rootfs.CapacityBytes == 0:
		return errors.New("the container's layer is not known yet") // containerd looks every 10 s
	case *c.Logs.UsedBytes == 0 || *p.EphemeralStorage.UsedBytes < 5e6:
		return fmt.Errorf("logs %d, ephemeral storage %d", *c.Logs.UsedBytes, *p.EphemeralStorage.UsedBytes)
	case *s.Node.Runtime.ImageFs.UsedBytes == 0 || *s.Node.Fs.CapacityBytes == 0 || s.Node.Network == nil || *s.Node.Memory.AvailableBytes == 0:
		return fmt.Errorf("node %+v", s.Node)
	case len(s.Node.SystemContainers) != 2 || *s.Node.SystemContainers[0].Memory.WorkingSetBytes < 15e6:
		return fmt.Errorf("all pods together and edgecore: %+v", s.Node.SystemContainers)
	}
	return nil
}

// checkDeadRuntime: without containerd the node's own figures go on.
func (n *realNode) checkDeadRuntime() {
	t := n.t
	must(t, n.containerd.Kill9())
	began := time.Now()
	n.await("the runtime's absence is told", func() error {
		if w := n.get("/stats/summary"); w.Code != http.StatusServiceUnavailable {
			return fmt.Errorf("%d %s", w.Code, w.Body)
		}
		return nil
	})
	if took := time.Since(began); took > keepUsage+2*patience {
		t.Errorf("it took %s", took)
	}
	body := n.get("/metrics/resource").Body.String()
	if v, _, err := sample(body, "resource_scrape_error"); err != nil || v != 1 {
		t.Errorf("resource_scrape_error %g, %v", v, err)
	}
	if v, _, err := sample(body, "node_memory_working_set_bytes"); err != nil || v == 0 {
		t.Errorf("the node's memory: %g, %v", v, err)
	}
	must(t, n.containerd.Start(t.Context()))
	n.await("it is back", func() error {
		if w := n.get("/stats/summary"); w.Code != http.StatusOK {
			return fmt.Errorf("%d %s", w.Code, w.Body)
		}
		return nil
	})
}
