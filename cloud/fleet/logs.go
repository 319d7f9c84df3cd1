package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/common/fleet"
)

// Bounds of logs: what comes from a node is a stranger's word.
const (
	maxLogStreams = 32       // at a time
	maxLogBytes   = 16 << 20 // of an answer that does not follow
	maxLogHeader  = 16 << 10
	maxTail       = 10000 // lines
	logTimeout    = 30 * time.Second
	// slowReader is how long one write to a viewer may take.
	slowReader = 30 * time.Second
)

// logs serves the logs of containers, which come by a stream from the node itself.
func (f *Fleet) logs(mux *http.ServeMux, admit admission) {
	slots := make(chan struct{}, maxLogStreams)
	mux.HandleFunc("GET "+fleet.NodePath+"{node}/logs/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		v, ok := admit(w, r)
		if !ok {
			return
		}
		want := authorizationv1.ResourceAttributes{
			Verb: "get", Version: "v1", Resource: "pods", Subresource: "log", Namespace: r.PathValue("namespace"), Name: r.PathValue("pod"),
		}
		if !allowed(w, r, v, want) {
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			access.Answer(w, fmt.Errorf("%d logs are being read by this page already: close one", maxLogStreams))
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the request is read; its answer may take long
		if err := f.serveLog(w, r); err != nil {
			if errors.Is(err, hub.ErrNotConnected) {
				err = fmt.Errorf("%w: logs are read from the node itself, through the hub that holds it; on the node, `holdfast logs` shows them", err)
			}
			access.Answer(w, err)
		}
	})
}

// logQuery takes over of a viewer's query what the kubelet's API knows.
func logQuery(in url.Values) (out url.Values, follow bool, err error) {
	out = url.Values{}
	for name, most := range map[string]int{"tailLines": maxTail, "sinceSeconds": 1 << 30} {
		text := in.Get(name)
		if text == "" {
			continue
		}
		if n, err := strconv.Atoi(text); err != nil || n < 0 || n > most {
			return nil, false, fmt.Errorf("%s %q is not a number from 0 to %d", name, text, most)
		}
		out.Set(name, text)
	}
	for _, name := range []string{"follow", "previous", "timestamps"} {
		switch text := in.Get(name); text {
		case "", "false":
		case "true":
			out.Set(name, text)
		default:
			return nil, false, fmt.Errorf("%s %q is neither true nor false", name, text)
		}
	}
	follow = out.Get("follow") == "true"
	if !follow {
		out.Set("limitBytes", strconv.Itoa(maxLogBytes))
	}
	return out, follow, nil
}

// serveLog passes a container's log on. An error means that nothing was answered.
func (f *Fleet) serveLog(w http.ResponseWriter, r *http.Request) error {
	query, follow, err := logQuery(r.URL.Query())
	if err != nil {
		return &access.Refusal{Code: http.StatusBadRequest, Message: err.Error()}
	}
	namespace, pod, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	if bad := slices.Concat(validation.IsDNS1123Label(namespace), validation.IsDNS1123Subdomain(pod), validation.IsDNS1123Label(container)); len(bad) > 0 {
		return &access.Refusal{Code: http.StatusBadRequest, Message: fmt.Sprintf("namespace %q, pod %q or container %q cannot be a name: %s", namespace, pod, container, bad[0])}
	}
	f.mu.Lock()
	sessions := f.sessions
	f.mu.Unlock()
	ctx := r.Context()
	opening, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	stream, err := sessions.OpenStream(opening, r.PathValue("node"))
	if err != nil {
		return err
	}
	defer stream.Close()
	// A viewer who leaves, and the hub's end, cut everything off that waits.
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	ending := context.AfterFunc(f.ending, func() { _ = stream.Close() })
	defer ending()
	_ = stream.SetDeadline(time.Now().Add(logTimeout))
	path := "/containerLogs/" + namespace + "/" + pod + "/" + container + "?" + query.Encode()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return fmt.Errorf("ask node %s for a log: %w", r.PathValue("node"), err)
	}
	ask.Close = true
	if err := ask.Write(stream); err != nil {
		return fmt.Errorf("ask node %s for a log: %w", r.PathValue("node"), err)
	}
	limited := &io.LimitedReader{R: stream, N: maxLogHeader}
	answer, err := http.ReadResponse(bufio.NewReader(limited), ask)
	if err != nil {
		return fmt.Errorf("node %s does not answer for the log: %.200s", r.PathValue("node"), err) // what it said may be in it
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		limited.N = maxLogHeader
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10)) // what there is of it
		return &access.Refusal{Code: codeOf(answer.StatusCode), Message: fmt.Sprintf("node %s says: %s", r.PathValue("node"), string(said))}
	}
	limited.N = maxLogBytes
	if follow {
		limited.N = 1 << 62
		_ = stream.SetReadDeadline(time.Time{}) // a container may be silent for long
	}
	passOn(w, answer.Body)
	return nil
}

// codeOf is the code for a viewer: a node's own troubles are not his.
func codeOf(code int) int {
	switch code {
	case http.StatusBadRequest, http.StatusNotFound:
		return code
	}
	return http.StatusBadGateway
}

// passOn copies a log as it comes.
func passOn(w http.ResponseWriter, from io.Reader) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	chunk := make([]byte, 16<<10)
	_ = control.Flush()
	for {
		n, err := from.Read(chunk)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(slowReader))
			if _, err := w.Write(chunk[:n]); err != nil {
				return
			}
			if control.Flush() != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
