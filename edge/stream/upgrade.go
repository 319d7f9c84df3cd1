package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// exec runs a command in a container.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	streams, err := streamsOf(r)
	cmd := r.URL.Query()["command"]
	if err == nil && len(cmd) == 0 {
		err = fail(http.StatusBadRequest, "no command: give at least one parameter command")
	}
	if err != nil {
		answer(w, err)
		return
	}
	target, err := s.inside(r, func(rt Runtime, _ container, id string) (*url.URL, error) {
		return rt.ExecURL(r.Context(), id, cmd, streams)
	})
	s.handOn(w, r, target, err)
}

// attach connects to the process of a container.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	streams, err := streamsOf(r)
	if err != nil {
		answer(w, err)
		return
	}
	target, err := s.inside(r, func(rt Runtime, c container, id string) (*url.URL, error) {
		streams.TTY = c.tty // it is as it was made, whatever the client believes
		return rt.AttachURL(r.Context(), id, streams)
	})
	s.handOn(w, r, target, err)
}

// portForward connects to ports of a pod.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	ports, err := portsOf(r)
	if err != nil {
		answer(w, err)
		return
	}
	p, err := s.pod(r)
	if err == nil {
		err = upgrades(r)
	}
	if err != nil {
		answer(w, err)
		return
	}
	rt, err := s.runtime()
	if err != nil {
		answer(w, err)
		return
	}
	sandbox, err := rt.ReadySandbox(r.Context(), string(p.UID))
	if errors.Is(err, runtime.ErrNotFound) {
		err = fail(http.StatusBadRequest, "pod %q is not running: its phase is %s", p.Namespace+"/"+p.Name, p.Status.Phase)
	}
	if err != nil {
		answer(w, err)
		return
	}
	if network, ok := s.forwards(r, rt, sandbox); ok {
		if network != nil {
			defer network.Close()
		}
		s.forward(w, r, p.Namespace+"/"+p.Name, network)
		return
	}
	target, err := rt.PortForwardURL(r.Context(), sandbox, ports)
	s.handOn(w, r, target, err)
}

func (s *Server) handOn(w http.ResponseWriter, r *http.Request, target *url.URL, err error) {
	if err != nil {
		answer(w, err)
		return
	}
	s.proxy(w, r, target)
}

// streamsOf reads which streams the client wants: the kubelet's own API has input=1,
// output=1 and error=1, that of the apiserver stdin=true, stdout=true and stderr=true.
func streamsOf(r *http.Request) (runtime.Streams, error) {
	v := r.URL.Query()
	st := runtime.Streams{
		Stdin:  flag(v, "input") || flag(v, "stdin"),
		Stdout: flag(v, "output") || flag(v, "stdout"),
		Stderr: flag(v, "error") || flag(v, "stderr"),
		TTY:    flag(v, "tty"),
	}
	if st.TTY {
		st.Stderr = false // a terminal has one output
	}
	if !st.Stdin && !st.Stdout && !st.Stderr {
		return st, fail(http.StatusBadRequest, "you must specify at least 1 of stdin, stdout, stderr")
	}
	return st, nil
}

// portsOf reads the ports, which websocket clients alone name beforehand.
func portsOf(r *http.Request) ([]int32, error) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return nil, nil
	}
	var ports []int32
	v := r.URL.Query()
	for _, list := range [][]string{v["port"], v["ports"]} {
		for _, text := range list {
			for one := range strings.SplitSeq(text, ",") {
				n, err := strconv.ParseUint(one, 10, 16)
				if err != nil || n == 0 {
					return nil, fail(http.StatusBadRequest, "port %q is none: it must be between 1 and 65535", one)
				}
				ports = append(ports, int32(n))
			}
		}
	}
	const most = 64
	switch {
	case len(ports) == 0:
		return nil, fail(http.StatusBadRequest, "query parameter \"port\" is required over websocket")
	case len(ports) > most:
		return nil, fail(http.StatusBadRequest, "%d ports on one websocket: %d are the most", len(ports), most)
	}
	return ports, nil
}

func upgrades(r *http.Request) error {
	for _, line := range r.Header.Values("Connection") {
		for word := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(word), "upgrade") && r.Header.Get("Upgrade") != "" {
				return nil
			}
		}
	}
	return fail(http.StatusBadRequest, "upgrade request required")
}

const (
	runTimeout = 2 * time.Minute
	maxOutput  = 1 << 20
)

// run runs a command to its end and answers with what it printed.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	cmd := strings.Fields(r.URL.Query().Get("cmd"))
	if len(cmd) == 0 {
		answer(w, fail(http.StatusBadRequest, "no command: give the parameter cmd"))
		return
	}
	rt, c, id, err := s.running(r)
	if err != nil {
		answer(w, err)
		return
	}
	result, err := rt.Exec(r.Context(), id, cmd, runTimeout)
	if err != nil {
		answer(w, err)
		return
	}
	out := append(result.Stdout, result.Stderr...)
	if len(out) > maxOutput {
		out = append(out[:maxOutput], "\n(there was more)\n"...)
	}
	if result.ExitCode != 0 {
		answer(w, fail(http.StatusInternalServerError, "command %q in container %q ended with exit code %d: %s", cmd, c.name, result.ExitCode, bytes.TrimSpace(out)))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(out) // a client that went away needs no answer
}

// writeJSON answers with a document.
func writeJSON(w http.ResponseWriter, document any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(document) // a client that went away needs no answer
}
