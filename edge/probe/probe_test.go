package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const patience = 2 * time.Minute

// bench is a prober whose results a test waits for.
type bench struct {
	t       *testing.T
	prober  *Prober
	results chan Result
	sick    atomic.Bool // what exec probes say
	execs   atomic.Int32
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, results: make(chan Result, 1000)}
	b.prober = New(Options{
		Report: func(r Result) { b.results <- r },
		Exec: func(context.Context, string, []string, time.Duration) (int32, string, error) {
			b.execs.Add(1)
			if b.sick.Load() {
				return 1, "out of order", nil
			}
			return 0, "", nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.prober.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b
}

// verdict waits for the next verdict of that kind.
func (b *bench) verdict(k Kind) Result {
	b.t.Helper()
	for {
		r := b.next()
		if r.Kind == k && r.Verdict != Undecided {
			return r
		}
	}
}

func (b *bench) next() Result {
	b.t.Helper()
	select {
	case r := <-b.results:
		return r
	case <-time.After(patience):
		b.t.Fatal("no result")
	}
	return Result{}
}

func execProbe(period, failures int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 1}
}

func TestReadinessFollowsTheContainer(t *testing.T) {
	b := newBench(t)
	b.prober.Add(Target{PodUID: "u", ContainerID: "c", Container: &corev1.Container{Name: "web", ReadinessProbe: execProbe(1, 1)}})
	if r := b.verdict(Readiness); r.Verdict != Healthy || r.PodUID != "u" || r.Container != "web" {
		t.Errorf("first verdict: %+v", r)
	}
	b.sick.Store(true)
	if r := b.verdict(Readiness); r.Verdict != Sick || r.Failure != "out of order" {
		t.Errorf("second verdict: %+v", r)
	}
	b.sick.Store(false)
	if r := b.verdict(Readiness); r.Verdict != Healthy {
		t.Errorf("third verdict: %+v", r)
	}
}

func TestLivenessNeedsAllItsFailures(t *testing.T) {
	b := newBench(t)
	b.sick.Store(true)
	b.prober.Add(Target{ContainerID: "c", Container: &corev1.Container{LivenessProbe: execProbe(1, 3)}})
	for i := 1; i <= 3; i++ {
		r := b.next()
		if want := map[bool]Verdict{true: Sick, false: Undecided}[i == 3]; r.Verdict != want || r.Failure == "" {
			t.Errorf("failure %d: %+v, want verdict %d", i, r, want)
		}
	}
	b.prober.mu.Lock()
	defer b.prober.mu.Unlock()
	if len(b.prober.queue) != 0 {
		t.Error("a container that is to be restarted is still probed")
	}
}

func TestNothingIsProbedBeforeTheStartupProbeSucceeds(t *testing.T) {
	b := newBench(t)
	b.sick.Store(true)
	b.prober.Add(Target{ContainerID: "c", Container: &corev1.Container{StartupProbe: execProbe(1, 1000), LivenessProbe: execProbe(1, 1), ReadinessProbe: execProbe(1, 1)}})
	for range 3 {
		if r := b.next(); r.Kind != Startup || r.Verdict != Undecided {
			t.Errorf("before the start: %+v", r)
		}
	}
	b.sick.Store(false)
	if r := b.verdict(Startup); r.Verdict != Healthy {
		t.Errorf("startup: %+v", r)
	}
	if r := b.verdict(Readiness); r.Verdict != Healthy {
		t.Errorf("readiness: %+v", r)
	}
}

// TestNeverReadyIsProbedEarlyAndFailuresThenDoNotCount: with a period of an hour only early runs can find
// out in time that the container is ready, and none of those that fail is told.
func TestNeverReadyIsProbedEarlyAndFailuresThenDoNotCount(t *testing.T) {
	b := newBench(t)
	b.sick.Store(true)
	b.prober.Add(Target{ContainerID: "c", Container: &corev1.Container{ReadinessProbe: execProbe(3600, 1000)}})
	if r := b.next(); r.Failure == "" || r.Verdict != Undecided {
		t.Errorf("first run: %+v", r)
	}
	deadline := time.Now().Add(patience)
	for b.execs.Load() < 3 {
		if time.Now().After(deadline) {
			t.Fatal("not probed early")
		}
		select {
		case r := <-b.results:
			t.Errorf("an early failure was told: %+v", r)
		case <-time.After(10 * time.Millisecond):
		}
	}
	b.sick.Store(false)
	if r := b.next(); r.Verdict != Healthy {
		t.Errorf("at last: %+v", r)
	}
}

func TestRemovedContainerIsNotTold(t *testing.T) {
	b := newBench(t)
	b.prober.Add(Target{ContainerID: "c", Container: &corev1.Container{ReadinessProbe: execProbe(1, 1)}})
	b.verdict(Readiness)
	b.prober.Remove("c")
	c := &check{target: Target{ContainerID: "c", Container: &corev1.Container{}}, spec: execProbe(1, 1)}
	b.prober.settle(c, "too late", nil)
	select {
	case r := <-b.results:
		t.Errorf("told: %+v", r)
	default:
	}
}

func TestProbeThatCannotRunSaysNothingOfTheContainer(t *testing.T) {
	var calls atomic.Int32
	told := make(chan Result, 10)
	p := New(Options{Report: func(r Result) { told <- r }, Exec: func(context.Context, string, []string, time.Duration) (int32, string, error) {
		if calls.Add(1) == 1 {
			return 0, "", errors.New("containerd is away")
		}
		return 1, "", fmt.Errorf("run: %w", context.DeadlineExceeded)
	}})
	c := &check{target: Target{ContainerID: "c", Container: &corev1.Container{}}, spec: execProbe(1, 1), kind: Liveness, told: Healthy, index: -1}
	p.live["c"] = map[*check]bool{c: true}
	for range 2 {
		c.due = time.Now() // as when the queue gives it out
		failure, err := p.try(t.Context(), c)
		p.settle(c, failure, err)
		p.queue = nil
	}
	close(told)
	var list []Result
	for r := range told {
		list = append(list, r)
	}
	if len(list) != 1 || list[0].Verdict != Sick || !strings.Contains(list[0].Failure, "timed out after 1s") {
		t.Errorf("told: %+v, want the timeout alone", list)
	}
}

func serverPort(t *testing.T, address string) intstr.IntOrString {
	t.Helper()
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return intstr.FromInt(n)
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.test" || r.Header.Get("X-Key") != "v" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") || r.URL.RawQuery != "a=b" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.test/", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	plain := httptest.NewServer(mux)
	defer plain.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	u, err := url.Parse(plain.URL)
	if err != nil {
		t.Fatal(err)
	}
	su, err := url.Parse(secure.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &corev1.Container{Name: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: serverPort(t, u.Host).IntVal}}}
	headers := []corev1.HTTPHeader{{Name: "Host", Value: "shop.test"}, {Name: "X-Key", Value: "v"}}
	for name, test := range map[string]struct {
		get  corev1.HTTPGetAction
		want string // part of the error; "" is success
	}{
		"named port":   {corev1.HTTPGetAction{Path: "/ok?a=b", Port: intstr.FromString("http"), HTTPHeaders: headers}, ""},
		"unknown port": {corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("metrics")}, `no port named "metrics"`},
		"broken":       {corev1.HTTPGetAction{Path: "/broken", Port: serverPort(t, u.Host)}, "HTTP probe failed with statuscode: 503"},
		"elsewhere":    {corev1.HTTPGetAction{Path: "/away", Port: serverPort(t, u.Host)}, ""},
		"loop":         {corev1.HTTPGetAction{Path: "/loop", Port: serverPort(t, u.Host)}, "10 redirects"},
		"tls":          {corev1.HTTPGetAction{Path: "/ok?a=b", Port: serverPort(t, su.Host), Scheme: "HTTPS", HTTPHeaders: headers}, ""},
		"missing":      {corev1.HTTPGetAction{Path: "none", Port: serverPort(t, u.Host)}, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Get(t.Context(), &test.get, c, "127.0.0.1", "kube-probe/")
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestTCPAndGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("till", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, h)
	go server.Serve(l)
	port := serverPort(t, l.Addr().String())
	c := &corev1.Container{Name: "web"}
	if err := dial(t.Context(), &corev1.TCPSocketAction{Port: port}, c, "127.0.0.1"); err != nil {
		t.Errorf("tcp: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := askHealth(ctx, &corev1.GRPCAction{Port: port.IntVal}, "127.0.0.1"); err != nil {
		t.Errorf("grpc: %v", err)
	}
	till := "till"
	if err := askHealth(ctx, &corev1.GRPCAction{Port: port.IntVal, Service: &till}, "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "NOT_SERVING") {
		t.Errorf("grpc of a service that does not serve: %v", err)
	}
	server.Stop()
	if err := dial(t.Context(), &corev1.TCPSocketAction{Port: port}, c, "127.0.0.1"); err == nil {
		t.Error("tcp to a closed port succeeded")
	}
}
