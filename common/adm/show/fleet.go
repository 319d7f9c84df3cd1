package show

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/fleet"
)

// Fleet writes every node that the document has, one a line.
func Fleet(out io.Writer, f fleet.Fleet) error {
	c := f.Counts
	fmt.Fprintf(out, "hub %s (cloudcore %s, up %s): %d of %s connected, %d of them here; %d offline, %d not ready for an outage\n",
		clean(f.Hub), clean(f.Version), age(f.Started, f.Now), c.Connected, many(c.All, "node"), c.Here, c.Offline, c.NotOfflineReady)
	if !f.Complete {
		fmt.Fprintln(out, "the hub has just started and is still reading which nodes there are")
	}
	if len(f.Nodes) == 0 {
		if c.All == 0 && f.Complete {
			fmt.Fprintln(out, "there are no edge nodes; `holdfast token create` prints the command that makes one")
		}
		return nil
	}
	fmt.Fprintln(out)
	t := newTable(out, "NODE", "READY", "LINE", "HUB", "TRANSPORT", "RTT", "TODAY DOWN/UP", "LAST SEEN", "OFFLINE-READY", "PODS", "VERSION")
	for i := range f.Nodes {
		n := &f.Nodes[i]
		t.row(n.Name, orNone(n.Ready), nodeLine(n, f.Now), orNone(n.Hub), orNone(n.Transport), millis(n.RTTMillis), today(n), ago(n.LastSeen, f.Now), offlineReady(n), podCount(n.Pods), orNone(n.Version))
	}
	return t.flush()
}

// nodeLine is what the line is and since when.
func nodeLine(n *fleet.Node, now time.Time) string {
	word := "offline"
	if n.Connected {
		word = "connected"
	}
	if n.Since == nil {
		return word
	}
	return word + " " + age(*n.Since, now)
}

func today(n *fleet.Node) string {
	if n.BytesToday == (fleet.Bytes{}) {
		return none // nothing moved, or another hub knows
	}
	return size(n.BytesToday.Down) + " / " + size(n.BytesToday.Up)
}

func offlineReady(n *fleet.Node) string {
	if n.OfflineReady == "" {
		return none
	}
	if n.OfflineReady != "True" && n.OfflineReadyReason != "" {
		return n.OfflineReady + ": " + n.OfflineReadyReason
	}
	return n.OfflineReady
}

func podCount(c fleet.PodCount) string {
	if c.Unknown {
		return "?"
	}
	return fmt.Sprintf("%d/%d", c.Ready, c.Total)
}

// Node writes all there is to tell of one node. The ages count from now, which is the
// reader's own: he is on the hub's machine.
func Node(out io.Writer, d fleet.Detail, now time.Time) error {
	n := &d.Node
	t := newTable(out)
	t.row("node", n.Name)
	t.row("ready", orNone(n.Ready)+because(n.ReadyReason))
	line := nodeLine(n, now)
	if n.Connected {
		line += " to hub " + orNone(n.Hub) + unless(n.Transport == "", " over "+n.Transport) + unless(n.Remote == "", " from "+n.Remote)
	} else if n.Hub != "" {
		line += ", last at hub " + n.Hub
	}
	t.row("line", line)
	t.row("last seen", ago(n.LastSeen, now))
	t.row("round trip", millis(n.RTTMillis))
	t.row("today", strings.Replace(today(n), " / ", " down, ", 1)+unless(n.BytesToday == (fleet.Bytes{}), " up"))
	t.row("offline ready", offlineReady(n))
	t.row("pods", podCount(n.Pods)+" ready")
	t.row("versions", strings.Join(known("edgecore", n.Version, "as kubelet", n.Kubelet, "runtime", n.Runtime), ", "))
	t.row("machine", orNone(strings.Join(known("", n.OS, "", n.Arch), ", ")))
	for _, r := range d.Remarks {
		t.row("remark", r)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, part := range []func(io.Writer, fleet.Detail, time.Time) error{conditions, podList, spans, events} {
		if err := part(out, d, now); err != nil {
			return err
		}
	}
	return nil
}

// known is each word with its value, where that is known.
func known(pairs ...string) []string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			out = append(out, strings.TrimSpace(pairs[i]+" "+pairs[i+1]))
		}
	}
	return out
}

func conditions(out io.Writer, d fleet.Detail, now time.Time) error {
	if len(d.Conditions) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := newTable(out, "CONDITION", "STATUS", "FOR", "REASON", "MESSAGE")
	for _, c := range d.Conditions {
		t.row(c.Type, c.Status, age(c.Since, now), orNone(c.Reason), c.Message)
	}
	return t.flush()
}

func podList(out io.Writer, d fleet.Detail, _ time.Time) error {
	if len(d.PodList) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := newTable(out, "NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "CONTAINERS")
	for _, p := range d.PodList {
		ready := "no"
		if p.Ready {
			ready = "yes"
		}
		t.row(p.Namespace, p.Name, ready, cmp.Or(p.Reason, p.Phase, "Unknown"), fmt.Sprint(p.Restarts), strings.Join(p.Containers, ","))
	}
	return t.flush()
}

// maxShown is how many spans of the line and events are shown, the newest.
const maxShown = 20

func spans(out io.Writer, d fleet.Detail, now time.Time) error {
	if len(d.Line) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := newTable(out, "LINE", "FROM", "FOR", "TRANSPORT")
	for i := len(d.Line) - 1; i >= max(0, len(d.Line)-maxShown); i-- {
		s, word, to := d.Line[i], "offline", now
		if s.Connected {
			word = "connected"
		}
		if s.To != nil {
			to = *s.To
		}
		t.row(word, s.From.UTC().Format("2006-01-02 15:04:05"), span(to.Sub(s.From)), orNone(s.Transport))
	}
	return t.flush()
}

func events(out io.Writer, d fleet.Detail, now time.Time) error {
	if len(d.Events) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t := newTable(out, "SEEN", "TYPE", "OBJECT", "REASON", "COUNT", "MESSAGE")
	for _, e := range d.Events[:min(len(d.Events), maxShown)] {
		t.row(ago(&e.At, now), e.Type, e.Object, e.Reason, fmt.Sprint(max(1, e.Count)), e.Message)
	}
	return t.flush()
}
