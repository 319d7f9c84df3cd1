package hub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// carrier is cloud/device for tests: it keeps what it was given, and holds back
// the devices of the test's choice.
type carrier struct {
	mu      sync.Mutex
	carried []string
	gates   map[string]chan struct{} // by uid
}

func (c *carrier) Write(_ context.Context, node, store string, _ report.Epoch, r *wire.Report) (*wire.ReportResult, error) {
	m := new(wire.DeviceReport)
	if err := proto.Unmarshal(r.GetPayload(), m); err != nil {
		return nil, err
	}
	if gate := c.gates[m.GetUid()]; gate != nil {
		<-gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried = append(c.carried, fmt.Sprint(node, " ", store, " ", m.GetUid(), " ", m.GetReason()))
	return &wire.ReportResult{Id: r.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED}, nil
}

func TestReportsOfOneDeviceKeepTheirOrderAndOthersOvertake(t *testing.T) {
	c := &carrier{gates: map[string]chan struct{}{"slow": make(chan struct{})}}
	r := newRig(t, func(o *hub.Options) { o.Devices = c })
	e := r.edge(t, "n", "1")
	e.Connect()
	e.Wait("Welcome", welcomed)
	payload := func(uid string, i int) []byte {
		b, err := proto.Marshal(&wire.DeviceReport{Namespace: "d", Name: uid, Uid: uid, Reason: fmt.Sprintf("%02d", i)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var numbers []uint64
	for i := range 10 {
		numbers = append(numbers, e.SendBytes(wire.ReportKind_REPORT_DEVICE, payload("slow", i)))
	}
	for i := range 10 {
		e.Result(e.SendBytes(wire.ReportKind_REPORT_DEVICE, payload("quick", i)))
	}
	close(c.gates["slow"])
	for _, n := range numbers {
		e.Result(n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if of := c.carried[10:]; len(c.carried) != 20 || !slices.IsSorted(of) || of[0] != "n 1 slow 00" {
		t.Errorf("written: %q", c.carried)
	}
}

// TestWhatNobodyCarriesStaysAtTheEdge: a newer edge, or a hub without routes.
func TestWhatNobodyCarriesStaysAtTheEdge(t *testing.T) {
	r := newRig(t)
	e := r.edge(t, "n", "1")
	e.Connect()
	e.Wait("Welcome", welcomed)
	for _, kind := range []wire.ReportKind{wire.ReportKind_REPORT_DEVICE, wire.ReportKind_REPORT_MESSAGES} {
		if got := e.Result(e.SendBytes(kind, nil)); got.Code != wire.ResultCode_RESULT_RETRY || got.Message == "" {
			t.Errorf("%s: %v", kind, got)
		}
	}
}

func TestAMessageIsPublishedAtANode(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if _, err := r.hub.Publish(ctx, "n", &wire.Publish{}); !errors.Is(err, hub.ErrNotConnected) {
		t.Errorf("a node that is not there: %v", err)
	}
	e := r.edge(t, "n", "1")
	var seen []string
	e.OnPublish(func(p *wire.Publish) *wire.Published {
		seen = append(seen, p.GetTopic())
		return &wire.Published{Id: p.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED, Message: string(p.GetPayload())}
	})
	e.Connect()
	e.Wait("Welcome", welcomed)
	for _, text := range []string{"a", "b"} {
		got, err := r.hub.Publish(ctx, "n", &wire.Publish{Topic: "t/" + text, Payload: []byte(text)})
		if err != nil || got.Code != wire.ResultCode_RESULT_ACCEPTED || got.Message != text {
			t.Fatalf("%s: %v, %v", text, got, err)
		}
	}
	e.Disconnect()
	if !slices.Equal(seen, []string{"t/a", "t/b"}) {
		t.Errorf("published: %q", seen)
	}

	old := r.edge(t, "old", "1")
	old.Knows(0)
	old.Connect()
	old.Wait("Welcome", welcomed)
	if _, err := r.hub.Publish(ctx, "old", &wire.Publish{}); !errors.Is(err, hub.ErrTooOld) {
		t.Errorf("an old edge: %v", err)
	}
}

func TestMessagesThatWaitAtANodeAreBounded(t *testing.T) {
	r := newRig(t)
	e := r.edge(t, "n", "1")
	asked := make(chan uint64, 100)
	e.OnPublish(func(p *wire.Publish) *wire.Published { asked <- p.GetId(); return nil })
	e.Connect()
	e.Wait("Welcome", welcomed)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 100)
	const most = 16
	for range most {
		go func() {
			_, err := r.hub.Publish(ctx, "n", &wire.Publish{})
			failed <- err
		}()
	}
	for range most {
		<-asked
	}
	if _, err := r.hub.Publish(t.Context(), "n", &wire.Publish{}); !errors.Is(err, hub.ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	for range most {
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	}
	// There is room again, and who waits when the node leaves is told.
	go func() {
		_, err := r.hub.Publish(t.Context(), "n", &wire.Publish{})
		failed <- err
	}()
	<-asked
	e.Disconnect()
	if err := <-failed; !errors.Is(err, hub.ErrNotConnected) {
		t.Errorf("a node that leaves: %v", err)
	}
}

func TestAnOldEdgeIsSentNoDevices(t *testing.T) {
	r := newRig(t)
	item, err := roster.Device(&v1beta1.Device{})
	if err != nil {
		t.Fatal(err)
	}
	item.Ref.Namespace, item.Ref.Name, item.Ref.Uid = "d", "dev", "u"
	r.cluster.want("n", podItem(t, "a", 1), item)
	e := r.edge(t, "n", "1")
	e.Knows(0)
	e.Connect()
	e.WaitObjects("its pod", edgetest.Has("pod/d/p-a"))
	e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 })
	e.Disconnect()
	e.Connect()
	e.Wait("Welcome", welcomed)
	if s := e.Seen(); !s.Welcome.InSync || edgetest.Has("device/d/dev")(e.Objects()) {
		t.Errorf("welcome %v, holds %q", s.Welcome, e.Names())
	}
	e.Disconnect()
	e.Knows(wire.KindMax)
	e.Connect()
	e.WaitObjects("its device", edgetest.Has("device/d/dev"))
}
