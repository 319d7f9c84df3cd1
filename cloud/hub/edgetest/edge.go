// Package edgetest is a scripted edge for tests of the cloud's rooms: it speaks
// the protocol over a real link, keeps what it is told in memory across
// connections as an edge's database would, and lets a test report, ask for
// tokens and look at what arrived. Only tests import it; it runs no pod.
package edgetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Patience is how long tests wait for what must come: it bounds a hang, it
// measures nothing.
const Patience = 3 * time.Minute

// Edge is one node. Its methods may be called from the test's goroutine.
type Edge struct {
	t       testing.TB
	dialer  link.Dialer
	storeID string

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	objects  map[string]*wire.Object
	conn     link.Conn
	seen     Seen
	nextID   uint64
	results  map[uint64]*wire.ReportResult
	answers  map[uint64]*wire.TokenAnswer
	versions []uint32
	maxKind  uint32
	publish  func(*wire.Publish) *wire.Published
	stream   func(link.Stream)
}

// Seen is what came over the present connection.
type Seen struct {
	Welcome *wire.Welcome
	Synced  int // how many
	Claimed int // how many
	Asked   bool
	Goodbye *wire.Goodbye
	Upserts []*wire.Object
	Deletes []*wire.ObjectRef
	Bytes   int   // of all messages
	Err     error // why the connection ended
}

// New returns an edge that is not connected.
func New(t testing.TB, dialer link.Dialer, storeID string) *Edge {
	return &Edge{
		t: t, dialer: dialer, storeID: storeID, changed: make(chan struct{}),
		objects: make(map[string]*wire.Object), results: make(map[uint64]*wire.ReportResult), answers: make(map[uint64]*wire.TokenAnswer),
		versions: []uint32{wire.ProtocolVersion}, maxKind: uint32(wire.KindMax),
		publish: func(p *wire.Publish) *wire.Published {
			return &wire.Published{Id: p.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED}
		},
	}
}

// Knows makes the edge say that it knows kinds up to that; 0: it says nothing, as
// old ones do.
func (e *Edge) Knows(highest wire.Kind) { e.maxKind = uint32(highest) }

// OnPublish makes the edge answer what it is asked to publish with f, which may
// return nil for no answer. It is for use before Connect.
func (e *Edge) OnPublish(f func(*wire.Publish) *wire.Published) { e.publish = f }

// OnStream makes the edge take streams, and serve each with f in a goroutine of its
// own. It is for use before Connect.
func (e *Edge) OnStream(f func(link.Stream)) { e.stream = f }

// Versions makes the edge offer other protocol versions.
func (e *Edge) Versions(v ...uint32) { e.versions = v }

// Connect dials and says Hello. It returns before the Welcome.
func (e *Edge) Connect() {
	e.t.Helper()
	conn := e.Dial()
	e.mu.Lock()
	e.conn, e.seen = conn, Seen{}
	hello := &wire.Hello{ProtocolVersions: e.versions, Digest: wire.Digest(e.refs()), EdgeVersion: "edgetest", StoreId: e.storeID, MaxKind: e.maxKind}
	e.mu.Unlock()
	if err := send(conn, &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: hello}}); err != nil {
		e.t.Fatalf("say hello: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := e.read(conn)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.conn == conn {
			e.seen.Err = err
			e.tell()
		}
	}()
	if e.stream != nil {
		go e.accept(conn)
	}
	e.t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

func (e *Edge) accept(conn link.Conn) {
	for {
		s, err := conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go e.stream(s)
	}
}

// Dial opens a connection and says nothing; the test's end closes it.
func (e *Edge) Dial() link.Conn {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := e.dialer.Dial(ctx)
	if err != nil {
		e.t.Fatalf("dial: %v", err)
	}
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Disconnect closes the connection without a word.
func (e *Edge) Disconnect() {
	e.mu.Lock()
	conn := e.conn
	e.mu.Unlock()
	_ = conn.Close()
	e.Wait("end of the connection", func(s Seen) bool { return s.Err != nil })
}

func send(conn link.Conn, m *wire.EdgeMessage) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return conn.Send(ctx, b)
}

// refs is the inventory; the caller holds mu.
func (e *Edge) refs() []*wire.ObjectRef {
	var refs []*wire.ObjectRef
	for _, o := range e.objects {
		refs = append(refs, o.Ref)
	}
	return refs
}

func id(r *wire.ObjectRef) string { return fmt.Sprint(r.GetKind(), "/", r.GetUid()) }

// tell wakes those who wait; the caller holds mu.
func (e *Edge) tell() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *Edge) read(conn link.Conn) error {
	for {
		b, err := conn.Recv(context.Background())
		if err != nil {
			return err
		}
		m, err := wire.DecodeHub(b)
		if err != nil {
			return err
		}
		reply, err := e.take(m, len(b))
		if err != nil {
			return err
		}
		if reply != nil {
			if err := send(conn, reply); err != nil {
				return err
			}
		}
	}
}

func (e *Edge) take(m *wire.HubMessage, size int) (*wire.EdgeMessage, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.tell()
	s := &e.seen
	s.Bytes += size
	switch body := m.GetBody().(type) {
	case *wire.HubMessage_Welcome:
		s.Welcome = body.Welcome
	case *wire.HubMessage_InventoryAsk:
		s.Asked = true
		return &wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: &wire.Inventory{Items: e.refs(), Last: true}}}, nil
	case *wire.HubMessage_Changes:
		for _, o := range body.Changes.GetUpserts() {
			e.objects[id(o.Ref)] = o
		}
		for _, r := range body.Changes.GetDeletes() {
			delete(e.objects, id(r))
		}
		s.Upserts = append(s.Upserts, body.Changes.GetUpserts()...)
		s.Deletes = append(s.Deletes, body.Changes.GetDeletes()...)
		return &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: body.Changes.GetSeq()}}}, nil
	case *wire.HubMessage_Synced:
		if !slices.Equal(body.Synced.GetDigest(), wire.Digest(e.refs())) {
			return nil, errors.New("the digest of Synced is not that of what the edge holds")
		}
		s.Synced++
	case *wire.HubMessage_Publish:
		if answer := e.publish(body.Publish); answer != nil {
			return &wire.EdgeMessage{Body: &wire.EdgeMessage_Published{Published: answer}}, nil
		}
	case *wire.HubMessage_Claimed:
		s.Claimed++
	case *wire.HubMessage_ReportResult:
		e.results[body.ReportResult.GetId()] = body.ReportResult
	case *wire.HubMessage_TokenAnswer:
		e.answers[body.TokenAnswer.GetId()] = body.TokenAnswer
	case *wire.HubMessage_Goodbye:
		s.Goodbye = body.Goodbye
	}
	return nil, nil
}

// Seen is what came so far.
func (e *Edge) Seen() Seen {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.seen
	s.Upserts, s.Deletes = slices.Clone(s.Upserts), slices.Clone(s.Deletes)
	return s
}

// Wait waits until ok says so.
func (e *Edge) Wait(what string, ok func(Seen) bool) {
	e.t.Helper()
	e.wait(what, func() bool { return ok(e.seen) })
}

// WaitObjects waits until what the edge holds satisfies ok.
func (e *Edge) WaitObjects(what string, ok func(map[string]*wire.Object) bool) {
	e.t.Helper()
	e.wait(what, func() bool {
		byName := make(map[string]*wire.Object)
		for _, o := range e.objects {
			byName[Name(o.Ref)] = o
		}
		return ok(byName)
	})
}

// Name is "pod/shop/till", "configmap/shop/prices", "node//till-1".
func Name(r *wire.ObjectRef) string {
	kind := map[wire.Kind]string{
		wire.Kind_KIND_POD: "pod", wire.Kind_KIND_CONFIG_MAP: "configmap", wire.Kind_KIND_SECRET: "secret", wire.Kind_KIND_NODE: "node",
		wire.Kind_KIND_DEVICE_MODEL: "devicemodel", wire.Kind_KIND_DEVICE: "device", wire.Kind_KIND_ROUTE: "route",
	}[r.GetKind()]
	return kind + "/" + r.GetNamespace() + "/" + r.GetName()
}

// Has says that all of the named objects are there.
func Has(names ...string) func(map[string]*wire.Object) bool {
	return func(objects map[string]*wire.Object) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return objects[n] == nil })
	}
}

// Lacks says that none of the named objects is there.
func Lacks(names ...string) func(map[string]*wire.Object) bool {
	return func(objects map[string]*wire.Object) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return objects[n] != nil })
	}
}

func (e *Edge) wait(what string, ok func() bool) {
	e.t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	for {
		e.mu.Lock()
		done, changed := ok(), e.changed
		e.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			e.mu.Lock()
			defer e.mu.Unlock()
			var held []string
			for _, o := range e.objects {
				held = append(held, Name(o.Ref))
			}
			slices.Sort(held)
			e.t.Fatalf("waited for %s in vain; welcome %v, goodbye %v, ended by %v, holds %q", what, e.seen.Welcome, e.seen.Goodbye, e.seen.Err, held)
		}
	}
}

// Objects is what the edge holds, by name.
func (e *Edge) Objects() map[string]*wire.Object {
	e.mu.Lock()
	defer e.mu.Unlock()
	byName := make(map[string]*wire.Object)
	for _, o := range e.objects {
		byName[Name(o.Ref)] = o
	}
	return byName
}

// Forget is the loss of the database: objects and all.
func (e *Edge) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.objects)
}

// Put adds an object as if the edge had held it all along.
func (e *Edge) Put(o *wire.Object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.objects[id(o.Ref)] = o
}

// marshaler is what Kubernetes' generated types have.
type marshaler interface{ Marshal() ([]byte, error) }

// Report sends a report and returns its result.
func (e *Edge) Report(kind wire.ReportKind, object marshaler) *wire.ReportResult {
	e.t.Helper()
	return e.Result(e.Send(kind, object))
}

// Send sends a report and returns its number.
func (e *Edge) Send(kind wire.ReportKind, object marshaler) uint64 {
	e.t.Helper()
	payload, err := object.Marshal()
	if err != nil {
		e.t.Fatal(err)
	}
	return e.SendBytes(kind, payload)
}

// ReportMessage is Report for what is not of Kubernetes.
func (e *Edge) ReportMessage(kind wire.ReportKind, m proto.Message) *wire.ReportResult {
	e.t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		e.t.Fatal(err)
	}
	return e.Result(e.SendBytes(kind, payload))
}

// SendBytes is Send for what is encoded already.
func (e *Edge) SendBytes(kind wire.ReportKind, payload []byte) uint64 {
	e.t.Helper()
	e.mu.Lock()
	e.nextID++
	n, conn := e.nextID, e.conn
	e.mu.Unlock()
	if err := send(conn, &wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: n, Kind: kind, Payload: payload}}}); err != nil {
		e.t.Fatalf("report: %v", err)
	}
	return n
}

// Result waits for the result of a report.
func (e *Edge) Result(n uint64) *wire.ReportResult {
	e.t.Helper()
	e.wait(fmt.Sprintf("the result of report %d", n), func() bool { return e.results[n] != nil })
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.results[n]
}

// Token asks for a token and returns the answer.
func (e *Edge) Token(ask *wire.TokenAsk) *wire.TokenAnswer {
	e.t.Helper()
	e.mu.Lock()
	e.nextID++
	ask.Id = e.nextID
	conn := e.conn
	e.mu.Unlock()
	if err := send(conn, &wire.EdgeMessage{Body: &wire.EdgeMessage_TokenAsk{TokenAsk: ask}}); err != nil {
		e.t.Fatalf("ask for a token: %v", err)
	}
	e.wait("a token", func() bool { return e.answers[ask.Id] != nil })
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answers[ask.Id]
}

// Names lists what the edge holds, sorted.
func (e *Edge) Names() []string { return slices.Sorted(maps.Keys(e.Objects())) }

// Pod decodes a pod that the edge holds.
func (e *Edge) Pod(name string) *corev1.Pod {
	e.t.Helper()
	o := e.Objects()[name]
	if o == nil {
		e.t.Fatalf("the edge does not hold %s", name)
	}
	p := new(corev1.Pod)
	if err := p.Unmarshal(o.Payload); err != nil {
		e.t.Fatal(err)
	}
	return p
}
