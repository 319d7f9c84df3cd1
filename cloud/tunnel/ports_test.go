package tunnel

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func testPorts(t testing.TB, size int) *ports {
	t.Helper()
	first := 12000 + os.Getpid()%400*20
	p, err := openPorts(loopback, first, first+size-1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// asks connects to a port and returns whose it is, as the listener tells it.
func asks(t *testing.T, p *ports, port int) string {
	t.Helper()
	client, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := p.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return nodeOf(withNode(t.Context(), c))
}

func TestEachNodeIsKnownByItsPort(t *testing.T) {
	p := testPorts(t, 20)
	given := make(map[int]string)
	for i := range 10 {
		node := fmt.Sprint("till-", i)
		port, err := p.give(node, 0)
		if err != nil {
			t.Fatal(err)
		}
		if given[port] != "" {
			t.Fatalf("port %d is both %s's and %s's", port, given[port], node)
		}
		given[port] = node
		if again, err := p.give(node, p.first); err != nil || again != port {
			t.Errorf("%s has port %d and is then given %d, %v", node, port, again, err)
		}
	}
	for port, node := range given {
		if got := asks(t, p, port); got != node {
			t.Errorf("port %d is %s's, and a connection is taken for %q", port, node, got)
		}
	}
	port := p.of("till-3")
	p.release("till-3")
	if p.keep("till-4", port) {
		t.Error("a node has two ports")
	}
	if !p.keep("till-new", port) || asks(t, p, port) != "till-new" {
		t.Error("a port that was released cannot be used again")
	}
	if p.keep("till-x", p.last+1) {
		t.Error("a port beyond the range was opened")
	}
}

func TestAPortThatOthersHaveIsPassedOver(t *testing.T) {
	p := testPorts(t, 4)
	taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.first)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for i := range 3 {
		if port, err := p.give(fmt.Sprint("till-", i), p.first); err != nil || port == p.first {
			t.Errorf("given port %d, %v", port, err)
		}
	}
	if port, err := p.give("one too many", 0); !errors.Is(err, errNoPort) {
		t.Errorf("with the range used up: %d, %v", port, err)
	}
	p.release("till-0")
	p.most = 2
	if port, err := p.give("too many files", 0); !errors.Is(err, errNoFiles) {
		t.Errorf("with the files used up: %d, %v", port, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := p.give("late", 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("give after Close: %v", err)
	}
}

// BenchmarkPorts says what a node's port costs this process (B/node) and the kernel
// (kernel-B/node, from its slab caches).
func BenchmarkPorts(b *testing.B) {
	const nodes = 8000
	for b.Loop() {
		p, err := openPorts(loopback, 12000, 29999, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		p.most = nodes
		heap, kernel := inUse(), slab(b)
		for i := range nodes {
			if _, err := p.give(fmt.Sprint("till-", i), 0); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(inUse()-heap)/nodes, "B/node")
		b.ReportMetric(float64(slab(b)-kernel)/nodes, "kernel-B/node")
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func slab(b *testing.B) uint64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	var kib uint64
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Slab: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}
