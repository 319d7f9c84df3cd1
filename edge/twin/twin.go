package twin

import (
	"fmt"
	"maps"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// Twin is what a node knows of one device beside its definition. It is never
// changed once made: what changes it returns another one that shares the rest.
type Twin struct {
	State v1beta1.DeviceState
	// Heard is when the device was last heard, in milliseconds since 1970 by the
	// node's clock; 0: never.
	Heard      int64
	Properties map[string]*Entry
}

// New is the twin of a device of which nothing was heard.
func New() *Twin { return &Twin{State: v1beta1.StateUnknown, Properties: map[string]*Entry{}} }

// Entry is what is known of one property. It is never changed once made.
type Entry struct {
	// Version counts the changes that the cloud is told of. A report that repeats the
	// value before is none.
	Version  uint64 `json:"n"`
	Reported *Value `json:"r,omitempty"`
	// Seen is the cloud's last word as it came, Cloud the last of its words that the
	// property can take.
	Seen  *Value `json:"s,omitempty"`
	Cloud *Value `json:"c,omitempty"`
	// Local was set at the node after Seen had come; it is in force while it is there.
	Local *Value `json:"l,omitempty"`
	// Overridden is the last local value that a newer word of the cloud ended.
	Overridden *Value    `json:"o,omitempty"`
	Rejected   *Rejected `json:"x,omitempty"`
	// Count counts the reported values, for histories; Dropped those of them which
	// were given up before the cloud had them.
	Count   uint64 `json:"k,omitempty"`
	Dropped uint64 `json:"d,omitempty"`
}

// Rejected is a value that was refused.
type Rejected struct {
	Text    string `json:"v"`
	Reason  string `json:"w"`
	Desired bool   `json:"e,omitempty"`
	At      int64  `json:"t,omitempty"`
}

// Desired is the desired value in force, nil for none, and whether it was set at
// the node.
//
// Who wins: the word that came to the node last. A value set at the node holds
// until the cloud's word for that property changes; a word of the cloud holds
// until somebody at the node sets another. While the line is cut, what the cloud
// says comes when the line is back, and so wins over what was set meanwhile; the
// loser is kept as Overridden. No clock has a say.
func (e *Entry) Desired() (v *Value, byEdge bool) {
	if e == nil {
		return nil, false
	}
	if e.Local != nil {
		return e.Local, true
	}
	return e.Cloud, false
}

// entry returns a copy of an entry to be changed.
func (t *Twin) entry(name string) *Entry {
	if e := t.Properties[name]; e != nil {
		c := *e
		return &c
	}
	return new(Entry)
}

// With returns the twin with one entry in the place of another, or of none.
func (t *Twin) With(name string, e *Entry) *Twin {
	c := *t
	c.Properties = maps.Clone(t.Properties)
	c.Properties[name] = e
	return &c
}

// same says that two words are one: the cloud says a thing once more by other
// metadata.
func same(a, b *Value) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Text == b.Text && maps.Equal(a.Metadata, b.Metadata)
}

// Follow takes the cloud's word about all properties at once. changed names the
// entries that differ, gone those that the device has no more, and refused says
// what the cloud wants and cannot have. A definition without its model changes
// nothing: unknown is not empty.
func (t *Twin) Follow(def *Definition, now int64) (next *Twin, changed, gone []string, refused []*RejectedError) {
	next = t
	if def.Model == nil {
		return next, nil, nil, nil
	}
	for name := range t.Properties {
		if def.Properties[name] == nil {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		c := *t
		c.Properties = maps.Clone(t.Properties)
		for _, name := range gone {
			delete(c.Properties, name)
		}
		next = &c
	}
	for name, p := range def.Properties {
		was := t.Properties[name]
		if was == nil && p.Desired == nil || was != nil && same(was.Seen, p.Desired) {
			continue
		}
		e := t.entry(name)
		if err := e.follow(p, now); err != nil {
			refused = append(refused, err)
		}
		next = next.With(name, e)
		changed = append(changed, name)
	}
	return next, changed, gone, refused
}

// follow takes a new word of the cloud.
func (e *Entry) follow(p *Property, now int64) *RejectedError {
	e.Seen = p.Desired
	e.Version++
	if p.Desired == nil {
		e.Cloud = nil
		return nil
	}
	if err := p.mayDesire(*p.Desired); err != nil {
		e.Rejected = &Rejected{Text: clip(err.Value), Reason: err.Reason, Desired: true, At: now}
		return err
	}
	e.Cloud = p.Desired
	if e.Local != nil && e.Local.Text != p.Desired.Text {
		e.Overridden = e.Local
	}
	e.Local = nil
	return nil
}

// mayDesire says why the property cannot be set to a value.
func (p *Property) mayDesire(v Value) *RejectedError {
	reason := "the property is read-only"
	if p.AccessMode == v1beta1.ReadWrite {
		if reason = p.wrong(v); reason == "" {
			return nil
		}
	}
	return &RejectedError{Property: p.Name, Value: v.Text, Reason: reason, Desired: true}
}

// unknown is the answer to a value for a property that there is not.
func (d *Definition) unknown(name string, v Value, desired bool) *RejectedError {
	reason := fmt.Sprintf("device %s has no such property", d.Key)
	if d.Model == nil {
		reason = d.Problem
	} else if d.Device.Spec.DeviceModelRef != nil {
		reason += fmt.Sprintf(" (its model is %s)", d.Device.Spec.DeviceModelRef.Name)
	}
	return &RejectedError{Property: clip(name), Value: v.Text, Reason: reason, Desired: desired}
}

// Report takes a value from the device. It returns the property's new entry, nil
// when the property is not known; with an error the entry differs only in that it
// tells of the refused value.
func (t *Twin) Report(def *Definition, name string, v Value, now int64) (*Entry, *RejectedError) {
	p := def.Properties[name]
	if p == nil {
		return nil, def.unknown(name, v, false)
	}
	e := t.entry(name)
	if reason := p.wrong(v); reason != "" {
		err := &RejectedError{Property: name, Value: v.Text, Reason: reason}
		e.reject(err, now)
		return e, err
	}
	if e.Reported == nil || !same(e.Reported, &v) || p.History > 0 || e.Rejected != nil && !e.Rejected.Desired {
		e.Version++
	}
	if e.Rejected != nil && !e.Rejected.Desired {
		e.Rejected = nil // the device is well again
	}
	e.Reported = &v
	e.Count++
	return e, nil
}

// SetDesired takes a desired value from a program on the node; see Desired for who
// wins. It returns as Report does.
func (t *Twin) SetDesired(def *Definition, name string, v Value, now int64) (*Entry, *RejectedError) {
	p := def.Properties[name]
	if p == nil {
		return nil, def.unknown(name, v, true)
	}
	e := t.entry(name)
	if err := p.mayDesire(v); err != nil {
		e.reject(err, now)
		return e, err
	}
	e.Local, e.Overridden = &v, nil
	if e.Rejected != nil && e.Rejected.Desired {
		e.Rejected = nil
	}
	e.Version++
	return e, nil
}

// reject notes a refused value. The same once more is no news.
func (e *Entry) reject(err *RejectedError, now int64) {
	r := &Rejected{Text: clip(err.Value), Reason: err.Reason, Desired: err.Desired, At: now}
	if was := e.Rejected; was != nil && was.Text == r.Text && was.Reason == r.Reason && was.Desired == r.Desired {
		return
	}
	e.Rejected = r
	e.Version++
}

// Delta are the desired values in force that the device has not reported.
func (t *Twin) Delta() map[string]Value {
	delta := make(map[string]Value)
	for name, e := range t.Properties {
		if want, _ := e.Desired(); want != nil && (e.Reported == nil || e.Reported.Text != want.Text) {
			delta[name] = *want
		}
	}
	return delta
}
