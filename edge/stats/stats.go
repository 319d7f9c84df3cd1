package stats

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// Runtime is what is asked of edge/runtime.
type Runtime interface {
	Usage(ctx context.Context) ([]runtime.Usage, error)
	ImageUsage(ctx context.Context) (runtime.FilesystemUsage, error)
}

// Options of New. Node, Pods, Runtime, DataDir and PodLogsDir must be set.
type Options struct {
	Node       string
	Pods       func() []*corev1.Pod    // with their status
	Runtime    func() (Runtime, error) // an error while it has not answered yet
	CgroupRoot string                  // under which all pods lie; "" is "/"
	DataDir    string                  // whose file system is the node's
	PodLogsDir string                  // /var/log/pods
	Now        func() time.Time        // nil: the machine's
	Log        *slog.Logger

	root string // of /proc and /sys; tests have their own
}

// How long figures are good for, and what one measurement may take.
const (
	keepUsage = 2 * time.Second
	keepWider = 10 * time.Second
	patience  = 5 * time.Second
	// A rate needs two measurements. The one before is good for this long; without it the summary makes a second one
	// after firstRate.
	oldestRate = 10 * time.Minute
	firstRate  = 500 * time.Millisecond
	// Two measurements that are closer say too little: processor time may be counted in hundredths of a second.
	closestRate = 200 * time.Millisecond
	// clockSlack is how much longer or shorter the wall clock's time between two measurements
	// may be than it was.
	clockSlack = 2 * time.Second
)

// Stats measures. It holds the last measurement and nothing else.
type Stats struct {
	o       Options
	cgroups cgroups
	usage   shared[*usage]
	wider   shared[*wider]
	failing atomic.Bool // the runtime did not answer the last time
	started time.Time
	packers sync.Pool // of *gzip.Writer

	before map[string]point // of the measurement before, by what was measured; the measurement under way owns it
}

// point is one reading of a processor counter.
type point struct {
	at  time.Time // a container's by the runtime's wall clock, which may be set meanwhile
	cpu uint64
	// began and told are monotonic: the reading was made in between.
	began, told time.Time
	// rate is kept with it, for a reading that comes too soon after.
	rate *uint64
}

// usage is a measurement of processor and memory.
type usage struct {
	at       time.Time // when it began
	told     time.Time // when the runtime had answered
	node     figures
	all      figures // of all pods together
	hasAll   bool
	edgecore figures
	pods     []podUsage // ordered by namespace, name and uid
	err      error      // of the runtime: then there are no pods
	rated    bool       // the node's rate is known
}

type podUsage struct {
	uid, namespace, name string
	start                time.Time
	pod                  *corev1.Pod // nil: edgecore does not know it
	cgroup               string      // empty: not found
	figures
	containers []containerUsage // ordered by name
}

type containerUsage struct {
	runtime.Usage
	figures
}

// New makes a Stats. It measures nothing yet.
func New(o Options) *Stats {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.CgroupRoot = cmp.Or(o.CgroupRoot, "/")
	o.root = cmp.Or(o.root, "/")
	s := &Stats{o: o, started: o.Now(), cgroups: newCgroups(kernel{o.root}, o.CgroupRoot)}
	s.usage = shared[*usage]{now: o.Now, keep: keepUsage, most: patience, read: s.measure}
	s.wider = shared[*wider]{now: o.Now, keep: keepWider, most: patience, read: s.measureWider}
	return s
}

// current is the present usage; with rates also when nothing was measured before.
func (s *Stats) current(ctx context.Context, rates bool) (*usage, error) {
	u, err := s.usage.get(ctx)
	if err != nil || u.rated || !rates {
		return u, err
	}
	wait := time.NewTimer(firstRate)
	defer wait.Stop()
	select {
	case <-wait.C:
		return s.usage.within(ctx, closestRate)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// measure makes one measurement. Only one is under way at a time.
func (s *Stats) measure(ctx context.Context) *usage {
	u := &usage{at: s.o.Now()}
	u.node = s.cgroups.node(u.at)
	if cg := s.cgroups.pods(); cg != "" {
		u.all, u.hasAll = s.cgroups.of(cg, u.at), true
	}
	u.edgecore = own(u.at)
	containers, err := s.ask(ctx)
	if err != nil {
		u.err = fmt.Errorf("what pods use is not known: %w", err)
	}
	u.told = s.o.Now()
	s.tellOnce(err)
	u.pods = s.assemble(containers, u.at)
	s.rates(u)
	return u
}

func (s *Stats) ask(ctx context.Context) ([]runtime.Usage, error) {
	rt, err := s.o.Runtime()
	if err != nil {
		return nil, err
	}
	return rt.Usage(ctx)
}

// tellOnce logs when the runtime begins to fail, and when it is well again.
func (s *Stats) tellOnce(err error) {
	switch was := s.failing.Swap(err != nil); {
	case err != nil && !was:
		s.o.Log.Warn("the runtime does not tell what containers use", "err", err)
	case err == nil && was:
		s.o.Log.Info("the runtime tells again what containers use")
	}
}

// assemble makes pods of containers.
func (s *Stats) assemble(containers []runtime.Usage, at time.Time) []podUsage {
	known := map[string]*corev1.Pod{}
	if len(containers) > 0 {
		for _, p := range s.o.Pods() {
			known[string(p.UID)] = p
		}
	}
	byUID := map[string]*podUsage{}
	for _, c := range containers {
		p := byUID[c.PodUID]
		if p == nil {
			p = &podUsage{uid: c.PodUID, namespace: c.Namespace, name: c.Pod, pod: known[c.PodUID]}
			byUID[c.PodUID] = p
		}
		p.containers = append(p.containers, containerUsage{Usage: c, figures: containerFigures(&c, at)})
	}
	pods := make([]podUsage, 0, len(byUID))
	for _, p := range byUID {
		p.containers = newestOfEach(p.containers)
		s.complete(p, at)
		pods = append(pods, *p)
	}
	slices.SortFunc(pods, func(a, b podUsage) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name), cmp.Compare(a.uid, b.uid))
	})
	return pods
}

// newestOfEach orders containers by name and keeps one of each: one that ends may still be told of.
func newestOfEach(list []containerUsage) []containerUsage {
	slices.SortFunc(list, func(a, b containerUsage) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), b.StartedAt.Compare(a.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(list, func(a, b containerUsage) bool { return a.Name == b.Name })
}

func containerFigures(c *runtime.Usage, at time.Time) figures {
	f := figures{at: c.CPUTime, cpu: c.CPU, workingSet: c.WorkingSet, memory: c.Memory, rss: c.RSS, available: c.Available,
		pageFaults: c.PageFaults, majorPageFaults: c.MajorPageFaults, swap: c.Swap, swapSpare: c.SwapSpare}
	if f.at.IsZero() {
		f.at = at
	}
	if f.available != nil && *f.available == 0 {
		f.available = nil // containerd's word for a container without a limit
	}
	return f
}

// complete adds what is known of a pod as a whole.
func (s *Stats) complete(p *podUsage, at time.Time) {
	if p.pod != nil {
		p.start = p.pod.CreationTimestamp.Time
		if t := p.pod.Status.StartTime; t != nil {
			p.start = t.Time
		}
		p.cgroup = s.cgroups.pod(p.pod)
	}
	s.withoutController(p)
	if p.cgroup != "" {
		p.figures = s.cgroups.of(p.cgroup, at)
	}
	// What the cgroup does not say is at least what the containers use.
	sum := func(of func(*figures) *uint64) *uint64 {
		var total *uint64
		for i := range p.containers {
			if v := of(&p.containers[i].figures); v != nil {
				n := *v
				if total != nil {
					n += *total
				}
				total = &n
			}
		}
		return total
	}
	p.at = at
	p.cpu = cmp.Or(p.cpu, sum(func(f *figures) *uint64 { return f.cpu }))
	p.workingSet = cmp.Or(p.workingSet, sum(func(f *figures) *uint64 { return f.workingSet }))
	p.memory = cmp.Or(p.memory, sum(func(f *figures) *uint64 { return f.memory }))
	p.rss = cmp.Or(p.rss, sum(func(f *figures) *uint64 { return f.rss }))
}

// withoutController counts the processes' own memory where the kernel keeps no account of containers': a Raspberry Pi
// starts so, and kubectl top would show no pod of it.
func (s *Stats) withoutController(p *podUsage) {
	lacks := func(c containerUsage) bool { return c.workingSet == nil || *c.workingSet == 0 }
	if p.cgroup == "" || !slices.ContainsFunc(p.containers, lacks) {
		return
	}
	processes := s.cgroups.processes(p.cgroup)
	for i := range p.containers {
		c := &p.containers[i]
		if !lacks(*c) {
			continue
		}
		sum := uint64(0)
		for _, pid := range containerOf(processes, c.ID) {
			sum += resident(s.cgroups.file("proc", strconv.Itoa(pid), "statm"))
		}
		if sum > 0 {
			c.workingSet, c.memory, c.rss = &sum, &sum, &sum
		}
	}
}

// rates works out what was used since the measurement before, and keeps this one for the next.
func (s *Stats) rates(u *usage) {
	next := map[string]point{}
	rate := func(key string, f *figures) {
		if f.cpu == nil {
			return
		}
		now := point{at: f.at, cpu: *f.cpu, began: u.at, told: u.told}
		if was, ok := s.before[key]; ok {
			if now = since(was, now); now.at.Equal(was.at) {
				f.rate = was.rate
			} else {
				f.rate = now.rate
			}
		}
		next[key] = now
	}
	rate("node", &u.node)
	rate("pods", &u.all)
	rate("edgecore", &u.edgecore)
	for i := range u.pods {
		p := &u.pods[i]
		rate("pod "+p.uid, &p.figures)
		for j := range p.containers {
			rate("container "+p.containers[j].ID, &p.containers[j].figures)
		}
	}
	u.rated = u.node.rate != nil
	if u.err != nil { // the pods are still there
		for key, p := range s.before {
			if _, measured := next[key]; !measured {
				next[key] = p
			}
		}
	}
	s.before = next
}

// since is the later point with its rate, or the earlier one when both are too close.
func since(was, now point) point {
	d := now.at.Sub(was.at)
	least, most := now.began.Sub(was.told)-clockSlack, now.told.Sub(was.began)+clockSlack
	switch {
	case d < least || d > most: // the clock was set: nobody knows how long it was
		return now
	case d >= 0 && d < closestRate:
		return was
	case d < 0 || d > oldestRate || now.cpu < was.cpu: // the counter began anew
		return now
	}
	n := uint64(float64(now.cpu-was.cpu) / d.Seconds())
	now.rate = &n
	return now
}

func uidMeta(uid string) metav1.ObjectMeta { return metav1.ObjectMeta{UID: types.UID(uid)} }
