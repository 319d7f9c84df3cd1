package stream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// failure is an error with the status that tells of it.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(status int, format string, a ...any) error {
	return &failure{status, fmt.Errorf(format, a...)}
}

// answer tells the client what went wrong.
func answer(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var f *failure
	switch {
	case errors.As(err, &f):
		status = f.status
	case errors.Is(err, runtime.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, runtime.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, context.DeadlineExceeded):
		status = http.StatusGatewayTimeout
	}
	http.Error(w, err.Error(), status)
}

// pod finds the pod that the request's path names.
func (s *Server) pod(r *http.Request) (*corev1.Pod, error) {
	namespace, name, uid := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid")
	var found *corev1.Pod
	for _, p := range s.o.Pods() {
		if p.Namespace != namespace || p.Name != name || uid != "" && string(p.UID) != uid {
			continue
		}
		// One that goes may still be there beside the one that comes in its place.
		if found == nil || found.DeletionTimestamp != nil {
			found = p
		}
	}
	switch {
	case found != nil:
		return found, nil
	case uid != "":
		return nil, fail(http.StatusNotFound, "pod %q with uid %s does not exist on node %s", namespace+"/"+name, uid, s.o.Node)
	}
	return nil, fail(http.StatusNotFound, "pod %q does not exist on node %s", namespace+"/"+name, s.o.Node)
}

// container is one container of a pod: what it is to be and, as far as it is known, is.
type container struct {
	name   string
	tty    bool
	status *corev1.ContainerStatus
}

// containerOf finds the container that the request's path names.
func containerOf(p *corev1.Pod, name string) (container, error) {
	c := container{name: name}
	known := false
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				known, c.tty = true, list[i].TTY
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if e := &p.Spec.EphemeralContainers[i]; e.Name == name {
			known, c.tty = true, e.TTY
		}
	}
	if !known {
		return c, fail(http.StatusNotFound, "container %q not found in pod %q", name, p.Name)
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				c.status = &list[i]
			}
		}
	}
	return c, nil
}

// wanted is the container that the request's path names, and the pod that it is in.
func (s *Server) wanted(r *http.Request) (rt Runtime, p *corev1.Pod, c container, err error) {
	if p, err = s.pod(r); err != nil {
		return nil, nil, c, err
	}
	if c, err = containerOf(p, r.PathValue("container")); err != nil {
		return nil, nil, c, err
	}
	rt, err = s.runtime()
	return rt, p, c, err
}

// running asks the runtime for the container that runs now: the status may be a moment
// old.
func (s *Server) running(r *http.Request) (rt Runtime, c container, id string, err error) {
	rt, p, c, err := s.wanted(r)
	if err != nil {
		return nil, c, "", err
	}
	id, err = runningNow(r, rt, p, c)
	return rt, c, id, err
}

func runningNow(r *http.Request, rt Runtime, p *corev1.Pod, c container) (string, error) {
	id, err := rt.RunningContainer(r.Context(), string(p.UID), c.name)
	if errors.Is(err, runtime.ErrNotFound) {
		err = fail(http.StatusBadRequest, "container %q in pod %q is not running%s", c.name, p.Name, c.state())
	}
	return id, err
}

// inside has the runtime make ready for something in a container that runs. It believes
// the status first, which saves a question: the runtime refuses what does not run.
func (s *Server) inside(r *http.Request, ready func(rt Runtime, c container, id string) (*url.URL, error)) (*url.URL, error) {
	rt, p, c, err := s.wanted(r)
	if err == nil {
		err = upgrades(r)
	}
	if err != nil {
		return nil, err
	}
	believed := ""
	if c.status != nil && c.status.State.Running != nil {
		_, believed, _ = strings.Cut(c.status.ContainerID, "://")
	}
	var refused error
	if believed != "" {
		target, err := ready(rt, c, believed)
		if err == nil {
			return target, nil
		}
		refused = err
	}
	id, err := runningNow(r, rt, p, c)
	if err != nil {
		return nil, err
	}
	if id == believed {
		return nil, refused
	}
	return ready(rt, c, id)
}

// state is what is known of a container that does not run.
func (c container) state() string {
	if c.status == nil {
		return ""
	}
	switch s := c.status.State; {
	case s.Waiting != nil:
		return ": it waits (" + s.Waiting.Reason + ")"
	case s.Terminated != nil:
		return fmt.Sprintf(": it ended with exit code %d (%s)", s.Terminated.ExitCode, s.Terminated.Reason)
	}
	return ""
}

func (s *Server) runtime() (Runtime, error) {
	rt, err := s.o.Runtime()
	if err != nil {
		return nil, &failure{http.StatusServiceUnavailable, err}
	}
	return rt, nil
}
