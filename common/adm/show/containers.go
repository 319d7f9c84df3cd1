package show

import (
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// idLength is as much of a container's id as crictl shows.
const idLength = 13

// Containers writes the containers of pods, which are some of s.
func Containers(out io.Writer, s localstatus.Status, pods []localstatus.PodSummary) error {
	t := newTable(out, "NAMESPACE", "POD", "CONTAINER", "STATE", "READY", "RESTARTS", "AGE", "ID", "IMAGE")
	for _, p := range pods {
		for _, c := range p.Containers {
			name := c.Name
			if c.Kind != "" {
				name += " (" + c.Kind + ")"
			}
			ready := "no"
			if c.Ready {
				ready = "yes"
			}
			since := c.Started
			if c.State == localstatus.StateExited {
				since = c.Finished
			}
			id := c.ID[:min(len(c.ID), idLength)]
			t.row(p.Namespace, p.Name, name, state(c), ready, fmt.Sprint(c.Restarts), ageOf(since, s.Clock.System), orNone(id), c.Image)
		}
	}
	return t.flush()
}

// state is what the container does, and why where it does not run.
func state(c localstatus.Container) string {
	word := strings.ToUpper(c.State[:min(1, len(c.State))]) + c.State[min(1, len(c.State)):]
	switch {
	case c.ExitCode != nil:
		return word + ": " + ending(c.Reason, *c.ExitCode)
	case c.Reason != "":
		return word + ": " + c.Reason
	}
	return word
}
