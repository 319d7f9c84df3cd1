package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/autonomy"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/watch"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/metrics"
	"github.com/holdfast-edge/holdfast/common/profiling"
)

// apiserver plays one that knows no objects. It returns a kubeconfig.
func apiserver(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Query().Has("watch"):
			fmt.Fprint(w, "")
		case r.Header.Get("Impersonate-User") != "":
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
		default:
			fmt.Fprint(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{},"items":[]}`)
		}
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n", server.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestMetricsOfAHubWithoutNodes: they are on the port for health alone, as
// Prometheus reads them, and each is in the documentation.
func TestMetricsOfAHubWithoutNodes(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c, err := newClients(config.Cloud{Kubeconfig: apiserver(t)})
	if err != nil {
		t.Fatal(err)
	}
	nodes := c.own.CoreV1().Nodes()
	for range 2 {
		if _, err := nodes.List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := nodes.Watch(t.Context(), metav1.ListOptions{}); err == nil {
		w.Stop()
	}
	if _, err := c.asNode.CoreV1().Nodes().Get(asnode.With(t.Context(), "pi"), "pi", metav1.GetOptions{}); err == nil {
		t.Fatal("the node was let in")
	}
	silent := c.requests.wrap(transportFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("no answer") }))
	if _, err := silent.RoundTrip(httptest.NewRequest(http.MethodPut, "/", nil)); err == nil {
		t.Fatal("an answer")
	}
	cluster, err := watch.New(watch.Options{Client: c.own, AsNode: c.asNode, Metadata: c.metadata, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	h := hub.New(hub.Options{Cluster: cluster, Log: log, Version: version})
	keeper := autonomy.New(autonomy.Options{Client: c.own, Cluster: cluster, Log: log, Hub: "a"})
	d, err := openDoor(t.Context(), config.Cloud{Listen: "127.0.0.1:0", HealthListen: "127.0.0.1:0"}, log)
	if err != nil {
		t.Fatal(err)
	}
	figures := metricsHandler(c.requests, cluster.Synced, d.strangers.WriteMetrics, h.WriteMetrics, cluster.WriteMetrics, keeper.WriteMetrics)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	backend := httptest.NewTLSServer(nil) // for its certificate
	defer backend.Close()
	go func() {
		done <- d.serve(ctx, &tls.Config{Certificates: backend.TLS.Certificates}, http.NotFoundHandler(), http.NotFoundHandler(), http.NotFoundHandler(), figures, cluster.Synced)
	}()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	answer, err := backend.Client().Get("https://" + d.public.Addr().String() + metrics.Path)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("on the public port: %s", answer.Status)
	}
	got := scrape(t, "http://"+d.health.Addr().String()+metrics.Path)
	for name, want := range map[string]float64{
		`holdfast_hub_apiserver_requests_total{as="hub",verb="GET",code="200"}`:   2,
		`holdfast_hub_apiserver_requests_total{as="hub",verb="PUT",code="error"}`: 1,
		`holdfast_hub_apiserver_requests_total{as="hub",verb="WATCH",code="200"}`: 1,
		`holdfast_hub_apiserver_requests_total{as="node",verb="GET",code="403"}`:  1,
		"holdfast_hub_cluster_known":                                       0,
		"holdfast_hub_sessions_begun_total":                                0,
		`holdfast_hub_message_bytes_total{kind="secret",direction="down"}`: 0,
		"holdfast_hub_watch_known_nodes":                                   0,
		"holdfast_hub_autonomy_leader":                                     0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %g (there: %v), want %g", name, v, ok, want)
		}
	}
	docs, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for series := range got {
		if name := metrics.Family(series + " "); !regexp.MustCompile("(?m)^\\| `" + name + "`").Match(docs) {
			t.Errorf("docs/metrics.md does not tell of %s", name)
		}
	}
}

// TestProfilesAreServedWhereTheConfigWantsThem: beside the metrics, and never on the
// hub's own port.
func TestProfilesAreServedWhereTheConfigWantsThem(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		d, err := openDoor(t.Context(), config.Cloud{Listen: "127.0.0.1:0", HealthListen: "127.0.0.1:0", Profiling: wanted}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		backend := httptest.NewTLSServer(nil) // for its certificate
		none := http.NotFoundHandler()
		go func() {
			done <- d.serve(ctx, &tls.Config{Certificates: backend.TLS.Certificates}, none, none, none, none, func() bool { return true })
		}()
		for address, want := range map[string]bool{"http://" + d.health.Addr().String(): wanted, "https://" + d.public.Addr().String(): false} {
			answer, err := backend.Client().Get(address + profiling.Path + "heap")
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if (answer.StatusCode == http.StatusOK) != want {
				t.Errorf("profiling %v, %s: %s", wanted, address, answer.Status)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		backend.Close()
	}
}

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func scrape(t *testing.T, url string) map[string]float64 {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	figures, err := metrics.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return figures
}
