package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/metrics"
)

// TestMetricsOfANodeWithoutALine: they are on the socket, as Prometheus reads
// them, and each is in the documentation.
func TestMetricsOfANodeWithoutALine(t *testing.T) {
	file, dir := configFile(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", file}, &bytes.Buffer{}) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "run", localstatus.SocketName))
	}}}
	var figures map[string]float64
	for deadline := time.After(patience); ; {
		answer, err := client.Get("http://edgecore" + metrics.Path)
		if err == nil {
			figures, err = metrics.Parse(answer.Body)
			answer.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if figures[`holdfast_edge_line_failures_total{reason="unreachable"}`] > 0 && figures["holdfast_edge_outbox_reports"] >= 1 {
				break // it has tried the hub, and has the node's status to tell
			}
		}
		select {
		case <-deadline:
			t.Fatalf("the metrics do not tell of a hub that was tried: %v, %v", figures, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	for name, want := range map[string]float64{
		"holdfast_edge_line_up":                                           0,
		"holdfast_edge_line_sessions_total":                               0,
		"holdfast_edge_ready":                                             0,
		"holdfast_edge_runtime_answered":                                  0,
		"holdfast_edge_store_objects":                                     0,
		"holdfast_edge_store_recovered":                                   0,
		`holdfast_edge_pods{phase="Running"}`:                             0,
		`holdfast_edge_line_bytes_total{kind="pod",direction="received"}`: 0,
	} {
		if got, ok := figures[name]; !ok || got != want {
			t.Errorf("%s is %g (there: %v), want %g", name, got, ok, want)
		}
	}
	if figures["holdfast_edge_store_bytes"] < 4096 || figures["process_resident_memory_bytes"] < 1<<20 {
		t.Errorf("no sizes in %v", figures)
	}
	docs, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for series := range figures {
		if name := metrics.Family(series + " "); !regexp.MustCompile("(?m)^\\| `" + name + "`").Match(docs) {
			t.Errorf("docs/metrics.md does not tell of %s", name)
		}
	}
}

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

// await waits for a line that matches, and returns the first group of it.
func (l *lines) await(t *testing.T, pattern string) string {
	t.Helper()
	for deadline := time.After(patience); ; {
		l.mu.Lock()
		match := regexp.MustCompile(pattern).FindStringSubmatch(l.all.String())
		l.mu.Unlock()
		if match != nil {
			return match[len(match)-1]
		}
		select {
		case <-deadline:
			t.Fatalf("no line with %s", pattern)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestMetricsOverHTTPWhereTheyAreWanted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	handler := metrics.Handler("edgecore", "v1")
	if err := serveMetrics(ctx, "", handler, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("with no address: %v", err)
	}
	var log lines
	done := make(chan error, 2)
	go func() { done <- serveMetrics(ctx, "127.0.0.1:0", handler, slog.New(slog.NewTextHandler(&log, nil))) }()
	address := log.await(t, `metrics are served" listen=(\S+)`)
	answer, err := http.Get("http://" + address + metrics.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := metrics.Parse(answer.Body); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("answered %s, %v", answer.Status, err)
	}
	// A port that is taken stops nobody.
	go func() { done <- serveMetrics(ctx, address, handler, slog.New(slog.NewTextHandler(&log, nil))) }()
	log.await(t, `level=ERROR msg="the port for metrics cannot be opened.*address already in use`)
	stop()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
