package tunnel

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// counts are of a Tunnel since it started.
type counts struct {
	open        atomic.Int64
	refusedPort atomic.Uint64

	mu       sync.Mutex
	requests map[request]uint64
}

// request is a kind of requests; there are few, whatever is asked.
type request struct {
	path string
	code int
}

func (c *counts) begin() { c.open.Add(1) }

func (c *counts) end(path string, code int) {
	c.open.Add(-1)
	if http.StatusText(code) == "" { // a node may answer with any number
		code = code / 100 * 100
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests == nil {
		c.requests = make(map[request]uint64)
	}
	c.requests[request{path, code}]++
}

// WriteMetrics writes the tunnel's metrics as Prometheus reads them.
func (t *Tunnel) WriteMetrics(w io.Writer) {
	metrics.WriteGaugeUint64(w, "holdfast_hub_streams", uint64(max(t.counts.open.Load(), 0)))
	metrics.WriteGaugeUint64(w, "holdfast_hub_node_ports", uint64(t.ports.count()))
	metrics.WriteCounterUint64(w, "holdfast_hub_node_ports_refused_total", t.counts.refusedPort.Load())
	t.counts.mu.Lock()
	defer t.counts.mu.Unlock()
	all := make([]request, 0, len(t.counts.requests))
	for r := range t.counts.requests {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b request) int {
		if a.path != b.path {
			if a.path < b.path {
				return -1
			}
			return 1
		}
		return a.code - b.code
	})
	for _, r := range all {
		metrics.WriteCounterUint64(w, fmt.Sprintf(`holdfast_hub_stream_requests_total{path=%q,code=%q}`, r.path, strconv.Itoa(r.code)), t.counts.requests[r])
	}
}

// countedWriter remembers the answer's code.
type countedWriter struct {
	http.ResponseWriter
	code int
}

func (c *countedWriter) WriteHeader(code int) {
	if c.code == 0 || c.code < 200 {
		c.code = code
	}
	c.ResponseWriter.WriteHeader(code)
}

func (c *countedWriter) Write(b []byte) (int, error) {
	if c.code == 0 {
		c.code = http.StatusOK
	}
	return c.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what the server's writer can.
func (c *countedWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Hijack is for a switch of protocols.
func (c *countedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c.code = http.StatusSwitchingProtocols
	conn, buffered, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return lingering{conn}, buffered, nil
}

// quiet takes what net/http would print: a client that goes away is nobody's business.
func (t *Tunnel) quiet() *log.Logger { return slog.NewLogLogger(t.o.Log.Handler(), slog.LevelDebug) }
