package uplink

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// model is what the hub believes, and what it was told.
type model struct {
	t      *testing.T
	random *rand.Rand // of the hub's goroutine

	mu       sync.Mutex
	wild     bool // sessions break, answers vary
	desired  map[string]*wire.Object
	version  int
	accepted map[string][]string // payloads by key, events under ""
	lastID   map[string]uint64
}

func (m *model) isWild() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wild
}

// mutate changes what the node should hold and returns the change.
func (m *model) mutate() ([]*wire.Object, []*wire.ObjectRef) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	uid := fmt.Sprint("u", m.random.IntN(12))
	if o := m.desired[uid]; o != nil && m.random.IntN(3) == 0 {
		delete(m.desired, uid)
		return nil, []*wire.ObjectRef{o.Ref}
	}
	m.desired[uid] = configMap(m.t, "name-"+uid, uid, fmt.Sprint(m.version))
	return []*wire.Object{m.desired[uid]}, nil
}

func (m *model) snapshot() []*wire.Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.desired))
}

// take hears a report and returns the answer.
func (m *model) take(r *wire.Report) wire.ResultCode {
	key, payload, _ := strings.Cut(string(r.GetPayload()), "=")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wild && key != "" && m.random.IntN(4) == 0 {
		return wire.ResultCode_RESULT_RETRY
	}
	if r.GetId() < m.lastID[key] && key != "" { // events whose answer was lost come again, the whole window of them
		m.t.Errorf("report %d about %q came after %d", r.GetId(), key, m.lastID[key])
	}
	if r.GetId() > m.lastID[key] {
		m.lastID[key] = r.GetId()
		m.accepted[key] = append(m.accepted[key], payload)
	}
	return wire.ResultCode_RESULT_ACCEPTED
}

// session is one conversation of the hub; it returns when it is broken.
func (m *model) session(ctx context.Context, conn link.Conn) {
	defer conn.Close()
	incoming := make(chan *wire.EdgeMessage, 64)
	go func() {
		defer close(incoming)
		for {
			b, err := conn.Recv(ctx)
			if err != nil {
				return
			}
			message, err := wire.DecodeEdge(b)
			if err != nil {
				m.t.Errorf("the edge sent what cannot be read: %v", err)
				return
			}
			select {
			case incoming <- message:
			case <-ctx.Done():
				return
			}
		}
	}()
	send := func(h *wire.HubMessage) bool {
		b, err := wire.Encode(h)
		return err == nil && conn.Send(ctx, b) == nil
	}
	hello, ok := <-incoming
	if !ok {
		return
	}
	want := m.snapshot()
	if bytes.Equal(hello.GetHello().GetDigest(), digestOf(want...)) {
		if !send(welcome(true)) {
			return
		}
		m.live(incoming, send, 0)
		return
	}
	if !send(welcome(false)) || !send(inventoryAsk()) {
		return
	}
	held := map[string]*wire.ObjectRef{}
	for last := false; !last; {
		message, ok := <-incoming
		if !ok {
			return
		}
		inv := message.GetInventory()
		if r := message.GetReport(); r != nil { // which does not wait for the objects
			if !send(result(r.GetId(), m.take(r))) {
				return
			}
		}
		for _, r := range inv.GetItems() {
			held[r.GetUid()] = r
		}
		last = inv.GetLast()
	}
	var seq uint64
	for _, o := range want {
		if have := held[o.Ref.Uid]; have != nil && bytes.Equal(have.Version, o.Ref.Version) {
			delete(held, o.Ref.Uid)
			continue
		}
		delete(held, o.Ref.Uid)
		seq++
		if !send(changes(seq, []*wire.Object{o})) {
			return
		}
	}
	for _, r := range held {
		seq++
		if !send(changes(seq, nil, r)) {
			return
		}
	}
	if send(synced(digestOf(want...))) {
		m.live(incoming, send, seq)
	}
}

// live is the rest of a session; everything in it may go wrong.
func (m *model) live(incoming <-chan *wire.EdgeMessage, send func(*wire.HubMessage) bool, seq uint64) {
	for {
		select {
		case message, ok := <-incoming:
			if !ok {
				return
			}
			if r := message.GetReport(); r != nil {
				code := m.take(r)
				if m.isWild() && m.random.IntN(10) == 0 { // taken, but the answer is lost
					return
				}
				if !send(result(r.GetId(), code)) {
					return
				}
			}
		case <-time.After(time.Duration(m.random.IntN(3)) * time.Millisecond):
			if !m.isWild() {
				continue
			}
			seq++
			upserts, deletes := m.mutate()
			switch m.random.IntN(20) {
			case 0: // a change is lost on the way
				seq++
			case 1:
				send(synced(make([]byte, wire.DigestLen)))
			case 2:
				return
			}
			if !send(changes(seq, upserts, deletes...)) {
				return
			}
			if m.random.IntN(10) == 0 && !send(synced(digestOf(m.snapshot()...))) {
				return
			}
		}
	}
}

// TestRandomCutsLoseNothing lets a line, a hub and an edge fail in every way that
// the protocol provides for, and then demands that the edge holds exactly what it
// should and that the hub has heard everything, in order.
func TestRandomCutsLoseNothing(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &model{t: t, random: rand.New(rand.NewPCG(seed, 3)), wild: true, desired: map[string]*wire.Object{}, accepted: map[string][]string{}, lastID: map[string]uint64{}}
			r := newRig(t)
			ctx, cancel := context.WithCancel(context.Background())
			hubDone := make(chan struct{})
			go func() {
				defer close(hubDone)
				for {
					conn, err := r.hub.Accept(ctx)
					if err != nil {
						return
					}
					m.session(ctx, conn)
				}
			}()
			defer func() { cancel(); <-hubDone }()

			random := rand.New(rand.NewPCG(seed, 4))
			last, events := map[string]string{}, []string(nil)
			r.start(t)
			for step := range 400 {
				switch what := random.IntN(40); {
				case what == 0:
					r.proxy.Break()
				case what == 1: // edgecore restarts
					r.stop()
					if err := r.store.Close(); err != nil {
						t.Fatal(err)
					}
					r.open(t)
					r.start(t)
				case what < 20:
					key := fmt.Sprint("pod-", random.IntN(5))
					last[key] = fmt.Sprint(step)
					put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, key, key+"="+last[key])
				default:
					events = append(events, fmt.Sprint(step))
					put(t, r.store, wire.ReportKind_REPORT_EVENT, "", "="+fmt.Sprint(step))
				}
			}
			m.mu.Lock()
			m.wild = false
			m.mu.Unlock()
			r.proxy.Break() // whatever state that session was in

			r.eventually(t, "the edge holds what it should", func() bool {
				d, err := r.store.Digest(ctx)
				return err == nil && bytes.Equal(d, digestOf(m.snapshot()...))
			})
			r.eventually(t, "the outbox is empty", func() bool { return r.outbox(t) == 0 })
			m.mu.Lock()
			defer m.mu.Unlock()
			for key, want := range last {
				if got := m.accepted[key]; len(got) == 0 || got[len(got)-1] != want {
					t.Errorf("%s: the hub heard %q, the last is %q", key, got, want)
				}
			}
			if !slices.Equal(m.accepted[""], events) {
				t.Errorf("events: the hub heard %d of %d: %q, want %q", len(m.accepted[""]), len(events), m.accepted[""], events)
			}
		})
	}
}
