package metrics

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func get(t *testing.T, h http.Handler) string {
	t.Helper()
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, Path, nil))
	if answer.Code != http.StatusOK || !strings.HasPrefix(answer.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("answered %d, %s", answer.Code, answer.Header().Get("Content-Type"))
	}
	return answer.Body.String()
}

func TestLinesOfOneMetricComeTogetherWithItsType(t *testing.T) {
	text := get(t, Handler("thing", "v1.2", func(w io.Writer) {
		fmt.Fprint(w, "a_total{x=\"1\"} 1\nb 2\na_total{x=\"2 {}\"} 3\n# a comment\n\n")
	}, func(w io.Writer) { fmt.Fprint(w, "b{y=\"z\"} 4\n") }))
	const want = "# TYPE a_total counter\na_total{x=\"1\"} 1\na_total{x=\"2 {}\"} 3\n# TYPE b gauge\nb 2\nb{y=\"z\"} 4\n"
	if !strings.HasSuffix(text, want) {
		t.Errorf("got\n%s\nwant it to end in\n%s", text, want)
	}
	if !strings.Contains(text, `holdfast_build_info{component="thing",version="v1.2",go="go1.`) {
		t.Errorf("no build in\n%s", text)
	}
}

// TestTheProcessIsDescribed by figures that make sense.
func TestTheProcessIsDescribed(t *testing.T) {
	figures, err := Parse(strings.NewReader(get(t, Handler("thing", "v1"))))
	if err != nil {
		t.Fatal(err)
	}
	for name, bounds := range map[string][2]float64{
		"process_start_time_seconds":    {1e9, 1e11},
		"process_cpu_seconds_total":     {1e-6, 1e6},
		"process_resident_memory_bytes": {1 << 20, 1 << 40},
		"process_open_fds":              {3, 1e6},
		"process_max_fds":               {10, 1e19},
		"go_goroutines":                 {1, 1e5},
		"go_memstats_heap_alloc_bytes":  {1 << 10, 1 << 40},
		"go_gc_cycles_total":            {0, 1e9},
	} {
		v, ok := figures[name]
		if !ok || v < bounds[0] || v > bounds[1] {
			t.Errorf("%s is %g (there: %v), want it between %g and %g", name, v, ok, bounds[0], bounds[1])
		}
	}
}

func TestServeServesMetricsOnly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler("thing", "v1")) }()
	for path, want := range map[string]int{Path: http.StatusOK, "/": http.StatusNotFound, "/debug/pprof/": http.StatusNotFound} {
		answer, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: answered %d, want %d", path, answer.StatusCode, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestParseRefusesWhatPrometheusWould(t *testing.T) {
	for name, text := range map[string]string{
		"a series twice":     "a{x=\"1\"} 1\na{x=\"1\"} 2\n",
		"no value":           "a{x=\"1\"}\n",
		"no number":          "a one\n",
		"a bad name":         "1a 1\n",
		"a family in pieces": "a{x=\"1\"} 1\nb 1\na{x=\"2\"} 1\n",
		"labels left open":   "a{x=\"1\" 1\n",
		"a label unquoted":   "a{x=1} 1\n",
		"a type twice":       "# TYPE a gauge\na 1\n# TYPE a gauge\n",
	} {
		if got, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%s: read as %v", name, got)
		}
	}
	got, err := Parse(strings.NewReader("# TYPE a gauge\na{x=\"1\",y=\"a \\\"b\\\" }\"} 1.5e3\na 2\n"))
	if err != nil || got[`a{x="1",y="a \"b\" }"}`] != 1500 || got["a"] != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}
