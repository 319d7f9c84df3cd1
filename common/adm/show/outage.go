package show

import (
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// Outage shows what was found of a node's readiness for an outage, by group, with the
// remedy below what is amiss.
func Outage(out io.Writer, o localstatus.Outage) error {
	verdict := "is ready for an outage"
	if !o.Ready {
		verdict = "is NOT ready for an outage"
	}
	if _, err := fmt.Fprintf(out, "Node %s %s (looked at %s UTC)\n\n", clean(o.Node), verdict, o.Checked.UTC().Format("2006-01-02 15:04:05")); err != nil {
		return err
	}
	for _, c := range o.Checks {
		if err := check(out, c); err != nil {
			return err
		}
	}
	return nil
}

func check(out io.Writer, c localstatus.Check) error {
	level := map[string]string{localstatus.CheckOK: "[ok]", localstatus.CheckWarning: "[warn]"}[c.Level]
	if level == "" {
		level = "[FAIL]"
	}
	text := clean(c.Message)
	if c.Subject != "" {
		text = clean(c.Subject) + ": " + text
	}
	_, err := fmt.Fprintf(out, "  %-6s %-12s %s\n", level, clean(c.Group), text)
	if err == nil && c.Remedy != "" {
		_, err = fmt.Fprintf(out, "  %-6s %-12s -> %s\n", "", "", clean(c.Remedy))
	}
	return err
}

// Drill shows what a rehearsed outage has shown.
func Drill(out io.Writer, d localstatus.Drill) error {
	verdict := "PASSED"
	if !d.Passed {
		verdict = "NOT PASSED"
	}
	t := newTable(out)
	t.row("drill", verdict)
	for _, p := range d.Problems {
		t.row("", p)
	}
	t.row("node", d.Node)
	cut, back := none, none
	if !d.Line.Cut.IsZero() {
		cut = d.Line.Cut.UTC().Format("15:04:05 UTC")
	}
	if !d.Line.Back.IsZero() {
		back = d.Line.Back.UTC().Format("15:04:05 UTC")
	}
	t.row("line", fmt.Sprintf("down from %s to %s (%s were asked for)", cut, back, d.Hold))
	if back != none {
		t.row("", fmt.Sprintf("back %.1f s after it was let go; %d reports had waited, all taken after %.1f s", d.Line.BackSeconds, d.Line.Waiting, d.Line.DrainedSeconds))
	}
	if r := d.Runtime; r != nil {
		word := fmt.Sprintf("ready %.1f s after the restart began: %s", r.Seconds, r.Command)
		if r.Problem != "" {
			word = fmt.Sprintf("%s: %s", r.Problem, r.Command)
		}
		t.row("runtime", word)
	}
	if len(d.LeftOut) > 0 {
		t.row("left out", fmt.Sprintf("%d pods that were not ready before: %s", len(d.LeftOut), strings.Join(d.LeftOut, ", ")))
	}
	if err := t.flush(); err != nil || len(d.Pods) == 0 {
		return err
	}
	fmt.Fprintln(out)
	t = newTable(out, "NAMESPACE", "POD", "READY AGAIN", "NOT READY FOR", "RESTARTS", "NEW CONTAINERS")
	for _, p := range d.Pods {
		again := "yes"
		if !p.Ready {
			again = "NO"
			if p.Reason != "" {
				again += ": " + p.Reason
			}
		}
		t.row(p.Namespace, p.Name, again, fmt.Sprintf("%.1f s", p.NotReadySeconds), fmt.Sprint(p.Restarts), fmt.Sprint(p.Replaced))
	}
	return t.flush()
}
