package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"k8s.io/client-go/transport"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// metricsHandler serves what the rooms write (docs/metrics.md).
func metricsHandler(requests *requests, synced func() bool, rooms ...metrics.Writer) http.Handler {
	own := func(w io.Writer) {
		known := 0
		if synced() {
			known = 1
		}
		fmt.Fprintf(w, "holdfast_hub_cluster_known %d\n", known)
	}
	return metrics.Handler("cloudcore", version, append(rooms, own, requests.writeMetrics)...)
}

// requests counts what cloudcore asks of the apiserver. There are few kinds of
// requests and few answers, whatever the number of nodes.
type requests struct {
	mu     sync.Mutex
	counts map[request]uint64
}

type request struct {
	as   string // hub or node
	verb string // the HTTP method, or WATCH
	code string // of the answer; error: there was none
}

// wrap counts the requests that go through next.
func (r *requests) wrap(next http.RoundTripper) http.RoundTripper { return &counter{r, next} }

type counter struct {
	requests *requests
	next     http.RoundTripper
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	k := request{as: "hub", verb: r.Method, code: "error"}
	if r.Header.Get(transport.ImpersonateUserHeader) != "" {
		k.as = "node"
	}
	if watch, err := strconv.ParseBool(r.URL.Query().Get("watch")); err == nil && watch {
		k.verb = "WATCH"
	}
	answer, err := c.next.RoundTrip(r)
	if err == nil {
		k.code = strconv.Itoa(answer.StatusCode)
	}
	c.requests.add(k)
	return answer, err
}

// WrappedRoundTripper shows what lies below, as client-go asks of wrappers.
func (c *counter) WrappedRoundTripper() http.RoundTripper { return c.next }

func (r *requests) add(k request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[request]uint64)
	}
	r.counts[k]++
}

func (r *requests) writeMetrics(w io.Writer) {
	r.mu.Lock()
	counts := maps.Clone(r.counts)
	r.mu.Unlock()
	order := func(a, b request) int {
		return cmp.Or(cmp.Compare(a.as, b.as), cmp.Compare(a.verb, b.verb), cmp.Compare(a.code, b.code))
	}
	for _, k := range slices.SortedFunc(maps.Keys(counts), order) {
		fmt.Fprintf(w, "holdfast_hub_apiserver_requests_total{as=%q,verb=%q,code=%q} %d\n", k.as, k.verb, k.code, counts[k])
	}
}
