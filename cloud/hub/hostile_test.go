package hub_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// slowCertificates answers when the test says so, and counts how many requests of
// one node it has at a time.
type slowCertificates struct {
	mu            sync.Mutex
	running, most int
	gate          chan struct{}
}

func (c *slowCertificates) Renew(ctx context.Context, _ string, _ time.Time, _ []byte) *wire.CertificateAnswer {
	c.mu.Lock()
	c.running++
	c.most = max(c.most, c.running)
	c.mu.Unlock()
	select {
	case <-c.gate:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	return &wire.CertificateAnswer{Code: wire.ResultCode_RESULT_ACCEPTED}
}

// raw sends messages that no edge of ours would, until the connection ends.
func raw(t *testing.T, conn link.Conn, messages ...any) {
	t.Helper()
	for _, m := range messages {
		b, ok := m.([]byte)
		if !ok {
			var err error
			if b, err = wire.Encode(m.(*wire.EdgeMessage)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), edgetest.Patience)
		err := conn.Send(ctx, b)
		cancel()
		if err != nil {
			return // the hub has hung up
		}
	}
}

func helloOf(change func(*wire.Hello)) *wire.EdgeMessage {
	h := &wire.Hello{ProtocolVersions: []uint32{wire.ProtocolVersion}, Digest: wire.Digest(nil), StoreId: "disk"}
	if change != nil {
		change(h)
	}
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: h}}
}

// TestAFloodDelaysNobodyAndTakesBoundedMemory: a node sends megabytes of reports,
// and asks for tokens and certificates, as fast as it can, while the apiserver
// answers nothing about it and it reads none of the answers.
func TestAFloodDelaysNobodyAndTakesBoundedMemory(t *testing.T) {
	certificates := &slowCertificates{gate: make(chan struct{})}
	r := newRig(t, func(o *hub.Options) { o.Certificates = certificates })
	gate := make(chan struct{})
	r.reports.blocked["flood"] = gate
	quick := r.edge(t, "quick", "2")
	quick.Connect()
	quick.Wait("Welcome", welcomed)

	const size = 300 << 10
	var flood []any
	for i := range 200 {
		payload, err := (&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "p", UID: types.UID(fmt.Sprint(i))},
			Status:     corev1.PodStatus{Message: strings.Repeat("x", size)},
		}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood,
			&wire.EdgeMessage{Body: &wire.EdgeMessage_TokenAsk{TokenAsk: &wire.TokenAsk{Id: uint64(i)}}},
			&wire.EdgeMessage{Body: &wire.EdgeMessage_CertificateAsk{CertificateAsk: &wire.CertificateAsk{Id: uint64(i)}}},
			&wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: uint64(i), Kind: wire.ReportKind_REPORT_POD_STATUS, Payload: payload}}})
	}
	conn := r.edge(t, "flood", "1").Dial()
	raw(t, conn, helloOf(nil))
	var flooding sync.WaitGroup
	flooding.Go(func() { raw(t, conn, flood...) })
	defer flooding.Wait()
	defer conn.Close()

	// The hub takes what it may hold and stops reading; meanwhile it serves.
	const held = "holdfast_hub_reports_held_bytes"
	for i := 0; i < 20 || r.figure(t, held) < 4<<20; i++ {
		r.cluster.want("quick", podItem(t, "a", int64(i)))
		quick.WaitObjects("a change", func(o map[string]*wire.Object) bool {
			return o["pod/d/p-a"] != nil && string(o["pod/d/p-a"].Ref.Version) == string(podItem(t, "a", int64(i)).Ref.Version)
		})
		if got := quick.Report(wire.ReportKind_REPORT_POD_STATUS, status()); got.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatalf("a report beside the flood: %v", got)
		}
	}
	if n := r.figure(t, held); n >= 4<<20+2*size {
		t.Errorf("the hub holds %d bytes of reports", n)
	}
	certificates.mu.Lock()
	if certificates.most != 1 {
		t.Errorf("%d requests for a certificate ran at a time", certificates.most)
	}
	certificates.mu.Unlock()

	// Its own end is all that it reaches.
	_ = conn.Close()
	close(gate)
	close(certificates.gate)
	quick.WaitObjects("what it holds", edgetest.Has("pod/d/p-a"))
	for r.hub.Connected() > 1 || r.figure(t, held) > 0 {
		if got := quick.Report(wire.ReportKind_REPORT_POD_STATUS, status()); got.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatalf("a report after the flood: %v", got)
		}
	}
	if quick.Seen().Err != nil || quick.Seen().Goodbye != nil {
		t.Errorf("the quick node's session: %v %v", quick.Seen().Err, quick.Seen().Goodbye)
	}
}

// TestBadMessagesCloseTheirOwnSessionAndAreToldOnce: one line in the log and one
// in the figures for each, and no other node notices.
func TestBadMessagesCloseTheirOwnSessionAndAreToldOnce(t *testing.T) {
	r := newRig(t)
	other := r.edge(t, "other", "2")
	other.Connect()
	other.Wait("Welcome", welcomed)
	inventory := func(last bool) *wire.EdgeMessage {
		return &wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: &wire.Inventory{Last: last}}}
	}
	ack := func(seq uint64) *wire.EdgeMessage {
		return &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: seq}}}
	}
	encoded, err := wire.Encode(helloOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 10_000)
	rotten := helloOf(func(h *wire.Hello) { h.Digest = wire.Digest([]*wire.ObjectRef{{Uid: "x"}}) })
	cases := map[string]struct {
		messages []any
		turned   bool // away, before there is a session
	}{
		"truncated":                   {[]any{encoded[:len(encoded)-3]}, true},
		"empty":                       {[]any{[]byte{}}, true},
		"unknown encoding":            {[]any{append([]byte{77}, encoded[1:]...)}, true},
		"no database":                 {[]any{helloOf(func(h *wire.Hello) { h.StoreId = "" })}, true},
		"database with a long name":   {[]any{helloOf(func(h *wire.Hello) { h.StoreId = long })}, true},
		"version with a long name":    {[]any{helloOf(func(h *wire.Hello) { h.EdgeVersion = long })}, true},
		"report before hello":         {[]any{&wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: 1}}}}, true},
		"hello twice":                 {[]any{helloOf(nil), helloOf(nil)}, false},
		"truncated later":             {[]any{helloOf(nil), encoded[:len(encoded)-3]}, false},
		"acknowledged, never sent":    {[]any{helloOf(nil), ack(1)}, false},
		"inventory that nobody asked": {[]any{helloOf(nil), inventory(false)}, false},
		"inventory after its end":     {[]any{rotten, inventory(true), inventory(true)}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			node := strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", "")
			conn := r.edge(t, node, "disk").Dial()
			defer conn.Close()
			raw(t, conn, c.messages...)
			for {
				ctx, cancel := context.WithTimeout(t.Context(), edgetest.Patience)
				b, err := conn.Recv(ctx)
				cancel()
				if err != nil {
					t.Fatalf("no Goodbye before the end: %v", err)
				}
				m, err := wire.DecodeHub(b)
				if err != nil {
					t.Fatal(err)
				}
				if g := m.GetGoodbye(); g != nil {
					if g.Reason != wire.Goodbye_REASON_PROTOCOL_ERROR || len(g.Message) > 1000 {
						t.Errorf("Goodbye %v", g)
					}
					break
				}
			}
			what := "a node is disconnected"
			if c.turned {
				what = "a node was turned away"
			}
			if n := r.said.lines("node="+node, what); n != 1 {
				t.Errorf("%d lines tell of it", n)
			}
		})
	}
	sessions := 0
	for _, c := range cases {
		if !c.turned {
			sessions++
		}
	}
	if n := r.figure(t, `holdfast_hub_sessions_ended_total{reason="protocol_error"}`); n != sessions {
		t.Errorf("the metrics tell of %d sessions, want %d", n, sessions)
	}
	if n := r.figure(t, "holdfast_hub_connections_turned_away_total"); n != len(cases)-sessions {
		t.Errorf("the metrics tell of %d nodes turned away, want %d", n, len(cases)-sessions)
	}
	r.cluster.want("other", podItem(t, "a", 1))
	other.WaitObjects("its pod", edgetest.Has("pod/d/p-a"))
}

// TestRejectionsAreToldOnce: a node that reports what it may not fills no log.
func TestRejectionsAreToldOnce(t *testing.T) {
	r := newRig(t)
	r.reports.rejected = map[string]bool{"till": true}
	e := r.edge(t, "till", "disk")
	e.Connect()
	e.Wait("Welcome", welcomed)
	for range 50 {
		if got := e.Report(wire.ReportKind_REPORT_POD_STATUS, status()); got.Code != wire.ResultCode_RESULT_REJECTED {
			t.Fatalf("%v", got)
		}
	}
	if n := r.said.lines("rejected", "node=till"); n != 1 {
		t.Errorf("%d lines tell of rejected reports", n)
	}
	if n := r.figure(t, `holdfast_hub_reports_total{result="rejected"}`); n != 50 {
		t.Errorf("the metrics tell of %d", n)
	}
}
