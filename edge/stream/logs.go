package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/containerlog"
	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// containerLogs serves the log of a container. Unlike the kubelet it begins with what was
// rotated away and is still there.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	q, previous, err := logQuery(r.URL.Query(), time.Now())
	if err != nil {
		answer(w, err)
		return
	}
	p, err := s.pod(r)
	if err != nil {
		answer(w, err)
		return
	}
	c, err := containerOf(p, r.PathValue("container"))
	if err != nil {
		answer(w, err)
		return
	}
	id, err := c.logged(p.Name, previous)
	if err != nil {
		answer(w, err)
		return
	}
	asks := &asker{o: &s.o, id: id}
	path := s.logPath(r.Context(), p, c, asks)
	q.Running = asks.stillRuns

	control := http.NewResponseController(w)
	out := &body{w: w}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err = containerlog.Copy(r.Context(), out, control.Flush, path, q)
	switch {
	case err == nil:
	case out.begun || r.Context().Err() != nil:
		s.log.Debug("a log was not sent to its end", "pod", p.Namespace+"/"+p.Name, "container", c.name, "err", err)
		panic(http.ErrAbortHandler) // the client is to see that this is not the end
	case errors.Is(err, fs.ErrNotExist):
		answer(w, fail(http.StatusBadRequest, "the log of container %q in pod %q is gone: %w", c.name, p.Name, err))
	default:
		answer(w, fmt.Errorf("log of container %q in pod %q: %w", c.name, p.Name, err))
	}
}

// body notes whether anything was written.
type body struct {
	w     http.ResponseWriter
	begun bool
}

func (b *body) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

// logQuery reads the parameters, which are those of PodLogOptions.
func logQuery(v url.Values, now time.Time) (q containerlog.Query, previous bool, err error) {
	q = containerlog.Query{Tail: -1, Follow: flag(v, "follow"), Timestamps: flag(v, "timestamps")}
	if tail := v.Get("tail"); tail != "" { // what the kubelet's own API had first
		v = maps.Clone(v)
		if v.Set("tailLines", tail); tail == "all" {
			v.Del("tailLines")
		}
	}
	tail, err := number(v, "tailLines", 0)
	if err != nil {
		return q, false, err
	}
	if tail != nil {
		q.Tail = *tail
	}
	limit, err := number(v, "limitBytes", 1)
	if err != nil {
		return q, false, err
	}
	if limit != nil {
		q.Limit = *limit
	}
	seconds, err := number(v, "sinceSeconds", 1)
	if err != nil {
		return q, false, err
	}
	if seconds != nil {
		q.Since = now.Add(-time.Duration(min(*seconds, 100*365*86400)) * time.Second)
	}
	if since := v.Get("sinceTime"); since != "" {
		if seconds != nil {
			return q, false, fail(http.StatusUnprocessableEntity, "at most one of sinceTime and sinceSeconds may be given")
		}
		if q.Since, err = time.Parse(time.RFC3339, since); err != nil {
			return q, false, fail(http.StatusBadRequest, "sinceTime %q is no time such as 2006-01-02T15:04:05Z", since)
		}
	}
	switch stream := v.Get("stream"); stream {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		q.Stream = containerlog.Stream(strings.ToLower(stream))
		if tail != nil {
			return q, false, fail(http.StatusUnprocessableEntity, "tailLines and a stream of its own cannot be had together")
		}
	default:
		return q, false, fail(http.StatusUnprocessableEntity, "stream %q is none of All, Stdout and Stderr", stream)
	}
	return q, flag(v, "previous"), nil
}

// flag reads a parameter as Kubernetes does: what is there is true, unless it says 0 or
// false.
func flag(v url.Values, name string) bool {
	list, given := v[name]
	return given && list[0] != "0" && !strings.EqualFold(list[0], "false")
}

func number(v url.Values, name string, least int64) (*int64, error) {
	list, given := v[name]
	if !given {
		return nil, nil
	}
	n, err := strconv.ParseInt(list[0], 10, 64)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "%s %q is no number", name, list[0])
	}
	if n < least {
		return nil, fail(http.StatusUnprocessableEntity, "%s must be at least %d, not %d", name, least, n)
	}
	return &n, nil
}

// logged is the id of the container whose log is asked for, by the kubelet's rules: the
// attempt that runs or ran last or, with previous, the one before it.
func (c container) logged(pod string, previous bool) (string, error) {
	if c.status == nil {
		return "", fail(http.StatusBadRequest, "container %q in pod %q is not available", c.name, pod)
	}
	last, state := "", c.status.State
	if t := c.status.LastTerminationState.Terminated; t != nil {
		last = t.ContainerID
	}
	id := ""
	switch {
	case previous:
		if last == "" {
			return "", fail(http.StatusBadRequest, "previous terminated container %q in pod %q not found", c.name, pod)
		}
		id = last
	case state.Running != nil:
		id = c.status.ContainerID
	case state.Terminated != nil && state.Terminated.ContainerID != "":
		id = state.Terminated.ContainerID
	case last != "":
		id = last
	case state.Terminated != nil:
		return "", fail(http.StatusBadRequest, "container %q in pod %q is terminated", c.name, pod)
	case state.Waiting != nil:
		reason := state.Waiting.Reason
		switch reason {
		case "ErrImagePull":
			reason = "image can't be pulled"
		case "ImagePullBackOff":
			reason = "trying and failing to pull image"
		}
		return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start: %s", c.name, pod, reason)
	}
	if _, bare, ok := strings.Cut(id, "://"); ok && bare != "" {
		return bare, nil
	}
	return "", fail(http.StatusBadRequest, "container %q in pod %q is waiting to start - no logs yet", c.name, pod)
}

// How long a log waits for the runtime, which may hang: what is in the files is there
// without it.
const (
	runtimeWithin = 2 * time.Second
	runtimeAgain  = 20 * time.Second // is not asked before, when it has not answered
)

// asker asks the runtime about the container of one request for a log. One goroutine uses
// it.
type asker struct {
	o      *Options
	id     string
	failed time.Time // when the runtime did not answer last
	err    error     // why
}

// log is Runtime.Log, soon. What the runtime has answered is asked anew each time.
func (a *asker) log(ctx context.Context) (path string, running bool, err error) {
	if a.err != nil && time.Since(a.failed) < runtimeAgain {
		return "", false, a.err
	}
	rt, err := a.o.Runtime()
	if err != nil {
		return "", false, err
	}
	within, cancel := context.WithTimeout(ctx, runtimeWithin)
	defer cancel()
	path, running, err = rt.Log(within, a.id)
	a.err = nil
	if within.Err() != nil && err != nil {
		a.failed, a.err = time.Now(), err
	}
	return path, running, err
}

// logPath is where the log of the container that is asked about lies: where the runtime
// says or, when it has forgotten the container or is away, where edge/pod had it written.
func (s *Server) logPath(ctx context.Context, p *corev1.Pod, c container, asks *asker) string {
	if path, _, err := asks.log(ctx); err == nil && path != "" {
		return path
	}
	attempt := c.status.RestartCount
	if _, current, _ := strings.Cut(c.status.ContainerID, "://"); current != "" && current != asks.id {
		attempt--
	}
	return filepath.Join(runtime.LogDir(s.o.PodLogsDir, p), runtime.LogPath(c.name, uint32(max(attempt, 0))))
}

// stillRuns tells whether the container may write more. While the runtime is away it
// may: containers run on without it.
func (a *asker) stillRuns(ctx context.Context) bool {
	_, running, err := a.log(ctx)
	return running || err != nil && !errors.Is(err, runtime.ErrNotFound)
}
