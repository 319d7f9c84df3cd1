// Package event records what happened to pods and devices as Kubernetes Events: one
// Event has one name for as long as it repeats, what repeats often is counted and
// seldom reported, and all of it waits in the outbox. edge/pod and edge/device use
// it. It decides nothing, and holds nobody up.
package event

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// How often the same event is reported: a container that crashes all night on a metered line must not
// burn traffic. The count keeps what was not reported.
const (
	burst  = 3
	every  = 5 * time.Minute
	memory = 1024 // series that are remembered
	// patience is how long an event waits for others, as it is no state and nobody waits for it;
	// quietMost is how much longer it waits while pods are being started.
	patience  = time.Second
	quietMost = 5 * time.Second
	// similarMost is how many events may differ in their message alone.
	similarMost = 10
)

// Recorder records events. One event has one name for as long as it repeats, so that the
// outbox holds its latest state alone.
type Recorder struct {
	store *store.Store
	clock Clock
	node  string
	log   *slog.Logger
	quiet func(context.Context, time.Duration) error // waits until nothing is being started
	run   string                                     // tells this run of edgecore from others, so that counts begin anew under a new name

	mu      sync.Mutex
	series  map[string]*series
	pending map[string][]byte // to be stored, by name
	order   []string
	wake    chan struct{}
}

type series struct {
	uid   string
	event corev1.Event
	sent  time.Duration // when it was last reported
}

// Clock is the node's, which may be wrong, and a time that only grows.
type Clock interface {
	Wall() time.Time
	Mono() time.Duration
}

// New returns a Recorder. quiet waits, at most that long, until the node has nothing
// more urgent to do; nil: it never has.
func New(s *store.Store, c Clock, node string, log *slog.Logger, quiet func(context.Context, time.Duration) error) *Recorder {
	if quiet == nil {
		quiet = func(context.Context, time.Duration) error { return nil }
	}
	return &Recorder{store: s, clock: c, node: node, log: log, quiet: quiet, run: rand.Text(), series: map[string]*series{},
		pending: map[string][]byte{}, wake: make(chan struct{}, 1)}
}

// Run stores events beside the work that they tell of, which waits for no disk.
func (e *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-e.wake:
			// The node, the line and the cloud have better things to do while pods start; what comes
			// meanwhile goes in the same commit.
			select {
			case <-time.After(patience):
			case <-ctx.Done():
			}
			if err := e.quiet(ctx, quietMost); err != nil && ctx.Err() == nil {
				e.log.Warn("events are not held back", "err", err)
			}
			e.flush()
		case <-ctx.Done():
			e.flush()
			return
		}
	}
}

// flush stores what is pending, several at a time: writes that wait together share one commit.
func (e *Recorder) flush() {
	var writes errgroup.Group
	writes.SetLimit(64) // as many as share a commit
	for {
		e.mu.Lock()
		if len(e.order) == 0 {
			e.mu.Unlock()
			break
		}
		name := e.order[0]
		e.order = e.order[1:]
		b := e.pending[name]
		delete(e.pending, name)
		e.mu.Unlock()
		writes.Go(func() error {
			err := e.store.PutReport(context.Background(), store.Report{Kind: wire.ReportKind_REPORT_EVENT, Key: name, Payload: b})
			if err != nil {
				e.log.Warn("event cannot be stored", "event", name, "err", err)
			}
			return nil
		})
	}
	writes.Wait()
}

// Put records an event about an object; kind is Normal or Warning.
func (e *Recorder) Put(about corev1.ObjectReference, kind, reason, message string) {
	message = clip(message, 1024)
	now, mono := metav1.NewTime(e.clock.Wall().UTC().Truncate(time.Second)), e.clock.Mono()

	e.mu.Lock()
	name := e.name(about, kind, reason, message)
	if e.series[name] == nil && e.similar(about, reason) >= similarMost {
		// Messages that differ each time (an address, a number) are one event from here on.
		name = e.name(about, kind, reason, "")
		message = "(combined from similar events): " + message
	}
	s := e.series[name]
	if s == nil {
		e.room()
		s = &series{uid: string(about.UID), event: corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: about.Namespace, Name: name},
			InvolvedObject: about,
			Type:           kind, Reason: reason, Message: message, FirstTimestamp: now,
			Source:              corev1.EventSource{Component: "holdfast", Host: e.node},
			ReportingController: "holdfast", ReportingInstance: e.node,
		}}
		e.series[name] = s
	}
	s.event.Count++
	s.event.LastTimestamp = now
	if s.event.Count > burst && mono-s.sent < every {
		e.mu.Unlock()
		return
	}
	s.sent = mono
	b, err := s.event.Marshal()
	if err != nil {
		e.mu.Unlock()
		e.log.Warn("event cannot be encoded", "object", about.Namespace+"/"+about.Name, "reason", reason, "err", err)
		return
	}
	if _, waits := e.pending[name]; !waits {
		e.order = append(e.order, name)
	}
	e.pending[name] = b
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// name is the same for the same event of one run of edgecore.
func (e *Recorder) name(about corev1.ObjectReference, kind, reason, message string) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s\x00%s", about.UID, about.FieldPath, kind, reason, message, e.run)
	return fmt.Sprintf("%s.%016x", clip(about.Name, 230), h.Sum64())
}

// similar counts the series that differ in their message alone.
func (e *Recorder) similar(about corev1.ObjectReference, reason string) int {
	n := 0
	for _, s := range e.series {
		if s.uid == string(about.UID) && s.event.Reason == reason && s.event.InvolvedObject.FieldPath == about.FieldPath {
			n++
		}
	}
	return n
}

// room drops the series that was silent longest when there are too many.
func (e *Recorder) room() {
	if len(e.series) < memory {
		return
	}
	oldest := ""
	for name, s := range e.series {
		if oldest == "" || s.sent < e.series[oldest].sent {
			oldest = name
		}
	}
	delete(e.series, oldest)
}

// Forget drops the series of an object that is gone.
func (e *Recorder) Forget(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, s := range e.series {
		if s.uid == uid {
			delete(e.series, name)
		}
	}
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}
