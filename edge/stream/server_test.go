package stream_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/stream"
)

// fake is a runtime for what a real one does not do at will.
type fake struct {
	err     error    // of everything
	hangs   bool     // nothing is answered about logs
	running []string // names of containers that run
	now     string   // the only container in which something can be run; empty: any
	target  *url.URL // of exec, attach and port-forward
	log     string
	run     runtime.ExecResult
	asked   atomic.Int32 // how often about logs
}

func (f *fake) List(context.Context) (map[string]*runtime.Pod, error) {
	return map[string]*runtime.Pod{
		"uid-web": {UID: "uid-web", Namespace: "shop", Name: "web", Containers: []runtime.Container{
			{Name: "main", Image: "example.test/web:1", State: runtime.Running}, {Name: "gone", State: runtime.Exited}}},
		"uid-old": {UID: "uid-old", Namespace: "shop", Name: "old", Containers: []runtime.Container{{Name: "main", State: runtime.Exited}}},
	}, f.err
}

func (f *fake) RunningContainer(_ context.Context, _, name string) (string, error) {
	for _, r := range f.running {
		if r == name {
			return cmp.Or(f.now, "id-"+name), f.err
		}
	}
	if f.err != nil {
		return "", f.err
	}
	return "", fmt.Errorf("find container: %w", runtime.ErrNotFound)
}

func (f *fake) ReadySandbox(ctx context.Context, _ string) (string, error) {
	return f.RunningContainer(ctx, "", "sandbox")
}

func (f *fake) Log(ctx context.Context, _ string) (string, bool, error) {
	f.asked.Add(1)
	if f.hangs {
		<-ctx.Done()
		return "", false, ctx.Err()
	}
	return f.log, true, f.err
}

func (f *fake) ExecURL(_ context.Context, id string, _ []string, _ runtime.Streams) (*url.URL, error) {
	if f.now != "" && id != f.now {
		return nil, fmt.Errorf("exec in container %s: it is in state CONTAINER_EXITED", id)
	}
	return f.target, f.err
}

func (f *fake) AttachURL(context.Context, string, runtime.Streams) (*url.URL, error) {
	return f.target, f.err
}

func (f *fake) PortForwardURL(context.Context, string, []int32) (*url.URL, error) {
	return f.target, f.err
}

func (f *fake) Network(context.Context, string) (string, error) { return "", f.err }

func (f *fake) Exec(context.Context, string, []string, time.Duration) (runtime.ExecResult, error) {
	return f.run, f.err
}

// somePods are in the states that containers can be in.
func somePods() []*corev1.Pod {
	web := newPod("web", shell("main", ""), shell("waits", ""), shell("pulls", ""), shell("ended", ""), shell("unseen", ""))
	ended := &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error", ContainerID: "containerd://id-ended"}
	web.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "main", ContainerID: "containerd://id-main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		{Name: "waits", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
		{Name: "pulls", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}},
		{Name: "ended", ContainerID: "containerd://id-ended", State: corev1.ContainerState{Terminated: ended}},
	}}
	return []*corev1.Pod{web}
}

func newAPI(t *testing.T, f *fake, change func(*stream.Options)) *api {
	t.Helper()
	o := stream.Options{Node: "edge-1", Pods: somePods, Runtime: func() (stream.Runtime, error) { return f, nil },
		PodLogsDir: filepath.Join(t.TempDir(), "pods"), LogsDir: t.TempDir()}
	if change != nil {
		change(&o)
	}
	return serve(t, o)
}

func TestBadRequestsGetOneClearError(t *testing.T) {
	a := newAPI(t, &fake{running: []string{"main"}}, nil)
	for _, c := range []struct {
		method, path string
		code         int
		words        string
	}{
		{"GET", "/", 404, "does not serve /"},
		{"GET", "/nothing/here", 404, "does not serve /nothing/here"},
		{"DELETE", "/pods", 405, "served to GET"},
		{"POST", "/containerLogs/shop/web/main", 405, "served to GET"},
		{"GET", "/metrics", 404, "does not serve"},
		{"GET", "/stats/summary", 404, "does not serve"},
		{"GET", "/configz", 404, "edge-1"},
		{"GET", "/containerLogs/shop/web/", 404, ""},
		{"GET", "/containerLogs/shop//main", 400, "empty or relative"},
		{"GET", "/containerLogs/shop/other/main", 404, `pod "shop/other" does not exist on node edge-1`},
		{"GET", "/containerLogs/elsewhere/web/main", 404, `pod "elsewhere/web" does not exist`},
		{"GET", "/containerLogs/shop/web/none", 404, `container "none" not found in pod "web"`},
		{"GET", "/containerLogs/shop/web/waits", 400, `container "waits" in pod "web" is waiting to start: ContainerCreating`},
		{"GET", "/containerLogs/shop/web/pulls", 400, "trying and failing to pull image"},
		{"GET", "/containerLogs/shop/web/unseen", 400, `container "unseen" in pod "web" is not available`},
		{"GET", "/containerLogs/shop/web/main?previous=true", 400, `previous terminated container "main" in pod "web" not found`},
		{"GET", "/containerLogs/shop/web/main", 400, `the log of container "main" in pod "web" is gone`},
		{"GET", "/containerLogs/shop/web/main?tailLines=-1", 422, "tailLines"},
		{"GET", "/containerLogs/shop/web/main?tailLines=many", 400, "tailLines"},
		{"GET", "/containerLogs/shop/web/main?limitBytes=0", 422, "limitBytes"},
		{"GET", "/containerLogs/shop/web/main?sinceSeconds=0", 422, "sinceSeconds"},
		{"GET", "/containerLogs/shop/web/main?sinceSeconds=99999999999999999999", 400, "sinceSeconds"},
		{"GET", "/containerLogs/shop/web/main?sinceTime=yesterday", 400, "sinceTime"},
		{"GET", "/containerLogs/shop/web/main?sinceSeconds=1&sinceTime=2024-01-01T00:00:00Z", 422, "at most one"},
		{"GET", "/containerLogs/shop/web/main?stream=Neither", 422, "stream"},
		{"GET", "/containerLogs/shop/web/main?stream=Stdout&tailLines=1", 422, "together"},
		{"POST", "/exec/shop/web/main", 400, "at least 1 of stdin, stdout, stderr"},
		{"POST", "/exec/shop/web/main?output=1&command=true", 400, "upgrade request required"},
		{"POST", "/attach/shop/web/main?output=1", 400, "upgrade request required"},
		{"POST", "/portForward/shop/web", 400, "upgrade request required"},
		{"POST", "/exec/shop/other/main?output=1&command=true", 404, `pod "shop/other" does not exist on node edge-1`},
		{"POST", "/portForward/shop/other", 404, `pod "shop/other" does not exist on node edge-1`},
		{"POST", "/run/shop/web/main", 400, "no command"},
		{"POST", "/run/shop/web/ended?cmd=true", 400, "is not running: it ended with exit code 3 (Error)"},
		{"GET", "/runningpods/x", 404, "does not serve"},
	} {
		code, body := a.call(c.method, c.path)
		if code != c.code || !strings.Contains(body, c.words) || strings.Count(body, "\n") > 1 {
			t.Errorf("%s %s: %d %q, want %d and %q", c.method, c.path, code, body, c.code, c.words)
		}
	}
	for path, want := range map[string]string{
		"/exec/shop/web/main?output=1":                    "400 no command",
		"/exec/shop/web/waits?output=1&command=true":      "400 container \"waits\" in pod \"web\" is not running: it waits (ContainerCreating)",
		"/exec/shop/web/none?output=1&command=true":       "404 container \"none\" not found",
		"/exec/shop/gone/main?output=1&command=true":      "404 pod \"shop/gone\" does not exist on node edge-1",
		"/exec/shop/web/uid-2/main?output=1&command=true": "404 pod \"shop/web\" with uid uid-2 does not exist",
		"/attach/shop/web/ended?output=1":                 "400 container \"ended\" in pod \"web\" is not running",
		"/portForward/shop/web?port=80":                   "400 pod \"shop/web\" is not running",
		"/portForward/shop/web":                           "400 query parameter \"port\" is required",
		"/portForward/shop/web?port=0":                    "400 port \"0\" is none",
		"/portForward/shop/web?port=80,99999":             "400 port \"99999\" is none",
		"/portForward/shop/web?port=1" + manyPorts(100):   "400 101 ports on one websocket",
		"/portForward/shop/web/uid-2?port=80":             "404 pod \"shop/web\" with uid uid-2",
		"/portForward/shop/none?port=80":                  "404 pod \"shop/none\"",
	} {
		if s, refused := a.dial(path, "v4.channel.k8s.io"); s != nil || !strings.HasPrefix(refused, want) {
			t.Errorf("%.80s: %q, want %q", path, refused, want)
		}
	}
}

func manyPorts(n int) string { return strings.Repeat("&port=80", n) }

func TestRuntimeThatIsAway(t *testing.T) {
	for name, f := range map[string]*fake{
		"NeverAnswered": nil,
		"Down":          {err: fmt.Errorf("list: %w", runtime.ErrUnavailable), running: []string{"main", "sandbox"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, f, func(o *stream.Options) {
				dir := filepath.Join(o.PodLogsDir, "shop_web_uid-web", "main")
				must(t, os.MkdirAll(dir, 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "0.log"), []byte("2024-05-06T07:08:09Z stdout F hello\n"), 0o640))
				if f == nil {
					o.Runtime = func() (stream.Runtime, error) { return nil, fmt.Errorf("no answer yet: %w", runtime.ErrUnavailable) }
				}
			})
			if got := a.want("/containerLogs/shop/web/main"); got != "hello\n" {
				t.Errorf("the log without the runtime: %q", got)
			}
			if code, body := a.get("/runningpods/"); code != http.StatusServiceUnavailable {
				t.Errorf("running pods: %d %s", code, body)
			}
			if code, body := a.call("POST", "/run/shop/web/main?cmd=true"); code != http.StatusServiceUnavailable {
				t.Errorf("run: %d %s", code, body)
			}
			for _, path := range []string{"/exec/shop/web/main?output=1&command=true", "/portForward/shop/web?port=80"} {
				if _, refused := a.dial(path, "v4.channel.k8s.io"); !strings.HasPrefix(refused, "503 ") {
					t.Errorf("%s: %s", path, refused)
				}
			}
			code, body := a.get("/healthz")
			if want := map[bool]int{true: 500, false: 200}[f == nil]; code != want {
				t.Errorf("healthz: %d %s, want %d", code, body, want)
			}
		})
	}
}

// TestLogsWhileTheRuntimeHangs: it is not down, and does not answer either.
func TestLogsWhileTheRuntimeHangs(t *testing.T) {
	log := ""
	f := &fake{hangs: true}
	a := newAPI(t, f, func(o *stream.Options) {
		log = filepath.Join(o.PodLogsDir, "shop_web_uid-web", "main", "0.log")
		must(t, os.MkdirAll(filepath.Dir(log), 0o755))
		must(t, os.WriteFile(log, []byte("2024-05-06T07:08:09Z stdout F hello\n"), 0o640))
	})
	a.client.Timeout = 30 * time.Second
	if got := a.want("/containerLogs/shop/web/main"); got != "hello\n" {
		t.Errorf("the log without the runtime: %q", got)
	}
	f.asked.Store(0)
	response, err := a.client.Get("http://edge-1/containerLogs/shop/web/main?follow=true")
	must(t, err)
	defer response.Body.Close()
	r := bufio.NewReader(response.Body)
	file, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer file.Close()
	for i, want := 0, "hello\n"; i < 3; i++ {
		if line, err := r.ReadString('\n'); line != want || err != nil {
			t.Fatalf("followed: %q, %v; want %q", line, err, want)
		}
		time.Sleep(1100 * time.Millisecond) // it would be asked again meanwhile
		want = fmt.Sprintf("line %d\n", i)
		_, err := file.WriteString("2024-05-06T07:08:09Z stdout F " + want)
		must(t, err)
	}
	if n := f.asked.Load(); n != 1 {
		t.Errorf("what hangs was asked %d times within some seconds", n)
	}
}

// TestTheOldParameterTail says how many lines, and nothing else.
func TestTheOldParameterTail(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	must(t, os.WriteFile(log, []byte(strings.Repeat("2024-05-06T07:08:09Z stdout F hello\n", 3)), 0o640))
	a := newAPI(t, &fake{log: log}, nil)
	for query, want := range map[string]string{
		"tail=2": "hello\nhello\n", "tail=2&limitBytes=8": "hello\nhe", "tail=all&tailLines=1": "hello\nhello\nhello\n", "tail=1&tailLines=2": "hello\n",
	} {
		if got := a.want("/containerLogs/shop/web/main?" + query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if code, body := a.get("/containerLogs/shop/web/main?tail=5&previous=true"); code != http.StatusBadRequest || !strings.Contains(body, "previous terminated container") {
		t.Errorf("with previous: %d %q", code, body)
	}
}

func TestStreamingServerThatIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f := &fake{running: []string{"main"}, target: &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/exec/x"}}
	a := newAPI(t, f, nil)
	const exec = "/exec/shop/web/main?output=1&command=true"
	go func() { // it answers, but not with an upgrade
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 9\r\n\r\ntoo many\n")
		}
	}()
	if _, refused := a.dial(exec, "v4.channel.k8s.io"); refused != "429 too many\n" {
		t.Errorf("what the streaming server said: %q", refused)
	}
	must(t, l.Close())
	if _, refused := a.dial(exec, "v4.channel.k8s.io"); !strings.HasPrefix(refused, "502 the container runtime's streaming server: ") {
		t.Errorf("without a streaming server: %q", refused)
	}
}

// TestExecWhereTheStatusIsOld: the container has been started anew since, or has ended.
func TestExecWhereTheStatusIsOld(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close())
	away := &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/exec/x"}
	for says, f := range map[string]*fake{
		"502 the container runtime's streaming server": {running: []string{"main"}, now: "id-again", target: away},
		"400 container \"main\" in pod \"web\" is not": {now: "id-none", target: away},
		"500 exec in container id-main":                {running: []string{"main"}, now: "id-main", target: away, err: errors.New("exec in container id-main: no space left on device")},
	} {
		if _, refused := newAPI(t, f, nil).dial("/exec/shop/web/main?output=1&command=true", "v4.channel.k8s.io"); !strings.HasPrefix(refused, says) {
			t.Errorf("%q, want %q", refused, says)
		}
	}
}

// TestHalvesAndBothEndsEnd: what a client has ended the runtime hears of, and the other
// way round; what was on its way arrives.
func TestHalvesAndBothEndsEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	serveOne := func(then func(*bufio.Reader, net.Conn)) {
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			if _, err := http.ReadRequest(r); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nfirst ")
				then(r, c)
			}
		}()
	}
	f := &fake{running: []string{"main"}, target: &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/exec/x"}}
	a := newAPI(t, f, nil)
	upgrade := func() (net.Conn, *bufio.Reader) {
		c, err := a.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
		must(t, err)
		t.Cleanup(func() { c.Close() })
		_, err = io.WriteString(c, "POST /exec/shop/web/main?output=1&command=x HTTP/1.1\r\nHost: edge-1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\nearly on ")
		must(t, err)
		r := bufio.NewReader(c)
		response, err := http.ReadResponse(r, nil)
		must(t, err)
		if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != "SPDY/3.1" {
			t.Fatalf("answer: %v", response)
		}
		return c, r
	}

	heard := make(chan string, 1)
	serveOne(func(r *bufio.Reader, c net.Conn) { // the client ends its half, the runtime goes on for a moment
		all, _ := io.ReadAll(r)
		heard <- string(all)
		_, _ = io.WriteString(c, "last")
	})
	c, r := upgrade()
	_, err = io.WriteString(c, "late")
	must(t, err)
	must(t, c.(*net.TCPConn).CloseWrite())
	if got := <-heard; got != "early on late" {
		t.Errorf("the runtime got %q", got)
	}
	if got, err := io.ReadAll(r); string(got) != "first last" || err != nil {
		t.Errorf("the client got %q, %v", got, err)
	}

	big := strings.Repeat("0123456789abcdef", 64<<10)
	serveOne(func(r *bufio.Reader, c net.Conn) { // the runtime ends first
		_, _ = io.ReadFull(r, make([]byte, len("early on "))) // what is not read would make its end a reset
		_, _ = io.WriteString(c, big)
	})
	_, r = upgrade()
	if got, err := io.ReadAll(r); string(got) != "first "+big || err != nil {
		t.Errorf("the client got %d bytes, %v", len(got), err)
	}
}

func TestRunAnswersWithTheOutput(t *testing.T) {
	f := &fake{running: []string{"main"}, run: runtime.ExecResult{Stdout: []byte("out\n"), Stderr: []byte("err\n")}}
	a := newAPI(t, f, nil)
	if code, body := a.call("POST", "/run/shop/web/uid-web/main?cmd=echo+x"); code != 200 || body != "out\nerr\n" {
		t.Errorf("run: %d %q", code, body)
	}
	f.run = runtime.ExecResult{ExitCode: 9, Stderr: []byte("it broke\n")}
	if code, body := a.call("POST", "/run/shop/web/main?cmd=x"); code != 500 || !strings.Contains(body, "exit code 9: it broke") {
		t.Errorf("run of what fails: %d %q", code, body)
	}
	f.run = runtime.ExecResult{Stdout: []byte(strings.Repeat("x", 3<<20))}
	if code, body := a.call("POST", "/run/shop/web/main?cmd=x"); code != 200 || len(body) > 1<<20+100 || !strings.HasSuffix(body, "(there was more)\n") {
		t.Errorf("run of what prints too much: %d, %d bytes", code, len(body))
	}
}

func TestWhatTheNodeTells(t *testing.T) {
	a := newAPI(t, &fake{}, func(o *stream.Options) {
		o.Config = map[string]string{"nodeName": "edge-1"}
		answer := func(text string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text, r.URL.Path) })
		}
		o.Metrics, o.Stats = answer("own "), answer("stats ")
	})
	var pods corev1.PodList
	must(t, json.Unmarshal([]byte(a.want("/pods")), &pods))
	if pods.Kind != "PodList" || pods.APIVersion != "v1" || len(pods.Items) != 1 || pods.Items[0].Name != "web" || pods.Items[0].Status.Phase != corev1.PodRunning {
		t.Errorf("pods: %v", pods)
	}
	must(t, json.Unmarshal([]byte(a.want("/runningpods/")), &pods))
	if len(pods.Items) != 1 || string(pods.Items[0].UID) != "uid-web" || len(pods.Items[0].Spec.Containers) != 1 || pods.Items[0].Spec.Containers[0].Image != "example.test/web:1" {
		t.Errorf("running pods: %v", pods)
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/healthz/ping": "ok", "/healthz/syncloop": "ok",
		"/configz": "{\"edgecore\":{\"nodeName\":\"edge-1\"}}\n",
		"/metrics": "own /metrics", "/metrics/resource": "stats /metrics/resource", "/metrics/cadvisor": "stats /metrics/cadvisor",
		"/stats/summary": "stats /stats/summary",
	} {
		if got := a.want(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestClientThatNeverReads blocks nobody but itself, and is gone when the line is.
func TestClientThatNeverReads(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	must(t, os.WriteFile(log, []byte(strings.Repeat("2024-05-06T07:08:09Z stdout F "+strings.Repeat("x", 1000)+"\n", 20_000)), 0o640))
	a := newAPI(t, &fake{log: log}, nil)
	for range 20 {
		c, err := a.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
		must(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET /containerLogs/shop/web/main?follow=true HTTP/1.1\r\nHost: edge-1\r\n\r\n")
		must(t, err)
		_, err = c.Read(make([]byte, 1)) // it has begun
		must(t, err)
	}
	if got := a.want("/containerLogs/shop/web/main?tailLines=1"); len(got) != 1001 {
		t.Errorf("beside them a log came as %d bytes", len(got))
	}
	a.cut() // serve's cleanup waits for all of them
}

func TestTooManyRequestsAreRefused(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	must(t, os.WriteFile(log, nil, 0o640))
	a := newAPI(t, &fake{log: log}, nil)
	var refused string
	for i := 0; i < 1000 && refused == ""; i++ {
		response, err := a.client.Get("http://edge-1/containerLogs/shop/web/main?follow=true")
		must(t, err)
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(response.Body)
			refused = fmt.Sprint(i, " ", response.StatusCode, " ", string(body))
		}
	}
	if !strings.HasPrefix(refused, "192 503 node edge-1 serves 192 requests already") {
		t.Errorf("refused: %q", refused)
	}
}

// TestStreamWithoutARequest ends with its session.
func TestStreamWithoutARequest(t *testing.T) {
	a := newAPI(t, &fake{}, nil)
	c, err := a.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
	must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET /pods HTTP/1.1\r\nHost")
	must(t, err)
	a.cut()
	if _, err := io.ReadAll(c); err != nil {
		t.Logf("the stream ended with %v", err)
	}
}
