package fleet

import (
	"math"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/link"
)

// record is what is kept of one node. A hub keeps one of every edge node of the
// cluster, so that it is small (TestARecordIsSmall): texts that many nodes share are
// kept once, and times are whole seconds.
type record struct {
	list uint32 // the latest list of all nodes that it is in, or that was under way when it passed by
	node nodeSaid

	// Of the line to this hub.
	session string // the present one's; empty: none
	remote  string
	version word
	heard   stamp        // of the last session's end; while there is one it says itself
	today   link.Traffic // of the sessions that ended today
	base    link.Traffic // what the present session had moved when the day began
	lease   leaseSaid
	changes []change // the oldest first

	// Of pods, when they were last counted.
	pods, ready uint16
	counted     stamp // 0: never
}

// nodeSaid is what a Node says.
type nodeSaid struct {
	there                           bool
	ready, offline                  verdict
	readyReason, offlineReason      word
	hub, kubelet, runtime, os, arch word
	readySince, readyHeard          stamp
}

// leaseSaid is what the lease of a node said that is not connected here.
type leaseSaid struct {
	hub  word
	at   stamp // when it was read; 0: never
	held stamp // until when it is valid
}

// verdict is the status of a condition.
type verdict uint8

const (
	verdictNone verdict = iota
	verdictTrue
	verdictFalse
	verdictUnknown
)

func verdictOf(s corev1.ConditionStatus) verdict {
	switch s {
	case corev1.ConditionTrue:
		return verdictTrue
	case corev1.ConditionFalse:
		return verdictFalse
	}
	return verdictUnknown
}

func (v verdict) String() string {
	return [...]string{"", string(corev1.ConditionTrue), string(corev1.ConditionFalse), string(corev1.ConditionUnknown)}[v]
}

// lineState is where a node's line leads.
type lineState uint8

const (
	lineOff lineState = iota
	lineWebsocket
	lineQUIC
	lineElsewhere // to another hub
)

func transportOf(name string) lineState {
	if name == "quic" {
		return lineQUIC
	}
	return lineWebsocket
}

func (s lineState) transport() string {
	switch s {
	case lineWebsocket:
		return "websocket"
	case lineQUIC:
		return "quic"
	}
	return ""
}

// change is when a line became what it then was.
type change struct {
	at    stamp
	state lineState
}

// maxChanges bounds the history of a line.
const maxChanges = 32

// changed notes that the line is in a state since then.
func (r *record) changed(at time.Time, state lineState) {
	n := len(r.changes)
	if n > 0 && r.changes[n-1].state == state {
		return
	}
	// A clock that was set back must not bring the order about.
	c := change{stampOf(at), state}
	if n > 0 {
		c.at = max(c.at, r.changes[n-1].at)
	}
	if n == maxChanges {
		copy(r.changes, r.changes[1:])
		r.changes[n-1] = c
		return
	}
	r.changes = append(r.changes, c)
}

// spans is the history as documents have it.
func (r *record) spans() []fleet.Span {
	spans := make([]fleet.Span, len(r.changes))
	for i, c := range r.changes {
		spans[i] = fleet.Span{From: c.at.time(), Connected: c.state != lineOff, Transport: c.state.transport()}
		if i > 0 {
			to := c.at.time()
			spans[i-1].To = &to
		}
	}
	return spans
}

// state is the last that is known of the line.
func (r *record) state() lineState {
	if len(r.changes) == 0 {
		return lineOff
	}
	return r.changes[len(r.changes)-1].state
}

// graceful is how long after this hub has last heard a node its Node may say that it
// is ready though nobody hears it: the node lifecycle controller waits 40 or 50 s.
const graceful = 90 * time.Second

// stateOf works out the line of a node without a session here; the caller holds mu.
func (f *Fleet) stateOf(r *record) lineState {
	if r.lease.at != 0 {
		// The lease is the truth, as long as it was read lately.
		if age := f.now().Sub(r.lease.at.time()); age >= 0 && age < 2*lookAgain && r.lease.hub.String() != f.hub {
			if r.lease.held > stampOf(f.now()) {
				return lineElsewhere
			}
			return lineOff
		}
	}
	switch {
	case r.node.ready == verdictNone || r.node.ready == verdictUnknown:
		return lineOff
	case r.node.hub.String() != f.hub:
		return lineElsewhere
	}
	// A node that moved may have had nothing to write in the other hub's name. But
	// somebody renews its lease.
	last := max(stampOf(f.started), r.heard, r.lastChange())
	if f.now().Sub(last.time()) > graceful {
		return lineElsewhere
	}
	return lineOff
}

// said is what a Node says. It keeps nothing of n.
func said(n *corev1.Node) nodeSaid {
	info := &n.Status.NodeInfo
	s := nodeSaid{
		there: true, hub: wordOf(n.Annotations[roster.AnnotationHub]), kubelet: wordOf(info.KubeletVersion),
		runtime: wordOf(info.ContainerRuntimeVersion), os: wordOf(info.OSImage), arch: wordOf(info.Architecture),
	}
	for i := range n.Status.Conditions {
		switch c := &n.Status.Conditions[i]; c.Type {
		case corev1.NodeReady:
			s.ready, s.readyReason = verdictOf(c.Status), wordOf(c.Reason)
			s.readySince, s.readyHeard = stampOf(c.LastTransitionTime.Time), stampOf(c.LastHeartbeatTime.Time)
		case fleet.OfflineReady:
			s.offline, s.offlineReason = verdictOf(c.Status), wordOf(c.Reason)
		}
	}
	return s
}

// stamp is a time in seconds since 1970; 0: none.
type stamp uint32

func stampOf(t time.Time) stamp {
	if t.IsZero() {
		return 0
	}
	return stamp(min(max(t.Unix(), 1), math.MaxUint32))
}

func (s stamp) time() time.Time { return time.Unix(int64(s), 0).UTC() }

// pointer is the time for a document, nil for none.
func (s stamp) pointer() *time.Time {
	if s == 0 {
		return nil
	}
	t := s.time()
	return &t
}

// word is a text that many nodes share.
type word struct{ unique.Handle[string] }

// maxWord bounds what a node calls things, in bytes.
const maxWord = 128

func wordOf(s string) word {
	if s == "" {
		return word{}
	}
	if len(s) > maxWord {
		s = strings.ToValidUTF8(s[:maxWord], "")
	}
	return word{unique.Make(strings.Clone(s))}
}

func (w word) String() string {
	if w == (word{}) {
		return ""
	}
	return w.Value()
}

func capped(n int) uint16 { return uint16(min(max(n, 0), math.MaxUint16)) }
