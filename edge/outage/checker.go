package outage

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Runtime is what is asked of edge/runtime.
type Runtime interface {
	Info(ctx context.Context) (runtime.Info, error)
	Setup(ctx context.Context) runtime.Setup
	RunningSandboxes(ctx context.Context) ([]runtime.MadeSandbox, error)
	SandboxImage(ctx context.Context, id string) string
	Images(ctx context.Context) ([]runtime.NodeImage, error)
	Pin(ctx context.Context, want []string, all bool) (runtime.Pins, error)
}

// Options of New. All but Log, Changed and Root must be set.
type Options struct {
	Node  string
	Store *store.Store
	// Runtime is nil until the container runtime has answered once.
	Runtime func() Runtime
	// Pods are the pods as they are; nil: not known yet.
	Pods func() []pod.Summary
	// Tokens lists the tokens that a pod needs, edge/pod.Tokens.Kept.
	Tokens func(context.Context, *corev1.Pod) ([]pod.TokenKept, error)
	// HubTime is the hub's time as far as it is known, edge/uplink.HubTime.
	HubTime func() (time.Time, bool)
	// Wall is the node's time, never before what the hub told.
	Wall        func() time.Time
	Certificate func() (credential.Dates, error)

	Database   string // the database's file
	PodsDir    string // <DataDir>/pods
	Endpoint   string // of the container runtime
	PauseImage string // configured; empty: the runtime's own
	Root       string // of the operating system; empty: /
	// Changed is called when Verdict says something else.
	Changed func()
	Log     *slog.Logger
}

// Checker looks at the node again and again, and on demand.
type Checker struct {
	o      Options
	opened time.Time

	looks chan struct{} // holds one token: who looks

	changed atomic.Bool // the store has, since the memo was made

	// of whoever looks
	memo       memo
	wasReady   bool          // the last look found nothing amiss
	setup      runtime.Setup // as last told
	setupAt    time.Time
	madeBy     madeBy
	madeByKept bool      // in the store
	fullCheck  time.Time // when the whole database was last read
	checkErr   error     // what that found; it is told until another one finds nothing
	pinFailure string    // as last logged

	mu      sync.Mutex
	settled settled
}

// New returns a Checker that has not looked yet.
func New(o Options) *Checker {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Checker{o: o, opened: time.Now(), looks: make(chan struct{}, 1)}
}

// How often it is looked: what container runtimes and disks do of their own accord
// nobody tells. After a change in the store it waits for what else comes.
const (
	lookEvery  = time.Minute
	lookAfter  = 3 * time.Second
	lookLimit  = 20 * time.Second // of one look
	checkEvery = time.Minute      // the whole database, on demand
)

// Run looks until ctx ends.
func (c *Checker) Run(ctx context.Context) error {
	changes, cancel := c.o.Store.Subscribe(16)
	defer cancel()
	timer := time.NewTimer(lookAfter)
	defer timer.Stop()
	for due := time.Now().Add(lookAfter); ; {
		select {
		case <-ctx.Done():
			return nil
		case change, ok := <-changes:
			if !ok {
				return fmt.Errorf("readiness for an outage: %w", store.ErrClosed)
			}
			if !concerns(change.Kind) {
				continue
			}
			c.changed.Store(true)
			if soon := time.Now().Add(lookAfter); soon.Before(due) {
				due = soon
				timer.Reset(lookAfter)
			}
			continue
		case <-timer.C:
		}
		c.Look(ctx, false)
		wait := lookEvery
		c.mu.Lock()
		if next, waits := c.settled.next(time.Now()); waits {
			wait = min(wait, next)
		}
		if c.settled.known && !c.settled.shown.Ready {
			wait = min(wait, lookEvery/4) // somebody may be mending it
		}
		c.mu.Unlock()
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// concerns says whether a change of such an object may change the outcome.
func concerns(k wire.Kind) bool {
	switch k {
	case wire.Kind_KIND_UNSPECIFIED, wire.Kind_KIND_POD, wire.Kind_KIND_CONFIG_MAP, wire.Kind_KIND_SECRET:
		return true
	}
	return false
}

// Verdict is the Node condition; false: it is not known yet.
func (c *Checker) Verdict() (Verdict, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settled.shown, c.settled.known
}

// Look looks now. Deep is for somebody who asks, and reads the whole database too, once a
// minute at most. Looks wait for each other.
func (c *Checker) Look(caller context.Context, deep bool) localstatus.Outage {
	ctx, cancel := context.WithTimeout(caller, lookLimit)
	defer cancel()
	out := localstatus.Outage{Node: c.o.Node, Checked: c.o.Wall().UTC().Truncate(time.Second)}
	select {
	case c.looks <- struct{}{}:
		defer func() { <-c.looks }()
	case <-ctx.Done():
		out.Reason, out.Message = "TooSlow", fmt.Sprintf("another look has not ended within %s", lookLimit)
		return out
	}
	facts := c.gather(ctx, deep)
	if caller.Err() != nil {
		return out // what was cut short says nothing of the node
	}
	out.Checks = Judge(facts)
	v := Conclude(out.Checks)
	c.wasReady = v.Ready
	out.Ready, out.Reason, out.Message = v.Ready, v.Reason, v.Message
	c.show(v, deep)
	return out
}

func (c *Checker) show(v Verdict, asked bool) {
	c.mu.Lock()
	changed := c.settled.see(v, time.Now(), asked)
	v = c.settled.shown
	c.mu.Unlock()
	if !changed {
		return
	}
	if v.Ready {
		c.o.Log.Info("the node is ready for an outage", "reason", v.Reason)
	} else {
		c.o.Log.Warn("the node is not ready for an outage", "reason", v.Reason, "message", v.Message)
	}
	c.o.Changed()
}
