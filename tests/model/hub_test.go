package model

import (
	"slices"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// hubSteps are what the hub of a connection can do.
func (w *world) hubSteps(i int, add adder) {
	c := w.conns[i]
	if len(c.up) > 0 {
		n := w.clone()
		n.hubTakes(i)
		add("the hub takes "+upName(c.up[0]), true, n)
	}
	if c.edge && w.left.faults > 0 {
		n := w.clone()
		n.left.faults--
		n.endHub(i, nil)
		add("the hub is killed", false, n)
	}
	if !c.edge {
		n := w.clone()
		n.endHub(i, nil)
		add("the hub notices that the edge has gone", true, n)
	}
	if c.hub != hubOpen {
		return
	}
	w.claimSteps(i, add)
	w.reportSteps(i, add)
	if c.delivery != nil {
		w.deliverySteps(i, add)
	}
}

func upName(m *wire.EdgeMessage) string {
	switch m.GetBody().(type) {
	case *wire.EdgeMessage_Hello:
		return "the Hello"
	case *wire.EdgeMessage_Inventory:
		return "the inventory"
	case *wire.EdgeMessage_Ack:
		return "an acknowledgement"
	}
	return "a report"
}

// hubTakes hands the hub the next message.
func (w *world) hubTakes(i int) {
	c := w.own(i)
	m := c.up[0]
	c.up = c.up[1:]
	var err error
	switch body := m.GetBody().(type) {
	case *wire.EdgeMessage_Hello:
		c.hub = hubOpen
		if c.edge {
			c.delivery = delivery.New(body.Hello.GetDigest())
		}
		if !w.deliveries {
			w.look(c, seesAll)
			w.welcome(c)
		}
	case *wire.EdgeMessage_Inventory:
		if c.delivery != nil {
			err = c.delivery.Inventory(body.Inventory)
		}
	case *wire.EdgeMessage_Ack:
		if c.delivery != nil {
			err = c.delivery.Ack(body.Ack.GetSeq())
		}
	case *wire.EdgeMessage_Report:
		c.reports = append(c.reports, body.Report)
		if w.rules.resultEarly {
			c.send(answer(body.Report, wire.ResultCode_RESULT_ACCEPTED))
		}
	}
	if err != nil {
		if !c.mangled {
			w.breaks("the hub does not accept what the edge says: %v", err)
		}
		w.endHub(i, goodbye(wire.Goodbye_REASON_PROTOCOL_ERROR))
	}
}

func goodbye(reason wire.Goodbye_Reason) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_Goodbye{Goodbye: &wire.Goodbye{Reason: reason}}}
}

func answer(r *wire.Report, code wire.ResultCode) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_ReportResult{ReportResult: &wire.ReportResult{Id: r.GetId(), Code: code}}}
}

// send puts a message on the line. An edge that has gone does not hear it.
func (c *conn) send(m *wire.HubMessage) {
	if c.edge {
		c.down = append(c.down, m)
	}
}

// endHub ends the hub's half. A write that is under way may still arrive.
func (w *world) endHub(i int, last *wire.HubMessage) {
	c := w.own(i)
	if c.put.epoch > 0 {
		w.api.orphans = append(w.api.orphans, c.put)
	}
	*c = conn{edge: c.edge, hub: hubEnded, down: c.down, mangled: c.mangled}
	if last != nil {
		c.send(last)
	}
	if !c.edge {
		w.conns = slices.Delete(w.conns, i, i+1)
	}
}

// look lets the hub work out what the edge must hold.
func (w *world) look(c *conn, b blindness) {
	c.view, c.looked = view{w.truth, b}, true
	if c.delivery == nil {
		return
	}
	want := w.objects.see(c.view)
	if w.rules.unknownIsNone {
		known := *want
		known.Unknown = nil
		want = &known
	}
	c.delivery.Wanted(want)
}

func (w *world) welcome(c *conn) {
	c.welcomed = true
	inSync := c.delivery != nil && c.delivery.Welcome()
	c.send(&wire.HubMessage{Body: &wire.HubMessage_Welcome{Welcome: &wire.Welcome{
		ProtocolVersion: wire.ProtocolVersion, Session: "s", InSync: inSync, ClaimFollows: c.epoch == 0 && !w.rules.noClaim,
	}}})
}

// deliverySteps are what the hub does to bring the edge what it must hold.
func (w *world) deliverySteps(i int, add adder) {
	c := w.conns[i]
	if now := (view{w.truth, seesAll}); !c.looked || c.view != now {
		n := w.clone()
		n.look(n.own(i), seesAll)
		add("the hub looks at the cluster", true, n)
	}
	for b := seesAll + 1; b < blindnesses && w.left.blind > 0; b++ {
		s := podSlot
		if b == cannotRead {
			s = 1
		}
		if w.truth[s].version > 0 {
			n := w.clone()
			n.left.blind--
			n.look(n.own(i), b)
			add([]string{"", "the hub does not see the pod", "the hub lets the pod wait", "the hub cannot read the ConfigMap"}[b], false, n)
		}
	}
	if !c.welcomed {
		n := w.clone()
		n.welcome(n.own(i))
		add("the hub welcomes the edge", true, n)
		return
	}
	n := w.clone()
	own := n.own(i)
	m, unconfirmed, err := own.delivery.Next()
	if err != nil {
		n.breaks("the hub cannot say what is next: %v", err)
	}
	if m != nil || err != nil {
		own.send(m)
		add("the hub sends", true, n)
	}
	var gone []roster.ID
	for _, ref := range unconfirmed {
		if s, uid := place(ref.GetUid()); w.truth[s].uid != uid || w.truth[s].version == 0 || w.rules.believeCache {
			gone = append(gone, roster.IDOf(ref))
		}
	}
	if len(gone) > 0 && !w.rules.neverConfirm {
		n := w.clone()
		own := n.own(i)
		for _, id := range gone {
			own.delivery.Confirmed(id)
		}
		add("the hub finds that a pod is gone", true, n)
	}
}

// claimSteps: the hub claims the node, and finds out when another one has.
func (w *world) claimSteps(i int, add adder) {
	c := w.conns[i]
	if c.epoch == 0 {
		n := w.clone()
		own := n.own(i)
		n.api.lease++
		own.epoch = n.api.lease
		if own.welcomed {
			own.send(&wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: &wire.Claimed{}}})
		}
		add("the hub claims the node", true, n)
	} else if w.api.lease > c.epoch {
		n := w.clone()
		n.endHub(i, goodbye(wire.Goodbye_REASON_REPLACED))
		add("the hub finds another's claim", true, n)
	}
}

// reportSteps: the hub reads, compares the epochs, and writes.
func (w *world) reportSteps(i int, add adder) {
	c := w.conns[i]
	if len(c.reports) == 0 || c.epoch == 0 {
		return
	}
	r := c.reports[0]
	status := r.GetPayload()[0]
	if c.put.epoch > 0 {
		n := w.clone()
		own := n.own(i)
		if own.put = (put{}); n.land(c.put) {
			n.answered(own, wire.ResultCode_RESULT_ACCEPTED)
		}
		add("a write reaches the apiserver", true, n)
		return
	}
	n := w.clone()
	switch {
	case w.api.epoch > c.epoch && !w.rules.noFence:
		n.endHub(i, goodbye(wire.Goodbye_REASON_REPLACED))
		add("the hub is fenced off", true, n)
	case w.api.content == contentOf(status) && (w.api.epoch == c.epoch || w.rules.noStamp):
		n.api.status = max(n.api.status, status)
		n.answered(n.own(i), wire.ResultCode_RESULT_ACCEPTED)
		add("the hub finds that a report is written already", true, n)
	default:
		n.own(i).put = put{status, c.epoch, w.api.version}
		add("the hub begins to write", true, n)
	}
	if w.left.retries > 0 {
		n := w.clone()
		n.left.retries--
		n.answered(n.own(i), wire.ResultCode_RESULT_RETRY)
		add("the apiserver is away", false, n)
	}
}

// answered answers the first report.
func (w *world) answered(c *conn, code wire.ResultCode) {
	if !w.rules.resultEarly && c.edge {
		c.send(answer(c.reports[0], code))
	}
	c.reports = c.reports[1:]
}
