package adm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/show"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// DrillOptions say how an outage is rehearsed.
type DrillOptions struct {
	StatusOptions
	For            time.Duration // how long the line is held down
	RestartRuntime bool
	RuntimeCommand string // restarts the container runtime; run by sh
	Force          bool   // also where the node is not ready for an outage
}

// DefaultRuntimeCommand restarts the container runtime.
const DefaultRuntimeCommand = "systemctl restart containerd"

// How a drill looks and waits.
const (
	drillLooks   = 500 * time.Millisecond
	drillCut     = 30 * time.Second // until the line is down
	drillReturn  = 3 * time.Minute  // until the line is back and the hub has heard everything
	drillGoodbye = 10 * time.Second // to let the line go when the command is ended
)

// Drill rehearses an outage: it holds the line to the hub down for a stated time,
// restarts the container runtime meanwhile, and watches that every pod that ran is ready
// again without the cloud. The line comes back by itself, also when this command is
// killed.
func (a *App) Drill(ctx context.Context, o DrillOptions) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	runDir, err := o.runDir()
	if err != nil {
		return err
	}
	d := &drill{app: a, o: o, runDir: runDir, watched: map[string]*localstatus.DrilledPod{}, away: map[string]time.Time{}}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	err = d.run(ctx)
	if ctx.Err() != nil {
		err = errors.Join(errors.New("the drill was ended early; the line is let go"), err)
	}
	d.report.Ended = time.Now().UTC().Truncate(time.Second)
	d.report.Passed = err == nil && len(d.report.Problems) == 0
	if err := a.show(o.Output, d.report, func() error { return show.Drill(a.Out, d.report) }); err != nil {
		return err
	}
	switch {
	case err != nil:
		return err
	case !d.report.Passed:
		return fmt.Errorf("the drill was not passed: %s", strings.Join(d.report.Problems, "; "))
	}
	return nil
}

// drill is one rehearsal.
type drill struct {
	app    *App
	o      DrillOptions
	runDir string

	report  localstatus.Drill
	before  map[string]localstatus.PodSummary // by uid
	order   []string                          // of the uids
	watched map[string]*localstatus.DrilledPod
	away    map[string]time.Time // since when a pod is not ready

	command     chan error // tells once how the restart's command ended; nil: it has, or there is none
	restartedAt time.Time  // when it began
	answers     bool       // the runtime has, after it
}

// say tells people what goes on; programs read the report alone.
func (d *drill) say(format string, args ...any) {
	if d.o.Output == "table" {
		d.app.step(format, args...)
	}
}

func (d *drill) problem(format string, args ...any) {
	d.report.Problems = append(d.report.Problems, fmt.Sprintf(format, args...))
}

// prepare refuses what would not prove anything, and remembers what runs.
func (d *drill) prepare(ctx context.Context) error {
	s, err := localstatus.Get(ctx, d.runDir)
	if err != nil {
		return asRoot(err)
	}
	if until := s.Line.HeldUntil; !until.IsZero() {
		return fmt.Errorf("the line is held down already, until %s: another drill runs, or was killed; it comes back by itself", until.Local().Format(time.TimeOnly))
	}
	found, err := localstatus.GetOutage(ctx, d.runDir)
	if err != nil {
		return asRoot(err)
	}
	if !found.Ready && !d.o.Force {
		if err := d.app.showOutage(d.o.Output, found); err != nil {
			return err
		}
		return fmt.Errorf("%w; with --force it is drilled all the same", notReady(found))
	}
	if !s.Line.Connected && !d.o.Force {
		return errors.New("the line is down now, so that nobody could tell afterwards whether it comes back: wait for it, or add --force")
	}
	d.report = localstatus.Drill{Node: s.Node, Began: time.Now().UTC().Truncate(time.Second), Hold: d.o.For.String()}
	d.before = map[string]localstatus.PodSummary{}
	for _, p := range s.Pods {
		if p.Phase == "Succeeded" || p.Phase == "Failed" {
			continue // it has ended, and stays so
		}
		if !p.Ready {
			d.report.LeftOut = append(d.report.LeftOut, p.Namespace+"/"+p.Name)
			continue
		}
		d.before[p.UID] = p
		d.order = append(d.order, p.UID)
		d.watched[p.UID] = &localstatus.DrilledPod{Namespace: p.Namespace, Name: p.Name}
	}
	return nil
}

func (d *drill) run(ctx context.Context) error {
	// Not cut short: whoever is told to stop meanwhile must know that there is a hold.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), drillGoodbye)
	defer cancel()
	end := time.Now().Add(d.o.For) // not after the hold's own, however late its answer is
	hold, err := localstatus.HoldLine(asking, d.runDir, d.o.For)
	if err != nil {
		return err
	}
	defer d.release(ctx)
	d.say("The line to the hub is held down until %s; it comes back by itself, and Ctrl-C lets it go", hold.Until.Local().Format(time.TimeOnly))
	cut, err := d.await(ctx, drillCut, func(s localstatus.Status) bool { return !s.Line.Connected })
	if err != nil {
		return fmt.Errorf("wait for the line to go down: %w", err)
	}
	d.report.Line.Cut = cut.UTC().Truncate(time.Second)
	d.restart(ctx, end)
	if err := d.watch(ctx, end); err != nil {
		return err
	}
	d.conclude()
	return d.comeBack(ctx)
}

// release ends the hold, also where the user has ended the command.
func (d *drill) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drillGoodbye)
	defer cancel()
	// It fails where edgecore is gone, and with it the hold.
	_ = localstatus.ReleaseLine(ctx, d.runDir)
}

// await asks until cond holds.
func (d *drill) await(ctx context.Context, limit time.Duration, cond func(localstatus.Status) bool) (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	look := time.NewTicker(drillLooks)
	defer look.Stop()
	for {
		s, err := localstatus.Get(ctx, d.runDir)
		if err == nil && cond(s) {
			return time.Now(), nil
		}
		select {
		case <-ctx.Done():
			return time.Now(), errors.Join(ctx.Err(), err)
		case <-look.C:
		}
	}
}

// restart restarts the container runtime beside the watching. It may take as long as
// the line is down.
func (d *drill) restart(ctx context.Context, end time.Time) {
	if !d.o.RestartRuntime {
		return
	}
	done := make(chan error, 1)
	d.command, d.restartedAt = done, time.Now()
	d.say("Restarting the container runtime: %s", d.o.RuntimeCommand)
	d.report.Runtime = &localstatus.DrilledRuntime{Command: d.o.RuntimeCommand}
	go func() {
		ctx, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-c", d.o.RuntimeCommand)
		cmd.WaitDelay = time.Second // what it leaves running may keep its output open
		out, err := cmd.CombinedOutput()
		switch {
		case err == nil, errors.Is(err, exec.ErrWaitDelay):
			done <- nil
		case ctx.Err() != nil:
			done <- errors.New("the command did not end while the line was down")
		default:
			done <- errors.New(strings.TrimSuffix(err.Error()+": "+lastText(out), ": "))
		}
	}()
}

func (d *drill) commandEnded(err error) {
	d.command = nil
	if err != nil {
		d.report.Runtime.Problem = err.Error()
		d.problem("the container runtime could not be restarted: %v", err)
	}
}

// lastText is the end of what a command printed.
func lastText(out []byte) string {
	const most = 500
	return strings.TrimSpace(string(out[max(0, len(out)-most):]))
}

// watch looks at the pods until the hold ends.
func (d *drill) watch(ctx context.Context, end time.Time) error {
	d.say("Watching %d pods", len(d.order))
	look := time.NewTicker(drillLooks)
	defer look.Stop()
	over := time.NewTimer(time.Until(end.Add(-drillLooks)))
	defer over.Stop()
	silent := time.Time{}
	for last := false; !last; {
		select {
		case err := <-d.command:
			d.commandEnded(err)
		case <-look.C:
		case <-over.C:
			last = true
		case <-ctx.Done():
			return ctx.Err()
		}
		s, err := localstatus.Get(ctx, d.runDir)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			silent = time.Time{}
			d.see(s)
			if s.Line.HeldUntil.IsZero() && time.Now().Before(end.Add(-drillLooks)) {
				d.problem("the line was not held down to the end: edgecore was restarted, or somebody let the line go")
				last = true
			}
		case silent.IsZero():
			silent = time.Now()
		}
	}
	if !silent.IsZero() {
		d.problem("edgecore has not answered for %.0f s: `journalctl -u edgecore`", time.Since(silent).Seconds())
	}
	if d.command != nil {
		d.commandEnded(<-d.command) // its time is over, too
	}
	if r := d.report.Runtime; r != nil && r.Problem == "" && !d.answers {
		r.Problem = "it was not ready again while the line was down"
		d.problem("the container runtime was not ready again while the line was down")
	}
	return nil
}

// see takes in how the pods are.
func (d *drill) see(s localstatus.Status) {
	d.report.Line.Waiting = max(d.report.Line.Waiting, s.Outbox)
	if !d.answers && d.command == nil && d.report.Runtime != nil && s.Runtime.Answers && s.Runtime.Ready {
		d.answers, d.report.Runtime.Seconds = true, seconds(time.Since(d.restartedAt))
	}
	there := map[string]bool{}
	for _, p := range s.Pods {
		w := d.watched[p.UID]
		if w == nil {
			continue
		}
		there[p.UID] = true
		before := d.before[p.UID]
		w.Restarts = p.Restarts - before.Restarts
		w.Replaced = replaced(before, p)
		w.Reason = ""
		if !p.Ready {
			w.Reason = why(p)
		}
		d.ready(p.UID, p.Ready)
	}
	for uid, w := range d.watched {
		if !there[uid] {
			w.Reason = "it is gone"
			d.ready(uid, false)
		}
	}
}

// why says why a pod is not ready.
func why(p localstatus.PodSummary) string {
	if p.Reason != "" {
		return p.Reason
	}
	for _, c := range p.Containers {
		if !c.Ready && c.Kind == "" {
			return strings.TrimSpace("container " + c.Name + " " + c.State + " " + c.Reason)
		}
	}
	return p.Phase
}

// ready counts how long a pod is not.
func (d *drill) ready(uid string, ready bool) {
	w, since := d.watched[uid], d.away[uid]
	w.Ready = ready
	switch {
	case ready && !since.IsZero():
		w.NotReadySeconds += seconds(time.Since(since))
		delete(d.away, uid)
	case !ready && since.IsZero():
		d.away[uid] = time.Now()
	}
}

// replaced counts the containers that are others than before.
func replaced(before, now localstatus.PodSummary) int {
	n := 0
	for _, c := range now.Containers {
		for _, b := range before.Containers {
			if b.Name == c.Name && b.ID != c.ID && b.State == localstatus.StateRunning {
				n++
			}
		}
	}
	return n
}

// conclude says which pods have come back, at the end of the hold.
func (d *drill) conclude() {
	for _, uid := range d.order {
		w := d.watched[uid]
		if since := d.away[uid]; !since.IsZero() {
			w.NotReadySeconds += seconds(time.Since(since))
		}
		if !w.Ready {
			d.problem("pod %s/%s is not ready again (%s)", w.Namespace, w.Name, w.Reason)
		}
		d.report.Pods = append(d.report.Pods, *w)
	}
}

// comeBack lets the line go and waits until the hub has heard everything.
func (d *drill) comeBack(ctx context.Context) error {
	d.say("Letting the line go")
	d.release(ctx)
	l := &d.report.Line
	began := time.Now()
	if at, err := d.await(ctx, drillReturn, func(s localstatus.Status) bool { return s.Line.Connected }); err != nil {
		d.problem("the line has not come back within %s: `holdfast status` says why", drillReturn)
		return ctx.Err()
	} else {
		l.Back, l.BackSeconds = at.UTC().Truncate(time.Second), seconds(at.Sub(began))
	}
	at, err := d.await(ctx, drillReturn, func(s localstatus.Status) bool { return s.Line.Connected && s.Line.Synced && s.Outbox == 0 })
	if err != nil {
		d.problem("the hub has not taken all reports within %s", drillReturn)
		return ctx.Err()
	}
	l.DrainedSeconds = seconds(at.Sub(began))
	return nil
}

func seconds(d time.Duration) float64 { return d.Round(100 * time.Millisecond).Seconds() }
