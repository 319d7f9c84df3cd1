package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/node"
	"github.com/holdfast-edge/holdfast/edge/outage"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/uplink"
	"github.com/holdfast-edge/holdfast/edge/volume"
)

// engine is what needs the container runtime: it waits for it, and runs the pods.
type engine struct {
	cfg    config.Edge
	log    *slog.Logger
	store  *store.Store
	line   *uplink.Uplink
	node   *node.Node
	clock  pod.Clock
	tokens *pod.Tokens

	devices    *devices
	credential *credential.Credential
	questions  questions // of the status
	outage     *outage.Checker

	runtime atomic.Pointer[runtime.Runtime] // nil until it answered once
	pods    atomic.Pointer[pod.Manager]
}

// run brings the pods up, and again when they had to be given up because the
// runtime failed in the middle of finding out what runs.
func (e *engine) run(ctx context.Context) error {
	rt, err := e.awaitRuntime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	e.runtime.Store(rt)
	e.node.Wake()
	for {
		err := e.runPods(ctx, rt)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, store.ErrClosed) {
			return err
		}
		e.log.Error("the pods cannot be looked after; trying again", "err", err)
		if err := sleep(ctx, time.Second); err != nil {
			return nil
		}
	}
}

// awaitRuntime dials until the runtime answers. Everything else, the line to the
// hub included, is up meanwhile.
func (e *engine) awaitRuntime(ctx context.Context) (*runtime.Runtime, error) {
	endpoint, said := e.cfg.ContainerRuntimeEndpoint, ""
	began := time.Now()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		if time.Since(began) > 5*time.Minute { // it does not come up with the machine: somebody must see to it
			wait = 5 * time.Second
		}
		rt, err := runtime.Dial(ctx, endpoint, e.log)
		if err == nil {
			e.log.Info("the container runtime answers", "endpoint", endpoint)
			return rt, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err.Error() != said {
			said = err.Error()
			e.log.Error("the container runtime does not answer; pods wait for it: see that containerd is installed and runs (systemctl status containerd)",
				"endpoint", endpoint, "err", err)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *engine) runPods(ctx context.Context, rt *runtime.Runtime) error {
	driver := e.cfg.CgroupDriver
	if driver == "" {
		info, err := rt.Info(ctx)
		if err != nil {
			return err
		}
		driver = info.CgroupDriver
	}
	mounts := volume.New(filepath.Join(e.cfg.DataDir, "pods"), sources{e.store, e.tokens}, e.log)
	manager, err := pod.New(pod.Options{
		Store: e.store, Runtime: rt, Volumes: mounts, Tokens: e.tokens, Clock: e.clock, Log: e.log,
		Cgroups:  cgroups{root: e.cfg.CgroupRoot, driver: driver},
		NodeName: e.cfg.NodeName, HostIPs: e.node.HostIPs, Capacity: e.node.Capacity,
		Online:  func() bool { return e.line.State().Connected },
		DataDir: e.cfg.DataDir, PodLogsDir: e.cfg.PodLogsDir, Domain: e.cfg.ClusterDomain,
		DNS: e.dns,
	})
	if err != nil {
		return err
	}
	e.pods.Store(manager)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return manager.Run(ctx) })
	group.Go(func() error { return rt.RotateLogs(ctx, runtime.Rotation{}) })
	return group.Wait()
}

func (e *engine) dns(p *corev1.Pod) *runtime.DNS {
	d, err := runtime.PodDNS(p, runtime.ClusterDNS{Servers: e.cfg.ClusterDNS, Domain: e.cfg.ClusterDomain})
	if err != nil {
		e.log.Warn("the pod gets the runtime's name servers", "pod", p.Namespace+"/"+p.Name, "uid", p.UID, "err", err)
		return nil
	}
	return d
}

// cgroups keeps the pods' cgroups where the config and the runtime's driver say.
type cgroups struct{ root, driver string }

func (c cgroups) Parent(p *corev1.Pod) string { return runtime.CgroupParent(c.root, c.driver, p) }
func (c cgroups) Ensure(p *corev1.Pod) error  { return runtime.EnsurePodCgroup(c.root, c.driver, p) }
func (c cgroups) Remove(p *corev1.Pod) error {
	return runtime.RemovePodCgroup(c.root, c.driver, string(p.UID))
}

// sources is where volumes get their contents: the store, and tokens.
type sources struct {
	*store.Store
	tokens *pod.Tokens
}

func (s sources) Token(ctx context.Context, p *corev1.Pod, want *corev1.ServiceAccountTokenProjection) (string, error) {
	return s.tokens.Token(ctx, p, want)
}

// answeredRuntime is the runtime, once it has answered.
func (e *engine) answeredRuntime() (*runtime.Runtime, error) {
	if rt := e.runtime.Load(); rt != nil {
		return rt, nil
	}
	return nil, fmt.Errorf("the container runtime at %s has not answered yet", e.cfg.ContainerRuntimeEndpoint)
}

// runtimeInfo is what the node's Ready condition is judged by.
func (e *engine) runtimeInfo(ctx context.Context) (runtime.Info, error) {
	rt, err := e.answeredRuntime()
	if err != nil {
		return runtime.Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return rt.Info(ctx)
}
