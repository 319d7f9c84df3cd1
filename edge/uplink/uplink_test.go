package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = 2 * time.Minute

// rig is a hub's port, a proxy before it, and an edge with a store.
type rig struct {
	hub    *linktest.Hub
	proxy  *linktest.Proxy
	dialer link.Dialer
	path   string
	store  *store.Store
	uplink *Uplink
	stop   func()

	credential Credential
	sources    []Source
	publish    func(context.Context, *wire.Publish) error
	serve      func(context.Context, link.Stream)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{hub: linktest.StartHub(t, linktest.NewCA(t), link.Timing{}), path: filepath.Join(t.TempDir(), "store.db")}
	r.proxy = linktest.NewProxy(t, r.hub.Addr)
	r.dialer = r.hub.DialerVia(t, "pi", r.proxy)
	r.open(t)
	return r
}

func (r *rig) open(t *testing.T) {
	t.Helper()
	var err error
	if r.store, err = store.Open(r.path, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.store.Close() })
}

// start runs an uplink until stop or the test's end.
func (r *rig) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.uplink = New(Options{Dialer: r.dialer, Store: r.store, Version: "test", Credential: r.credential, Sources: r.sources, Publish: r.publish, Serve: r.serve,
		Timing: Timing{BackoffBase: time.Millisecond, BackoffCap: 4 * time.Millisecond, RefusedCap: 4 * time.Millisecond, Dial: patience, Welcome: patience, Token: patience,
			Certificate: time.Millisecond, CertificateRetry: time.Millisecond}})
	done := make(chan error, 1)
	go func() { done <- r.uplink.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
}

// peer is the hub's end of one session.
type peer struct {
	t    *testing.T
	conn link.Conn
}

func (r *rig) accept(t *testing.T) *peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := r.hub.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{t, conn}
}

func (p *peer) recv() *wire.EdgeMessage {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := p.conn.Recv(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	m, err := wire.DecodeEdge(b)
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// closed waits until the edge has ended the session.
func (p *peer) closed() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		if _, err := p.conn.Recv(ctx); err != nil {
			if ctx.Err() != nil {
				p.t.Fatal("the edge did not end the session")
			}
			return
		}
	}
}

func (p *peer) send(messages ...*wire.HubMessage) {
	p.t.Helper()
	for _, m := range messages {
		b, err := wire.Encode(m)
		if err != nil {
			p.t.Fatal(err)
		}
		if err := p.conn.Send(context.Background(), b); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *peer) hello() *wire.Hello {
	p.t.Helper()
	h := p.recv().GetHello()
	if h == nil {
		p.t.Fatal("no hello")
	}
	return h
}

func (p *peer) report() *wire.Report {
	p.t.Helper()
	r := p.recv().GetReport()
	if r == nil {
		p.t.Fatal("no report")
	}
	return r
}

func (p *peer) ack(seq uint64) {
	p.t.Helper()
	if a := p.recv().GetAck(); a.GetSeq() != seq {
		p.t.Fatalf("acknowledged %v, want %d", a, seq)
	}
}

func configMap(t *testing.T, name, uid, value string) *wire.Object {
	t.Helper()
	b, err := (&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"key": value}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &wire.Object{Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_CONFIG_MAP, Namespace: "shop", Name: name, Uid: uid, Version: wire.Version(b)}, Payload: b}
}

func digestOf(objects ...*wire.Object) []byte {
	var refs []*wire.ObjectRef
	for _, o := range objects {
		refs = append(refs, o.Ref)
	}
	return wire.Digest(refs)
}

// eventually waits for a condition of the line.
func (r *rig) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s (line %+v)", what, r.uplink.State())
		case <-r.uplink.Changed():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func put(t *testing.T, s *store.Store, kind wire.ReportKind, key, payload string) {
	t.Helper()
	if err := s.PutReport(context.Background(), store.Report{Kind: kind, Key: key, Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) outbox(t *testing.T) int {
	t.Helper()
	reports, err := r.store.Outbox(context.Background(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return len(reports)
}

func TestChangesAreCommittedBeforeTheyAreAcknowledged(t *testing.T) {
	r := newRig(t)
	r.start(t)
	p := r.accept(t)
	h := p.hello()
	if !bytes.Equal(h.GetDigest(), wire.Digest(nil)) || h.GetStoreId() != r.store.ID() || h.GetEdgeVersion() != "test" {
		t.Errorf("hello %v", h)
	}
	p.send(welcome(false), inventoryAsk())
	if inv := p.recv().GetInventory(); inv == nil || !inv.GetLast() || len(inv.GetItems()) != 0 {
		t.Errorf("inventory %v", inv)
	}
	a, b := configMap(t, "a", "u1", "1"), configMap(t, "b", "u2", "1")
	p.send(changes(1, []*wire.Object{a, b}))
	p.ack(1)
	if c, err := r.store.ConfigMap(context.Background(), "shop", "a"); err != nil || c.Data["key"] != "1" {
		t.Errorf("acknowledged, but: %v, %v", c, err)
	}
	if r.store.SyncedOnce() {
		t.Error("synced before the hub said so")
	}
	p.send(changes(2, nil, b.Ref))
	p.ack(2)
	p.send(synced(digestOf(a)))
	r.eventually(t, "synced", func() bool { return r.uplink.State().Synced })
	if !r.store.SyncedOnce() {
		t.Error("the store does not know that it is synced")
	}
	if s := r.uplink.State(); !s.Connected || s.LastError != "" || s.Hub == "" {
		t.Errorf("state %+v", s)
	}
	if now, ok := r.uplink.HubTime(); ok {
		t.Errorf("the hub told no time, and it is %v", now)
	}
}

func TestNothingIsAcknowledgedThatCannotBeStored(t *testing.T) {
	r := newRig(t)
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(false))
	r.eventually(t, "connected", func() bool { return r.uplink.State().Connected })
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	p.send(changes(1, []*wire.Object{configMap(t, "a", "u1", "1")}))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if b, err := p.conn.Recv(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the edge answered %x, %v", b, err)
	}
	r.eventually(t, "disconnected", func() bool { return !r.uplink.State().Connected })
}

func TestNodeInSyncSaysHelloAndNothingElse(t *testing.T) {
	r := newRig(t)
	a := configMap(t, "a", "u1", "1")
	if err := r.store.Apply(context.Background(), []*wire.Object{a}, nil); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	p := r.accept(t)
	if h := p.hello(); !bytes.Equal(h.GetDigest(), digestOf(a)) {
		t.Errorf("digest %x", h.GetDigest())
	}
	w := welcome(true)
	w.GetWelcome().HubTimeUnixMs = 1234567890000
	p.send(w)
	r.eventually(t, "synced", func() bool { return r.uplink.State().Synced })
	if now, ok := r.uplink.HubTime(); !ok || now.Before(time.UnixMilli(1234567890000)) {
		t.Errorf("hub time %v, %v", now, ok)
	}
	// The next thing it says is the answer to the next change.
	p.send(changes(1, nil, a.Ref))
	p.ack(1)

	// The hub's time is a floor after a restart without it.
	r.stop()
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	p.conn.Close()
	r.proxy.Cut()
	r.open(t)
	r.start(t)
	r.eventually(t, "the floor", func() bool { now, ok := r.uplink.HubTime(); return ok && !now.Before(time.UnixMilli(1234567890000)) })
	if _, err := r.uplink.AskToken(context.Background(), &wire.TokenAsk{}); !errors.Is(err, ErrOffline) {
		t.Errorf("offline: %v", err)
	}
}

func TestBrokenSessionsAreEndedAndBegunAnew(t *testing.T) {
	malformed := changes(1, []*wire.Object{configMap(t, "a", "u1", "1")})
	malformed.GetChanges().GetUpserts()[0].Payload = []byte("not of that version")
	for _, tt := range []struct {
		name string
		send []*wire.HubMessage
		want string
	}{
		{"a gap", []*wire.HubMessage{welcome(false), changes(2, []*wire.Object{configMap(t, "a", "u1", "1")})}, "number 2 where 1"},
		{"no welcome", []*wire.HubMessage{changes(1, nil)}, "before the welcome"},
		{"malformed", []*wire.HubMessage{welcome(false), malformed}, "not of the stated version"},
		{"goodbye", []*wire.HubMessage{goodbye(wire.Goodbye_REASON_DUPLICATE)}, "another machine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.start(t)
			p := r.accept(t)
			p.hello()
			p.send(tt.send...)
			p.closed()
			if s := r.uplink.State(); !strings.Contains(s.LastError, tt.want) {
				r.eventually(t, tt.want, func() bool { return strings.Contains(r.uplink.State().LastError, tt.want) })
			}
			p = r.accept(t)
			if h := p.hello(); !bytes.Equal(h.GetDigest(), wire.Digest(nil)) {
				t.Error("something was stored")
			}
		})
	}
	t.Run("garbage", func(t *testing.T) {
		r := newRig(t)
		r.start(t)
		p := r.accept(t)
		p.hello()
		if err := p.conn.Send(context.Background(), []byte{0xff, 0xfe, 0xfd}); err != nil {
			t.Fatal(err)
		}
		p.closed()
		r.accept(t).hello()
	})
}

func TestDifferingDigestLeadsToAnInventory(t *testing.T) {
	r := newRig(t)
	a, b := configMap(t, "a", "u1", "1"), configMap(t, "b", "u2", "1")
	if err := r.store.Apply(context.Background(), []*wire.Object{a}, nil); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(false), synced(digestOf(a, b))) // the hub believes that b was sent
	p.closed()

	p = r.accept(t)
	if h := p.hello(); !bytes.Equal(h.GetDigest(), make([]byte, wire.DigestLen)) {
		t.Errorf("digest %x, which the hub might hold for its own", h.GetDigest())
	}
	p.send(welcome(false), inventoryAsk())
	if items := p.recv().GetInventory().GetItems(); len(items) != 1 || !proto.Equal(items[0], a.Ref) {
		t.Errorf("inventory %v", items)
	}
	p.send(changes(1, []*wire.Object{b}), synced(digestOf(a, b)))
	p.ack(1)
	r.eventually(t, "synced", func() bool { return r.uplink.State().Synced })

	p.conn.Close()
	if h := r.accept(t).hello(); !bytes.Equal(h.GetDigest(), digestOf(a, b)) {
		t.Errorf("afterwards: digest %x", h.GetDigest())
	}
}

func TestReportsAreKeptUntilTheHubHasTakenThem(t *testing.T) {
	r := newRig(t)
	put(t, r.store, wire.ReportKind_REPORT_EVENT, "", "event")
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "old")
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "new")
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	status, event := p.report(), p.report()
	if string(status.GetPayload()) != "new" || string(event.GetPayload()) != "event" {
		t.Errorf("first %q, then %q", status.GetPayload(), event.GetPayload())
	}
	p.send(result(event.GetId(), wire.ResultCode_RESULT_REJECTED)) // dropped; the status stays unanswered
	r.eventually(t, "the event is dropped", func() bool { return r.outbox(t) == 1 })
	p.conn.Close()

	p = r.accept(t)
	p.hello()
	p.send(welcome(true))
	again := p.report()
	if again.GetId() != status.GetId() {
		t.Errorf("sent %v again, want %v", again, status)
	}
	// The status changes while the hub is at work on the one before.
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "newest")
	p.send(result(again.GetId(), wire.ResultCode_RESULT_ACCEPTED))
	newest := p.report()
	if string(newest.GetPayload()) != "newest" || newest.GetId() <= again.GetId() {
		t.Errorf("then %v", newest)
	}
	p.send(result(newest.GetId(), wire.ResultCode_RESULT_RETRY))
	if retried := p.report(); retried.GetId() != newest.GetId() {
		t.Errorf("retried %v", retried)
	}
	p.send(result(newest.GetId(), wire.ResultCode_RESULT_ACCEPTED))
	r.eventually(t, "the outbox is empty", func() bool { return r.outbox(t) == 0 })
}

func TestManyReportsGoThroughTheWindow(t *testing.T) {
	r := newRig(t)
	const events = 3*resume.WindowSize + 5
	for i := range events {
		put(t, r.store, wire.ReportKind_REPORT_EVENT, "", fmt.Sprint(i))
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	for i := range events {
		rep := p.report()
		if string(rep.GetPayload()) != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, rep.GetPayload())
		}
		if i == resume.WindowSize-1 { // no more than the window: the next message is the answer to this
			a := configMap(t, "a", "u1", "1")
			p.send(changes(1, []*wire.Object{a}))
			p.ack(1)
		}
		if i >= resume.WindowSize-1 {
			p.send(result(rep.GetId()-resume.WindowSize+1, wire.ResultCode_RESULT_ACCEPTED))
		}
	}
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	r.eventually(t, "connected", func() bool { return r.uplink.State().Connected })

	type answer struct {
		*wire.TokenAnswer
		error
	}
	ask := func(account string) <-chan answer {
		c := make(chan answer, 1)
		go func() {
			a, err := r.uplink.AskToken(context.Background(), &wire.TokenAsk{Namespace: "shop", ServiceAccount: account})
			c <- answer{a, err}
		}()
		return c
	}
	first := ask("one")
	asked1 := p.recv().GetTokenAsk()
	second := ask("two")
	asked2 := p.recv().GetTokenAsk()
	for _, a := range []*wire.TokenAsk{asked2, asked1} { // answered the other way round
		p.send(&wire.HubMessage{Body: &wire.HubMessage_TokenAnswer{TokenAnswer: &wire.TokenAnswer{
			Id: a.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED, Token: "token of " + a.GetServiceAccount()}}})
	}
	if a := <-first; a.error != nil || a.GetToken() != "token of one" {
		t.Errorf("first: %v, %v", a.TokenAnswer, a.error)
	}
	if a := <-second; a.error != nil || a.GetToken() != "token of two" {
		t.Errorf("second: %v, %v", a.TokenAnswer, a.error)
	}
	third := ask("three")
	p.recv()
	r.proxy.Hold(linktest.Up) // so that no new session begins
	r.proxy.Break()
	if a := <-third; !errors.Is(a.error, ErrOffline) {
		t.Errorf("with the line gone: %v, %v", a.TokenAnswer, a.error)
	}
}
