package pod

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"log/slog"
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
	eventBurst  = 3
	eventEvery  = 5 * time.Minute
	eventMemory = 1024 // series that are remembered
	// eventPatience is how long an event waits for others, as it is no state and nobody waits for it;
	// eventQuiet is how much longer it waits while pods are being started.
	eventPatience = time.Second
	eventQuiet    = 5 * time.Second
	// eventSimilar is how many events may differ in their message alone.
	eventSimilar = 10
)

// events reports what happened to pods. One event has one name for as long as it repeats, so that the
// outbox holds its latest state alone.
type events struct {
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

func newEvents(s *store.Store, c Clock, node string, log *slog.Logger, quiet func(context.Context, time.Duration) error) *events {
	return &events{store: s, clock: c, node: node, log: log, quiet: quiet, run: rand.Text(), series: map[string]*series{},
		pending: map[string][]byte{}, wake: make(chan struct{}, 1)}
}

// run stores events beside the work that they tell of, which waits for no disk.
func (e *events) serve(ctx context.Context) {
	for {
		select {
		case <-e.wake:
			// The node, the line and the cloud have better things to do while pods start; what comes
			// meanwhile goes in the same commit.
			select {
			case <-time.After(eventPatience):
			case <-ctx.Done():
			}
			if err := e.quiet(ctx, eventQuiet); err != nil && ctx.Err() == nil {
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
func (e *events) flush() {
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

// pod reports an event of the pod as a whole.
func (e *events) pod(p *corev1.Pod, kind, reason, message string) {
	e.put(p, "", kind, reason, message)
}

// container reports an event of one container.
func (e *events) container(p *corev1.Pod, name, kind, reason, message string) {
	path := fmt.Sprintf("spec.containers{%s}", name)
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			path = fmt.Sprintf("spec.initContainers{%s}", name)
		}
	}
	e.put(p, path, kind, reason, message)
}

func (e *events) put(p *corev1.Pod, path, kind, reason, message string) {
	message = clip(message, 1024)
	now, mono := metav1.NewTime(e.clock.Wall().UTC().Truncate(time.Second)), e.clock.Mono()

	e.mu.Lock()
	name := e.name(p, path, kind, reason, message)
	if e.series[name] == nil && e.similar(string(p.UID), path, reason) >= eventSimilar {
		// Messages that differ each time (an address, a number) are one event from here on.
		name = e.name(p, path, kind, reason, "")
		message = "(combined from similar events): " + message
	}
	s := e.series[name]
	if s == nil {
		e.room()
		s = &series{uid: string(p.UID), event: corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: name},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name,
				UID: p.UID, FieldPath: path},
			Type: kind, Reason: reason, Message: message, FirstTimestamp: now,
			Source:              corev1.EventSource{Component: "holdfast", Host: e.node},
			ReportingController: "holdfast", ReportingInstance: e.node,
		}}
		e.series[name] = s
	}
	s.event.Count++
	s.event.LastTimestamp = now
	if s.event.Count > eventBurst && mono-s.sent < eventEvery {
		e.mu.Unlock()
		return
	}
	s.sent = mono
	b, err := s.event.Marshal()
	if err != nil {
		e.mu.Unlock()
		e.log.Warn("event cannot be encoded", "pod", podName(p), "reason", reason, "err", err)
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
func (e *events) name(p *corev1.Pod, path, kind, reason, message string) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s\x00%s", p.UID, path, kind, reason, message, e.run)
	return fmt.Sprintf("%s.%016x", clip(p.Name, 230), h.Sum64())
}

// similar counts the series that differ in their message alone.
func (e *events) similar(uid, path, reason string) int {
	n := 0
	for _, s := range e.series {
		if s.uid == uid && s.event.Reason == reason && s.event.InvolvedObject.FieldPath == path {
			n++
		}
	}
	return n
}

// room drops the series that was silent longest when there are too many.
func (e *events) room() {
	if len(e.series) < eventMemory {
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

// forget drops the series of a pod that is gone.
func (e *events) forget(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, s := range e.series {
		if s.uid == uid {
			delete(e.series, name)
		}
	}
}
