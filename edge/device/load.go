package device

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// row is a device's own row in the store.
type row struct {
	State v1beta1.DeviceState `json:"state,omitempty"`
	Heard int64               `json:"heard,omitempty"`
	Acked map[string]uint64   `json:"acked,omitempty"`
	Told  told                `json:"told"`
}

func (d *device) ownRow(t *twin.Twin) []byte {
	return encode(row{State: t.State, Heard: t.Heard, Acked: d.report.acked, Told: d.report.told})
}

// load reads devices, models and twins, before anything else happens.
func (m *Manager) load(ctx context.Context) error {
	twins, own, err := m.readTwins(ctx)
	if err != nil {
		return err
	}
	if err := m.o.Store.Payloads(ctx, wire.Kind_KIND_DEVICE_MODEL, func(ref *wire.ObjectRef, payload []byte) {
		model := new(v1beta1.DeviceModel)
		if m.decode(ref, payload, model) {
			m.models[ref.GetUid()] = model
		}
	}); err != nil {
		return err
	}
	var devices []*v1beta1.Device
	if err := m.o.Store.Payloads(ctx, wire.Kind_KIND_DEVICE, func(ref *wire.ObjectRef, payload []byte) {
		d := new(v1beta1.Device)
		if m.decode(ref, payload, d) {
			devices = append(devices, d)
		}
	}); err != nil {
		return err
	}
	b := newBatch(m)
	for _, of := range devices {
		uid := string(of.UID)
		d := &device{view: View{Definition: twin.Define(of, nil), Twin: twin.New()}}
		if t := twins[uid]; t != nil {
			d.view.Twin = t
		}
		r := own[uid]
		d.report.acked, d.report.told = r.Acked, r.Told
		m.devices[d.view.Key], m.byUID[uid] = d, d
		delete(twins, uid)
		b.define(of)
	}
	for uid := range twins { // of devices that were deleted a moment before the end
		b.forget = append(b.forget, uid)
	}
	if err := m.loadHistory(ctx); err != nil {
		return err
	}
	m.commit(ctx, b)
	if len(b.order) == 0 && len(b.forget) > 0 {
		if err := m.o.Store.PutTwins(ctx, b.rows()); err != nil && ctx.Err() == nil {
			m.o.Log.Warn("what is known of devices that are gone stays in the database until the next start", "devices", len(b.forget), "err", err)
		}
	}
	return nil
}

func (m *Manager) decode(ref *wire.ObjectRef, payload []byte, into any) bool {
	err := json.Unmarshal(payload, into)
	if err != nil {
		m.o.Log.Error("a stored object cannot be read and is left alone", "object", wire.Describe(ref), "err", err)
	}
	return err == nil
}

func (m *Manager) readTwins(ctx context.Context) (map[string]*twin.Twin, map[string]row, error) {
	twins, own := make(map[string]*twin.Twin), make(map[string]row)
	var failed error
	err := m.o.Store.Twins(ctx, func(r store.TwinRow) {
		t := twins[r.UID]
		if t == nil {
			t = twin.New()
			twins[r.UID] = t
		}
		var err error
		if r.Part == "" {
			var o row
			if err = json.Unmarshal(r.Data, &o); err == nil {
				t.State, t.Heard, own[r.UID] = o.State, o.Heard, o
			}
		} else {
			e := new(twin.Entry)
			if err = json.Unmarshal(r.Data, e); err == nil {
				t.Properties[r.Part] = e
			}
		}
		if err != nil {
			failed = fmt.Errorf("property %q of the device with uid %s: %w", r.Part, r.UID, err)
		}
	})
	if failed != nil {
		m.o.Log.Error("a part of what was known of a device cannot be read; it begins anew", "err", failed)
	}
	return twins, own, err
}

func (m *Manager) loadHistory(ctx context.Context) error {
	return m.o.Store.TwinValueIDs(ctx, func(v store.TwinValue) {
		if d := m.byUID[v.UID]; d != nil {
			q := d.queue(v.Property)
			q.refs = append(q.refs, valueRef{v.ID, v.Number})
		}
	})
}
