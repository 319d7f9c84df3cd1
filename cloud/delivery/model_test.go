package delivery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// model is a cloud, a line and an edge without any I/O: the truth changes, the
// line drops what is under way, either side forgets what it may forget.
type model struct {
	t       *testing.T
	rand    *rand.Rand
	truth   map[roster.ID]*roster.Item // what the cluster wants of the node
	ended   map[roster.ID]bool         // pods of the truth that have run to their end
	next    int                        // the next uid
	deleted map[roster.ID]bool         // pods that were truly deleted, ever
	wanted  *roster.Wanted             // what the hub believes; nil: nothing

	edge     map[roster.ID]*wire.Object // the edge's database
	expected uint64                     // the next Changes of this session

	calm bool      // nothing breaks any more
	hub  *Delivery // nil: no session
	down []*wire.HubMessage
	up   []*wire.EdgeMessage
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rand: rand.New(rand.NewPCG(seed, seed)),
		truth: make(map[roster.ID]*roster.Item), ended: make(map[roster.ID]bool), deleted: make(map[roster.ID]bool),
		edge: make(map[roster.ID]*wire.Object),
	}
	return m
}

// change does something to the cluster.
func (m *model) change() {
	ids := make([]roster.ID, 0, len(m.truth))
	for id := range m.truth {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b roster.ID) int { return wire.CompareRefs(m.truth[a].Ref, m.truth[b].Ref) })
	m.next++
	uid := types.UID(fmt.Sprintf("uid-%d", m.next))
	name := fmt.Sprintf("name-%d", m.rand.IntN(6)) // few names: they are used again
	switch m.rand.IntN(6) {
	case 0, 1:
		m.drop(wire.Kind_KIND_POD, name)
		m.put(roster.Pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: uid, Generation: int64(m.next)}}))
	case 2:
		m.drop(wire.Kind_KIND_CONFIG_MAP, name)
		big := make([]byte, m.rand.IntN(3)*150<<10)
		m.put(roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: uid}, BinaryData: map[string][]byte{"b": big}}))
	case 3: // an update under the same uid
		if len(ids) > 0 {
			id := ids[m.rand.IntN(len(ids))]
			ref := m.truth[id].Ref
			meta := metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(ref.Uid), Generation: int64(m.next)}
			if id.Kind == wire.Kind_KIND_POD {
				m.put(roster.Pod(&corev1.Pod{ObjectMeta: meta}))
			} else {
				m.put(roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"n": fmt.Sprint(m.next)}}))
			}
		}
	case 4:
		if len(ids) > 0 {
			ref := m.truth[ids[m.rand.IntN(len(ids))]].Ref
			m.drop(ref.Kind, ref.Name)
		}
	case 5: // a pod runs to its end, which only a node that holds it can do
		for _, id := range ids {
			if id.Kind == wire.Kind_KIND_POD && m.edge[id] != nil && m.rand.IntN(3) == 0 {
				m.ended[id] = true
				break
			}
		}
	}
}

func (m *model) put(item *roster.Item, err error) {
	if err != nil {
		m.t.Fatal(err)
	}
	m.truth[roster.IDOf(item.Ref)] = item
}

func (m *model) drop(kind wire.Kind, name string) {
	for id, item := range m.truth {
		if id.Kind == kind && item.Ref.Name == name {
			delete(m.truth, id)
			if kind == wire.Kind_KIND_POD {
				m.deleted[id] = true
			}
		}
	}
}

// look lets the hub see the truth, or a part: some things cannot be read, some
// pods are missing in its caches.
func (m *model) look(all bool) {
	w := &roster.Wanted{Items: make(map[roster.ID]*roster.Item), Terminal: make(map[roster.ID]bool), Unknown: make(map[roster.Key]bool), Held: make(map[roster.ID]bool)}
	for id, item := range m.truth {
		doubt := !all && m.rand.IntN(5) == 0
		switch {
		case doubt && id.Kind == wire.Kind_KIND_CONFIG_MAP:
			w.Unknown[roster.KeyOf(item.Ref)] = true
		case doubt && m.rand.IntN(2) == 0:
			w.Held[id] = true
			w.Items[id] = item
		case doubt: // missing in the cache
		default:
			w.Items[id] = item
			w.Terminal[id] = m.ended[id]
		}
	}
	m.wanted = w
	if m.hub != nil {
		m.hub.Wanted(w)
	}
}

// confirm is the live read.
func (m *model) confirm(refs []*wire.ObjectRef) {
	for _, ref := range refs {
		if id := roster.IDOf(ref); m.truth[id] == nil && m.rand.IntN(3) > 0 {
			m.hub.Confirmed(id)
		}
	}
}

func (m *model) connect() {
	refs := []*wire.ObjectRef{}
	for _, o := range m.edge {
		refs = append(refs, o.Ref)
	}
	m.hub, m.down, m.up, m.expected = New(wire.Digest(refs)), nil, nil, 1
	if m.wanted != nil {
		m.hub.Wanted(m.wanted)
	}
	m.hub.Welcome()
}

// cut drops the line with all that is under way.
func (m *model) cut() { m.hub, m.down, m.up = nil, nil, nil }

// step lets one side do one thing.
func (m *model) step() {
	if m.hub == nil {
		return
	}
	switch m.rand.IntN(3) {
	case 0:
		msg, unconfirmed, err := m.hub.Next()
		if err != nil {
			m.t.Fatal(err)
		}
		m.confirm(unconfirmed)
		if msg != nil {
			m.down = append(m.down, msg)
		}
		if n := len(m.hub.sizes); n > window || n > 1 && m.hub.unsent-m.hub.sizes[n-1] >= windowBytes {
			m.t.Fatalf("%d changes of %d bytes unacknowledged", n, m.hub.unsent)
		}
	case 1:
		if len(m.down) > 0 {
			msg := m.down[0]
			m.down = m.down[1:]
			m.edgeTakes(msg)
		}
	case 2:
		if len(m.up) == 0 {
			return
		}
		msg := m.up[0]
		m.up = m.up[1:]
		var err error
		if i := msg.GetInventory(); i != nil {
			err = m.hub.Inventory(i)
		} else {
			err = m.hub.Ack(msg.GetAck().GetSeq())
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// edgeTakes is the edge: it commits, then acknowledges.
func (m *model) edgeTakes(msg *wire.HubMessage) {
	switch body := msg.GetBody().(type) {
	case *wire.HubMessage_InventoryAsk:
		var items []*wire.ObjectRef
		for _, o := range m.edge {
			items = append(items, o.Ref)
		}
		half := len(items) / 2
		m.up = append(m.up, &wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: &wire.Inventory{Items: items[:half]}}},
			&wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: &wire.Inventory{Items: items[half:], Last: true}}})
	case *wire.HubMessage_Changes:
		if body.Changes.Seq != m.expected {
			m.t.Fatalf("changes %d came, %d were expected", body.Changes.Seq, m.expected)
		}
		m.expected++
		for _, r := range body.Changes.Deletes {
			id := roster.IDOf(r)
			if id.Kind == wire.Kind_KIND_POD && !m.deleted[id] {
				m.t.Fatalf("%s was deleted at the edge, and nobody had deleted it", wire.Describe(r))
			}
			delete(m.edge, id)
		}
		for _, o := range body.Changes.Upserts {
			id := roster.IDOf(o.Ref)
			if m.edge[id] == nil && m.ended[id] && m.wanted.Terminal[id] {
				m.t.Fatalf("%s has ended and was sent to an edge that does not hold it", wire.Describe(o.Ref))
			}
			m.edge[id] = o
		}
		// An edge that dies here has committed and not acknowledged.
		if !m.calm && m.rand.IntN(20) == 0 {
			m.cut()
			return
		}
		m.up = append(m.up, &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: body.Changes.Seq}}})
	case *wire.HubMessage_Synced:
		var refs []*wire.ObjectRef
		for _, o := range m.edge {
			refs = append(refs, o.Ref)
		}
		if !slices.Equal(body.Synced.Digest, wire.Digest(refs)) {
			m.t.Fatal("Synced names another set than what the edge holds")
		}
	}
}

// TestAnyHistoryEndsInTheTruth lets random histories of changes, half-blind
// looks, cuts, crashes and lost databases run, checks at every delivery that
// nothing is deleted which was not, and at the end that the edge holds the truth.
func TestAnyHistoryEndsInTheTruth(t *testing.T) {
	for seed := range uint64(150) {
		m := newModel(t, seed)
		for range 300 {
			switch n := m.rand.IntN(40); {
			case n < 4:
				m.change()
			case n < 7:
				m.look(false)
			case n == 7:
				m.cut()
			case n == 8 && m.hub == nil:
				if m.rand.IntN(6) == 0 {
					clear(m.edge) // the database is lost
				}
				if m.rand.IntN(6) == 0 {
					m.wanted = nil // the hub has started anew
				}
				m.connect()
			default:
				m.step()
			}
		}
		m.settle(seed)
	}
}

// settle lets all come to rest and compares.
func (m *model) settle(seed uint64) {
	m.calm = true
	m.look(true)
	if m.hub == nil || m.hub.phase == phaseWaiting {
		m.connect()
	}
	for range 4000 {
		if m.hub == nil {
			m.connect()
		}
		m.step()
	}
	if !m.hub.Settled() {
		m.t.Fatalf("seed %d: the session has not settled: phase %d, sent %d, acknowledged %d", seed, m.hub.phase, m.hub.seq, m.hub.acked)
	}
	for id, item := range m.truth {
		held := m.edge[id]
		switch {
		case held == nil && !m.ended[id]:
			m.t.Fatalf("seed %d: the edge lacks %s", seed, wire.Describe(item.Ref))
		case held != nil && !slices.Equal(held.Ref.Version, item.Ref.Version):
			m.t.Fatalf("seed %d: the edge holds another version of %s", seed, wire.Describe(item.Ref))
		}
	}
	for id, o := range m.edge {
		if m.truth[id] == nil {
			m.t.Fatalf("seed %d: the edge still holds %s", seed, wire.Describe(o.Ref))
		}
	}
	m.cut()
	m.connect()
	if m.hub.phase != phaseLive && !m.partlyEnded() {
		m.t.Fatalf("seed %d: a reconnect in which nothing changed is not in sync", seed)
	}
}

// partlyEnded says that the edge holds some ended pods and lacks others, which
// is the one settled state that no digest names.
func (m *model) partlyEnded() bool {
	holds, lacks := false, false
	for id := range m.truth {
		if m.ended[id] {
			holds = holds || m.edge[id] != nil
			lacks = lacks || m.edge[id] == nil
		}
	}
	return holds && lacks
}
