package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/metrics"
)

// metrics are the rooms' and the engine's own (docs/metrics.md).
func (e *engine) metrics() http.Handler {
	return metrics.Handler("edgecore", version, e.line.WriteMetrics, e.writeMetrics, e.writeOutageMetrics, e.devices.writeMetrics)
}

// countTimeout bounds the one look at the database.
const countTimeout = 5 * time.Second

func (e *engine) writeMetrics(w io.Writer) {
	if line := e.line.State(); line.Connected {
		fmt.Fprintf(w, "holdfast_edge_line_info{hub=%q,transport=%q} 1\n", line.Hub, line.Transport)
	}
	ready, _ := e.node.Ready()
	fmt.Fprintf(w, "holdfast_edge_ready %d\n", number(ready))
	fmt.Fprintf(w, "holdfast_edge_runtime_answered %d\n", number(e.runtime.Load() != nil))

	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	if c, err := e.store.Counts(ctx); err == nil { // else the store ends edgecore, or says so elsewhere
		fmt.Fprintf(w, "holdfast_edge_store_objects %d\n", c.Objects)
		fmt.Fprintf(w, "holdfast_edge_store_bytes %d\n", c.Bytes)
		fmt.Fprintf(w, "holdfast_edge_events_dropped_total %d\n", c.EventsDropped)
	}
	fmt.Fprintf(w, "holdfast_edge_store_recovered %d\n", number(recoveryText(e.store.Opened().Recovery) != ""))

	phases, restarts := map[string]int{}, int64(0)
	if manager := e.pods.Load(); manager != nil {
		for _, p := range manager.Snapshot() {
			phases[p.Phase]++
			restarts += int64(p.Restarts)
		}
	}
	for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed} {
		fmt.Fprintf(w, "holdfast_edge_pods{phase=%q} %d\n", phase, phases[string(phase)])
	}
	fmt.Fprintf(w, "holdfast_edge_container_restarts %d\n", restarts)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// listenAgain is how long after a failure the port for metrics is tried again: an
// address may come up after edgecore, and no port is worth a pod.
const listenAgain = 10 * time.Second

// serveMetrics serves metrics over HTTP where an address is configured.
func serveMetrics(ctx context.Context, address string, handler http.Handler, log *slog.Logger) error {
	if address == "" {
		return nil
	}
	for said := ""; ; {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			log.Info("metrics are served", "listen", l.Addr().String())
			err = metrics.Serve(ctx, l, handler)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			log.Error("the port for metrics cannot be opened; it is tried again (metricsListen)", "listen", address, "err", err)
		}
		if sleep(ctx, listenAgain) != nil {
			return nil
		}
	}
}
