package stream_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/stream"
	"github.com/holdfast-edge/holdfast/edge/volume"
	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// patience only ends what hangs.
const patience = 3 * time.Minute

// forever is a script that runs until it is told to end.
const forever = "trap 'exit 0' TERM; while :; do sleep 1; done"

// node is a real containerd with pods that edge/pod runs, and a server of its API.
type node struct {
	*api
	t          *testing.T
	dir        string
	containerd *rig.Containerd
	runtime    *runtime.Runtime
	store      *store.Store
	manager    *pod.Manager
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	netns, err := rig.NewNetns("stream", rig.NetnsOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, netns.Close()) })
	n.containerd, err = rig.StartContainerd(t.Context(), rig.Options{Netns: netns, CNI: true})
	must(t, err)
	t.Cleanup(func() {
		if b, err := os.ReadFile(n.containerd.Log()); t.Failed() && err == nil {
			t.Logf("containerd's log:\n%s", b[max(0, len(b)-10_000):])
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, n.containerd.Stop(ctx))
	})
	busybox, err := image.Busybox(image.BusyboxName)
	must(t, err)
	must(t, n.containerd.Import(t.Context(), busybox))
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.store, err = store.Open(filepath.Join(n.dir, "store.db"), store.Options{})
	must(t, err)
	t.Cleanup(func() { n.store.Close() })
	n.runtime, err = runtime.Dial(t.Context(), n.containerd.Endpoint(), log)
	must(t, err)
	t.Cleanup(func() { n.runtime.Close() })
	n.manager, err = pod.New(pod.Options{
		Store: n.store, Runtime: n.runtime, Log: log, NodeName: "edge-1", DataDir: n.dir, PodLogsDir: filepath.Join(n.dir, "logs"),
		Volumes: volume.New(filepath.Join(n.dir, "pods"), nil, log), HostIPs: func() []string { return []string{"192.0.2.11"} },
		Cgroups: cgroups{n.containerd.CgroupParent()},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.manager.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the manager ended with %v", err)
		}
	})
	n.api = serve(t, stream.Options{
		Node: "edge-1", Pods: n.manager.Pods, PodLogsDir: filepath.Join(n.dir, "logs"), Log: log,
		Runtime: func() (stream.Runtime, error) { return n.runtime, nil },
		Dial:    func(_ context.Context, _, address string) (net.Conn, error) { return netns.Dial(address) },
	})
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

type cgroups struct{ root string }

func (c cgroups) Parent(p *corev1.Pod) string { return runtime.CgroupParent(c.root, "cgroupfs", p) }
func (c cgroups) Ensure(p *corev1.Pod) error {
	return runtime.EnsurePodCgroup(c.root, "cgroupfs", p)
}
func (c cgroups) Remove(p *corev1.Pod) error {
	return runtime.RemovePodCgroup(c.root, "cgroupfs", string(p.UID))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: image.BusyboxName, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"/bin/sh", "-c", script}}
}

func newPod(name string, containers ...corev1.Container) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 1}}
	grace := int64(1)
	p.Spec = corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, NodeName: "edge-1", TerminationGracePeriodSeconds: &grace, Containers: containers}
	return p
}

// apply stores a pod as if the hub had sent it.
func (n *node) apply(p *corev1.Pod) {
	n.t.Helper()
	b, err := p.Marshal()
	must(n.t, err)
	must(n.t, n.store.Apply(n.t.Context(), []*wire.Object{{Payload: b, Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD,
		Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID), Version: wire.Version(b)}}}, nil))
}

// await polls until the pod's status is as check wants it.
func (n *node) await(p *corev1.Pod, what string, check func(*corev1.PodStatus) bool) *corev1.PodStatus {
	n.t.Helper()
	var found *corev1.PodStatus
	eventually(n.t, what, func() error {
		for _, have := range n.manager.Pods() {
			if have.UID == p.UID && check(&have.Status) {
				found = &have.Status
				return nil
			}
		}
		return errors.New("not yet")
	})
	return found
}

func running(s *corev1.PodStatus) bool {
	for _, c := range s.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return len(s.ContainerStatuses) > 0
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// api is a server to which streams are opened as the hub does: one for each request.
type api struct {
	t       *testing.T
	server  *stream.Server
	options stream.Options
	client  *http.Client
	cut     context.CancelFunc // ends the session of the streams
	serving *atomic.Int32      // streams that are served now
}

func serve(t *testing.T, o stream.Options) *api {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cut := context.WithCancel(context.Background())
	a := &api{t: t, server: stream.New(o), options: o, cut: cut, serving: new(atomic.Int32)}
	accepted := make(chan struct{})
	var streams sync.WaitGroup
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.serving.Add(1)
			streams.Go(func() {
				defer a.serving.Add(-1)
				a.server.Serve(ctx, c.(*net.TCPConn))
			})
		}
	}()
	a.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}}}
	t.Cleanup(func() {
		cut()
		l.Close()
		<-accepted
		over := make(chan struct{})
		go func() { streams.Wait(); close(over) }()
		select {
		case <-over:
		case <-time.After(patience):
			t.Error("streams are still served after the session's end")
		}
	})
	return a
}

// get makes a request and reads the answer.
func (a *api) get(path string) (int, string) {
	a.t.Helper()
	return a.call(http.MethodGet, path)
}

func (a *api) call(method, path string) (int, string) {
	a.t.Helper()
	request, err := http.NewRequestWithContext(a.t.Context(), method, "http://edge-1"+path, nil)
	must(a.t, err)
	response, err := a.client.Do(request)
	must(a.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v, after %.200q", method, path, err, body)
	}
	return response.StatusCode, string(body)
}

// want makes a request that is to be answered well.
func (a *api) want(path string) string {
	a.t.Helper()
	code, body := a.get(path)
	if code != http.StatusOK {
		a.t.Fatalf("GET %s: %d %s", path, code, body)
	}
	return body
}

func lines(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") }
