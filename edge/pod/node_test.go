package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/volume"
	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// patience is how long a condition may take: it only has to end what hangs.
const patience = 3 * time.Minute

// node is a whole node but for the line: a real containerd in a network namespace, a real store and a
// manager, which can be stopped, killed and rebooted.
type node struct {
	t          *testing.T
	dir        string
	containerd *rig.Containerd
	runtime    *runtime.Runtime
	store      *store.Store
	manager    *Manager
	cancel     context.CancelFunc
	ended      chan error
	online     atomic.Bool
	asked      atomic.Int32 // tokens
}

// askToken plays the hub.
func (n *node) askToken(_ context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
	if !n.online.Load() {
		return nil, errors.New("offline")
	}
	i := n.asked.Add(1)
	return &wire.TokenAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Token: fmt.Sprintf("token-%d-%s-%v", i, ask.ServiceAccount, ask.Audiences),
		ExpiresUnix: time.Now().Add(time.Hour).Unix(), HubTimeUnixMs: time.Now().UnixMilli()}, nil
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	t.Cleanup(n.unmount)
	netns, err := rig.NewNetns("pod", rig.NetnsOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, netns.Close()) })
	n.containerd, err = rig.StartContainerd(t.Context(), rig.Options{Netns: netns, CNI: true})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			if b, err := os.ReadFile(n.containerd.Log()); err == nil {
				t.Logf("containerd's log:\n%s", tail(b))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, n.containerd.Stop(ctx))
	})
	busybox, err := image.Busybox(image.BusyboxName)
	must(t, err)
	must(t, n.containerd.Import(t.Context(), busybox))
	n.store, err = store.Open(filepath.Join(n.dir, "store.db"), store.Options{})
	must(t, err)
	t.Cleanup(func() { n.store.Close() })
	n.start()
	t.Cleanup(n.stop)
	return n
}

func tail(b []byte) []byte {
	if len(b) > 20_000 {
		return b[len(b)-20_000:]
	}
	return b
}

// unmount takes away what volumes have mounted, once nothing runs any more.
func (n *node) unmount() {
	pods, err := os.ReadDir(filepath.Join(n.dir, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Error(err)
	}
	volumes := volume.New(filepath.Join(n.dir, "pods"), nil, nil)
	for _, p := range pods {
		if err := volumes.Unmount(context.Background(), p.Name()); err != nil {
			n.t.Error(err)
		}
	}
}

// start starts the manager as edgecore does when it comes up.
func (n *node) start() {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{n.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	n.runtime, err = runtime.Dial(n.t.Context(), n.containerd.Endpoint(), log)
	must(n.t, err)
	clock, err := NewClock(nil)
	must(n.t, err)
	tokens := NewTokens(n.store, n.askToken, clock)
	n.manager, err = New(Options{
		Store: n.store, Runtime: n.runtime, Log: log, Clock: clock, Tokens: tokens,
		Volumes: volume.New(filepath.Join(n.dir, "pods"), sources{n.store, tokens}, log),
		Online:  n.online.Load, NodeName: "edge-1", DataDir: n.dir,
		PodLogsDir: filepath.Join(n.dir, "logs"), HostIPs: func() []string { return []string{"192.0.2.11"} },
		Cgroups: rigCgroups{n.containerd.CgroupParent()},
	})
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan error, 1)
	go func() { n.ended <- n.manager.Run(ctx) }()
}

// stop ends the manager; containers go on running.
func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.ended; !errors.Is(err, context.Canceled) {
		n.t.Errorf("the manager ended with %v", err)
	}
	n.runtime.Close()
	n.cancel = nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// sources is where volumes get their contents.
type sources struct {
	*store.Store
	*Tokens
}

// Tokens has a method of the same name as one of the store's; volumes want this one.
func (s sources) Token(ctx context.Context, p *corev1.Pod, want *corev1.ServiceAccountTokenProjection) (string, error) {
	return s.Tokens.Token(ctx, p, want)
}

type rigCgroups struct{ root string }

func (c rigCgroups) Parent(p *corev1.Pod) string { return runtime.CgroupParent(c.root, "cgroupfs", p) }
func (c rigCgroups) Ensure(p *corev1.Pod) error {
	return runtime.EnsurePodCgroup(c.root, "cgroupfs", p)
}
func (c rigCgroups) Remove(p *corev1.Pod) error {
	return runtime.RemovePodCgroup(c.root, "cgroupfs", string(p.UID))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply stores a pod as if the hub had sent it.
func (n *node) apply(p *corev1.Pod) {
	n.t.Helper()
	b, err := p.Marshal()
	must(n.t, err)
	must(n.t, n.store.Apply(n.t.Context(), []*wire.Object{{Payload: b, Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD,
		Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID), Version: wire.Version(b)}}}, nil))
}

// remove deletes a pod as the hub does when it is gone from the apiserver.
func (n *node) remove(p *corev1.Pod) {
	n.t.Helper()
	must(n.t, n.store.Apply(n.t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_POD, Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID)}}))
}

// reports reads the outbox as the uplink does.
func (n *node) reports() []*wire.Report {
	n.t.Helper()
	list, err := n.store.Outbox(n.t.Context(), 0, 10_000)
	must(n.t, err)
	return list
}

// status is the pod's status as last reported.
func (n *node) status(uid types.UID) *corev1.PodStatus {
	n.t.Helper()
	for _, r := range n.reports() {
		if r.Kind != wire.ReportKind_REPORT_POD_STATUS {
			continue
		}
		p := &corev1.Pod{}
		must(n.t, p.Unmarshal(r.Payload))
		if p.UID == uid {
			return &p.Status
		}
	}
	return nil
}

// gone tells whether the pod was reported to be gone.
func (n *node) gone(uid types.UID) bool {
	for _, r := range n.reports() {
		p := &corev1.Pod{}
		if r.Kind == wire.ReportKind_REPORT_POD_GONE && p.Unmarshal(r.Payload) == nil && p.UID == uid {
			return true
		}
	}
	return false
}

// events lists the reasons of the events about a pod.
func (n *node) events(uid types.UID) map[string]string {
	n.t.Helper()
	out := map[string]string{}
	for _, r := range n.reports() {
		if r.Kind != wire.ReportKind_REPORT_EVENT {
			continue
		}
		e := &corev1.Event{}
		must(n.t, e.Unmarshal(r.Payload))
		if e.InvolvedObject.UID == uid {
			out[e.Reason] = e.Message
		}
	}
	return out
}

// await polls until check is content.
func (n *node) await(what string, check func() error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
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

// awaitStatus polls the reported status.
func (n *node) awaitStatus(p *corev1.Pod, what string, check func(*corev1.PodStatus) bool) *corev1.PodStatus {
	n.t.Helper()
	var last *corev1.PodStatus
	n.await(what, func() error {
		if last = n.status(p.UID); last == nil || !check(last) {
			return fmt.Errorf("pod %s: last status: %v", p.Name, last)
		}
		return nil
	})
	return last
}

func condition(s *corev1.PodStatus, t corev1.PodConditionType) bool {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func ready(s *corev1.PodStatus) bool {
	return s.Phase == corev1.PodRunning && condition(s, corev1.PodReady)
}

// busyboxPod is a pod with one container that runs a shell script.
func busyboxPod(name, script string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 1}}
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	p.Spec.NodeName = "edge-1"
	zero := int64(1)
	p.Spec.TerminationGracePeriodSeconds = &zero
	p.Spec.Containers = []corev1.Container{shell("main", script)}
	return p
}

func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: image.BusyboxName, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"/bin/sh", "-c", script}, TerminationMessagePath: "/dev/termination-log",
		TerminationMessagePolicy: corev1.TerminationMessageReadFile}
}

var errStill = errors.New("not yet")

// settled tells whether the pod's worker exists, has observed and has nothing to do.
func (n *node) settled(p *corev1.Pod) error {
	w := n.manager.existing(string(p.UID))
	if w == nil {
		return errStill
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active || w.told || w.public.status == nil {
		return errStill
	}
	return nil
}

// reboot is a power cut: everything that runs dies, /run is empty, and edgecore comes up again.
func (n *node) reboot() {
	n.t.Helper()
	n.stop()
	must(n.t, n.containerd.Reboot())
	must(n.t, n.containerd.Start(n.t.Context()))
	n.start()
}

// awaitEvents polls until events with all these reasons are in the outbox.
func (n *node) awaitEvents(p *corev1.Pod, reasons ...string) {
	n.t.Helper()
	n.await("events", func() error {
		have := n.events(p.UID)
		for _, r := range reasons {
			if have[r] == "" {
				return fmt.Errorf("no %s among %v", r, have)
			}
		}
		return nil
	})
}
