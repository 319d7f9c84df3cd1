package mapper

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/dmi"
)

// Value is what was read of a property.
type Value struct {
	Property, Text string
	At             time.Time
}

// Limits of the way up.
const (
	maxQueue   = 512 // values and states of one device that wait
	maxReport  = 128 // values of one report
	maxSenders = 8   // reports under way, each about another device
)

// upward carries values to edgecore: of one device in order and one report at a
// time, of several devices at once.
type upward struct {
	log *slog.Logger

	mu     sync.Mutex
	queues map[Key]*queue
	ready  []Key
	more   *sync.Cond
	ended  bool
}

type queue struct {
	items   []item
	busy    bool // in ready, or a report is under way
	dropped bool // was told of
	refused map[string]string
}

// item is a value, or a state.
type item struct {
	value Value
	state State
}

func newUpward(log *slog.Logger) *upward {
	u := &upward{log: log, queues: make(map[Key]*queue)}
	u.more = sync.NewCond(&u.mu)
	return u
}

func (u *upward) know(key Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.queues[key] == nil {
		u.queues[key] = &queue{refused: make(map[string]string)}
	}
}

func (u *upward) forget(key Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.queues, key)
}

func (u *upward) values(key Key, values []Value) {
	items := make([]item, len(values))
	for i, v := range values {
		items[i] = item{value: v}
	}
	u.add(key, items...)
}

func (u *upward) state(key Key, s State) { u.add(key, item{state: s}) }

func (u *upward) add(key Key, items ...item) {
	u.mu.Lock()
	defer u.mu.Unlock()
	q := u.queues[key]
	if q == nil || len(items) == 0 {
		return // removed a moment ago
	}
	q.items = append(q.items, items...)
	if over := len(q.items) - maxQueue; over > 0 {
		q.items = append([]item(nil), q.items[over:]...)
		if !q.dropped {
			q.dropped = true
			u.log.Warn("edgecore takes values more slowly than they come: the oldest are dropped", "device", key)
		}
	}
	if !q.busy {
		q.busy = true
		u.ready = append(u.ready, key)
		u.more.Signal()
	}
}

// run sends until ctx ends.
func (u *upward) run(ctx context.Context, client dmi.DeviceManagerServiceClient) {
	stop := context.AfterFunc(ctx, func() {
		u.mu.Lock()
		u.ended = true
		u.mu.Unlock()
		u.more.Broadcast()
	})
	defer stop()
	var senders sync.WaitGroup
	for range maxSenders {
		senders.Go(func() {
			for {
				key, items, ok := u.next()
				if !ok {
					return
				}
				u.done(key, u.send(ctx, client, key, items))
			}
		})
	}
	senders.Wait()
}

// next waits for a device and takes what goes into one report: a state, or values.
func (u *upward) next() (key Key, items []item, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		for len(u.ready) == 0 && !u.ended {
			u.more.Wait()
		}
		if u.ended {
			return key, nil, false
		}
		key = u.ready[0]
		u.ready = u.ready[1:]
		q := u.queues[key]
		if q == nil || len(q.items) == 0 {
			continue
		}
		n := 1
		for q.items[0].state == "" && n < len(q.items) && n < maxReport && q.items[n].state == "" {
			n++
		}
		items = append(items, q.items[:n]...)
		q.items = q.items[n:]
		return key, items, true
	}
}

// done puts what was not taken back, and the device in line when it has more.
func (u *upward) done(key Key, left []item) {
	u.mu.Lock()
	defer u.mu.Unlock()
	q := u.queues[key]
	if q == nil {
		return
	}
	if len(left) > 0 {
		q.items = append(append([]item(nil), left...), q.items...)
		q.items = q.items[max(0, len(q.items)-maxQueue):]
	} else {
		q.dropped = false
	}
	q.busy = len(q.items) > 0
	if q.busy {
		u.ready = append(u.ready, key)
		u.more.Signal()
	}
}

// send returns what edgecore could not take now, after a pause.
func (u *upward) send(ctx context.Context, client dmi.DeviceManagerServiceClient, key Key, items []item) (left []item) {
	err := u.call(ctx, client, key, items)
	switch code := status.Code(err); {
	case err == nil:
		u.taken(key, items)
		return nil
	case ctx.Err() != nil:
		return items
	case code == codes.NotFound:
		u.log.Debug("edgecore does not know the device", "device", key)
		return nil
	case code == codes.InvalidArgument && len(items) > 1:
		// One bad value must not take the others with it.
		for i, one := range items {
			if left := u.send(ctx, client, key, []item{one}); left != nil {
				return append(left, items[i+1:]...)
			}
		}
		return nil
	case code == codes.InvalidArgument:
		u.refused(key, items[0], err)
		return nil
	}
	pause(ctx, 500*time.Millisecond)
	return items
}

func (u *upward) call(ctx context.Context, client dmi.DeviceManagerServiceClient, key Key, items []item) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if s := items[0].state; s != "" {
		_, err := client.ReportDeviceStates(ctx, &dmi.ReportDeviceStatesRequest{DeviceName: key.Name, DeviceNamespace: key.Namespace, State: string(s)})
		return err
	}
	report := &dmi.DeviceStatus{}
	for _, i := range items {
		report.Twins = append(report.Twins, &dmi.Twin{PropertyName: i.value.Property, Reported: &dmi.TwinProperty{
			Value: i.value.Text, Metadata: map[string]string{timestamp: strconv.FormatInt(i.value.At.UnixMilli(), 10)},
		}})
	}
	_, err := client.ReportDeviceStatus(ctx, &dmi.ReportDeviceStatusRequest{DeviceName: key.Name, DeviceNamespace: key.Namespace, ReportedDevice: report})
	return err
}

// refused tells of a refused value once, until the property's values are good again.
func (u *upward) refused(key Key, i item, err error) {
	reason := status.Convert(err).Message()
	u.mu.Lock()
	q := u.queues[key]
	told := q == nil || q.refused[i.value.Property] != ""
	if q != nil {
		q.refused[i.value.Property] = reason
	}
	u.mu.Unlock()
	if !told {
		u.log.Warn("edgecore refuses a value", "device", key, "property", i.value.Property, "err", reason)
	}
}

func (u *upward) taken(key Key, items []item) {
	u.mu.Lock()
	defer u.mu.Unlock()
	q := u.queues[key]
	if q == nil || len(q.refused) == 0 {
		return
	}
	for _, i := range items {
		delete(q.refused, i.value.Property)
	}
}
