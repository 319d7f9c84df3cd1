package mqtt

import (
	"context"
	"maps"
	"slices"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// greet makes tell say everything to a broker that is new.
func (d *desk) greet() {
	select {
	case d.moved <- struct{}{}:
	default:
	}
}

// teller says on retained topics what is desired, and on KubeEdge's what others than
// MQTT have changed. told is what the broker was told of each device's desired
// values; it belongs to one goroutine.
type teller struct {
	*desk
	told map[twin.Key]map[string]string
}

// tell follows the devices until ctx ends.
func (d *desk) tell(ctx context.Context, changes <-chan device.Change) {
	t := teller{desk: d, told: make(map[twin.Key]map[string]string)}
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return
			}
			t.change(ctx, c)
		case <-d.moved:
			t.everything(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// send waits for the broker, so that a thousand devices fill no queue. What is lost
// when the broker goes is said again when it is back.
func (t *teller) send(ctx context.Context, m outgoing) bool {
	b := t.broker()
	if b == nil {
		return false
	}
	t.count.published.Add(1)
	return b.deliver(ctx, m) == nil
}

func (t *teller) everything(ctx context.Context) {
	there := make(map[twin.Key]bool)
	for _, v := range t.o.Devices.List() {
		there[v.Key] = true
		t.desired(ctx, v, true)
		t.delta(ctx, v)
	}
	for key := range t.told {
		if !there[key] {
			t.forget(ctx, key)
		}
	}
}

func (t *teller) change(ctx context.Context, c device.Change) {
	key := c.Key()
	if c.After.Definition == nil {
		t.forget(ctx, key)
		t.member(ctx, payload.Membership{Base: t.base(""), Removed: []payload.Device{payload.DeviceOf(c.Before, false)}})
		return
	}
	if c.Before.Definition == nil {
		t.member(ctx, payload.Membership{Base: t.base(""), Added: []payload.Device{payload.DeviceOf(c.After, true)}})
	} else if c.Before.Generation != c.After.Generation {
		t.kubeEdge(ctx, key, topic.DeviceUpdated, func() any {
			return payload.Attributes{Base: t.base(""), Attributes: map[string]string{}}
		})
	}
	before, after := payload.Desired(c.Before), payload.Desired(c.After)
	t.desired(ctx, c.After, false)
	if maps.Equal(before, after) || c.Source == any(fromKubeEdge) {
		return // nothing to do, or the desk has said so to whoever asked for it
	}
	var names []string
	for name := range c.After.Properties {
		if before[name] != after[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return // it is gone with its property
	}
	if c.Source == nil {
		t.kubeEdge(ctx, key, topic.TwinCloudUpdated, func() any { return payload.CloudUpdated(c.After, names, t.base("")) })
	}
	t.kubeEdge(ctx, key, topic.TwinDocument, func() any { return payload.DocumentOf(c.Before, c.After, names, t.base("")) })
	t.delta(ctx, c.After)
}

// delta says what the device has yet to do.
func (t *teller) delta(ctx context.Context, v device.View) {
	d, some := payload.DeltaOf(v, t.base(""))
	if some {
		t.kubeEdge(ctx, v.Key, topic.TwinUpdateDelta, func() any { return d })
	}
}

// kubeEdge publishes a document about a device, also in the form without a namespace
// where somebody uses it.
func (t *teller) kubeEdge(ctx context.Context, key twin.Key, suffix string, document func() any) {
	var body []byte
	for _, old := range []bool{false, true} {
		if old && !t.usesOld(key) {
			continue
		}
		name := topic.KubeEdge(key, old, suffix)
		if !t.listens(name) {
			continue
		}
		if body == nil {
			body = payload.Marshal(document())
		}
		t.send(ctx, outgoing{topic: name, payload: body})
	}
}

func (t *teller) usesOld(key twin.Key) bool {
	if key.Namespace != topic.DefaultNamespace {
		return false
	}
	if b := t.broker(); b != nil && b.knows() {
		return true // listens knows better
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.old[key]
}

func (t *teller) member(ctx context.Context, m payload.Membership) {
	if m.Added == nil {
		m.Added = []payload.Device{}
	}
	if m.Removed == nil {
		m.Removed = []payload.Device{}
	}
	t.send(ctx, outgoing{topic: topic.Node(t.o.Node, topic.MembershipUpdated), payload: payload.Marshal(m)})
}

// desired brings the retained topics to what is desired; all of them if the broker
// may have forgotten them.
func (t *teller) desired(ctx context.Context, v device.View, all bool) {
	told, known := t.told[v.Key]
	want := payload.Desired(v)
	if known && !all && maps.Equal(told, want) {
		return
	}
	ok := true
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if _, still := want[name]; !still {
			ok = t.send(ctx, outgoing{topic: topic.DesiredOne(v.Key, name), retain: true}) && ok
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if was, had := told[name]; all || !had || was != want[name] {
			ok = t.send(ctx, outgoing{topic: topic.DesiredOne(v.Key, name), payload: []byte(want[name]), retain: true}) && ok
		}
	}
	if t.send(ctx, outgoing{topic: topic.Desired(v.Key), payload: payload.Typed(v, want), retain: true}) && ok {
		t.told[v.Key] = want
	}
}

// forget takes back what was retained about a device that is gone. What the broker
// did not hear is said when it is back.
func (t *teller) forget(ctx context.Context, key twin.Key) {
	told, known := t.told[key]
	if known {
		ok := true
		for name := range told {
			ok = t.send(ctx, outgoing{topic: topic.DesiredOne(key, name), retain: true}) && ok
		}
		if t.send(ctx, outgoing{topic: topic.Desired(key), retain: true}) && ok {
			delete(t.told, key)
		}
	}
	t.mu.Lock()
	delete(t.old, key)
	delete(t.said, key)
	t.mu.Unlock()
}
