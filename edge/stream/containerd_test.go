package stream_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// TestContainerd runs everything that needs a real containerd: starting one takes
// seconds.
func TestContainerd(t *testing.T) {
	n := newNode(t)
	web := newPod("web", shell("main", "echo one; echo two >&2; echo three; "+forever), shell("other", "echo beside; "+forever))
	web.Spec.InitContainers = []corev1.Container{shell("prepare", "echo prepared")}
	n.apply(web)
	n.await(web, "web runs", running)
	run := func(name string, f func(*testing.T, *node)) {
		t.Run(name, func(t *testing.T) {
			here, its := *n, *n.api
			here.t, its.t, here.api = t, t, &its
			f(t, &here)
		})
	}
	run("LogsOfAPod", logsOfAPod)
	run("LogsOfAttempts", logsOfAttempts)
	run("LogsAcrossRotation", logsAcrossRotation)
	run("ExecInAContainer", execInAContainer)
	run("AttachToAContainer", attachToAContainer)
	run("ForwardPorts", forwardPorts)
	run("ForwardHalves", forwardHalves)
}

func logsOfAPod(t *testing.T, n *node) {
	const main = "/containerLogs/shop/web/main"
	eventually(t, "it has written", func() error {
		if got := lines(n.want(main)); len(got) != 3 {
			return http.ErrNoLocation
		}
		return nil
	})
	got := lines(n.want(main))
	slices.Sort(got)
	if strings.Join(got, " ") != "one three two" {
		t.Errorf("log: %q", got)
	}
	if got := n.want("/containerLogs/shop/web/prepare"); got != "prepared\n" {
		t.Errorf("log of the init container: %q", got)
	}
	if got := n.want(main + "?stream=Stderr"); got != "two\n" {
		t.Errorf("stderr: %q", got)
	}
	if got := n.want(main + "?stream=Stdout"); got != "one\nthree\n" {
		t.Errorf("stdout: %q", got)
	}
}

// logsOfAttempts: the kubelet's rules of which attempt is meant.
func logsOfAttempts(t *testing.T, n *node) {
	p := newPod("crash", shell("main", "echo attempt $HOSTNAME $(date +%s%N); exit 3"))
	n.apply(p)
	s := n.await(p, "it is held back", func(s *corev1.PodStatus) bool {
		c := s.ContainerStatuses
		return len(c) > 0 && c[0].State.Waiting != nil && c[0].State.Waiting.Reason == "CrashLoopBackOff" && c[0].RestartCount >= 1
	})
	const log = "/containerLogs/shop/crash/main"
	last := n.want(log)
	if len(lines(last)) != 1 || !strings.HasPrefix(last, "attempt crash") {
		t.Errorf("log of the last attempt: %q", last)
	}
	// While it waits, the last attempt is the previous one too.
	if previous := n.want(log + "?previous=true"); previous != last {
		t.Errorf("previous: %q, last: %q", previous, last)
	}
	if followed := n.want(log + "?follow=true"); followed != last {
		t.Errorf("followed: %q, want its end with %q", followed, last)
	}
	// The runtime forgets the container; its log is still there.
	id := strings.TrimPrefix(s.ContainerStatuses[0].ContainerID, "containerd://")
	path, _, err := n.runtime.Log(t.Context(), id)
	must(t, err)
	if !strings.HasSuffix(path, "/main/"+strconv.Itoa(int(s.ContainerStatuses[0].RestartCount))+".log") {
		t.Errorf("the log lies at %s", path)
	}
	ever := newPod("ever", shell("main", "echo first; while [ ! -e /tmp/end ]; do sleep 0.1; done; echo last"))
	n.apply(ever)
	n.await(ever, "ever runs", running)
	if code, body := n.get("/containerLogs/shop/ever/main?previous=true"); code != http.StatusBadRequest || !strings.Contains(body, `previous terminated container "main" in pod "ever" not found`) {
		t.Errorf("previous of the first attempt: %d %s", code, body)
	}
	response, err := n.client.Get("http://edge-1/containerLogs/shop/ever/main?follow=true")
	must(t, err)
	defer response.Body.Close()
	r := bufio.NewReader(response.Body)
	if line, err := r.ReadString('\n'); line != "first\n" || err != nil {
		t.Fatalf("followed: %q, %v", line, err)
	}
	if code, body := n.call(http.MethodPost, "/run/shop/ever/main?cmd=touch+/tmp/end"); code != http.StatusOK {
		t.Fatalf("run: %d %s", code, body)
	}
	if rest, err := io.ReadAll(r); string(rest) != "last\n" || err != nil {
		t.Errorf("the end of what was followed: %q, %v", rest, err)
	}
	n.await(ever, "ever runs again", func(s *corev1.PodStatus) bool { return running(s) && s.ContainerStatuses[0].RestartCount == 1 })
	if got := n.want("/containerLogs/shop/ever/main?previous=true"); got != "first\nlast\n" {
		t.Errorf("previous: %q", got)
	}
}

// logsAcrossRotation: the runtime and edge/runtime rotate while a client follows.
func logsAcrossRotation(t *testing.T, n *node) {
	const script = `i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo line $i
[ $((i % 50)) = 0 ] && { head -c 40000 /dev/zero | tr '\0' x; echo; }
done; echo end $i; ` + forever
	p := newPod("chatty", shell("main", script))
	n.apply(p)
	n.await(p, "chatty runs", running)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- n.runtime.RotateLogs(ctx, runtime.Rotation{MaxSize: 64 << 10, MaxFiles: 1000, Interval: 10 * time.Millisecond})
	}()
	const log = "/containerLogs/shop/chatty/main"
	response, err := n.client.Get("http://edge-1" + log + "?follow=true")
	must(t, err)
	defer response.Body.Close()
	followed := bufio.NewReaderSize(response.Body, 64<<10)
	dir := filepath.Join(n.dir, "logs", "shop_chatty_uid-chatty", "main")
	next, stopped := 1, false
	for {
		line, err := followed.ReadString('\n')
		if err != nil {
			t.Fatalf("where line %d should be: %v", next, err)
		}
		if strings.HasPrefix(line, "x") {
			if line != strings.Repeat("x", 40000)+"\n" {
				t.Fatalf("a long line came as %d bytes", len(line))
			}
			continue
		}
		if line == "end "+strconv.Itoa(next-1)+"\n" {
			break
		}
		if line != "line "+strconv.Itoa(next)+"\n" {
			t.Fatalf("%.60q where line %d should be", line, next)
		}
		next++
		if files, err := os.ReadDir(dir); next%100 == 0 && err == nil && len(files) > 6 && !stopped {
			stopped = true
			if code, body := n.call(http.MethodPost, "/run/shop/chatty/main?cmd=touch+/tmp/stop"); code != http.StatusOK {
				t.Fatalf("run: %d %s", code, body)
			}
		}
	}
	cancel()
	must(t, <-ended)
	all := lines(n.want(log))
	short := 0
	for _, line := range all {
		if !strings.HasPrefix(line, "x") {
			short++
		}
	}
	if short != next || all[0] != "line 1" {
		t.Errorf("the whole log has %d lines from %q on, want %d", short, all[0], next)
	}
	for _, tail := range []int{1, 60, 1000, len(all) - 1, len(all) + 10} {
		got := lines(n.want(log + "?tailLines=" + strconv.Itoa(tail)))
		if want := all[max(0, len(all)-tail):]; !slices.Equal(got, want) {
			t.Errorf("tail %d: %d lines from %.40q on, want %d from %.40q on", tail, len(got), got[0], len(want), want[0])
		}
	}
	stamped := lines(n.want(log + "?timestamps=true"))
	if len(stamped) != len(all) {
		t.Fatalf("%d lines with timestamps, %d without", len(stamped), len(all))
	}
	middle := len(stamped) / 2
	stamp, _, _ := strings.Cut(stamped[middle], " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	must(t, err)
	since := lines(n.want(log + "?timestamps=true&sinceTime=" + at.UTC().Format(time.RFC3339Nano)))
	// Entries carry the time of their own stream's writer, so that neighbours may be out of order.
	if len(since) < len(all)-middle-10 || len(since) > len(all)-middle+10 {
		t.Errorf("%d lines since the middle, want about %d", len(since), len(all)-middle)
	}
	if got := n.want(log + "?limitBytes=1000"); len(got) != 1000 || !strings.HasPrefix(got, "line 1\nline 2\n") {
		t.Errorf("%d bytes with a limit of 1000", len(got))
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.gz")); err != nil || len(files) == 0 {
		t.Errorf("nothing was compressed: %v, %v", files, err)
	}
}
