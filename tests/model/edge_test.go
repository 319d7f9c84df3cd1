package model

import (
	"errors"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
)

// maxConns bounds the connections: the edge's own, and those that it has left and
// that hubs still believe in.
const maxConns = 3

func noJitter(time.Duration) time.Duration { return 0 }

// The window's clock: a report which must wait is answered at the first, and sent
// again at the second.
func early() time.Time { return time.Unix(1, 0).UTC() }
func late() time.Time  { return time.Unix(3600, 0).UTC() }

// edgeSteps are what the edge can do.
func (w *world) edgeSteps(add adder) {
	at := w.attached()
	if at < 0 {
		if len(w.conns) < maxConns {
			n := w.clone()
			n.connect()
			add("the edge connects", true, n)
		}
		return
	}
	c := w.conns[at]
	if w.left.faults > 0 {
		n := w.clone()
		n.left.faults--
		n.leave(at)
		add("the line breaks, as the edge sees it", false, n)
	}
	if c.hub == hubEnded {
		n := w.clone()
		n.leave(at)
		add("the edge finds the line broken", true, n)
	}
	if len(c.down) > 0 {
		w.edgeTakes(at, add)
	}
	if w.left.mangled > 0 && len(c.down) > 0 {
		w.mangle(at, add)
	}
	if n := w.clone(); n.report(at) {
		add("the edge reports", true, n)
	}
}

func (w *world) connect() {
	digest := make([]byte, wire.DigestLen)
	if !w.edge.inventory {
		digest = wire.Digest(w.objects.refs(&w.edge.store))
	}
	w.edge.session, w.edge.window, w.edge.committed = new(resume.Session), resume.NewWindow(noJitter), 0
	w.conns = append(w.conns, &conn{edge: true, up: []*wire.EdgeMessage{resume.Hello(digest, "", "store")}})
}

// leave closes the edge's end: the hub knows nothing of it yet, and may still read
// what is on its way. Only the Hello and reports matter then.
func (w *world) leave(i int) {
	w.edge.session, w.edge.window, w.edge.committed = nil, nil, 0
	if w.conns[i].hub == hubEnded {
		w.conns = slices.Delete(w.conns, i, i+1)
		return
	}
	c := w.own(i)
	c.edge, c.down, c.delivery, c.mangled, c.view, c.looked, c.welcomed = false, nil, nil, false, view{}, true, true
	c.up = slices.DeleteFunc(c.up, func(m *wire.EdgeMessage) bool { return m.GetHello() == nil && m.GetReport() == nil })
}

// edgeTakes hands the edge the next message. What follows from it is done one
// thing after the other, and the power may go between any two.
func (w *world) edgeTakes(at int, add adder) {
	take := func(stopAfter int) (n *world, done int) {
		n = w.clone()
		c := n.own(at)
		m := c.down[0]
		c.down = c.down[1:]
		n.edge.session = n.edge.session.Clone()
		n.edge.window = n.edge.window.Clone()
		return n, n.perform(at, m, stopAfter)
	}
	n, things := take(-1)
	add("the edge takes "+downName(w.conns[at].down[0]), true, n)
	for k := 1; k < things && w.left.faults > 0; k++ {
		n, _ := take(k)
		if i := n.attached(); i >= 0 {
			n.leave(i)
		}
		n.edge.inventory = false
		n.left.faults--
		add("the edge takes "+downName(w.conns[at].down[0])+" and loses its power in the middle", false, n)
	}
}

func downName(m *wire.HubMessage) string {
	switch m.GetBody().(type) {
	case *wire.HubMessage_Welcome:
		return "the Welcome"
	case *wire.HubMessage_InventoryAsk:
		return "the request for an inventory"
	case *wire.HubMessage_Changes:
		return "Changes"
	case *wire.HubMessage_Synced:
		return "Synced"
	case *wire.HubMessage_Claimed:
		return "Claimed"
	case *wire.HubMessage_Goodbye:
		return "a Goodbye"
	}
	return "a result"
}

// perform is the driver of the session, as edge/uplink is. It stops after so many
// things, if that is not negative.
func (w *world) perform(at int, m *wire.HubMessage, stopAfter int) (done int) {
	c := w.conns[at]
	if changes := m.GetChanges(); changes != nil && w.rules.anyOrder {
		w.edge.session = withSeq(w.edge.session, changes.GetSeq())
	}
	todo, err := w.edge.session.Receive(m)
	for err == nil && len(todo) > 0 {
		a := todo[0]
		todo = todo[1:]
		var things []func()
		switch {
		case a.Inventory:
			things = append(things, func() { c.up = append(c.up, resume.Inventory(w.objects.refs(&w.edge.store))...) })
		case a.Apply != nil:
			things = append(things, func() { w.commit(a.Apply) }, func() { w.acknowledge(c, a.Apply.GetSeq()) })
			if w.rules.ackFirst {
				slices.Reverse(things)
			}
		case a.Compare != nil:
			var more []resume.Action
			equal := slices.Equal(a.Compare, wire.Digest(w.objects.refs(&w.edge.store)))
			if more, err = w.edge.session.Compared(equal); !equal && !c.mangled {
				w.breaks("Synced names another set than what the edge holds")
			}
			todo = append(todo, more...)
		case a.Complete:
			things = append(things, func() { w.edge.inventory = false })
		case a.Result != nil:
			things = append(things, func() { w.settle(a.Result) })
		}
		for _, do := range things {
			if done == stopAfter {
				return done
			}
			do()
			done++
		}
	}
	if err != nil {
		var bye *resume.GoodbyeError
		if !errors.As(err, &bye) && !c.mangled {
			w.breaks("the edge does not accept what the hub says: %v", err)
		}
		w.edge.inventory = w.edge.inventory || errors.Is(err, resume.ErrDifference)
		w.leave(at)
	}
	return done
}

// withSeq is a session that would take any number of Changes.
func withSeq(was *resume.Session, seq uint64) *resume.Session {
	s := new(resume.Session)
	receive := func(m *wire.HubMessage) {
		if _, err := s.Receive(m); err != nil {
			panic(err)
		}
	}
	if was.Welcomed() {
		receive(&wire.HubMessage{Body: &wire.HubMessage_Welcome{Welcome: &wire.Welcome{
			ProtocolVersion: wire.ProtocolVersion, Session: "s", ClaimFollows: !was.MayReport()}}})
	}
	for n := uint64(1); n < seq; n++ {
		receive(&wire.HubMessage{Body: &wire.HubMessage_Changes{Changes: &wire.Changes{Seq: n}}})
	}
	return s
}

// commit applies Changes to the disk, all or nothing.
func (w *world) commit(changes *wire.Changes) {
	e := &w.edge
	if got, want := changes.GetSeq(), uint64(e.committed)+1; got != want {
		w.breaks("changes number %d are applied where %d must follow", got, want)
	}
	for _, r := range changes.GetDeletes() {
		s, uid := place(r.GetUid())
		if is := w.truth[s]; is.uid == uid && is.version > 0 {
			w.breaks("%s is deleted at the edge, and it is in the cluster", wire.Describe(r))
		}
		e.store[s][uid] = 0
	}
	for _, o := range changes.GetUpserts() {
		s, uid := place(o.GetRef().GetUid())
		version := w.objects.versionOf(o.GetRef())
		if version < e.store[s][uid] {
			w.breaks("version %d of %s replaces version %d", version, wire.Describe(o.GetRef()), e.store[s][uid])
		}
		e.store[s][uid] = version
	}
	e.committed = uint8(changes.GetSeq())
}

func (w *world) acknowledge(c *conn, seq uint64) {
	if seq > uint64(w.edge.committed) {
		w.breaks("changes number %d are acknowledged and not on the disk", seq)
	}
	c.up = append(c.up, w.edge.session.Committed(seq))
}

// settle takes the answer to a report.
func (w *world) settle(r *wire.ReportResult) {
	if w.edge.window.Answer(r.GetId(), r.GetCode(), early()) {
		w.forget(uint8(r.GetId()))
	}
}

func (w *world) forget(id uint8) {
	e := &w.edge
	if e.outbox.id != id {
		return
	}
	if w.api.status < e.outbox.status {
		w.breaks("status %d is forgotten, and the apiserver has status %d", e.outbox.status, w.api.status)
	}
	e.outbox = row{}
}

// report sends the next report, if one may go.
func (w *world) report(at int) bool {
	e := &w.edge
	if !e.session.MayReport() || e.outbox.id == 0 {
		return false
	}
	e.window = e.window.Clone()
	if keyed, _ := e.window.UpTo(); uint64(e.outbox.id) > keyed {
		e.window.Add([]resume.Waiting{{ID: uint64(e.outbox.id), Key: "pod"}})
	}
	next, ok := e.window.Next(late())
	if !ok {
		return false
	}
	if next.ID != uint64(e.outbox.id) {
		e.window.Gone(next.ID)
		return true
	}
	c := w.own(at)
	if w.conns[at].hub != hubEnded {
		c.up = append(c.up, &wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: &wire.Report{
			Id: next.ID, Kind: wire.ReportKind_REPORT_POD_STATUS, Payload: []byte{e.outbox.status}}}})
	}
	if w.rules.settleEarly {
		w.forget(uint8(next.ID))
	}
	return true
}

// mangle is a line that doubles a message, or lets the next overtake it.
func (w *world) mangle(at int, add adder) {
	change := func(name string, do func(c *conn)) {
		n := w.clone()
		n.left.mangled--
		c := n.own(at)
		c.mangled = true
		do(c)
		add(name, false, n)
	}
	change("a message down is doubled", func(c *conn) { c.down = slices.Insert(c.down, 1, c.down[0]) })
	if len(w.conns[at].down) > 1 {
		change("a message down is overtaken", func(c *conn) { c.down[0], c.down[1] = c.down[1], c.down[0] })
	}
}
