package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// claim is what makes this session, of all hubs', the one that writes for the
// node. Deliveries need none: an edge listens to one session only.
type claim struct {
	epoch   report.Epoch // 0: not claimed yet
	due     bool
	running bool
	failing bool
	told    bool // the edge knows
	retries backoff
}

// startClaim claims the node, and tells the edge so once it is welcomed.
func (s *session) startClaim() {
	c := &s.claim
	if c.epoch != 0 && !c.told && s.delivery.Welcomed() {
		c.told = true
		s.reply(&wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: &wire.Claimed{Epoch: uint64(c.epoch)}}})
	}
	if !c.due || c.running || c.epoch != 0 {
		return
	}
	c.due, c.running = false, true
	heard := s.conn.LastHeard()
	s.work(func(ctx context.Context) func() {
		epoch, err := s.hub.reports.Claim(ctx, s.node, s.storeID)
		return func() {
			c.running = false
			if err != nil {
				s.hub.counts.unclaimed.Add(1)
				s.unclaimed(err)
				return
			}
			s.hub.counts.claimed.Add(1)
			if c.failing {
				s.log().Info("the node is claimed")
			}
			c.epoch, c.failing, s.restore.look = epoch, false, true
			c.retries.reset()
			s.lease.heard, s.lease.last = heard, time.Now() // a claim renews the lease
		}
	})
}

func (s *session) unclaimed(err error) {
	var held *report.HeldError
	if errors.As(err, &held) {
		s.end(&goodbye{wire.Goodbye_REASON_DUPLICATE, fmt.Sprintf(
			"%s; this connection comes from %s. If two machines were given one name, run \"holdfast reset\" on one and join it under another name; if this one replaces the other, stop the other, and this one is let in %s later",
			held, s.conn.RemoteAddr(), report.LeaseLife)})
		return
	}
	c := &s.claim
	s.again(&c.retries, func() { c.due = true })
	if !c.failing && c.retries.worthTelling() {
		c.failing = true
		s.log().Warn("the node cannot be claimed; its reports wait, what it must hold does not", "err", err)
	}
}

// fenced ends the session, if the error says that another one has the node.
func (s *session) fenced(err error) {
	if errors.Is(err, report.ErrFenced) {
		s.end(&goodbye{wire.Goodbye_REASON_REPLACED, fmt.Sprintf("node %s is connected to another hub: %v", s.node, err)})
	}
}

// lease renews the node's lease when the node was heard, and never otherwise.
type lease struct {
	timer   *time.Timer // nil until first needed
	armed   bool
	due     bool
	running bool
	failing bool
	last    time.Time // of the last attempt
	heard   time.Time // what conn.LastHeard was at the last success
}

// alarm is when a renewal is due that had to wait.
func (l *lease) alarm() <-chan time.Time {
	if l.timer == nil {
		return nil
	}
	return l.timer.C
}

// rest waits before the next renewal.
func (l *lease) rest(d time.Duration) {
	switch {
	case l.armed:
	case l.timer == nil:
		l.timer = time.NewTimer(d)
	default:
		l.timer.Reset(d)
	}
	l.armed = true
}

// now asks for a renewal although the last is not long ago.
func (l *lease) now() { l.last, l.heard, l.due = time.Time{}, time.Time{}, true }

const (
	// longAgo is when a node was heard so long ago that its lease may not say that
	// it is there.
	longAgo = 30 * time.Second
	// retryRenew is the wait after a renewal that failed.
	retryRenew = 3 * time.Second
)

// startRenew renews the lease if the node was heard since the last renewal, at
// most once in a while.
func (s *session) startRenew() {
	l := &s.lease
	if !l.due || l.running || s.claim.epoch == 0 {
		return
	}
	l.due = false
	heard := s.conn.LastHeard()
	if !heard.After(l.heard) || time.Since(heard) > longAgo {
		return
	}
	if rest := s.hub.timing.Renew - time.Since(l.last); rest > 0 {
		l.rest(rest)
		return
	}
	l.running, l.last = true, time.Now()
	s.work(func(ctx context.Context) func() {
		err := s.hub.reports.Renew(ctx, s.node, s.claim.epoch)
		return func() {
			l.running = false
			s.fenced(err)
			s.hub.counts.renewed(err)
			if err == nil && heard.After(l.heard) {
				l.heard = heard
			}
			if err != nil && !l.failing {
				s.log().Warn("the node's lease cannot be renewed", "err", err)
			} else if err == nil && l.failing {
				s.log().Info("the node's lease is renewed again")
			}
			l.failing = err != nil
			// What was heard meanwhile waits for the timer, and so does a failure, but
			// not as long: a node that says little leaves no time for two.
			if l.due = true; err != nil {
				l.last = time.Now().Add(retryRenew - s.hub.timing.Renew)
			}
		}
	})
}

// restore undoes what the node lifecycle controller wrote about a node that was
// silent: an edge that comes back does not repeat what has not changed.
type restore struct {
	look    bool // something may need it
	running bool
	node    string            // resource version of the Node that was dealt with
	pods    map[string]string // the same of pods, by uid
	unknown time.Time         // since when the Node is seen as given up; zero: it is not
	retries backoff
}

// lookAgain looks again later, after a failure.
func (s *session) lookAgain() {
	s.again(&s.restore.retries, func() { s.restore.look = true })
}

// fresh is how recently a node must have been heard to count as there.
const fresh = 5 * time.Second

// startRestore writes the node's conditions and its pods' Ready again.
func (s *session) startRestore() {
	r := &s.restore
	if !r.look || r.running || s.claim.epoch == 0 || !s.delivery.Asked() {
		return
	}
	r.look = false
	n := s.hub.cluster.Node(s.node)
	if n == nil {
		return
	}
	needs, known := s.hub.reports.NeedsEndpoint(n)
	if report.NeedsConditions(n) || needs {
		s.restoreNode(n)
		return
	}
	if !known {
		s.lookAgain()
	}
	r.unknown = time.Time{}
	if report.NodeReady(n) && s.delivery.Settled() {
		s.restorePods()
	}
}

func (s *session) restoreNode(n *corev1.Node) {
	r := &s.restore
	if r.unknown.IsZero() {
		r.unknown = time.Now()
	}
	heard := s.conn.LastHeard()
	if !heard.After(r.unknown) && time.Since(heard) > fresh || n.ResourceVersion == r.node {
		return
	}
	r.running = true
	s.work(func(ctx context.Context) func() {
		err := s.hub.reports.Renew(ctx, s.node, s.claim.epoch)
		if err == nil {
			err = s.hub.reports.RestoreNode(ctx, s.node, s.claim.epoch)
		}
		return func() {
			r.running, r.look = false, true
			s.fenced(err)
			if err != nil {
				s.log().Debug("the node's conditions cannot be written", "err", err)
				s.lookAgain()
				return
			}
			r.retries.reset()
			r.node = n.ResourceVersion
		}
	})
}

func (s *session) restorePods() {
	r := &s.restore
	pods, err := s.hub.cluster.Pods(s.node)
	if err != nil {
		s.log().Error("pods cannot be looked up", "err", err)
		return
	}
	var todo []*corev1.Pod
	dealt := make(map[string]string)
	for _, p := range pods {
		if !report.NeedsReady(p) {
			continue
		}
		if r.pods[string(p.UID)] == p.ResourceVersion {
			dealt[string(p.UID)] = p.ResourceVersion
			continue
		}
		todo = append(todo, p)
	}
	r.pods = dealt
	if len(todo) == 0 {
		return
	}
	r.running = true
	s.work(func(ctx context.Context) func() {
		done := make(map[string]string)
		var fenced error
		for _, p := range todo {
			err := s.hub.reports.RestoreReady(ctx, s.node, s.claim.epoch, p)
			if fenced = err; errors.Is(err, report.ErrFenced) {
				break
			}
			if err != nil {
				s.log().Debug("condition Ready of a pod cannot be written", "pod", p.Namespace+"/"+p.Name, "uid", p.UID, "err", err)
				continue
			}
			done[string(p.UID)] = p.ResourceVersion
		}
		return func() {
			r.running, r.look = false, true
			s.fenced(fenced)
			for uid, version := range done {
				r.pods[uid] = version
			}
			if len(done) < len(todo) {
				r.look = false
				s.lookAgain()
			} else {
				r.retries.reset()
			}
		}
	})
}
