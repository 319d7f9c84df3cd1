package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// BenchmarkCostAtTheApiserver prints what the figures of
// keps/0012-cost-at-the-apiserver.md are: what an apiserver serves, by its own
// count, because of cloudcore and its nodes, at rest and when all of them come at
// once. Sessions are real, with the usual keepalive; the edges are scripted and
// say nothing that they need not.
func BenchmarkCostAtTheApiserver(b *testing.B) {
	const nodes, pods = 40, 5
	const rest = 90 * time.Second
	p := newPlaceWith(b, link.DefaultKeepAlive)
	p.configMap(b, "prices", "1")
	for b.Loop() {
		p.stop()
		none := longRunning(b, p.client)
		p.start(b)
		b.Logf("watches of cloudcore: %s", difference(none, longRunning(b, p.client), 1))
		quiet := p.over(b, rest)
		for n := range nodes {
			p.join(b, fmt.Sprint("n-", n))
			for i := range pods {
				p.create(b, pod(fmt.Sprint("p-", n, "-", i), fmt.Sprint("n-", n), refersTo))
			}
		}
		p.secret(b, "till-key", "k")
		p.stop()
		p.start(b)
		before := served(b, p.client)
		edges := make([]*edgetest.Edge, nodes)
		for n := range edges {
			edges[n] = p.edge(b, fmt.Sprint("n-", n), fmt.Sprint("store of n-", n))
			edges[n].Connect()
		}
		for n, e := range edges {
			e.WaitObjects("its pods", edgetest.Has(fmt.Sprint("node//n-", n), fmt.Sprint("pod/default/p-", n, "-0"), fmt.Sprint("pod/default/p-", n, "-4"), "secret/default/till-key"))
			e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 })
		}
		b.Logf("requests of a node that comes:\n%s", difference(before, served(b, p.client), nodes))
		for n, e := range edges {
			if r := e.Report(wire.ReportKind_REPORT_NODE, nodeReport(fmt.Sprint("n-", n))); r.Code != wire.ResultCode_RESULT_ACCEPTED {
				b.Fatal(r)
			}
		}
		p.over(b, time.Minute) // for what controllers do about new nodes
		busy := p.over(b, rest)
		b.Logf("requests of a thousand nodes at rest, in a second:\n%s", difference(quiet, busy, nodes*rest.Seconds()/1000))
		b.Logf("requests without nodes, in a second:\n%s", difference(nil, quiet, rest.Seconds()))
	}
}

// over is what is served in a time.
func (p *place) over(t testing.TB, d time.Duration) map[string]float64 {
	t.Helper()
	before := served(t, p.client)
	end := time.NewTimer(d)
	defer end.Stop()
	<-end.C
	after := served(t, p.client)
	for what := range after {
		after[what] -= before[what]
	}
	return after
}

// difference lists what has grown, divided by per.
func difference(before, after map[string]float64, per float64) string {
	var lines strings.Builder
	for _, what := range slices.Sorted(maps.Keys(after)) {
		// Watches are opened anew every few minutes, also those of controllers.
		if n := (after[what] - before[what]) / per; (n >= 0.05 || n <= -0.05) && (per == 1 || !strings.HasPrefix(what, "WATCH ")) {
			fmt.Fprintf(&lines, "  %-32s %7.2f\n", what, n)
		}
	}
	return lines.String()
}

// served is how many requests an apiserver has served, by verb and resource.
func served(t testing.TB, client kubernetes.Interface) map[string]float64 {
	t.Helper()
	return figures(t, client, "apiserver_request_total")
}

// longRunning is how many watches are open at an apiserver.
func longRunning(t testing.TB, client kubernetes.Interface) map[string]float64 {
	t.Helper()
	return figures(t, client, "apiserver_longrunning_requests")
}

func figures(t testing.TB, client kubernetes.Interface, metric string) map[string]float64 {
	t.Helper()
	text, err := client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]float64)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		labels, ok := strings.CutPrefix(lines.Text(), metric+"{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(labels, "} ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		label := func(name string) string {
			_, rest, _ := strings.Cut(labels, name+`="`)
			value, _, _ := strings.Cut(rest, `"`)
			return value
		}
		sums[label("verb")+" "+strings.Trim(label("resource")+"/"+label("subresource"), "/")] += n
	}
	return sums
}
