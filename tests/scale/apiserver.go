package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/config"
	enrolled "github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/tests/cluster"
)

// Addresses of cloudcore in this run's own network namespace.
const (
	cloudAddress  = "127.0.0.1:10550"
	healthAddress = "127.0.0.1:10551"
)

// Loads of the real apiserver, which bears much less than a hub by itself.
const (
	apiChanges = 50 // changes a second
	apiMakers  = 16 // pods being made at a time
	patience   = 5 * time.Minute
)

// whole is a real cloudcore before a real apiserver.
type whole struct {
	dir     string
	plane   *cluster.Cluster
	client  kubernetes.Interface
	binary  string
	core    *exec.Cmd
	ended   chan struct{} // closed when core has been waited for
	log     *os.File
	edges   *stage
	cpuCore cpuMark
	cpuAPI  cpuMark
}

// beforeApiserver measures cloudcore with as many nodes as an apiserver on the
// same machine bears.
func beforeApiserver(ctx context.Context, s settings, t *table) (err error) {
	t.say("apiserver: starting a control plane and cloudcore")
	w := &whole{}
	if w.dir, err = os.MkdirTemp("", "scale-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.start(ctx, s); err != nil {
		return err
	}
	empty, err := resident(w.core.Process.Pid)
	if err != nil {
		return err
	}
	if err := w.populate(ctx, s, t); err != nil {
		return err
	}
	if err := w.rest(ctx, s, t, empty); err != nil {
		return err
	}
	if err := w.changes(ctx, s, t); err != nil {
		return err
	}
	if err := w.reports(ctx, s, t); err != nil {
		return err
	}
	return w.comeBack(ctx, s, t)
}

// start starts the control plane, cloudcore, and the process of edges.
func (w *whole) start(ctx context.Context, s settings) error {
	var err error
	if w.plane, err = cluster.Start(ctx, cluster.Options{Dir: filepath.Join(w.dir, "controlplane"), Log: io.Discard}); err != nil {
		return err
	}
	w.client = w.plane.Client()
	admin, err := w.plane.RestConfig()
	if err != nil {
		return err
	}
	objects, err := install.Objects(manifests.Files)
	if err != nil {
		return err
	}
	in, err := install.New(admin)
	if err != nil {
		return err
	}
	if err := in.Apply(ctx, objects); err != nil {
		return err
	}
	kubeconfig, err := in.CloudKubeconfig(ctx)
	if err != nil {
		return err
	}
	ca, err := enrolled.EnsureCA(ctx, w.client)
	if err != nil {
		return err
	}
	cfg := config.DefaultCloud()
	cfg.Kubeconfig, cfg.Listen, cfg.HealthListen = filepath.Join(w.dir, "kubeconfig"), cloudAddress, healthAddress
	cfg.RunDir, cfg.FleetListen = filepath.Join(w.dir, "run"), ""
	cfg.AdvertiseAddresses, cfg.DataDir = []string{"127.0.0.1"}, filepath.Join(w.dir, "cloud")
	text, err := config.Encode(cfg)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(cfg.Kubeconfig, kubeconfig, 0o600), os.WriteFile(w.config(), text, 0o600)); err != nil {
		return fmt.Errorf("write cloudcore's config: %w", err)
	}
	if err := w.build(ctx); err != nil {
		return err
	}
	if err := w.startCore(ctx); err != nil {
		return err
	}
	w.edges = &stage{transport: "websocket", nodes: s.apiNodes}
	return w.edges.startEdges(ctx, edgesSetup{
		CACert: ca.CertPEM, CAKey: ca.KeyPEM, Hub: cloudAddress, Transport: "websocket", KeepAlive: usualKeepAlive, Register: true,
	})
}

func (w *whole) config() string { return filepath.Join(w.dir, "cloudcore.yaml") }

func (w *whole) build(ctx context.Context) error {
	w.binary = filepath.Join(w.dir, "cloudcore")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", w.binary, "github.com/holdfast-edge/holdfast/cloud/cmd/cloudcore")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build cloudcore: %w\n%s", err, out)
	}
	return nil
}

// startCore starts cloudcore and waits until it is healthy.
func (w *whole) startCore(ctx context.Context) error {
	var err error
	if w.log, err = os.OpenFile(filepath.Join(w.dir, "cloudcore.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("start cloudcore: %w", err)
	}
	w.core = exec.Command(w.binary, "--config", w.config())
	w.core.Stdout, w.core.Stderr = w.log, w.log
	if err := w.core.Start(); err != nil {
		return fmt.Errorf("start cloudcore: %w", err)
	}
	w.ended = make(chan struct{})
	go func(core *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = core.Wait() // how it ended shows in what is asked of it
	}(w.core, w.ended)
	client := http.Client{Timeout: 5 * time.Second}
	return until(ctx, "cloudcore is healthy", func() (bool, error) {
		select {
		case <-w.ended:
			text, _ := os.ReadFile(w.log.Name())
			return false, fmt.Errorf("cloudcore has ended: %s", text[max(0, len(text)-2000):])
		default:
		}
		answer, err := client.Get("http://" + healthAddress + "/healthz")
		if err != nil {
			return false, nil // not yet
		}
		return answer.StatusCode == http.StatusOK, answer.Body.Close()
	})
}

func (w *whole) killCore() error {
	if w.core == nil {
		return nil
	}
	if err := w.core.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill cloudcore: %w", err)
	}
	<-w.ended
	w.core = nil
	return w.log.Close()
}

func (w *whole) close() error {
	if w.edges != nil {
		w.edges.close()
	}
	err := w.killCore()
	if w.plane != nil {
		err = errors.Join(err, w.plane.Kill())
	}
	return errors.Join(err, os.RemoveAll(w.dir))
}

// populate lets all nodes register, gives each its pods, and waits until these are
// reported Running.
func (w *whole) populate(ctx context.Context, s settings, t *table) error {
	began := time.Now()
	if err := w.edges.connect(ctx, 1, 1); err != nil {
		return err
	}
	if err := w.acknowledged(ctx, uint64(s.apiNodes), "all nodes are registered"); err != nil {
		return err
	}
	t.add("apiserver: nodes joined and registered", count(s.apiNodes), "as many as it bears")
	t.say("apiserver: registered in %s", time.Since(began).Round(100*time.Millisecond))
	began = time.Now()
	group, making := errgroup.WithContext(ctx)
	group.SetLimit(apiMakers)
	for n := range s.apiNodes {
		group.Go(func() error {
			_, err := w.client.CoreV1().Pods(corev1.NamespaceDefault).Create(making, apiPod(n), metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("create pods: %w", err)
	}
	if err := w.acknowledged(ctx, 2*uint64(s.apiNodes), "all pods are reported Running"); err != nil {
		return err
	}
	t.say("apiserver: a pod on each made, delivered and reported Running in %s", time.Since(began).Round(100*time.Millisecond))
	return nil
}

// apiPod is a pod as the source's, bound to its node.
func apiPod(node int) *corev1.Pod {
	p := podOf(node, 0, time.Time{})
	off := false
	p.ObjectMeta = metav1.ObjectMeta{Name: p.Name, Namespace: corev1.NamespaceDefault, Labels: p.Labels}
	p.Spec.ServiceAccountName, p.Spec.AutomountServiceAccountToken = "", &off
	p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return p
}

// acknowledged waits until that many reports have been taken.
func (w *whole) acknowledged(ctx context.Context, reports uint64, what string) error {
	return until(ctx, what, func() (bool, error) {
		state, err := w.edges.state(ctx)
		return state.Acknowledged >= reports && state.Synced == w.edges.started, err
	})
}

// until asks again and again.
func until(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %s in vain until %s", patience, what))
	defer cancel()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// cpuMark measures a process's share of a core.
type cpuMark struct {
	pid  int
	used time.Duration
	at   time.Time
}

func mark(pid int) (cpuMark, error) {
	used, err := cpuTime(pid)
	return cpuMark{pid, used, time.Now()}, err
}

// share is in per cent of a core since the mark.
func (m cpuMark) share() (float64, error) {
	used, err := cpuTime(m.pid)
	return 100 * float64(used-m.used) / float64(time.Since(m.at)), err
}

// rest watches while nothing happens but keepalives and leases.
func (w *whole) rest(ctx context.Context, s settings, t *table, empty int64) error {
	t.say("apiserver: nothing happens for %s", s.watch)
	if err := pause(ctx, min(15*time.Second, s.watch)); err != nil {
		return err
	}
	var err error
	if w.cpuCore, err = mark(w.core.Process.Pid); err != nil {
		return err
	}
	if w.cpuAPI, err = mark(w.plane.PID()); err != nil {
		return err
	}
	if err := pause(ctx, s.watch); err != nil {
		return err
	}
	core, err := w.cpuCore.share()
	if err != nil {
		return err
	}
	api, err := w.cpuAPI.share()
	if err != nil {
		return err
	}
	full, err := resident(w.core.Process.Pid)
	if err != nil {
		return err
	}
	n := float64(s.apiNodes)
	t.add("apiserver: resident memory of cloudcore for each node at rest with a pod", kib(float64(full-empty)/n), "")
	t.say("apiserver: cloudcore's resident memory went from %s to %s", mib(empty), mib(full))
	t.add("apiserver: CPU of cloudcore for 1,000 nodes at rest, leases included", fmt.Sprintf("%.1f %% of a core", core*1000/n), "")
	t.add("apiserver: CPU of the control plane for 1,000 nodes at rest", fmt.Sprintf("%.1f %% of a core", api*1000/n), "")
	return nil
}

// changes changes pods at the apiserver, and measures from before each request to
// the edge's commit.
func (w *whole) changes(ctx context.Context, s settings, t *table) error {
	t.say("apiserver: %d changes of pods a second for %s", apiChanges, s.deliver)
	if _, err := w.edges.latencies(ctx); err != nil {
		return err
	}
	var failed atomic.Int32
	var why atomic.Pointer[error]
	total := int(s.deliver.Seconds() * apiChanges)
	tick := time.NewTicker(time.Second / apiChanges)
	defer tick.Stop()
	var group errgroup.Group
	for n := range total {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		due := time.Now()
		group.Go(func() error {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, changedAt, strconv.FormatInt(due.UnixNano(), 10))
			name := podOf(n%s.apiNodes, 0, time.Time{}).Name
			_, err := w.client.CoreV1().Pods(corev1.NamespaceDefault).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			if err != nil {
				failed.Add(1)
				why.Store(&err)
			}
			return nil
		})
	}
	_ = group.Wait()
	if n := failed.Load(); n > 0 {
		t.say("apiserver: %d of %d changes were not accepted: %v", n, total, *why.Load())
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	all, err := w.edges.latencies(ctx)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("no changed pod arrived at any edge")
	}
	slices.Sort(all)
	t.add(fmt.Sprintf("apiserver: a pod changed by a client, from its request to the edge's commit, %d a second, p50", apiChanges), ms(all[len(all)/2]), "")
	t.add("apiserver: the same, p99", ms(all[len(all)*99/100]), "")
	t.say("apiserver: %d changes were made, %d arrived", total, len(all))
	return nil
}

// reports lets edges report without a pause.
func (w *whole) reports(ctx context.Context, s settings, t *table) error {
	n := min(reporters, s.apiNodes)
	t.say("apiserver: %d nodes report the status of a pod, again and again, for %s", n, s.report)
	var err error
	if w.cpuCore, err = mark(w.core.Process.Pid); err != nil {
		return err
	}
	if w.cpuAPI, err = mark(w.plane.PID()); err != nil {
		return err
	}
	perSecond, err := w.edges.report(ctx, n, s.report)
	if err != nil {
		return err
	}
	core, err := w.cpuCore.share()
	if err != nil {
		return err
	}
	api, err := w.cpuAPI.share()
	if err != nil {
		return err
	}
	t.add("apiserver: acknowledged status updates a second", count(int(perSecond)), "")
	t.say("apiserver: meanwhile cloudcore took %.0f %% of a core, the control plane %.0f %%", core, api)
	return pause(ctx, 2*time.Second)
}

// comeBack kills cloudcore.
func (w *whole) comeBack(ctx context.Context, s settings, t *table) error {
	t.say("apiserver: kill -9 of cloudcore")
	before, err := w.edges.state(ctx)
	if err != nil {
		return err
	}
	killed := time.Now()
	if err := w.killCore(); err != nil {
		return err
	}
	if err := w.startCore(ctx); err != nil {
		return err
	}
	ready := time.Now()
	var after edgesState
	err = until(ctx, "all nodes are back", func() (bool, error) {
		after, err = w.edges.state(ctx)
		return after.Synced == w.edges.started && after.Sessions >= before.Sessions+uint64(w.edges.started), err
	})
	if err != nil {
		return fmt.Errorf("%w: %d of %d are (%s)", err, after.Synced, w.edges.started, strings.TrimSpace(after.Trouble))
	}
	t.add(fmt.Sprintf("apiserver: %s nodes back after a kill -9 of cloudcore", count(s.apiNodes)), fmt.Sprintf("%.1f s", after.LastSynced.Sub(killed).Seconds()), "")
	t.say("apiserver: cloudcore was healthy after %.1f s; messages of a node that came back: %.0f B", ready.Sub(killed).Seconds(),
		float64(after.Sent+after.Received-before.Sent-before.Received)/float64(s.apiNodes))
	return nil
}
