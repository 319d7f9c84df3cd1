package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/route"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// desk turns messages into operations, and what becomes of them into answers. Both
// brokers share it.
type desk struct {
	o      Options
	routes *filters
	broker func() broker // nil while none is up
	count  counts
	events atomic.Uint64 // event ids of our own
	start  int64         // makes them unlike those of an earlier start
	moved  chan struct{} // capacity 1: a broker is new, and knows nothing

	mu sync.Mutex
	// said is when a device was last told that it says too much or that the store
	// fails, which is done once a second.
	said map[twin.Key]time.Time
	// old are the devices that use KubeEdge's topics without a namespace.
	old map[twin.Key]bool
}

type counts struct {
	messages, refused, failed, published, dropped, connections, rejected atomic.Uint64
}

func newDesk(o Options, routes *filters, b func() broker) *desk {
	return &desk{
		o: o, routes: routes, broker: b, start: time.Now().UnixMilli(), moved: make(chan struct{}, 1),
		said: make(map[twin.Key]time.Time), old: make(map[twin.Key]bool),
	}
}

// message is one that a device or a program published.
type message struct {
	topic   string
	payload []byte
	// respondTo and correlation are of MQTT 5; respondTo was checked.
	respondTo   string
	correlation []byte
}

// verdict is what became of a message.
type verdict struct {
	// failed: it was not kept, through no fault of its sender, and must come again.
	failed error
	// refused says what is wrong with it; it was answered.
	refused error
	code    int
}

// Sources of operations, for listeners.
type source string

const (
	fromKubeEdge source = "kubeedge"
	fromOwn      source = "own"
)

// wants says whether take has anything to do with messages of a topic.
func (d *desk) wants(name string) bool {
	k := topic.Parse(name).Kind
	return k != topic.Other && k != topic.Answer || d.routes.match(name)
}

// take handles one message. done is called once, perhaps from another goroutine,
// and must not block. It blocks while the devices take nothing more.
func (d *desk) take(ctx context.Context, m message, done func(verdict)) {
	d.count.messages.Add(1)
	finish := func(v verdict) {
		if v.failed != nil {
			d.count.failed.Add(1)
		} else if v.refused != nil {
			d.count.refused.Add(1)
		}
		done(v)
	}
	n := topic.Parse(m.topic)
	isDevice := n.Kind != topic.Other && n.Kind != topic.Answer
	if !d.routes.match(m.topic) {
		if !isDevice {
			finish(verdict{})
			return
		}
		d.hear(ctx, n, m, finish)
		return
	}
	if !isDevice {
		d.offer(ctx, m, finish)
		return
	}
	// It is for both: it is settled when both have it.
	var (
		mu      sync.Mutex
		missing = 2
		joined  verdict
	)
	both := func(v verdict) {
		mu.Lock()
		if missing--; joined.failed == nil && v.failed != nil {
			joined = v
		} else if joined.failed == nil && v.refused != nil {
			joined = v
		}
		last, result := missing == 0, joined
		mu.Unlock()
		if last {
			finish(result)
		}
	}
	d.offer(ctx, m, both)
	d.hear(ctx, n, m, both)
}

func (d *desk) offer(ctx context.Context, m message, done func(verdict)) {
	if len(m.payload) > maxPayload {
		done(verdict{refused: fmt.Errorf("the payload has %d bytes, and %d is the limit", len(m.payload), maxPayload), code: payload.TooLarge})
		return
	}
	if !d.o.Routes.Offer(ctx, m.topic, m.payload, func(err error) {
		if errors.Is(err, route.ErrTooLarge) { // it would come again, and again
			done(verdict{refused: err, code: payload.TooLarge})
			return
		}
		done(verdict{failed: err})
	}) {
		done(verdict{})
	}
}

// hear handles a message about devices.
func (d *desk) hear(ctx context.Context, n topic.Name, m message, done func(verdict)) {
	if n.Old {
		d.mu.Lock()
		if len(d.old) < 4096 {
			d.old[n.Key] = true
		}
		d.mu.Unlock()
	}
	r := request{desk: d, Name: n, message: m, done: done}
	if len(m.payload) > maxPayload {
		r.refuse(fmt.Errorf("%w: it has %d bytes, and %d is the limit: send fewer properties at once", payload.ErrInvalid, len(m.payload), maxPayload))
		return
	}
	switch n.Kind {
	case topic.TwinUpdate:
		r.twinUpdate(ctx)
	case topic.TwinGet:
		r.get(topic.TwinGetResult, func(v device.View, base payload.Base) any {
			return payload.TwinMessage{Base: base, Twin: payload.Properties(v)}
		})
	case topic.StateUpdate:
		r.stateUpdate(ctx)
	case topic.StateGet:
		r.get(topic.StateGetResult, func(v device.View, base payload.Base) any {
			return payload.StateMessage{Base: base, Device: payload.DeviceOf(v, false)}
		})
	case topic.MembershipGet, topic.MembershipDetail:
		r.membership()
	default:
		r.own(ctx)
	}
}

// request is one message about devices on its way.
type request struct {
	*desk
	topic.Name
	message message
	eventID string
	id      json.RawMessage
	done    func(verdict)
}

func (r *request) twinUpdate(ctx context.Context) {
	eventID, reported, desired, err := payload.TwinUpdate(r.message.payload)
	r.eventID = eventID
	if err != nil {
		r.refuse(err)
		return
	}
	names := make([]string, 0, len(reported)+len(desired))
	for _, u := range append(reported[:len(reported):len(reported)], desired...) {
		names = append(names, u.Property)
	}
	r.submit(ctx, device.Operation{Key: r.Key, Reported: reported, Desired: desired, Source: fromKubeEdge}, func(before, after device.View) {
		base := r.base(eventID)
		result := make(map[string]*payload.Twin, len(names))
		for _, u := range reported {
			r.into(result, after, u.Property).Actual = stamped(u.Value, base.Timestamp)
		}
		for _, u := range desired {
			r.into(result, after, u.Property).Expected = stamped(u.Value, base.Timestamp)
		}
		r.answer(topic.TwinUpdateResult, payload.TwinMessage{Base: base, Twin: result})
		document := topic.KubeEdge(r.Key, r.Old, topic.TwinDocument)
		if r.listens(document) {
			r.publish(outgoing{topic: document, payload: payload.Marshal(payload.DocumentOf(before, after, names, base))})
		}
		delta := topic.KubeEdge(r.Key, r.Old, topic.TwinUpdateDelta)
		if r.listens(delta) {
			if doc, some := payload.DeltaOf(after, r.base("")); some {
				r.publish(outgoing{topic: delta, payload: payload.Marshal(doc)})
			}
		}
	})
}

func (r *request) into(result map[string]*payload.Twin, v device.View, property string) *payload.Twin {
	t := result[property]
	if t == nil {
		if t = payload.Property(v, property); t == nil {
			t = new(payload.Twin)
		}
		t.Expected, t.Actual = nil, nil
		result[property] = t
	}
	return t
}

func stamped(v twin.Value, now int64) *payload.Value {
	at := v.At
	if at == 0 {
		at = now
	}
	return &payload.Value{Value: &v.Text, Metadata: &payload.ValueMeta{Timestamp: at}}
}

func (r *request) stateUpdate(ctx context.Context) {
	eventID, state, err := payload.StateUpdate(r.message.payload)
	r.eventID = eventID
	if err != nil {
		r.refuse(err)
		return
	}
	r.submit(ctx, device.Operation{Key: r.Key, State: state, Source: fromKubeEdge}, func(_, after device.View) {
		r.answer(topic.StateUpdateResult, payload.StateMessage{Base: r.base(eventID), Device: payload.DeviceOf(after, false)})
	})
}

// get answers a question about the device.
func (r *request) get(suffix string, show func(v device.View, base payload.Base) any) {
	eventID, err := payload.EventID(r.message.payload)
	r.eventID = eventID
	if err != nil {
		r.refuse(err)
		return
	}
	v, err := r.o.Devices.Get(r.Key)
	if err != nil {
		r.refuse(err)
		return
	}
	r.answer(suffix, show(v, r.base(eventID)))
	r.done(verdict{})
}

func (r *request) membership() {
	suffix := topic.MembershipGetResult
	if r.Kind == topic.MembershipDetail {
		suffix = topic.MembershipDetailResult
	}
	if r.Node != r.o.Node {
		r.done(verdict{}) // another node's
		return
	}
	eventID, err := payload.EventID(r.message.payload)
	if err != nil {
		r.publish(r.reply(topic.Node(r.Node, suffix), payload.Marshal(payload.Result{Base: r.base(eventID), Code: payload.BadRequest, Reason: err.Error()})))
		r.done(verdict{refused: err, code: payload.BadRequest})
		return
	}
	all := payload.Devices{Base: r.base(eventID), Devices: []payload.Device{}}
	for _, v := range r.o.Devices.List() {
		all.Devices = append(all.Devices, payload.DeviceOf(v, r.Kind == topic.MembershipDetail))
	}
	r.publish(r.reply(topic.Node(r.Node, suffix), payload.Marshal(all)))
	r.done(verdict{})
}

// own handles a message of Holdfast's scheme.
func (r *request) own(ctx context.Context) {
	op := device.Operation{Key: r.Key, Source: fromOwn}
	var (
		values []device.Update
		err    error
	)
	switch r.Kind {
	case topic.State:
		op.State, err = payload.State(r.message.payload)
	case topic.ReportOne, topic.SetOne:
		var v twin.Value
		v, err = payload.Text(r.message.payload)
		values = []device.Update{{Property: r.Property, Value: v}}
	default:
		values, err = payload.Values(r.message.payload)
		values = r.takeID(values)
	}
	if err == nil && op.State == "" && len(values) == 0 {
		err = fmt.Errorf("%w: it names no property beside id", payload.ErrInvalid)
	}
	if err != nil {
		r.refuse(err)
		return
	}
	if r.Kind == topic.Set || r.Kind == topic.SetOne {
		op.Desired = values
	} else {
		op.Reported = values
	}
	r.submit(ctx, op, func(device.View, device.View) {
		if r.id != nil || r.message.respondTo != "" {
			r.publish(r.reply(topic.Result(r.Key), payload.Marshal(payload.Answer{OK: true, ID: r.id})))
		}
	})
}

// takeID takes the update's own name out of its values, unless the device has a
// property of that name.
func (r *request) takeID(values []device.Update) []device.Update {
	for i, u := range values {
		if u.Property != "id" {
			continue
		}
		if v, err := r.o.Devices.Get(r.Key); err == nil && v.Properties["id"] != nil {
			break
		}
		r.id = payload.ID(r.message.payload)
		return append(values[:i:i], values[i+1:]...)
	}
	return values
}

// submit hands over an operation; accepted follows when it is committed.
func (r *request) submit(ctx context.Context, op device.Operation, accepted func(before, after device.View)) {
	op.Done = func(before, after device.View, err error) {
		if err != nil {
			r.refuse(err)
			return
		}
		accepted(before, after)
		r.done(verdict{})
	}
	if err := r.o.Devices.Submit(ctx, op); err != nil {
		r.refuse(err)
	}
}

// refuse answers what was not taken. What cannot be the sender's fault fails: it
// must be sent again.
func (r *request) refuse(err error) {
	var (
		code     = payload.Internal
		v        = verdict{refused: err}
		rejected *twin.RejectedError
		property = r.Property
		often    bool // such answers would come as often as the messages
	)
	switch {
	case errors.As(err, &rejected):
		code, property = payload.BadRequest, rejected.Property
		if view, e := r.o.Devices.Get(r.Key); e == nil && view.Model == nil {
			code = payload.Conflict
		}
	case errors.Is(err, payload.ErrInvalid):
		code = payload.BadRequest
		if len(r.message.payload) > maxPayload {
			code = payload.TooLarge
		}
	case errors.Is(err, device.ErrUnknownDevice):
		code = payload.NotFound
		err = fmt.Errorf("device %s: %w: it must be a Device whose spec.nodeName is %s (topics are NAMESPACE/NAME)", r.Key, err, r.o.Node)
	case errors.Is(err, device.ErrTooLarge):
		code = payload.TooLarge
	case errors.Is(err, device.ErrTooMany):
		code, often = payload.TooMany, true
		err = fmt.Errorf("device %s: %w: send less often; this is said once a second", r.Key, err)
	default:
		v, often = verdict{failed: err}, true
		err = fmt.Errorf("device %s: not stored, send it again: %w", r.Key, err)
	}
	if v.failed == nil {
		v.code, v.refused = code, err
	}
	if !often || r.mayRepeat() {
		r.complain(code, property, err)
	}
	r.done(v)
}

// mayRepeat says whether the device may be told once more what it is told once a
// second at most.
func (r *request) mayRepeat() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.said[r.Key]) < time.Second {
		return false
	}
	if len(r.said) > 4096 { // devices that there are not, too
		clear(r.said)
	}
	r.said[r.Key] = time.Now()
	return true
}

func (r *request) complain(code int, property string, err error) {
	if r.Kind.KubeEdge() {
		suffix := topic.TwinUpdateResult
		switch r.Kind {
		case topic.TwinGet:
			suffix = topic.TwinGetResult
		case topic.StateUpdate:
			suffix = topic.StateUpdateResult
		case topic.StateGet:
			suffix = topic.StateGetResult
		}
		r.answer(suffix, payload.Result{Base: r.base(r.eventID), Code: code, Reason: err.Error()})
		return
	}
	r.publish(r.reply(topic.Result(r.Key), payload.Marshal(payload.Answer{
		Error: err.Error(), Code: code, Property: property, Topic: r.message.topic, ID: r.id,
	})))
}

func (r *request) answer(suffix string, document any) {
	r.publish(r.reply(topic.KubeEdge(r.Key, r.Old, suffix), payload.Marshal(document)))
}

// reply is an answer, which goes where the request wants it.
func (r *request) reply(to string, body []byte) outgoing {
	if r.message.respondTo != "" {
		to = r.message.respondTo
	}
	return outgoing{topic: to, payload: body, correlation: r.message.correlation}
}

// base begins a document; an answer has the event id of the request.
func (d *desk) base(eventID string) payload.Base {
	if eventID == "" {
		eventID = strconv.FormatInt(d.start, 36) + "-" + strconv.FormatUint(d.events.Add(1), 10)
	}
	return payload.Base{EventID: eventID, Timestamp: time.Now().UnixMilli()}
}

func (d *desk) publish(m outgoing) {
	if b := d.broker(); b != nil {
		d.count.published.Add(1)
		b.publish(m)
	}
}

func (d *desk) listens(name string) bool {
	b := d.broker()
	return b != nil && b.listens(name)
}
