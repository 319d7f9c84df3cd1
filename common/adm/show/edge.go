package show

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// Edge writes how an edge node is.
func Edge(out io.Writer, s localstatus.Status) error {
	t := newTable(out)
	t.row("node", fmt.Sprintf("%s, edgecore %s, up %s", s.Node, s.Version, age(s.Started, s.Now)))
	t.row("ready", yes(s.Ready, s.ReadyReason)+unless(s.NodeReported || !s.Line.Connected, "; the hub has yet to hear so"))
	for i, text := range line(s.Line, s.Now) {
		t.row([]string{"line", ""}[min(i, 1)], text)
	}
	t.row("outbox", outbox(s))
	t.row("stored", stored(s.Store, s.Now))
	if s.Store.Recovery != "" {
		t.row("recovered", s.Store.Recovery)
	}
	if s.Store.EventsDropped > 0 {
		t.row("dropped", many(s.Store.EventsDropped, "event")+", the oldest first, while the hub was away")
	}
	t.row("certificate", certificate(s.Certificate, s.Now))
	t.row("clock", clock(s.Clock))
	t.row("disk", disk(s.Disk))
	t.row("runtime", containerRuntime(s.Runtime))
	t.row("images", images(s.Images))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := pods(out, s); err != nil || len(s.Images.List) == 0 {
		return err
	}
	fmt.Fprintln(out)
	return imageTable(out, s.Images.List)
}

func yes(ok bool, why string) string {
	switch {
	case ok:
		return "yes"
	case why == "":
		return "no"
	}
	return "no: " + why
}

// unless is the text where ok is false.
func unless(ok bool, text string) string {
	if ok {
		return ""
	}
	return text
}

// line is the line in one or two lines.
func line(l localstatus.Line, now time.Time) []string {
	if !l.Connected {
		text := "cut for " + age(l.Since, now) + "; pods run as last known"
		if l.Since.IsZero() {
			text = "cut; pods run as last known"
		}
		if !l.HeldUntil.IsZero() {
			return []string{text, fmt.Sprintf("held down on purpose for another %s, by holdfast drill", span(l.HeldUntil.Sub(now)))}
		}
		return []string{text + because(l.LastError)}
	}
	received := "all received"
	if !l.Synced {
		received = "still receiving"
	}
	lines := []string{fmt.Sprintf("connected to %s over %s for %s, %s", l.Hub, l.Transport, age(l.Since, now), received)}
	return append(lines, fmt.Sprintf("round trip %s, %s down and %s up in this session, the %s since edgecore's start",
		strings.Replace(millis(l.RTTMillis), none, "not known", 1), size(l.Session.Received), size(l.Session.Sent), ordinal(l.Sessions)))
}

func ordinal(n uint64) string {
	suffix := "th"
	if n/10%10 != 1 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprintf("%d%s", n, suffix)
}

func outbox(s localstatus.Status) string {
	w := s.Waiting
	if s.Store.Problem != "" {
		return "not known" + because(s.Store.Problem)
	}
	if s.Outbox == 0 && w.Values == 0 && w.Messages == 0 {
		return "empty: the hub has heard everything"
	}
	var parts []string
	if s.Outbox > 0 {
		parts = append(parts, many(s.Outbox, "report")+counts(w.Reports))
	}
	if w.Values > 0 {
		parts = append(parts, many(w.Values, "value")+" of devices' histories")
	}
	if w.Messages > 0 {
		parts = append(parts, many(w.Messages, "message")+" of routes")
	}
	text := strings.Join(parts, ", ") + " that the hub has not taken yet"
	if w.Oldest != nil {
		text += ", the oldest " + age(*w.Oldest, s.Now) + " old"
	}
	return text
}

// counts lists what there is of each kind, in brackets.
func counts(kinds map[string]int64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		if n := kinds[kind]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", words(kind), n))
		}
	}
	return because(strings.Join(parts, ", "))
}

func stored(s localstatus.Store, now time.Time) string {
	if s.Problem != "" {
		return s.Path + ": " + s.Problem
	}
	complete := ""
	if !s.SyncedOnce {
		complete = ", not all that the hub has"
	}
	text := fmt.Sprintf("%s%s%s; %s in %s", many(s.Objects, "object"), counts(s.Kinds), complete, size(s.Bytes), s.Path)
	if s.Copied == nil {
		return text + ", no good copy yet"
	}
	return text + ", last good copy " + ago(s.Copied, now)
}

// day is a date that people act on.
func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func certificate(c localstatus.Certificate, now time.Time) string {
	switch c.State {
	case localstatus.CertificateValid:
		return fmt.Sprintf("valid until %s (another %s), renewed from %s on", day(c.Ends), span(c.Ends.Sub(now)), day(c.RenewalDue))
	case localstatus.CertificateRenewalDue:
		return fmt.Sprintf("valid until %s (another %s), to be renewed since %s: that needs the line", day(c.Ends), span(c.Ends.Sub(now)), day(c.RenewalDue))
	case localstatus.CertificateEnded:
		return fmt.Sprintf("ended on %s (%s ago): the hub renews it by proof of its key, or the node joins anew", day(c.Ends), age(c.Ends, now))
	}
	return c.State + because(c.Problem)
}

func clock(c localstatus.Clock) string {
	text := c.System.UTC().Format("2006-01-02 15:04:05 UTC")
	if c.Hub == nil {
		return text + "; the hub's was never heard"
	}
	off := time.Duration(c.OffSeconds * float64(time.Second))
	switch {
	case c.Behind:
		return fmt.Sprintf("%s, %s behind the hub's, by which the node goes: set it", text, span(-off))
	case off.Abs() < 2*time.Second:
		return text + ", as the hub's"
	case off < 0:
		return fmt.Sprintf("%s, %s behind the hub's as last heard", text, span(-off))
	}
	return fmt.Sprintf("%s, %s ahead of the hub's as last heard", text, span(off))
}

func disk(d localstatus.Disk) string {
	if d.Problem != "" {
		return d.Path + ": " + d.Problem
	}
	text := fmt.Sprintf("%s of %s free at %s", size(d.Free), size(d.Bytes), d.Path)
	if d.Reserve > 0 {
		text += ", " + size(d.Reserve) + " kept to start from a full disk"
	}
	return text
}

func containerRuntime(r localstatus.Runtime) string {
	switch name := strings.TrimSpace(r.Name + " " + r.Version); {
	case !r.Answers:
		return r.Endpoint + " does not answer" + because(r.Problem)
	case !r.Ready:
		return name + ", not ready" + because(r.Problem)
	default:
		return name + ", ready"
	}
}

func images(i localstatus.Images) string {
	if i.Problem != "" {
		return "not known" + because(i.Problem)
	}
	unused := 0
	for _, one := range i.List {
		if one.Containers == 0 && !one.Pinned {
			unused++
		}
	}
	text := fmt.Sprintf("%d, %s", len(i.List), size(i.Bytes))
	if unused > 0 {
		text += fmt.Sprintf(", %d without a container or a pin", unused)
	}
	return text
}

func pods(out io.Writer, s localstatus.Status) error {
	if len(s.Pods) == 0 {
		fmt.Fprintln(out, "no pods")
		return nil
	}
	t := newTable(out, "NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "LAST END", "AGE")
	for _, p := range s.Pods {
		ready, total := 0, 0
		for _, c := range p.Containers {
			if c.Kind != "" {
				continue
			}
			total++
			if c.Ready {
				ready++
			}
		}
		t.row(p.Namespace, p.Name, fmt.Sprintf("%d/%d", ready, total), cmp.Or(p.Reason, p.Phase, "Unknown"), fmt.Sprint(p.Restarts), lastEnd(p, s.Clock.System), podAge(p, s.Now))
	}
	return t.flush()
}

func podAge(p localstatus.PodSummary, now time.Time) string {
	if p.Created != nil {
		return ageOf(p.Created, now)
	}
	return ageOf(p.Started, now)
}

// lastEnd is how a container of the pod ended last. The runtime dates by the machine's
// own clock, so the age counts from that.
func lastEnd(p localstatus.PodSummary, system time.Time) string {
	var container string
	var last *localstatus.Ending
	later := func(name string, e *localstatus.Ending) {
		if e != nil && (last == nil || e.At != nil && (last.At == nil || e.At.After(*last.At))) {
			container, last = name, e
		}
	}
	for _, c := range p.Containers {
		if c.Kind != "" && (c.ExitCode == nil || *c.ExitCode == 0) {
			continue // an init container that has done its work
		}
		later(c.Name, c.Last)
		if c.ExitCode != nil {
			later(c.Name, &localstatus.Ending{Reason: c.Reason, ExitCode: *c.ExitCode, At: c.Finished})
		}
	}
	if last == nil {
		return none
	}
	text := container + ": " + ending(last.Reason, last.ExitCode)
	if last.At != nil {
		text += ", " + ago(last.At, system)
	}
	return text
}

// ending is a reason with the exit code where that says more.
func ending(reason string, code int32) string {
	switch {
	case reason == "":
		return fmt.Sprintf("exit code %d", code)
	case code == 0:
		return reason
	}
	return fmt.Sprintf("%s (%d)", reason, code)
}

func imageTable(out io.Writer, list []localstatus.Image) error {
	t := newTable(out, "IMAGE", "SIZE", "CONTAINERS", "PINNED")
	for _, i := range list {
		pinned := none
		if i.Pinned {
			pinned = "yes"
		}
		t.row(imageName(i), size(i.Bytes), fmt.Sprint(i.Containers), pinned)
	}
	return t.flush()
}

func imageName(i localstatus.Image) string {
	if len(i.Names) > 0 {
		return i.Names[0]
	}
	return i.ID
}
