package model

import (
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// line is one connection, with the hub's half of the session at its end.
type line struct {
	number   int
	edge     bool // the edge's end is open
	over     bool // the hub's end is closed
	slow     int  // of so many turns the hub takes one
	mangled  bool
	up, down [][]byte

	delivery *delivery.Delivery // nil before the Hello
	want     *roster.Wanted
	welcomed bool
	follows  bool // the Welcome said that Claimed follows
	epoch    int
	sent     uint64 // Changes
	acked    uint64
	sizes    []int // of the Changes sent, on the line
	reports  []*wire.Report
	puts     []*write
	claims   map[string]bool // what a write is under way about
}

// hubSays puts a message on the line; an edge that has gone does not hear it.
func (h *history) hubSays(l *line, m *wire.HubMessage) {
	if !l.edge {
		return
	}
	b, err := wire.Encode(m)
	h.must(err)
	l.down = append(l.down, b)
	h.tells("edge <- hub  %s", sayHub(m))
	h.count(b)
}

// end closes the hub's end; writes under way may still arrive.
func (h *history) end(l *line, last *wire.HubMessage) {
	if last != nil {
		h.hubSays(l, last)
	}
	h.orphans = append(h.orphans, l.puts...)
	l.over, l.up, l.puts, l.reports = true, nil, nil, nil
	if !l.edge {
		h.remove(l)
	}
}

// killHub ends a session, or all of them: the hub's process.
func (h *history) killHub() {
	for _, l := range slices.Clone(h.lines) {
		if !l.over && h.chance(2) {
			h.end(l, nil)
		}
	}
}

// hubStep lets the hub at the end of a line do one of the things that it can do.
func (h *history) hubStep(l *line) {
	if l.over || !h.calm && !h.chance(l.slow) {
		return
	}
	var can []func()
	if len(l.up) > 0 {
		can = append(can, func() {
			b := l.up[0]
			l.up = l.up[1:]
			h.hubTakes(l, b)
		})
	}
	if !l.edge && h.chance(5) {
		can = append(can, func() { h.end(l, nil) }) // it notices that the edge has gone
	}
	if l.delivery != nil {
		can = append(can, func() { h.deliver(l) })
		if h.chance(4) {
			can = append(can, func() { h.look(l, h.calm || !h.chance(3)) })
		}
		if l.epoch == 0 || h.lease > l.epoch {
			can = append(can, func() { h.claim(l) })
		}
		if len(l.reports) > 0 {
			can = append(can, func() { h.beginWrite(l) })
		}
		if len(l.puts) > 0 {
			can = append(can, func() { h.finishWrite(l) })
		}
	}
	if len(can) > 0 {
		can[h.rand.IntN(len(can))]()
	}
}

func (h *history) hubTakes(l *line, b []byte) {
	m, err := wire.DecodeEdge(b)
	if err == nil {
		switch body := m.GetBody().(type) {
		case *wire.EdgeMessage_Hello:
			l.delivery = delivery.New(body.Hello.GetDigest())
			h.look(l, h.calm || h.chance(2))
		case *wire.EdgeMessage_Inventory:
			err = l.delivery.Inventory(body.Inventory)
		case *wire.EdgeMessage_Ack:
			err = l.delivery.Ack(body.Ack.GetSeq())
			l.acked = body.Ack.GetSeq()
		case *wire.EdgeMessage_Report:
			l.reports = append(l.reports, body.Report)
			if h.rules.resultEarly {
				h.hubSays(l, answer(body.Report, wire.ResultCode_RESULT_ACCEPTED))
			}
		case *wire.EdgeMessage_CertificateAsk:
			h.hubSays(l, &wire.HubMessage{Body: &wire.HubMessage_CertificateAnswer{CertificateAnswer: &wire.CertificateAnswer{
				Id: body.CertificateAsk.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED, Certificate: []byte("the new certificate"), Ca: []byte("the CA")}}})
		}
	}
	if err != nil {
		if !l.mangled {
			h.wrong("the hub ends a session in which nothing was wrong: %v", err)
		}
		h.end(l, goodbye(wire.Goodbye_REASON_PROTOCOL_ERROR))
	}
}

// look lets a hub see the truth, or a part of it.
func (h *history) look(l *line, all bool) {
	w := &roster.Wanted{Items: make(map[roster.ID]*roster.Item), Terminal: make(map[roster.ID]bool),
		Unknown: make(map[roster.Key]bool), Held: make(map[roster.ID]bool)}
	for _, id := range h.ids() {
		item := h.truth[id]
		doubt := !all && h.chance(5)
		switch {
		case doubt && id.Kind != wire.Kind_KIND_POD:
			w.Unknown[roster.KeyOf(item.Ref)] = !h.rules.unknownIsNone
		case doubt && h.chance(2):
			w.Held[id] = true
			w.Items[id] = item
		case doubt: // missing in the cache
		default:
			w.Items[id] = item
			w.Terminal[id] = h.ended[id]
		}
	}
	l.want = w
	l.delivery.Wanted(w)
}

// deliver sends what is next, and looks for pods that caches do not know.
func (h *history) deliver(l *line) {
	if !l.welcomed {
		l.welcomed, l.follows = true, l.epoch == 0 && !h.rules.noClaim
		h.hubSays(l, &wire.HubMessage{Body: &wire.HubMessage_Welcome{Welcome: &wire.Welcome{
			ProtocolVersion: wire.ProtocolVersion, Session: "model", InSync: l.delivery.Welcome(), ClaimFollows: l.follows}}})
		return
	}
	m, unconfirmed, err := l.delivery.Next()
	h.must(err)
	for _, ref := range unconfirmed {
		if id := roster.IDOf(ref); (h.truth[id] == nil || h.rules.believeCache) && (h.calm || !h.chance(3)) && !h.rules.neverConfirm {
			l.delivery.Confirmed(id)
		}
	}
	if m == nil {
		return
	}
	if c := m.GetChanges(); c != nil {
		if l.sent++; c.GetSeq() != l.sent {
			h.wrong("changes number %d are sent where %d must follow", c.GetSeq(), l.sent)
		}
		l.sizes = append(l.sizes, proto.Size(c))
		h.bounded(l)
	}
	h.hubSays(l, m)
}

// bounded holds that not too much is sent and not acknowledged: a slow node must
// not cost its hub more than a quick one.
func (h *history) bounded(l *line) {
	waiting, bytes := l.sizes[l.acked:], 0
	for _, n := range waiting {
		bytes += n
	}
	if len(waiting) > 32 || bytes > 1<<20+wire.SoftMessage {
		h.wrong("%d Changes of %d bytes are not acknowledged", len(waiting), bytes)
	}
}

// claim claims the node, or finds that another hub has.
func (h *history) claim(l *line) {
	switch {
	case l.epoch == 0:
		h.lease++
		l.epoch = h.lease
		h.tells("hub %d        claims the node with epoch %d", l.number, l.epoch)
		if l.follows {
			h.hubSays(l, &wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: &wire.Claimed{Epoch: uint64(l.epoch)}}})
		}
	case h.lease > l.epoch:
		h.end(l, goodbye(wire.Goodbye_REASON_REPLACED))
	}
}

// beginWrite reads what a report is about and begins to write it. Reports about
// one thing are written one after the other.
func (h *history) beginWrite(l *line) {
	if l.epoch == 0 {
		return
	}
	for i, r := range l.reports {
		key, number, ok := statusOf(r)
		switch {
		case ok && l.claims[key]:
			continue
		case !h.calm && h.chance(6): // the apiserver is away
			h.reply(l, i, wire.ResultCode_RESULT_RETRY)
			return
		case !ok:
			h.events[string(r.GetPayload())] = true
			h.reply(l, i, wire.ResultCode_RESULT_ACCEPTED)
			return
		}
		is := h.status[key]
		if is == nil {
			is = new(written)
			h.status[key] = is
		}
		switch {
		case is.epoch > l.epoch && !h.rules.noFence:
			h.tells("hub %d        is fenced off: the status has epoch %d", l.number, is.epoch)
			h.end(l, goodbye(wire.Goodbye_REASON_REPLACED))
		case is.content == contentOfStatus(number) && (is.epoch == l.epoch || h.rules.noStamp):
			is.number = max(is.number, number)
			h.reply(l, i, wire.ResultCode_RESULT_ACCEPTED)
		default:
			l.claims[key] = true
			h.tells("hub %d        begins to write status %d of %s with epoch %d", l.number, number, key, l.epoch)
			l.puts = append(l.puts, &write{r, key, number, l.epoch, is.version})
			l.reports = slices.Delete(l.reports, i, i+1)
		}
		return
	}
}

func (h *history) reply(l *line, i int, code wire.ResultCode) {
	if !h.rules.resultEarly {
		h.hubSays(l, answer(l.reports[i], code))
	}
	l.reports = slices.Delete(l.reports, i, i+1)
}

// finishWrite brings one write to the apiserver. One that meets a newer version
// begins anew.
func (h *history) finishWrite(l *line) {
	if len(l.puts) == 0 {
		return
	}
	i := h.rand.IntN(len(l.puts))
	w := l.puts[i]
	l.puts = slices.Delete(l.puts, i, i+1)
	delete(l.claims, w.key)
	l.reports = slices.Insert(l.reports, 0, w.report)
	if h.land(w) {
		h.reply(l, 0, wire.ResultCode_RESULT_ACCEPTED)
	}
}

// land is the apiserver, which refuses what was read in another version.
func (h *history) land(w *write) bool {
	is := h.status[w.key]
	if is.version != w.read && !h.rules.blindWrite {
		h.tells("apiserver    refuses status %d of %s: it was changed since it was read", w.number, w.key)
		return false
	}
	if w.number < is.number && contentOfStatus(w.number) != is.content {
		h.wrong("status %d of %s is written over status %d, which is newer", w.number, w.key, is.number)
	}
	*is = written{number: w.number, epoch: w.epoch, version: is.version + 1, content: contentOfStatus(w.number)}
	h.tells("apiserver    has status %d of %s with epoch %d", w.number, w.key, w.epoch)
	return true
}

// settled says that nothing is left to do.
func (h *history) settled() bool {
	if h.line == nil || h.line.over || h.line.delivery == nil || !h.line.welcomed || len(h.lines) > 1 || len(h.orphans) > 0 {
		return false
	}
	if l := h.line; len(l.up)+len(l.down)+len(l.reports)+len(l.puts) > 0 || !l.delivery.Settled() {
		return false
	}
	n, err := h.disk.OutboxLen(h.t.Context())
	h.must(err)
	return n == 0 && h.agreement() == nil
}

// agreement says in what edge and cluster differ; nil: in nothing.
func (h *history) agreement() error {
	held := roster.HeldOf(h.held())
	for _, id := range h.ids() {
		item := h.truth[id]
		has := held[id]
		if has == nil && !h.ended[id] {
			return errors.New("the edge lacks " + wire.Describe(item.Ref))
		}
		if has != nil && !slices.Equal(has.GetVersion(), item.Ref.GetVersion()) {
			return errors.New("the edge holds another version of " + wire.Describe(item.Ref))
		}
		delete(held, id)
	}
	for _, ref := range held {
		return errors.New("the edge still holds " + wire.Describe(ref))
	}
	for key, number := range h.statuses {
		if is := h.status[key]; is == nil || is.content != contentOfStatus(number) {
			return errors.New("the apiserver does not know the status of " + key)
		}
	}
	for _, e := range h.toldEvents {
		if !h.events[e] {
			return errors.New("the apiserver has not heard of " + e)
		}
	}
	return nil
}

// partlyEnded says that the edge holds some pods that have ended and lacks others,
// which is the one settled state that no digest names.
func (h *history) partlyEnded() bool {
	held := roster.HeldOf(h.held())
	holds, lacks := false, false
	for id := range h.truth {
		if h.ended[id] {
			holds = holds || held[id] != nil
			lacks = lacks || held[id] == nil
		}
	}
	return holds && lacks
}
