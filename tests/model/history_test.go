package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// history is a world in which things happen at random: more objects, more
// reports, encoded messages, and a store that may be the real one. Its rules are
// those of world; its state is changed in place.
type history struct {
	t     *testing.T
	rand  *rand.Rand
	rules rules
	peace int  // of so many steps one is a fault
	calm  bool // nothing breaks any more
	fail  string
	trace func(string)         // told of every message and commit; nil: nobody is
	power func(at moment) bool // says whether the power goes now; nil: it is left to chance

	// The cluster.
	truth   map[roster.ID]*roster.Item
	ended   map[roster.ID]bool // pods of the truth that have run to their end
	deleted map[roster.ID]bool // what was deleted, ever
	lastUID int
	status  map[string]*written // by what it is about
	events  map[string]bool
	lease   int // epoch of the last claim

	// The edge.
	disk       disk
	statuses   map[string]int // latest, by what they are about
	lastStatus int
	toldEvents []string
	now        time.Time
	line       *line // nil: none
	lastLine   int
	session    *resume.Session
	window     *resume.Window
	inventory  bool
	committed  uint64

	messages, bytes int // that went over all lines

	lines   []*line // the edge's, and those of which only a hub believes that they are
	orphans []*write
}

// moment is a point in the work on Changes.
type moment int

const (
	beforeCommit moment = iota
	beforeAck
)

func (h *history) powerGoes(at moment) bool {
	if h.power != nil {
		return h.power(at)
	}
	return !h.calm && h.chance(2*h.peace)
}

func (h *history) tells(format string, args ...any) {
	if h.trace != nil {
		h.trace(fmt.Sprintf(format, args...))
	}
}

// written is a status as the apiserver has it.
type written struct {
	number, epoch, version int
	content                string
}

// write is a write under way: of a status as it was read.
type write struct {
	report *wire.Report
	key    string
	number int
	epoch  int
	read   int // version
}

func newHistory(t *testing.T, seed uint64, d disk) *history {
	random := rand.New(rand.NewPCG(seed, 5))
	return &history{
		t: t, rand: random, peace: 10 << random.IntN(5), disk: d, now: time.Unix(1, 0),
		truth: make(map[roster.ID]*roster.Item), ended: make(map[roster.ID]bool), deleted: make(map[roster.ID]bool),
		status: make(map[string]*written), events: make(map[string]bool), statuses: make(map[string]int),
	}
}

// wrong notes the first thing that must not be.
func (h *history) wrong(format string, args ...any) {
	if h.fail == "" {
		h.fail = fmt.Sprintf(format, args...)
	}
}

func (h *history) must(err error) {
	if err != nil {
		h.wrong("%v", err)
	}
}

func (h *history) chance(oneIn int) bool { return h.rand.IntN(oneIn) == 0 }

// happen lets one thing happen.
func (h *history) happen() {
	switch {
	case h.chance(15):
		h.change()
	case h.chance(15):
		h.tell()
	case !h.chance(h.peace):
		h.step()
	case h.chance(5) && h.line != nil:
		h.mangle()
	case h.chance(3):
		h.killHub()
	case h.chance(6):
		h.powerCut()
	case h.chance(10):
		h.lose()
	case h.line != nil:
		h.leave()
	}
}

// step lets somebody do what is his to do.
func (h *history) step() {
	h.now = h.now.Add(time.Duration(h.rand.Int64N(int64(3 * time.Second))))
	if h.line == nil {
		if len(h.lines) < 4 || h.calm {
			h.connect()
			return
		}
	}
	if len(h.orphans) > 0 && h.chance(3) {
		i := h.rand.IntN(len(h.orphans))
		w := h.orphans[i]
		h.orphans = slices.Delete(h.orphans, i, i+1)
		if h.chance(2) {
			h.land(w)
		}
		return
	}
	if h.line != nil && h.chance(2) {
		h.edgeStep()
		return
	}
	if len(h.lines) > 0 {
		h.hubStep(h.lines[h.rand.IntN(len(h.lines))])
	}
}

// change does something to the cluster. Names are few, so that they are used again.
func (h *history) change() {
	ids := h.ids()
	h.lastUID++
	meta := metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("name-", h.rand.IntN(5)), UID: types.UID(fmt.Sprint("uid-", h.lastUID)), Generation: int64(h.lastUID)}
	switch h.rand.IntN(6) {
	case 0, 1:
		h.drop(wire.Kind_KIND_POD, meta.Name)
		h.put(roster.Pod(&corev1.Pod{ObjectMeta: meta}))
	case 2:
		h.drop(wire.Kind_KIND_CONFIG_MAP, meta.Name)
		large := make([]byte, h.rand.IntN(40)/39*150<<10) // seldom more than fits into one message
		h.put(roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: meta, BinaryData: map[string][]byte{"large": large}}))
	case 3: // a new version
		if len(ids) > 0 {
			ref := h.truth[ids[h.rand.IntN(len(ids))]].Ref
			meta.Name, meta.UID = ref.GetName(), types.UID(ref.GetUid())
			if ref.GetKind() == wire.Kind_KIND_POD {
				h.put(roster.Pod(&corev1.Pod{ObjectMeta: meta}))
			} else {
				h.put(roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"number": fmt.Sprint(h.lastUID)}}))
			}
		}
	case 4:
		if len(ids) > 0 {
			ref := h.truth[ids[h.rand.IntN(len(ids))]].Ref
			h.drop(ref.GetKind(), ref.GetName())
		}
	case 5: // a pod runs to its end, which only a node that holds it can do
		for _, ref := range h.held() {
			if id := roster.IDOf(ref); id.Kind == wire.Kind_KIND_POD && h.truth[id] != nil && h.chance(3) {
				h.ended[id] = true
				break
			}
		}
	}
}

func (h *history) ids() []roster.ID {
	ids := make([]roster.ID, 0, len(h.truth))
	for id := range h.truth {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b roster.ID) int { return wire.CompareRefs(h.truth[a].Ref, h.truth[b].Ref) })
	return ids
}

func (h *history) put(item *roster.Item, err error) {
	h.must(err)
	h.truth[roster.IDOf(item.Ref)] = item
}

func (h *history) drop(kind wire.Kind, name string) {
	for id, item := range h.truth {
		if id.Kind == kind && item.Ref.GetName() == name {
			delete(h.truth, id)
			h.deleted[id] = true
		}
	}
}

func (h *history) held() []*wire.ObjectRef {
	refs, err := h.disk.Inventory(context.Background())
	h.must(err)
	slices.SortFunc(refs, wire.CompareRefs)
	return refs
}

// tell puts something into the outbox.
func (h *history) tell() {
	h.lastStatus++
	if h.chance(2) {
		event := fmt.Sprint("event-", h.lastStatus)
		h.toldEvents = append(h.toldEvents, event)
		h.must(h.disk.PutReport(context.Background(), store.Report{Kind: wire.ReportKind_REPORT_EVENT, Payload: []byte(event)}))
		return
	}
	h.tellStatus(fmt.Sprint("pod-", h.rand.IntN(2)), h.lastStatus)
}

func (h *history) tellStatus(key string, number int) {
	h.statuses[key] = number
	h.must(h.disk.PutReport(context.Background(), store.Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: key, Payload: fmt.Appendf(nil, "%s %d", key, number)}))
}

// contentOfStatus: statuses repeat themselves.
func contentOfStatus(number int) string { return fmt.Sprint("content-", number%2) }

// connect opens a line to some hub.
func (h *history) connect() {
	digest := make([]byte, wire.DigestLen)
	if !h.inventory {
		var err error
		digest, err = h.disk.Digest(context.Background())
		h.must(err)
	}
	h.lastLine++
	h.session, h.committed = new(resume.Session), 0
	h.window = resume.NewWindow(func(d time.Duration) time.Duration { return time.Duration(h.rand.Int64N(int64(d))) })
	h.line = &line{number: h.lastLine, edge: true, slow: 1 << h.rand.IntN(6), claims: make(map[string]bool)}
	h.lines = append(h.lines, h.line)
	h.say(resume.Hello(digest, "model", h.disk.ID()))
}

func (h *history) say(m *wire.EdgeMessage) {
	if seq := m.GetAck().GetSeq(); seq > h.committed {
		h.wrong("changes number %d are acknowledged and not on the disk", seq)
	}
	b, err := wire.Encode(m)
	h.must(err)
	h.line.up = append(h.line.up, b)
	h.tells("edge -> hub  %s", sayEdge(m))
	h.count(b)
}

func (h *history) count(b []byte) {
	h.messages++
	h.bytes += len(b)
}

// leave closes the edge's end. The hub may still read what is on its way.
func (h *history) leave() {
	l := h.line
	h.line, l.edge, l.down = nil, false, nil
	if l.over {
		h.remove(l)
	}
}

func (h *history) remove(l *line) {
	h.lines = slices.DeleteFunc(h.lines, func(o *line) bool { return o == l })
}

// powerCut: what was not on the disk is gone.
func (h *history) powerCut() {
	if h.line != nil {
		h.leave()
	}
	h.inventory = false
	h.tells("edge         loses its power and starts again")
	h.disk = h.disk.powerCut(h.t)
}

// lose gives the edge an empty disk. Its pods run, so it reports their statuses
// anew; events that were not told are lost with the disk.
func (h *history) lose() {
	if h.line != nil {
		h.leave()
	}
	h.inventory = false
	h.disk = h.disk.lost(h.t)
	h.toldEvents = nil
	for i := range 2 {
		if key := fmt.Sprint("pod-", i); h.statuses[key] > 0 {
			h.lastStatus++
			h.tellStatus(key, h.lastStatus)
		}
	}
}

// mangle is what only a broken hub or a broken proxy does to what comes down.
func (h *history) mangle() {
	l := h.line
	if len(l.down) == 0 {
		return
	}
	l.mangled = true
	i := h.rand.IntN(len(l.down))
	switch h.rand.IntN(3) {
	case 0:
		l.down = slices.Insert(l.down, i, l.down[i])
	case 1:
		j := h.rand.IntN(len(l.down))
		l.down[i], l.down[j] = l.down[j], l.down[i]
	case 2:
		l.down[i] = l.down[i][:h.rand.IntN(len(l.down[i])+1)]
	}
}

// edgeStep lets the edge take a message or send a report.
func (h *history) edgeStep() {
	l := h.line
	switch {
	case len(l.down) > 0 && h.chance(2):
		b := l.down[0]
		l.down = l.down[1:]
		h.take(b)
	case l.over && h.chance(4):
		h.leave()
	default:
		h.report()
	}
}

func (h *history) take(b []byte) {
	l := h.line
	m, err := wire.DecodeHub(b)
	var todo []resume.Action
	if c := m.GetChanges(); c != nil && h.rules.anyOrder {
		h.session = withSeq(h.session, c.GetSeq())
	}
	if err == nil {
		todo, err = h.session.Receive(m)
	}
	for err == nil && len(todo) > 0 && h.line == l {
		var more []resume.Action
		more, err = h.do(todo[0])
		todo = append(todo[1:], more...)
	}
	if err == nil || h.line != l {
		return
	}
	var bye *resume.GoodbyeError
	if !l.mangled && !errors.As(err, &bye) {
		h.wrong("the edge ends a session in which nothing was wrong: %v", err)
	}
	h.inventory = h.inventory || errors.Is(err, resume.ErrDifference)
	h.tells("edge         ends the session: %v", err)
	h.leave()
}

func (h *history) do(a resume.Action) ([]resume.Action, error) {
	ctx := context.Background()
	switch {
	case a.Inventory:
		for _, m := range resume.Inventory(h.held()) {
			h.say(m)
		}
	case a.Apply != nil:
		if h.powerGoes(beforeCommit) {
			h.powerCut()
			return nil, nil
		}
		things := []func(){func() { h.commit(a.Apply) }, func() { h.say(h.session.Committed(a.Apply.GetSeq())) }}
		if h.rules.ackFirst {
			slices.Reverse(things)
		}
		things[0]()
		if h.powerGoes(beforeAck) {
			h.powerCut()
			return nil, nil
		}
		things[1]()
	case a.Compare != nil:
		digest, err := h.disk.Digest(ctx)
		h.must(err)
		return h.session.Compared(bytes.Equal(digest, a.Compare))
	case a.Complete:
		h.inventory = false
		h.must(h.disk.MarkSynced(ctx))
	case a.Certificate != nil:
		h.tells("edge         keeps %s", a.Certificate.GetCertificate())
	case a.Result != nil:
		if h.window.Answer(a.Result.GetId(), a.Result.GetCode(), h.now) {
			h.settle(a.Result.GetId())
		}
	}
	return nil, nil
}

// commit applies Changes, and holds that each may be.
func (h *history) commit(c *wire.Changes) {
	if c.GetSeq() != h.committed+1 {
		h.wrong("changes number %d are applied where %d must follow", c.GetSeq(), h.committed+1)
	}
	for _, r := range c.GetDeletes() {
		if !h.deleted[roster.IDOf(r)] {
			h.wrong("%s is deleted at the edge, and nobody has deleted it", wire.Describe(r))
		}
	}
	held := roster.HeldOf(h.held())
	for _, o := range c.GetUpserts() {
		if id := roster.IDOf(o.GetRef()); held[id] == nil && h.line.want != nil && h.line.want.Terminal[id] {
			h.wrong("%s has ended and is given to an edge that does not hold it", wire.Describe(o.GetRef()))
		}
	}
	h.must(h.disk.Apply(context.Background(), c.GetUpserts(), c.GetDeletes()))
	h.committed = c.GetSeq()
	h.tells("edge         commits number %d", c.GetSeq())
}

// settle forgets a report, and holds that it may be.
func (h *history) settle(id uint64) {
	ctx := context.Background()
	r, err := h.disk.OutboxReport(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return
	}
	h.must(err)
	if key, number, ok := statusOf(r); ok {
		if w := h.status[key]; w == nil || w.number < number {
			h.wrong("status %d of %s is forgotten, and the apiserver has %+v", number, key, w)
		}
	} else if !h.events[string(r.GetPayload())] {
		h.wrong("%s is forgotten, and the apiserver has not heard of it", r.GetPayload())
	}
	h.must(h.disk.Settle(ctx, id))
	h.tells("edge         settles report %d", id)
}

// statusOf reads a report; false: it is an event.
func statusOf(r *wire.Report) (key string, number int, ok bool) {
	if r.GetKind() != wire.ReportKind_REPORT_POD_STATUS {
		return "", 0, false
	}
	_, err := fmt.Sscanf(string(r.GetPayload()), "%s %d", &key, &number)
	return key, number, err == nil
}

// report sends what the window lets go.
func (h *history) report() {
	if !h.session.MayReport() {
		return
	}
	ctx := context.Background()
	keyed, events := h.window.UpTo()
	for _, x := range []struct {
		keyed bool
		after uint64
	}{{true, keyed}, {false, events}} {
		rows, err := h.disk.OutboxIndex(ctx, x.keyed, x.after, 2*resume.WindowSize)
		h.must(err)
		for _, r := range rows {
			h.window.Add([]resume.Waiting{{ID: r.ID, Key: r.Key}})
		}
	}
	for next, ok := h.window.Next(h.now); ok; next, ok = h.window.Next(h.now) {
		r, err := h.disk.OutboxReport(ctx, next.ID)
		if errors.Is(err, store.ErrNotFound) {
			h.window.Gone(next.ID)
			continue
		}
		h.must(err)
		h.say(&wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: r}})
		if h.rules.settleEarly {
			h.settle(next.ID)
		}
	}
}
