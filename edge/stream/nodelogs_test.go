package stream_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/stream"
)

// logTree is a /var/log with what may and what may not be had.
func logTree(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "log")
	must(t, os.MkdirAll(filepath.Join(dir, "pods", "a"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "containers"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "secret"), []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "syslog"), []byte("hello\n"), 0o640))
	must(t, os.WriteFile(filepath.Join(dir, "cron.log"), []byte("cron\n"), 0o640))
	must(t, os.WriteFile(filepath.Join(dir, "pods", "a", "0.log"), []byte("of a pod\n"), 0o640))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	for name, to := range map[string]string{
		"out": "../secret", "absolute": filepath.Join(base, "secret"), "up": "..", "loop": "loop", "dangling": "nowhere",
		"beside": "syslog", "containers/a.log": filepath.Join(dir, "pods", "a", "0.log"), "chain": "beside", "dir": "pods",
	} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	return dir
}

func TestFilesOfTheNode(t *testing.T) {
	a := newAPI(t, &fake{}, func(o *stream.Options) { o.LogsDir = logTree(t) })
	for path, want := range map[string]string{
		"/logs/syslog": "hello\n", "/logs/beside": "hello\n", "/logs/chain": "hello\n", "/logs/pods/a/0.log": "of a pod\n",
		"/logs/containers/a.log": "of a pod\n", "/logs/?query=/syslog": "hello\n", "/logs/?query=cron": "cron\n",
	} {
		if got := a.want(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{"/logs", "/logs/"} {
		if got := a.want(path); !strings.Contains(got, `<a href="pods/">`) || !strings.Contains(got, `<a href="syslog">`) {
			t.Errorf("%s: %q", path, got)
		}
	}
	for path, want := range map[string]int{
		"/logs/out": 403, "/logs/absolute": 403, "/logs/up": 403, "/logs/up/secret": 403, "/logs/up/": 403, "/logs/loop": 403,
		"/logs/fifo": 403, "/logs/socket": 403, "/logs/dangling": 404, "/logs/none": 404, "/logs/syslog/x": 404,
		"/logs/../secret": 400, "/logs/..%2fsecret": 400, "/logs/%2e%2e/secret": 400, "/logs/pods/../../secret": 400,
		"/logs/?query=/../secret": 404, "/logs/?query=../secret": 404, "/logs/?query=/out": 403, `/logs/?query=..\secret`: 404,
		"/logs/?query=": 400, "/logs/?query=%20%20": 400, "/logs/?query=/a&query=/b": 400, "/logs/?query=/syslog&query=cron": 400,
		"/logs/?query=/syslog&tailLines=1": 400, "/logs/?query=a;reboot": 400, "/logs/?query=a%3breboot": 400, "/logs/?query=%zz": 400, "/logs/?query=$(reboot)": 400, "/logs/?query=a%0ab": 400,
		"/logs/?query=" + strings.Repeat("a", 257): 400, "/logs/?query=a&query=b&query=c&query=d&query=e": 400,
		"/logs/?query=a&tailLines=-1": 400, "/logs/?query=a&tailLines=100001": 400, "/logs/?query=a&tailLines=x": 400,
		"/logs/?query=a&sinceTime=x": 400, "/logs/?query=a&untilTime=x": 400, "/logs/?query=a&boot=1": 400, "/logs/?query=a&pattern=(": 400,
		"/logs/?query=a&sinceTime=2024-01-02T00:00:00Z&untilTime=2024-01-01T00:00:00Z": 400,
		"/logs/syslog?query=a": 406, "/logs/?query=nobody": 404, "/logs/?query=cron&tailLines=1": 404,
	} {
		if code, body := a.get(path); code != want || strings.Contains(body, "secret\n") || body == "secret" {
			t.Errorf("%.60s: %d %q, want %d", path, code, body, want)
		}
	}
}

func TestOwnLogWithoutAJournal(t *testing.T) {
	ring := stream.NewRing(10_000)
	a := newAPI(t, &fake{}, func(o *stream.Options) { o.NodeLog = ring })
	if got := a.want("/logs/?query=edgecore"); got != "" {
		t.Errorf("of an empty log: %q", got)
	}
	before := time.Now().UTC().Add(-time.Second).Format(time.RFC3339)
	for i := range 1000 {
		fmt.Fprintf(ring, "level=INFO msg=\"line %d\"\n", i)
	}
	fmt.Fprint(ring, strings.Repeat("x", 9000)) // cut, and ended
	got := lines(a.want("/logs/?query=edgecore"))
	if last := got[len(got)-1]; len(last) != 8<<10 || got[len(got)-2] != `level=INFO msg="line 999"` {
		t.Errorf("%d lines; the last is of %d bytes", len(got), len(last))
	}
	size := 0
	for i, line := range got[:len(got)-1] {
		size += len(line) + 1
		if want := fmt.Sprintf("level=INFO msg=\"line %d\"", 1000-len(got)+1+i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
	if size > 10_000-8<<10 || len(got) < 50 {
		t.Errorf("%d lines of %d bytes are kept", len(got), size)
	}
	for query, want := range map[string]string{
		"tailLines=0": "", "pattern=line+998": "level=INFO msg=\"line 998\"\n", "pattern=line+99.&tailLines=1": "level=INFO msg=\"line 999\"\n",
		"untilTime=" + before: "", "pattern=998&sinceTime=" + before: "level=INFO msg=\"line 998\"\n",
	} {
		if got := a.want("/logs/?query=edgecore&" + query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// TestJournal: a script plays journalctl.
func TestJournal(t *testing.T) {
	script := filepath.Join(t.TempDir(), "journalctl")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\nfor a; do echo \"[$a]\"; done\ncase \"$*\" in *endless*) while :; do echo more; done;; *fails*) exit 1;; esac\n"), 0o755))
	a := newAPI(t, &fake{}, func(o *stream.Options) { o.Journalctl, o.NodeLog = script, stream.NewRing(100) })
	got := a.want("/logs/?query=containerd&query=ssh@1.service&tailLines=5&boot=-1&pattern=a+b&sinceTime=2024-01-01T02:00:00%2B02:00&untilTime=2024-01-02T00:00:00Z")
	for _, want := range []string{"[--unit=containerd]", "[--unit=ssh@1.service]", "[--lines=5]", "[--boot=-1]", "[--grep=a b]",
		"[--since=2024-01-01 00:00:00 UTC]", "[--until=2024-01-02 00:00:00 UTC]", "[--no-pager]"} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%s is missing in %q", want, got)
		}
	}
	if got := a.want("/logs/?query=fails"); !strings.Contains(got, "[--unit=fails]") {
		t.Errorf("of one that finds nothing: %q", got)
	}
	if got := a.want("/logs/?query=edgecore"); got != "" {
		t.Errorf("edgecore's own log is in the ring: %q", got)
	}
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://edge-1/logs/?query=containerd", nil)
	must(t, err)
	request.Header.Set("Accept-Encoding", "gzip")
	response, err := a.client.Do(request)
	must(t, err)
	defer response.Body.Close()
	z, err := gzip.NewReader(response.Body)
	must(t, err)
	if b, err := io.ReadAll(z); err != nil || !strings.Contains(string(b), "[--unit=containerd]") {
		t.Errorf("compressed: %q, %v", b, err)
	}
	endless, err := a.client.Get("http://edge-1/logs/?query=endless")
	must(t, err)
	_, err = io.ReadFull(endless.Body, make([]byte, 1000))
	must(t, err)
	endless.Body.Close() // the script ends with its reader: serve's cleanup waits for it
}
