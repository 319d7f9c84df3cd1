// Package probe finds out whether containers have started, live and are ready, as their pods' probes say.
// One scheduler serves all probes of the node; probes run on a bounded number of goroutines that exist only
// while they run, over connections that are not kept.
//
// It is called by edge/pod, which adds a container when it runs, removes it when it is to stop, and acts on
// what is reported. It never stops or restarts anything, and knows no status.
package probe

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
)

// Kind of a probe, in the words of the kubelet's events.
type Kind string

// The kinds.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Verdict is what a result changes.
type Verdict uint8

// The verdicts: a failure below its threshold is Undecided.
const (
	Undecided Verdict = iota
	Healthy
	Sick
)

// Result is one finding worth telling: a verdict, or a failure.
type Result struct {
	PodUID, ContainerID, Container string
	Kind                           Kind
	Verdict                        Verdict
	Failure                        string // what went wrong, for the event; "" when nothing did
}

// Target is a container to probe.
type Target struct {
	PodUID      string
	ContainerID string
	Container   *corev1.Container
	IP          string        // of the pod
	Started     bool          // its startup probe has succeeded before, or it has none
	Ready       bool          // it was ready before: the first verdict need not be told again
	Age         time.Duration // how long it has run
}

// Options of New.
type Options struct {
	// Exec runs a command in a container.
	Exec func(ctx context.Context, id string, cmd []string, timeout time.Duration) (code int32, output string, err error)
	// Report takes results; it must not block.
	Report func(Result)
	// Parallel bounds the probes that run at once; 0: 16.
	Parallel int
}

// Prober runs probes.
type Prober struct {
	o     Options
	slots *semaphore.Weighted
	wake  chan struct{}

	mu    sync.Mutex
	queue queue
	live  map[string]map[*check]bool // by container id
}

// New makes a prober; Run starts it.
func New(o Options) *Prober {
	if o.Parallel == 0 {
		o.Parallel = 16
	}
	return &Prober{o: o, slots: semaphore.NewWeighted(int64(o.Parallel)), wake: make(chan struct{}, 1), live: map[string]map[*check]bool{}}
}

// check is one probe of one container. It is in the queue, or runs, or waits for the startup probe.
type check struct {
	target Target
	kind   Kind
	spec   *corev1.Probe
	next   time.Time     // when it runs
	due    time.Time     // from when on a failure counts
	early  time.Duration // until the next run before due
	oks    int32
	fails  int32
	told   Verdict
	index  int // in the queue, -1 when it is not
}

// The first waits of probes which are run before they are due, while a container has never been ready: what
// is ready sooner is used sooner. Failures of such runs do not count.
const (
	earlyFirst     = 100 * time.Millisecond
	earlyFirstExec = time.Second
)

// Add begins to probe a container. A container without probes costs nothing.
func (p *Prober) Add(t Target) {
	c := t.Container
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live[t.ContainerID] != nil {
		return
	}
	if c.StartupProbe == nil && c.LivenessProbe == nil && c.ReadinessProbe == nil {
		return
	}
	p.live[t.ContainerID] = map[*check]bool{}
	if c.StartupProbe != nil && !t.Started {
		p.schedule(t, Startup, c.StartupProbe)
		return
	}
	p.schedule(t, Liveness, c.LivenessProbe)
	p.schedule(t, Readiness, c.ReadinessProbe)
}

// Remove ends the probes of a container; a result that is on its way is not told.
func (p *Prober) Remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.live[id] {
		if c.index >= 0 {
			heap.Remove(&p.queue, c.index)
		}
	}
	delete(p.live, id)
}

// schedule puts a probe into the queue. The caller holds p.mu.
func (p *Prober) schedule(t Target, k Kind, spec *corev1.Probe) {
	if spec == nil {
		return
	}
	now := time.Now()
	c := &check{target: t, kind: k, spec: spec, index: -1}
	c.next = now.Add(max(time.Duration(spec.InitialDelaySeconds)*time.Second-t.Age, 0))
	c.due = c.next
	switch {
	case k == Liveness:
		c.told = Healthy
	case k == Readiness && t.Ready:
		c.told = Healthy
	case spec.Exec != nil:
		c.early = earlyFirstExec
	default:
		c.early = earlyFirst
	}
	p.live[t.ContainerID][c] = true
	p.push(c)
}

func (p *Prober) push(c *check) {
	heap.Push(&p.queue, c)
	if c.index == 0 {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c, wait := p.pop()
		if c == nil {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-p.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		if p.slots.Acquire(ctx, 1) != nil {
			return
		}
		running.Add(1)
		go func() {
			defer running.Done()
			defer p.slots.Release(1)
			failure, err := p.try(ctx, c)
			if ctx.Err() == nil {
				p.settle(c, failure, err)
			}
		}()
	}
}

// pop returns the next probe if it is time for it, else how long to wait.
func (p *Prober) pop() (*check, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(p.queue[0].next); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&p.queue).(*check), 0
}

func (p *Prober) try(ctx context.Context, c *check) (failure string, err error) {
	timeout := time.Duration(max(c.spec.TimeoutSeconds, 1)) * time.Second
	if c.spec.Exec != nil {
		return p.exec(ctx, c, timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case c.spec.HTTPGet != nil:
		return text(Get(ctx, c.spec.HTTPGet, c.target.Container, c.target.IP, "kube-probe/")), nil
	case c.spec.TCPSocket != nil:
		return text(dial(ctx, c.spec.TCPSocket, c.target.Container, c.target.IP)), nil
	case c.spec.GRPC != nil:
		return text(askHealth(ctx, c.spec.GRPC, c.target.IP)), nil
	}
	return "", errNoHandler
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// settle counts a result, tells what is worth telling, and puts the probe back into the queue.
func (p *Prober) settle(c *check, failure string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.live[c.target.ContainerID][c] {
		return
	}
	now := time.Now()
	counts := !now.Before(c.due)
	period := time.Duration(c.spec.PeriodSeconds) * time.Second
	if period <= 0 {
		period = 10 * time.Second
	}
	if late := now.Sub(c.due); late >= 0 {
		c.due = now.Add(period - late%period)
	}
	r := Result{PodUID: c.target.PodUID, ContainerID: c.target.ContainerID, Container: c.target.Container.Name, Kind: c.kind}
	over := false
	switch {
	case err != nil: // the probe itself could not be run: that says nothing of the container
	case failure == "":
		c.fails = 0
		if c.oks++; c.oks >= max(c.spec.SuccessThreshold, 1) && c.told != Healthy {
			r.Verdict, c.told, c.early = Healthy, Healthy, 0
			over = c.kind == Startup
		}
	case counts:
		c.oks = 0
		r.Failure = failure
		threshold := c.spec.FailureThreshold
		if threshold <= 0 {
			threshold = 3
		}
		if c.fails++; c.fails >= threshold && c.told != Sick {
			r.Verdict, c.told = Sick, Sick
			over = c.kind != Readiness
		}
	}
	if over {
		delete(p.live[c.target.ContainerID], c)
		if c.kind == Startup && r.Verdict == Healthy {
			t := c.target
			t.Age = time.Hour // their own delays are counted from the container's start, which is long over
			p.schedule(t, Liveness, t.Container.LivenessProbe)
			p.schedule(t, Readiness, t.Container.ReadinessProbe)
		}
	} else {
		c.next = c.due
		if c.early > 0 && now.Add(c.early).Before(c.due) {
			c.next = now.Add(c.early)
			c.early *= 2
		}
		p.push(c)
	}
	if r.Verdict != Undecided || r.Failure != "" {
		p.o.Report(r)
	}
}

// queue is a heap ordered by time.
type queue []*check

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *queue) Push(x any) {
	c := x.(*check)
	c.index = len(*q)
	*q = append(*q, c)
}
func (q *queue) Pop() any {
	old := *q
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	c.index = -1
	return c
}
