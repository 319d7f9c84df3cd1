package hub_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// stillConn is a connection whose edge says what was put into it and then
// nothing, without a line under it.
type stillConn struct {
	link.Conn // what the hub does not use
	node      string
	says      chan []byte
	told      atomic.Int64
	heard     chan struct{}
	closed    chan struct{}
	once      sync.Once
}

func (c *stillConn) Send(context.Context, []byte) error { c.told.Add(1); return nil }
func (c *stillConn) Recv(context.Context) ([]byte, error) {
	select {
	case b := <-c.says:
		return b, nil
	case <-c.closed:
		return nil, link.ErrClosed
	}
}
func (c *stillConn) Close() error              { c.once.Do(func() { close(c.closed) }); return nil }
func (c *stillConn) LastHeard() time.Time      { return time.Time{} }
func (c *stillConn) Heard() <-chan struct{}    { return c.heard }
func (c *stillConn) Peer() string              { return c.node }
func (c *stillConn) RemoteAddr() string        { return "192.0.2.1:1" }
func (c *stillConn) Issued() time.Time         { return time.Time{} }
func (c *stillConn) Transport() string         { return "still" }
func (c *stillConn) Traffic() (t link.Traffic) { return t }

type stillAcceptor chan link.Conn

func (a stillAcceptor) Accept(ctx context.Context) (link.Conn, error) {
	select {
	case c := <-a:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (a stillAcceptor) Close() error { return nil }

// inUse is what heap and stacks hold.
func inUse() (heap, stacks float64) {
	for range 3 { // stacks shrink, and pools empty, one collection after the other
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc), float64(m.StackInuse)
}

// BenchmarkIdleSession measures what the hub holds of a node that is in sync and
// says nothing, without the line: a node with five pods.
func BenchmarkIdleSession(b *testing.B) {
	const nodes = 3000
	for range b.N {
		cluster := &fakeCluster{wants: make(map[string][]*roster.Item), followers: make(map[string][]chan struct{})}
		var items []*roster.Item
		var refs []*wire.ObjectRef
		for i := range 7 {
			item := podItem(b, fmt.Sprintf("0c000000-0000-4000-8000-%012d", i), 1)
			items, refs = append(items, item), append(refs, item.Ref)
		}
		hello, err := wire.Encode(&wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: &wire.Hello{
			ProtocolVersions: []uint32{wire.ProtocolVersion}, Digest: wire.Digest(refs), StoreId: "0c000000-0000-4000-8000-000000000000"}}})
		if err != nil {
			b.Fatal(err)
		}
		conns := make([]*stillConn, nodes)
		for i := range conns {
			node := fmt.Sprintf("edge-%05d", i)
			cluster.wants[node] = items
			cluster.followers[node] = make([]chan struct{}, 0, 1)
			conns[i] = &stillConn{node: node, says: make(chan []byte, 1), heard: make(chan struct{}, 1), closed: make(chan struct{})}
			conns[i].says <- hello
		}
		h := hub.New(hub.Options{Cluster: cluster, Reports: &fakeReports{}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(context.Background())
		acceptor, done := make(stillAcceptor), make(chan error, 1)
		go func() { done <- h.Serve(ctx, acceptor) }()
		heap, stacks := inUse()
		for _, c := range conns {
			acceptor <- c
		}
		for _, c := range conns {
			for c.told.Load() < 2 { // Welcome and Claimed
				runtime.Gosched()
			}
		}
		heapNow, stacksNow := inUse()
		b.ReportMetric((heapNow-heap)/nodes, "heap-B/session")
		b.ReportMetric((stacksNow-stacks)/nodes, "stack-B/session")
		b.ReportMetric(float64(runtime.NumGoroutine())/nodes, "goroutines/session")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
