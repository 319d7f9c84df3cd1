package fleet

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/metrics"
)

// Query says which nodes are asked for, and in which order.
type Query struct {
	Text   string // part of a name, hub or version
	State  string // one of states
	Sort   string // one of orders; a minus before it: the other way about
	Offset int
	Limit  int // 0: all
}

const maxQuery = 256 // bytes of its text

// states are what State may be.
func states() []string { return []string{"", "connected", "offline", "not-offline-ready"} }

// orders are what Sort may be.
func orders() []string {
	return []string{"", "name", "line", "ready", "offlineReady", "pods", "bytes", "rtt", "seen", "version", "hub"}
}

// QueryOf reads a query from a URL.
func QueryOf(values url.Values) (q Query, err error) {
	q = Query{Text: strings.ToLower(values.Get("q")), State: values.Get("state"), Sort: values.Get("sort")}
	if len(q.Text) > maxQuery {
		return q, fmt.Errorf("q has more than %d bytes", maxQuery)
	}
	if !slices.Contains(states(), q.State) {
		return q, fmt.Errorf("state %q is unknown: use one of %s", q.State, strings.Join(states()[1:], ", "))
	}
	if !slices.Contains(orders(), strings.TrimPrefix(q.Sort, "-")) {
		return q, fmt.Errorf("sort %q is unknown: use one of %s, with a minus before it for the other way about", q.Sort, strings.Join(orders()[1:], ", "))
	}
	for name, into := range map[string]*int{"offset": &q.Offset, "limit": &q.Limit} {
		if text := values.Get(name); text != "" {
			if *into, err = strconv.Atoi(text); err != nil || *into < 0 {
				return q, fmt.Errorf("%s %q is not a number from 0 on", name, text)
			}
		}
	}
	return q, nil
}

// row is a node on its way into a document.
type row struct {
	name  string
	r     *record
	state lineState
	key   float64
	word  string
}

// List is the fleet, or the part of it that the query asks for.
func (f *Fleet) List(q Query) fleet.Fleet {
	infos := f.infosFor(q)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn()
	now := f.now()
	doc := fleet.Fleet{Hub: f.hub, Version: f.version, Started: f.started.UTC(), Now: now.UTC(), Nodes: []fleet.Node{}, Complete: !f.listed.IsZero()}
	rows := make([]row, 0, len(f.records))
	for name, r := range f.records {
		one := row{name: name, r: r, state: f.presently(r)}
		count(&doc.Counts, r, one.state)
		if matches(q, &one) {
			rows = append(rows, one)
		}
	}
	f.sort(rows, q.Sort, infos)
	doc.Matched, doc.Offset = len(rows), min(q.Offset, len(rows))
	rows = rows[doc.Offset:]
	if q.Limit > 0 {
		rows = rows[:min(q.Limit, len(rows))]
	}
	for i := range rows {
		doc.Nodes = append(doc.Nodes, f.describe(&rows[i], infos))
	}
	if !f.listed.IsZero() && now.Sub(f.listed) > listAgain {
		select {
		case f.relist <- struct{}{}:
		default:
		}
	}
	return doc
}

// aPage is how many nodes a page shows at most.
const aPage = 500

// infosFor asks the hub of all sessions where many will be needed; nil: each is asked
// when it is described. It takes long, and holds no lock meanwhile.
func (f *Fleet) infosFor(q Query) map[string]hub.NodeInfo {
	byLine := slices.Contains([]string{"bytes", "rtt", "seen"}, strings.TrimPrefix(q.Sort, "-"))
	if !byLine && q.Limit > 0 && q.Limit <= aPage {
		return nil
	}
	infos := make(map[string]hub.NodeInfo)
	f.mu.Lock()
	sessions := f.sessions
	f.mu.Unlock()
	if sessions != nil {
		sessions.Each(func(n hub.NodeInfo) { infos[n.Node] = n })
	}
	return infos
}

// presently is the state of a node's line; the caller holds mu.
func (f *Fleet) presently(r *record) lineState {
	if r.session != "" {
		return r.state()
	}
	return f.stateOf(r)
}

func count(c *fleet.Counts, r *record, state lineState) {
	c.All++
	switch state {
	case lineOff:
		c.Offline++
	case lineElsewhere:
		c.Connected++
	default:
		c.Connected++
		c.Here++
	}
	if r.node.offline != verdictTrue {
		c.NotOfflineReady++
	}
}

func matches(q Query, one *row) bool {
	switch q.State {
	case "connected":
		if one.state == lineOff {
			return false
		}
	case "offline":
		if one.state != lineOff {
			return false
		}
	case "not-offline-ready":
		if one.r.node.offline == verdictTrue {
			return false
		}
	}
	if q.Text == "" {
		return true
	}
	for _, text := range []string{one.name, one.r.version.String(), one.r.node.hub.String(), one.r.node.kubelet.String(), one.r.node.readyReason.String(), one.r.node.offlineReason.String()} {
		if strings.Contains(strings.ToLower(text), q.Text) {
			return true
		}
	}
	return false
}

// sort brings rows into an order; those that are alike in it, and those of which it
// is not known, by name.
func (f *Fleet) sort(rows []row, order string, infos map[string]hub.NodeInfo) {
	name := strings.TrimPrefix(order, "-")
	for i := range rows {
		rows[i].key, rows[i].word = f.keyOf(&rows[i], name, infos)
	}
	down := strings.HasPrefix(order, "-")
	slices.SortFunc(rows, func(a, b row) int {
		c := cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.word, b.word))
		if c == 0 {
			c = cmp.Compare(a.name, b.name)
			if name != "" && name != "name" {
				return c
			}
		}
		if down {
			return -c
		}
		return c
	})
}

// keyOf is where a row stands in an order, by number and then by word.
func (f *Fleet) keyOf(one *row, order string, infos map[string]hub.NodeInfo) (key float64, text string) {
	r := one.r
	info, here := infos[one.name]
	switch order {
	case "line": // what is down first, the latest before the others
		if one.state == lineOff {
			return -float64(r.lastChange()), ""
		}
		return float64(one.state), ""
	case "ready":
		return float64(troubleOf(r.node.ready)), r.node.readyReason.String()
	case "offlineReady":
		return float64(troubleOf(r.node.offline)), r.node.offlineReason.String()
	case "pods":
		total, _, _ := f.podsOf(one.name, r, one.state)
		return float64(total), ""
	case "bytes":
		t := r.today
		if here {
			moved := since(info.Traffic, r.base)
			t.Sent, t.Received = t.Sent+moved.Sent, t.Received+moved.Received
		}
		return float64(t.Sent + t.Received), ""
	case "rtt":
		return float64(info.RTT), ""
	case "seen":
		if here {
			return float64(info.LastHeard.Unix()), ""
		}
		return float64(max(r.heard, r.node.readyHeard)), ""
	case "version":
		return 0, r.version.String() + " " + r.node.kubelet.String()
	case "hub":
		return 0, f.hubOf(r, one.state)
	}
	return 0, ""
}

func (r *record) lastChange() stamp {
	if len(r.changes) == 0 {
		return 0
	}
	return r.changes[len(r.changes)-1].at
}

// troubleOf orders verdicts, the worst first.
func troubleOf(v verdict) int {
	switch v {
	case verdictFalse:
		return 0
	case verdictUnknown:
		return 1
	case verdictNone:
		return 2
	}
	return 3
}

// hubOf is the hub that holds a node, or held it last; the caller holds mu.
func (f *Fleet) hubOf(r *record, state lineState) string {
	if state == lineWebsocket || state == lineQUIC {
		return f.hub
	}
	if h := r.lease.hub.String(); h != "" {
		return h
	}
	if h := r.node.hub.String(); state != lineElsewhere || h != f.hub {
		return h
	}
	return "" // another than its Node says
}

// podsOf counts a node's pods; the caller holds mu.
func (f *Fleet) podsOf(name string, r *record, state lineState) (total, ready int, known bool) {
	if state == lineWebsocket || state == lineQUIC {
		if total, ready, known = f.cluster.PodCount(name); known {
			return total, ready, true
		}
	}
	return int(r.pods), int(r.ready), r.counted != 0
}

// describe makes the document of a row; the caller holds mu. Nodes that are not
// connected here are looked at, for the next time that somebody asks.
func (f *Fleet) describe(one *row, infos map[string]hub.NodeInfo) fleet.Node {
	r := one.r
	n := fleet.Node{
		Name: one.name, Ready: r.node.ready.String(), ReadyReason: r.node.readyReason.String(),
		Hub: f.hubOf(r, one.state), Connected: one.state != lineOff,
		LastSeen:     max(r.heard, r.node.readyHeard).pointer(),
		BytesToday:   fleet.Bytes{Down: r.today.Sent, Up: r.today.Received},
		OfflineReady: r.node.offline.String(), OfflineReadyReason: r.node.offlineReason.String(),
		Version: r.version.String(), Kubelet: r.node.kubelet.String(), Runtime: r.node.runtime.String(), OS: r.node.os.String(), Arch: r.node.arch.String(),
	}
	if one.state == r.state() {
		n.Since = r.lastChange().pointer()
	}
	var known bool
	n.Pods.Total, n.Pods.Ready, known = f.podsOf(one.name, r, one.state)
	n.Pods.Unknown = !known
	if r.session != "" {
		f.describeLine(&n, one, infos)
	} else if now := f.now(); r.node.there && (r.counted == 0 || old(r.counted, now) || r.lease.at == 0 || old(r.lease.at, now)) {
		f.looks.add(one.name)
	}
	return n
}

func old(s stamp, now time.Time) bool {
	age := now.Sub(s.time())
	return age < -time.Minute || age > lookAgain
}

// describeLine adds what the hub knows of the node's session; the caller holds mu.
func (f *Fleet) describeLine(n *fleet.Node, one *row, infos map[string]hub.NodeInfo) {
	info, ok := infos[one.name]
	if !ok && f.sessions != nil {
		info, ok = f.sessions.Session(one.name)
	}
	n.Transport, n.Remote = one.state.transport(), one.r.remote
	if !ok || info.Session != one.r.session {
		return // it ends, or has just begun
	}
	heard := info.LastHeard.UTC().Truncate(time.Second)
	n.LastSeen = &heard
	n.RTTMillis = float64(info.RTT.Round(100*time.Microsecond)) / float64(time.Millisecond)
	moved := since(info.Traffic, one.r.base)
	n.BytesToday.Down += moved.Sent
	n.BytesToday.Up += moved.Received
}

// WriteMetrics writes how many nodes there are.
func (f *Fleet) WriteMetrics(w io.Writer) {
	var counts fleet.Counts
	f.mu.Lock()
	for _, r := range f.records {
		count(&counts, r, f.presently(r))
	}
	f.mu.Unlock()
	for line, n := range map[string]int{"here": counts.Here, "elsewhere": counts.Connected - counts.Here, "offline": counts.Offline} {
		metrics.WriteGaugeUint64(w, fmt.Sprintf(`holdfast_hub_fleet_nodes{line=%q}`, line), uint64(n))
	}
	metrics.WriteGaugeUint64(w, "holdfast_hub_fleet_nodes_not_offline_ready", uint64(counts.NotOfflineReady))
}
