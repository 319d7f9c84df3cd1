// Package metrics shows a daemon's figures to Prometheus: it puts together what
// the rooms write of themselves, adds what is true of any process, and serves it
// over HTTP. The front doors (cloudcore, edgecore) use it. It keeps no figure
// itself, registers nothing, and costs nothing until somebody asks.
package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	runtimemetrics "runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Path is where metrics are served.
const Path = "/metrics"

// Writer writes metrics, a line each, in Prometheus' text format.
type Writer func(w io.Writer)

// WriteCounterUint64 writes one line: the metric's name, with labels in braces if
// it has any, and its value.
func WriteCounterUint64(w io.Writer, name string, value uint64) {
	fmt.Fprintf(w, "%s %d\n", name, value)
}

// WriteGaugeUint64 writes one line, like WriteCounterUint64. Handler tells the
// types of metrics by their names: those of counters end in _total.
func WriteGaugeUint64(w io.Writer, name string, value uint64) { fmt.Fprintf(w, "%s %d\n", name, value) }

// WriteGaugeFloat64 writes one line, like WriteGaugeUint64.
func WriteGaugeFloat64(w io.Writer, name string, value float64) {
	fmt.Fprintf(w, "%s %g\n", name, value)
}

// Handler serves what the writers write, and the figures of this process. Every
// daemon says which version of it runs.
func Handler(component, version string, writers ...Writer) http.Handler {
	started := time.Now()
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var all bytes.Buffer
		fmt.Fprintf(&all, "holdfast_build_info{component=%q,version=%q,go=%q} 1\n", component, version, runtime.Version())
		writeProcess(&all, started)
		for _, write := range writers {
			write(&all)
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(arrange(all.String())) // a reader that went away needs no answer
	})
}

// arrange brings the lines of one metric together, as the format wants it, and
// says of what type it is.
func arrange(text string) []byte {
	var families []string
	lines := map[string][]string{}
	for line := range strings.Lines(text) {
		family := Family(line)
		if family == "" {
			continue
		}
		if lines[family] == nil {
			families = append(families, family)
		}
		lines[family] = append(lines[family], line)
	}
	var out bytes.Buffer
	for _, family := range families {
		kind := "gauge"
		if strings.HasSuffix(family, "_total") {
			kind = "counter"
		}
		fmt.Fprintf(&out, "# TYPE %s %s\n", family, kind)
		for _, line := range lines[family] {
			out.WriteString(line)
		}
	}
	return out.Bytes()
}

// Family is the name of the metric in a line, empty for a comment.
func Family(line string) string {
	if strings.HasPrefix(line, "#") {
		return ""
	}
	end := strings.IndexAny(line, "{ \n")
	if end < 0 {
		return ""
	}
	return line[:end]
}

// writeProcess writes a few figures under the names that Prometheus' own clients
// use; they cost two system calls and a look at two files of /proc.
func writeProcess(w io.Writer, started time.Time) {
	fmt.Fprintf(w, "process_start_time_seconds %d\n", started.Unix())
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) == nil {
		cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		fmt.Fprintf(w, "process_cpu_seconds_total %g\n", cpu.Seconds())
	}
	if resident, ok := residentBytes(); ok {
		fmt.Fprintf(w, "process_resident_memory_bytes %d\n", resident)
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		fmt.Fprintf(w, "process_open_fds %d\n", len(files)-1) // one of them was for this look
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		fmt.Fprintf(w, "process_max_fds %d\n", limit.Cur)
	}
	fmt.Fprintf(w, "go_goroutines %d\n", runtime.NumGoroutine())
	samples := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	runtimemetrics.Read(samples)
	for i, name := range []string{"go_memstats_heap_alloc_bytes", "go_gc_cycles_total"} {
		if samples[i].Value.Kind() == runtimemetrics.KindUint64 {
			fmt.Fprintf(w, "%s %d\n", name, samples[i].Value.Uint64())
		}
	}
}

func residentBytes() (int64, bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err == nil
}

// Limits of the HTTP side.
const (
	headerTimeout = 10 * time.Second
	writeTimeout  = time.Minute
	maxHeader     = 8 << 10
)

// Serve serves metrics on l until ctx ends, and nothing else.
func Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, handler)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxHeader}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
