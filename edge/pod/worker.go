package pod

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/holdfast-edge/holdfast/edge/plan"
	"github.com/holdfast-edge/holdfast/edge/probe"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/status"
)

// inbox collects what a worker has been told since its last turn.
type inbox struct {
	pod      *corev1.Pod  // what is wanted now
	vanished bool         // nobody wants it any more
	seen     *runtime.Pod // with looked: an observation
	looked   bool
	look     bool // observe: something happened
	refresh  bool // a ConfigMap or Secret of the pod changed
	tick     bool
	probed   []probe.Result
	done     []func(*worker) // what ended actions found out
}

// worker owns one pod. At most one goroutine takes its turn at any time, and only while there is
// something in the inbox: an idle worker is a few maps and perhaps a timer.
type worker struct {
	m   *Manager
	uid string
	log *slog.Logger

	mu     sync.Mutex // guards the next group
	in     inbox
	told   bool // the inbox holds something
	active bool // a goroutine is in its turns
	timer  *time.Timer
	gone   bool // everything is removed: nothing is done any more
	public view

	// The turn's own.
	state     []byte // as stored, until it is read
	pod       *corev1.Pod
	vanished  bool
	record    record
	saved     bool // the record is in the store
	seen      runtime.Pod
	known     bool // seen is an observation
	stale     bool // seen must be made anew
	stopped   map[string]bool
	exits     map[string]time.Duration // when an exit was noticed, by container id
	flights   map[int]*flight
	ledger    ledger
	nextID    int
	hold      map[string]held
	unhealthy map[string]plan.Unhealthy
	ready     map[string]bool // by container id
	begun     map[string]bool // by container id: the startup probe has succeeded
	probing   map[string]bool // by container id
	hooked    map[string]bool // ids of containers whose preStop hook has been run
	refused   *status.Waiting
	judged    int64 // the generation whose fields were judged
	waiting   map[string]status.Waiting
	reported  *corev1.PodStatus
	tokensDue time.Duration
	retry     time.Duration // of observing
	saveAt    time.Duration // when the record is written though nothing depends on it
	againAt   time.Duration
	deferred  time.Duration // until when a report waits for a better one; 0: none does
}

// view is what others may read of a worker.
type view struct {
	pod        *corev1.Pod
	containers map[string]bool
	print      string // fingerprint of the observation
	// What a summary is made of; nil until the first turn has ended.
	summarized      *corev1.Pod
	status          *corev1.PodStatus
	reason, message string
}

type flight struct {
	action plan.Action
	cancel context.CancelFunc
}

// held says until when something that failed waits.
type held struct {
	until, delay time.Duration
}

func newWorker(m *Manager, uid string, state []byte) *worker {
	return &worker{
		m: m, uid: uid, log: m.log.With("uid", uid), state: state,
		stopped: map[string]bool{}, exits: map[string]time.Duration{}, flights: map[int]*flight{},
		hold: map[string]held{}, unhealthy: map[string]plan.Unhealthy{}, ready: map[string]bool{},
		begun: map[string]bool{}, probing: map[string]bool{}, hooked: map[string]bool{}, waiting: map[string]status.Waiting{},
		judged: -1,
	}
}

// tell puts something into the inbox and sees to it that a turn is taken.
func (w *worker) tell(f func(*inbox)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return
	}
	f(&w.in)
	w.told = true
	if !w.active {
		if w.m.ctx.Err() != nil {
			return
		}
		w.active = true
		w.m.tasks.Add(1)
		go w.turns()
	}
}

// turns takes turns until the inbox is empty.
func (w *worker) turns() {
	defer w.m.tasks.Done()
	for {
		w.mu.Lock()
		if !w.told || w.gone || w.m.ctx.Err() != nil {
			w.active = false
			w.mu.Unlock()
			return
		}
		in := w.in
		w.in, w.told = inbox{}, false
		w.mu.Unlock()
		w.turn(w.m.ctx, in)
	}
}

func (w *worker) stopTimer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// wakeAt takes a turn at that time; 0: no need.
func (w *worker) wakeAt(at time.Duration) {
	w.stopTimer()
	if at == 0 {
		return
	}
	d := max(at-w.m.clock.Mono(), time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(d, func() { w.tell(func(in *inbox) { in.tick = true }) })
}

// turn takes in what was told, observes if need be, plans, begins actions and reports.
func (w *worker) turn(ctx context.Context, in inbox) {
	before := w.pod
	w.absorb(in)
	if w.pod == nil {
		return
	}
	if in.refresh {
		clear(w.hold)
	}
	if in.refresh || before != nil && showsOther(before, w.pod) {
		w.refresh(ctx)
	}
	if !w.observe(ctx) {
		return
	}
	w.judge()
	w.renew(ctx)
	p := w.plan()
	for _, a := range p.Actions {
		if wait := w.hold[holdKey(a)].until - w.m.clock.Mono(); a.ID != "" && wait > 0 {
			w.again(wait) // the plan says what is to be done, not how often it has failed
			continue
		}
		w.begin(ctx, a)
	}
	if w.isGone() {
		return
	}
	w.explain(p)
	w.watch()
	w.report(ctx, p)
	w.persist(ctx)
	w.wakeAt(w.sooner(p.Wake))
}

// dirty notes that the record has news that may be lost: it is written in a while, with what else comes.
func (w *worker) dirty() {
	if at := w.m.clock.Mono() + lazySave; w.saveAt == 0 || at < w.saveAt {
		w.saveAt = at
	}
}

// lazySave is how long news wait that only spare a flicker of the status after a crash.
const lazySave = 10 * time.Second

// persist writes the record when it is time.
func (w *worker) persist(ctx context.Context) {
	if w.isGone() {
		return
	}
	if w.saveAt > 0 && w.m.clock.Mono() >= w.saveAt {
		if err := w.save(ctx); err != nil {
			w.log.Warn("pod's memory cannot be stored", "err", err)
			w.saveAt = w.m.clock.Mono() + lazySave
		}
	}
	if w.saveAt == 0 && w.counts() {
		w.saveAt = w.record.Mark + countedSave
	}
}

// counts tells whether the pod's time is counted. How long it has been active is known to the last save alone: a pod
// with a deadline that is always cut short by the power would never come to it.
func (w *worker) counts() bool {
	return w.pod.Spec.ActiveDeadlineSeconds != nil && w.record.Memory.Outcome == nil && w.record.Ending == nil
}

// countedSave is how much of it may be lost.
const countedSave = 5 * time.Minute

// again takes a turn after d though nothing happens.
func (w *worker) again(d time.Duration) {
	at := w.m.clock.Mono() + d
	if w.againAt == 0 || at < w.againAt {
		w.againAt = at
	}
}

// sooner is the earliest of all reasons for another turn.
func (w *worker) sooner(wake time.Duration) time.Duration {
	for _, at := range []time.Duration{w.saveAt, w.againAt, w.tokensDue} {
		if at > 0 && (wake == 0 || at < wake) {
			wake = at
		}
	}
	w.againAt = 0
	return wake
}

// absorb takes in what was told.
func (w *worker) absorb(in inbox) {
	if in.pod != nil {
		w.take(in.pod)
	}
	if in.vanished && !w.vanished {
		w.vanish()
	}
	if in.looked {
		w.see(in.seen)
	}
	if in.look || in.tick && !w.known {
		w.stale = true
	}
	for _, f := range in.done {
		f(w)
	}
	for _, r := range in.probed {
		w.heed(r)
	}
}

// take makes p what is wanted.
func (w *worker) take(p *corev1.Pod) {
	first := w.pod == nil
	if !first && w.pod.Generation != p.Generation {
		clear(w.hold)
	}
	if !first {
		w.tellResize(w.pod, p)
	}
	w.pod, w.vanished = p, false
	w.log = w.m.log.With("pod", p.Namespace+"/"+p.Name, "uid", w.uid)
	if first {
		w.log.Debug("pod is known")
		w.remember()
	}
	w.record.describe(p)
	if p.DeletionTimestamp != nil {
		grace := w.record.Grace
		if p.DeletionGracePeriodSeconds != nil {
			grace = *p.DeletionGracePeriodSeconds
		}
		w.end(time.Duration(grace) * time.Second)
	}
	w.mu.Lock()
	w.public.pod = p
	w.mu.Unlock()
}

// tellResize says that resources which were changed in place are not applied to a container that runs.
func (w *worker) tellResize(before, now *corev1.Pod) {
	for i := range now.Spec.Containers {
		c := &now.Spec.Containers[i]
		old := named(before, c.Name)
		if old == nil || equality.Semantic.DeepEqual(old.Resources, c.Resources) {
			continue
		}
		w.m.events.container(now, c.Name, corev1.EventTypeWarning, "FieldNotHonoured",
			"The container's resources were changed; they are applied when it is next started, not while it runs")
	}
}

// remember reads what was stored of the pod, or begins a record.
func (w *worker) remember() {
	if len(w.state) > 0 {
		r, err := readRecord(w.uid, w.state, w.m.clock)
		w.state = nil
		if err == nil {
			w.record, w.saved = r, true
			return
		}
		w.log.Error("what was remembered of the pod cannot be read; its restart counts come from the runtime", "err", err)
	}
	w.record = newRecord(w.pod, w.m.clock)
}

// vanish: the pod's object is gone, so the pod goes too, with its own grace.
func (w *worker) vanish() {
	w.vanished = true
	if w.pod == nil {
		if len(w.state) == 0 {
			return
		}
		r, err := readRecord(w.uid, w.state, w.m.clock)
		if err != nil {
			w.log.Error("what was remembered of a deleted pod cannot be read", "err", err)
			return
		}
		w.state, w.record, w.saved = nil, r, true
		w.pod = r.shadow(w.uid)
		w.log = w.m.log.With("pod", r.Namespace+"/"+r.Name, "uid", w.uid)
	}
	w.end(time.Duration(w.record.Grace) * time.Second)
}

// end begins the end of the pod, or brings it nearer; it is never put off.
func (w *worker) end(grace time.Duration) {
	now := w.m.clock.Mono()
	e := w.record.Ending
	if e != nil && e.Since+e.Grace <= now+grace {
		return
	}
	if e == nil {
		w.log.Info("pod is to end", "grace", grace)
	}
	clear(w.hold)
	w.record.Ending = &plan.Ending{Since: now, Grace: grace}
	// What is under way for its start has no purpose any more.
	for _, f := range w.flights {
		if f.action.Verb == plan.StartContainer || f.action.Verb == plan.StartSandbox {
			f.cancel()
		}
	}
}

// input is what the plan is made from.
func (w *worker) input() plan.Input {
	now := w.m.clock.Mono()
	in := plan.Input{
		Pod: w.pod, Memory: w.record.Memory, Now: now, Unhealthy: w.unhealthy, Started: w.begun,
		Hashes: map[string]string{}, Hold: map[string]time.Duration{}, Ending: w.record.Ending,
	}
	for i := range w.seen.Sandboxes {
		s := &w.seen.Sandboxes[i]
		in.Observed.Sandboxes = append(in.Observed.Sandboxes, plan.Sandbox{ID: s.ID, Attempt: s.Attempt, Ready: s.Ready, Stopped: w.stopped[s.ID]})
	}
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		in.Observed.Containers = append(in.Observed.Containers, plan.Container{
			ID: c.ID, SandboxID: c.SandboxID, Name: c.Name, Attempt: c.Attempt, State: planState(c.State),
			ExitCode: c.ExitCode, Hash: c.Hash, ExitedAt: w.exits[c.ID]})
	}
	for _, list := range [][]corev1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for i := range list {
			in.Hashes[list[i].Name] = runtime.Hash(&list[i])
		}
	}
	for _, f := range w.flights {
		in.Busy = append(in.Busy, f.action)
	}
	for k, h := range w.hold {
		in.Hold[k] = h.until
	}
	if s := w.pod.Spec.ActiveDeadlineSeconds; s != nil {
		left := time.Duration(*s)*time.Second - w.record.Ran
		in.Deadline = max(w.record.Since+left, 1)
	}
	return in
}

// plan asks what to do. A pod that is refused waits until it is changed or goes.
func (w *worker) plan() plan.Plan {
	if w.refused != nil && w.record.Ending == nil {
		return plan.Plan{}
	}
	return plan.For(w.input())
}

func planState(s runtime.State) plan.State {
	switch s {
	case runtime.Created:
		return plan.Created
	case runtime.Running:
		return plan.Running
	case runtime.Exited:
		return plan.Exited
	}
	return plan.Unknown
}

// begin starts an action on a goroutine of its own; what it finds out comes back through the inbox.
func (w *worker) begin(ctx context.Context, a plan.Action) {
	if a.Verb == plan.Conclude {
		w.conclude(ctx, a)
		return
	}
	for _, f := range w.flights {
		if a.Verb == plan.StopContainer && f.action.Verb == a.Verb && f.action.ID == a.ID {
			f.cancel() // it must go sooner
		}
	}
	run := w.prepare(a)
	ctx, cancel := context.WithCancel(ctx)
	id := w.nextID
	w.nextID++
	w.flights[id] = &flight{action: a, cancel: cancel}
	w.m.tasks.Add(1)
	go func() {
		defer w.m.tasks.Done()
		defer cancel()
		found := run(ctx)
		w.tell(func(in *inbox) {
			in.done = append(in.done, func(w *worker) {
				delete(w.flights, id)
				found(w)
			})
		})
	}()
}

// holdKey is under what it is noted that an action failed: the sandbox or container that it is about, the
// container that is to start, or "" for the pod as a whole.
func holdKey(a plan.Action) string {
	if a.ID != "" {
		return heldID + a.ID
	}
	return a.Name
}

// heldID keeps ids apart from the names of containers.
const heldID = "id:"

// failed notes that something did not work and is tried again later, waiting twice as long each time.
func (w *worker) failed(key string, first, most time.Duration) time.Duration {
	h := w.hold[key]
	h.delay = min(max(2*h.delay, first), most)
	h.until = w.m.clock.Mono() + h.delay
	w.hold[key] = h
	return h.delay
}

// save writes the record. It is called before what it tells of is done.
func (w *worker) save(ctx context.Context) error {
	w.record.Mark = w.m.clock.Mono()
	b, err := w.record.marshal()
	if err != nil {
		return err
	}
	if err := w.m.o.Store.SetPodState(ctx, w.uid, b); err != nil {
		return err
	}
	w.saved, w.saveAt = true, 0
	return nil
}

// conclude remembers how the pod ended; only what is remembered is acted upon.
func (w *worker) conclude(ctx context.Context, a plan.Action) {
	// An ephemeral container may still be on its way: nobody will look into this pod any more.
	for _, f := range w.flights {
		if f.action.Verb == plan.StartContainer {
			f.cancel()
		}
	}
	before := w.record.Memory.Outcome
	w.record.Memory.Outcome = a.Outcome
	if err := w.save(ctx); err != nil {
		w.record.Memory.Outcome = before
		if !errors.Is(err, context.Canceled) {
			w.log.Error("the pod's end cannot be stored", "err", err)
		}
		w.again(5 * time.Second)
		return
	}
	w.log.Info("pod has ended", "phase", a.Outcome.Phase, "reason", a.Outcome.Reason)
	if a.Outcome.Reason == "DeadlineExceeded" {
		w.m.events.pod(w.pod, corev1.EventTypeNormal, a.Outcome.Reason, a.Outcome.Message)
	}
	w.tell(func(in *inbox) { in.tick = true })
}
