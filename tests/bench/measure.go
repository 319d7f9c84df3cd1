package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	parallelism = 4 // of the floor, and edgecore's own
	restPods    = 5 // on the node while the line is watched
	patience    = 3 * time.Minute
)

// bench collects the figures of one run.
type bench struct {
	settings
	world *world.World
	node  *world.Node

	builds                  []*build // this one, and what it is compared with
	floor                   []time.Duration
	floorUsed               usage // with what takes the pods away again
	memoryEmpty, memoryFull memory
	cpu                     float64 // per cent of one core
	binary, database, wal   int64   // bytes
	lineMBaDay              float64
}

// build is one edgecore and its figures.
type build struct {
	name, dir     string
	apply, reboot []time.Duration
	last          *trips // of the last apply
	began         time.Time
	used          usage
	asked         string // of the apiserver meanwhile
}

// memory of a process, in MiB.
type memory struct{ resident, anonymous float64 }

// empty measures edgecore before it has any pod.
func (b *bench) empty(ctx context.Context) (err error) {
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	if b.memoryEmpty, err = b.memory(); err != nil {
		return err
	}
	b.binary, err = size(b.world.Bin, "edgecore")
	return err
}

// verbose lets edgecore say when a pod is known to it.
func (b *bench) verbose() error {
	text, err := os.ReadFile(b.node.Config())
	if err != nil {
		return err
	}
	if b.wants("memory") || b.wants("line") || b.wants("devices") { // which are of edgecore as it is delivered
		return nil
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "logLevel:") {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	return os.WriteFile(b.node.Config(), []byte(strings.Join(append(lines, "logLevel: debug"), "\n")+"\n"), 0o600)
}

// use makes a build's edgecore the one that runs.
func (b *bench) use(ctx context.Context, one *build) error {
	if err := b.node.StopEdgecore(); err != nil {
		return err
	}
	b.world.Bin = one.dir
	if err := b.node.StartEdgecore(); err != nil {
		return err
	}
	return pause(ctx, 3*time.Second)
}

// round measures the floor on the empty runtime, then apply, then reboot.
func (b *bench) round(ctx context.Context, one *build) error {
	if err := b.use(ctx, one); err != nil {
		return err
	}
	before, err := processor()
	if err != nil {
		return err
	}
	floor, err := rig.Floor(ctx, b.node.Containerd, b.pods, parallelism)
	if err != nil {
		return err
	}
	after, err := processor()
	if err != nil {
		return err
	}
	b.floor, b.floorUsed = append(b.floor, floor), after.since(before)
	if err := b.clear(ctx); err != nil {
		return err
	}
	if err := b.applyAll(ctx, one); err != nil {
		return err
	}
	if b.wants("reboot") {
		if err := b.rebootAll(ctx, one); err != nil {
			return err
		}
	}
	return b.clear(ctx)
}

// applyAll measures from the first create until a watch of the apiserver has shown every pod Running and Ready.
func (b *bench) applyAll(ctx context.Context, one *build) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	t := &trips{pods: map[string]*trip{}}
	if err := b.follow(watching, t); err != nil {
		return err
	}
	asked, err := b.requests(ctx)
	if err != nil {
		return err
	}
	before, err := processor()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.create(ctx, b.pods, t); err != nil {
		return err
	}
	err = world.Eventually(ctx, patience, "the watch shows all pods Running", func(context.Context) (bool, error) { return t.all(b.pods), nil })
	if err != nil {
		return err
	}
	one.apply = append(one.apply, t.end().Sub(began))
	after, err := processor()
	if err != nil {
		return err
	}
	one.last, one.began, one.used = t, began, after.since(before)
	answered, err := b.requests(ctx)
	if err != nil {
		return err
	}
	one.asked = answered.since(asked)
	if err := b.settle(ctx, b.pods, 0); err != nil {
		return err
	}
	return b.complete(ctx, t)
}

// rebootAll measures from edgecore's start after a power cut, without a line, until all containers run.
func (b *bench) rebootAll(ctx context.Context, one *build) error {
	if err := b.node.Cut(); err != nil {
		return err
	}
	if err := b.node.PowerCut(); err != nil {
		return err
	}
	if err := b.node.Containerd.Start(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := b.node.StartEdgecore(); err != nil {
		return err
	}
	err := world.Eventually(ctx, patience, "all pods run after the reboot", func(ctx context.Context) (bool, error) {
		running, err := b.node.Running(ctx)
		return len(running) == b.pods, err
	})
	if err != nil {
		return err
	}
	one.reboot = append(one.reboot, time.Since(began))
	if err := b.node.Mend(); err != nil {
		return err
	}
	return b.settle(ctx, b.pods, 1)
}

// full measures edgecore with all its pods, at rest.
func (b *bench) full(ctx context.Context) (err error) {
	say("memory and CPU with %d pods", b.pods)
	if err := b.create(ctx, b.pods, nil); err != nil {
		return err
	}
	if err := b.settle(ctx, b.pods, 0); err != nil {
		return err
	}
	if err := pause(ctx, 20*time.Second); err != nil {
		return err
	}
	before, err := b.cpuTime()
	if err != nil {
		return err
	}
	if err := pause(ctx, 60*time.Second); err != nil {
		return err
	}
	after, err := b.cpuTime()
	if err != nil {
		return err
	}
	b.cpu = 100 * (after - before).Seconds() / 60
	if b.memoryFull, err = b.memory(); err != nil {
		return err
	}
	if b.database, err = size(b.node.DataDir(), "store.db"); err != nil {
		return err
	}
	b.wal, err = size(b.node.DataDir(), "store.db-wal")
	return err
}

// atRest counts what crosses the node's interface while nothing happens.
func (b *bench) atRest(ctx context.Context) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	if err := b.create(ctx, restPods, nil); err != nil {
		return err
	}
	if err := b.settle(ctx, restPods, 0); err != nil {
		return err
	}
	say("watching the line at rest for %s", b.rest)
	if err := pause(ctx, 30*time.Second); err != nil {
		return err
	}
	before, err := b.node.Netns.Bytes()
	if err != nil {
		return err
	}
	if err := pause(ctx, b.rest); err != nil {
		return err
	}
	after, err := b.node.Netns.Bytes()
	if err != nil {
		return err
	}
	b.lineMBaDay = float64(after-before) / 1e6 * float64(24*time.Hour) / float64(b.rest)
	return nil
}

// create applies n pods one after the other, and notes in t (unless it is nil) when.
func (b *bench) create(ctx context.Context, n int, t *trips) error {
	for i := range n {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d", i)},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: new(int64),
				Containers: []corev1.Container{{
					Name: "main", Image: world.BusyboxImage, Command: []string{"sleep", "100000"}, ImagePullPolicy: corev1.PullIfNotPresent,
				}},
			},
		}
		t.apply(pod.Name)
		if _, err := b.world.Client().CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until the cloud shows n pods Running and Ready with that many restarts.
func (b *bench) settle(ctx context.Context, n int, restarts int32) error {
	return world.Eventually(ctx, patience, fmt.Sprintf("%d pods Running", n), func(ctx context.Context) (bool, error) {
		list, err := b.world.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != n {
			return false, err
		}
		for _, p := range list.Items {
			if !world.PodReady(&p) || p.Status.ContainerStatuses[0].RestartCount != restarts {
				return false, nil
			}
		}
		return true, nil
	})
}

// clear deletes all pods and waits until the runtime holds nothing of them: what
// is being removed would slow whatever is measured next.
func (b *bench) clear(ctx context.Context) error {
	err := b.world.Client().CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	err = world.Eventually(ctx, patience, "no pod left", func(ctx context.Context) (bool, error) {
		list, err := b.world.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return false, err
		}
		sandboxes, err := b.node.Sandboxes(ctx)
		return sandboxes == 0, err
	})
	if err != nil {
		return err
	}
	return pause(ctx, 2*time.Second)
}

func (b *bench) memory() (memory, error) {
	pid, err := b.node.EdgecorePid()
	if err != nil {
		return memory{}, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	field := func(name string) float64 {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err == nil {
					return kib / 1024
				}
			}
		}
		return -1
	}
	return memory{resident: field("VmRSS"), anonymous: field("RssAnon")}, nil
}

// cpuTime is what edgecore has used since its start, user and system.
func (b *bench) cpuTime() (time.Duration, error) {
	pid, err := b.node.EdgecorePid()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; user and system time are the
	// 12th and 13th fields behind it, in hundredths of a second.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
