package route

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Reports is the Router as a source of reports; see uplink.Source.
type Reports struct{ r *Router }

// Reports is for edge/uplink.
func (r *Router) Reports() Reports { return Reports{r} }

const keyPrefix = "route/"

// receipt is what a report has in it.
type receipt struct {
	uid     string
	numbers []uint64
	dropped uint64
}

// Begin says that nothing is under way.
func (s Reports) Begin() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for _, at := range s.r.routes {
		at.flying, at.taken = 0, false
	}
	signal(s.r.ready)
}

// Changed is signalled when Take may have something.
func (s Reports) Changed() <-chan struct{} { return s.r.ready }

// Take returns the keys of routes with messages, each once until it is settled.
func (s Reports) Take() (keys []string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for uid, at := range s.r.routes {
		if !at.taken && at.waits() {
			at.taken = true
			keys = append(keys, keyPrefix+uid)
		}
	}
	return keys
}

func (at *route) waits() bool { return len(at.refs) > 0 || at.dropped > at.told }

// Report makes a report of the oldest messages of a route.
func (s Reports) Report(ctx context.Context, key string) (*wire.Report, any, error) {
	uid := strings.TrimPrefix(key, keyPrefix)
	report, rc := s.compose(uid)
	if report == nil {
		return nil, nil, fmt.Errorf("messages of the route with uid %s: %w", uid, store.ErrNotFound)
	}
	messages, err := s.r.o.Store.Messages(ctx, rc.numbers)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range messages {
		report.Messages = append(report.Messages, &wire.RoutedMessage{Number: m.Number, Topic: m.Topic, Payload: m.Payload, UnixMs: m.At})
	}
	payload, err := proto.Marshal(report)
	if err != nil {
		return nil, nil, fmt.Errorf("encode messages of route %s/%s: %w", report.RouteNamespace, report.RouteName, err)
	}
	return &wire.Report{Kind: wire.ReportKind_REPORT_MESSAGES, Payload: payload}, rc, nil
}

func (s Reports) compose(uid string) (*wire.RoutedMessages, *receipt) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	at := s.r.routes[uid]
	if at == nil || !at.waits() {
		if at != nil {
			at.taken = false
		}
		return nil, nil
	}
	rc, size := &receipt{uid: uid, dropped: at.dropped}, 0
	for _, f := range at.refs {
		if len(rc.numbers) == reportMessages || size > 0 && size+f.size > reportBytes {
			break
		}
		rc.numbers = append(rc.numbers, f.number)
		size += f.size
		at.flying = f.number
	}
	return &wire.RoutedMessages{RouteNamespace: at.of.Namespace, RouteName: at.of.Name, RouteUid: uid, Dropped: at.dropped, Lineage: s.r.o.Store.Lineage()}, rc
}

// Settle takes messages that the hub has out of the store. Where the store cannot be
// told, they are sent once more at the next start; numbers tell.
func (s Reports) Settle(_ string, of any) {
	rc, ok := of.(*receipt)
	if !ok {
		return
	}
	if err := s.r.o.Store.PutMessages(context.Background(), &store.MessageBatch{Drop: rc.numbers}); err != nil {
		s.r.o.Log.Warn("delivered messages stay in the database, and may be delivered once more", "route", rc.uid, "messages", len(rc.numbers), "err", err)
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	at := s.r.routes[rc.uid]
	if at == nil {
		return
	}
	at.taken, at.told = false, max(at.told, rc.dropped)
	if n := len(rc.numbers); n > 0 {
		last := rc.numbers[n-1]
		for len(at.refs) > 0 && at.refs[0].number <= last {
			at.bytes -= at.refs[0].size
			at.refs = at.refs[1:]
		}
	}
	at.flying = 0
	signal(s.r.ready)
}
