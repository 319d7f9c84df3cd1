package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	taskevents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// EventKind says what happened to a container.
type EventKind string

const (
	// ContainerExited: a container or a sandbox's own process has ended, and CRI's status says so by now.
	ContainerExited EventKind = "Exited"
	// ContainerOOM: the kernel killed something in the container for want of memory.
	ContainerOOM EventKind = "OOM"
	// ContainerRemoved: the container is gone from the runtime.
	ContainerRemoved EventKind = "Removed"
	// Resync: events may have been missed; everything has to be observed anew. ContainerID is empty.
	Resync EventKind = "Resync"
)

// Event is one thing that happened in the runtime. ContainerID may name a sandbox.
type Event struct {
	ContainerID string
	Kind        EventKind
}

// criNamespace is where containerd's CRI plugin keeps its containers.
const criNamespace = "k8s.io"

// Events passes on containerd's own events about containers that CRI owns, until ctx ends; then the channel closes. The
// stream is opened again for ever when it breaks; after each opening, the first included, a Resync is sent, because
// what happened in between is not told. A receiver that stops receiving holds the stream up but loses nothing.
//
// An Exited event is sent only when CRI's status shows the end: containerd tells its subscribers at the same moment as
// its CRI plugin, and a reader that was faster than the plugin would find the container still running.
func (r *Runtime) Events(ctx context.Context) <-chan Event {
	out := make(chan Event, 64)
	go func() {
		var pending sync.WaitGroup
		defer close(out)
		defer pending.Wait()
		down := false
		for ctx.Err() == nil {
			err := r.subscribe(ctx, out, &pending, func() {
				if down {
					r.log.Info("events of the container runtime are read again", "endpoint", r.endpoint)
				}
				down = false
			})
			if ctx.Err() != nil {
				return
			}
			if !down {
				r.log.Warn("events of the container runtime broke off; reconnecting", "endpoint", r.endpoint, "error", err)
			}
			down = true
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	return out
}

// subscribe reads one stream to its end.
func (r *Runtime) subscribe(ctx context.Context, out chan<- Event, pending *sync.WaitGroup, opened func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before the stream stands up, containerd must answer: a stream that was accepted by a dying daemon tells nothing.
	if _, err := r.version(ctx); err != nil {
		return err
	}
	filter := func(topic string) string { return `namespace==` + criNamespace + `,topic=="` + topic + `"` }
	stream, err := eventsapi.NewEventsClient(r.conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{filter("/tasks/exit"), filter("/tasks/oom"), filter("/containers/delete")},
	})
	if err != nil {
		return wrap(err)
	}
	opened()
	if !send(ctx, out, Event{Kind: Resync}) {
		return ctx.Err()
	}
	// containerd confirms a subscription with nothing. What ends between the Resync and containerd's own registration of
	// the subscriber is found by a second Resync shortly after; from then on the stream tells everything.
	pending.Add(1)
	go func() {
		defer pending.Done()
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
			send(ctx, out, Event{Kind: Resync})
		}
	}()
	for {
		env, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the stream ended: %w", ErrUnavailable)
		} else if err != nil {
			return wrap(err)
		}
		r.pass(ctx, env, out, pending)
	}
}

// pass turns one of containerd's envelopes into an Event.
func (r *Runtime) pass(ctx context.Context, env *types.Envelope, out chan<- Event, pending *sync.WaitGroup) {
	if env.GetNamespace() != criNamespace || env.GetEvent() == nil {
		return
	}
	// The type URL decides what the bytes are; containerd's are bare names, without a host before them.
	switch env.Event.TypeUrl {
	case "containerd.events.TaskExit":
		var e taskevents.TaskExit
		if proto.Unmarshal(env.Event.Value, &e) != nil || e.ID != e.ContainerID {
			return // the end of an exec, not of the container
		}
		pending.Add(1)
		go func() {
			defer pending.Done()
			r.awaitExit(ctx, e.ContainerID)
			r.forget(e.ContainerID)
			send(ctx, out, Event{ContainerID: e.ContainerID, Kind: ContainerExited})
		}()
	case "containerd.events.TaskOOM":
		var e taskevents.TaskOOM
		if proto.Unmarshal(env.Event.Value, &e) != nil {
			return
		}
		pending.Add(1)
		go func() {
			defer pending.Done()
			r.awaitOOM(ctx, e.ContainerID)
			r.forget(e.ContainerID)
			send(ctx, out, Event{ContainerID: e.ContainerID, Kind: ContainerOOM})
		}()
	case "containerd.events.ContainerDelete":
		var e taskevents.ContainerDelete
		if proto.Unmarshal(env.Event.Value, &e) == nil {
			r.forget(e.ID)
			send(ctx, out, Event{ContainerID: e.ID, Kind: ContainerRemoved})
		}
	}
}

// awaitExit waits until CRI's status shows that a container no longer runs, ten seconds at most: the slow relist finds
// what comes later.
func (r *Runtime) awaitExit(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		if alive, err := r.alive(ctx, id); err != nil || !alive {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// awaitOOM waits until CRI's status of a container that has ended says why, ten seconds at most. The kernel's word may
// come after the end, when a status without it has been seen already.
func (r *Runtime) awaitOOM(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		st, err := r.freshStatus(ctx, id)
		if err != nil || st.State != cri.ContainerState_CONTAINER_EXITED || st.Reason == reasonOOMKilled {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// alive says whether CRI counts a container, or a sandbox, as running.
func (r *Runtime) alive(ctx context.Context, id string) (bool, error) {
	c, err := r.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
	if err != nil {
		return false, err
	}
	if len(c.Containers) > 0 {
		return c.Containers[0].State == cri.ContainerState_CONTAINER_RUNNING, nil
	}
	s, err := r.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: id}})
	return err == nil && len(s.Items) > 0 && s.Items[0].State == cri.PodSandboxState_SANDBOX_READY, err
}

func send(ctx context.Context, out chan<- Event, e Event) bool {
	select {
	case out <- e:
		return true
	case <-ctx.Done():
		return false
	}
}
