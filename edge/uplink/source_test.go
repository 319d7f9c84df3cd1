package uplink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// things are a source of things that change: a report says what a thing is when the
// report is made.
type things struct {
	changed chan struct{}

	mu      sync.Mutex
	now     map[string]int
	told    map[string]int
	taken   map[string]bool
	begun   int
	reports int
}

func newThings() *things {
	return &things{changed: make(chan struct{}, 1), now: map[string]int{}, told: map[string]int{}, taken: map[string]bool{}}
}

func (s *things) set(key string, value int) {
	s.mu.Lock()
	s.now[key] = value
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *things) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	clear(s.taken)
}

func (s *things) Changed() <-chan struct{} { return s.changed }

func (s *things) Take() (keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range s.now {
		if value != s.told[key] && !s.taken[key] {
			s.taken[key] = true
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *things) Report(_ context.Context, key string) (*wire.Report, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now[key] == s.told[key] {
		s.taken[key] = false
		return nil, nil, store.ErrNotFound
	}
	s.reports++
	return &wire.Report{Kind: wire.ReportKind_REPORT_DEVICE, Payload: fmt.Append(nil, key, "=", s.now[key])}, s.now[key], nil
}

func (s *things) Settle(key string, receipt any) {
	s.mu.Lock()
	s.told[key], s.taken[key] = receipt.(int), false
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func TestASourceIsAskedWhenItsReportIsSent(t *testing.T) {
	r, s := newRig(t), newThings()
	r.sources = []Source{s}
	for i := range 50 { // while there is no line
		s.set("valve", i)
	}
	r.start(t)
	p := r.accept(t)
	if h := p.hello(); h.GetMaxKind() != uint32(wire.KindMax) {
		t.Errorf("the hello says that kinds to %d are known", h.GetMaxKind())
	}
	p.send(welcome(true))
	first := p.report()
	if string(first.GetPayload()) != "valve=49" || first.GetId() < resume.FirstSourced {
		t.Errorf("told %q", first.GetPayload())
	}
	// What changes while it is under way is told after the answer, and once.
	s.set("valve", 60)
	s.set("valve", 61)
	p.send(result(first.GetId(), wire.ResultCode_RESULT_ACCEPTED))
	second := p.report()
	if string(second.GetPayload()) != "valve=61" {
		t.Errorf("then %q", second.GetPayload())
	}
	// A report that must wait is made anew.
	s.set("valve", 62)
	p.send(result(second.GetId(), wire.ResultCode_RESULT_RETRY))
	third := p.report()
	if string(third.GetPayload()) != "valve=62" {
		t.Errorf("after a pause %q", third.GetPayload())
	}
	p.conn.Close() // without an answer
	p = r.accept(t)
	p.hello()
	p.send(welcome(true))
	again := p.report()
	if string(again.GetPayload()) != "valve=62" {
		t.Errorf("in the next session %q", again.GetPayload())
	}
	p.send(result(again.GetId(), wire.ResultCode_RESULT_REJECTED)) // for good
	r.eventually(t, "the report is settled", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.told["valve"] == 62 })
	s.set("valve", 63)
	if last := p.report(); string(last.GetPayload()) != "valve=63" {
		t.Errorf("after a refusal %q", last.GetPayload())
	}
}

func TestPodsAreHeardHoweverManyDevicesSpeak(t *testing.T) {
	r, s := newRig(t), newThings()
	r.sources = []Source{s}
	for i := range 200 {
		s.set(fmt.Sprint("device-", i), 1)
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	var under []*wire.Report
	for range resume.SourceSize {
		under = append(under, p.report())
	}
	// None of them is answered; a pod's status goes out all the same.
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "status")
	if got := p.report(); string(got.GetPayload()) != "status" {
		t.Fatalf("instead of the pod's status came %q", got.GetPayload())
	}
	told := map[string]bool{}
	for len(under) > 0 {
		told[string(under[0].GetPayload())] = true
		p.send(result(under[0].GetId(), wire.ResultCode_RESULT_ACCEPTED))
		under = under[1:]
		if len(told)+len(under) < 200 {
			under = append(under, p.report())
		}
	}
	if len(told) != 200 {
		t.Errorf("%d of 200 devices were told of", len(told))
	}
}

// TestOneSourceDoesNotSilenceTheOther: messages for an endpoint that hangs, and devices.
func TestOneSourceDoesNotSilenceTheOther(t *testing.T) {
	r, hanging, devices := newRig(t), newThings(), newThings()
	r.sources = []Source{hanging, devices}
	for i := range 100 {
		hanging.set(fmt.Sprint("route-", i), 1)
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	for range resume.SourceSize {
		p.report() // and no answer
	}
	for i := range 5 {
		devices.set("device", i+1)
		got := p.report()
		if want := fmt.Sprint("device=", i+1); string(got.GetPayload()) != want {
			t.Fatalf("instead of %s came %q", want, got.GetPayload())
		}
		p.send(result(got.GetId(), wire.ResultCode_RESULT_ACCEPTED))
	}
}

func TestTheHubPublishesAtTheNode(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var got []string
	r.publish = func(_ context.Context, p *wire.Publish) error {
		mu.Lock()
		defer mu.Unlock()
		if p.GetTopic() == "bad" {
			return errors.New("the broker is away")
		}
		got = append(got, p.GetTopic()+"="+string(p.GetPayload()))
		return nil
	}
	r.start(t)
	p := r.accept(t)
	p.hello()
	p.send(welcome(true))
	send := func(id uint64, topic string) *wire.Published {
		p.send(&wire.HubMessage{Body: &wire.HubMessage_Publish{Publish: &wire.Publish{Id: id, Topic: topic, Payload: []byte("x")}}})
		answer := p.recv().GetPublished()
		if answer.GetId() != id {
			t.Fatalf("answer %v to message %d", answer, id)
		}
		return answer
	}
	if a := send(1, "prices"); a.GetCode() != wire.ResultCode_RESULT_ACCEPTED {
		t.Errorf("answer %v", a)
	}
	if a := send(2, "bad"); a.GetCode() != wire.ResultCode_RESULT_RETRY || !strings.Contains(a.GetMessage(), "away") {
		t.Errorf("answer %v", a)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 1 || got[0] != "prices=x" {
		t.Errorf("published %q", got)
	}
}
