package main

import (
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// perProcess is how many edges one process holds: a process here may open 20,000
// files, and an edge on QUIC has a socket of its own.
const perProcess = 5000

// stage is one hub with its edges.
type stage struct {
	transport string
	nodes     int

	ca      *pki.CA
	setup   hubSetup
	address string
	hub     *child
	edges   []*child
	sizes   []int // of the edges' processes
	started int
}

// open starts the hub and the processes of edges; no edge connects yet.
func open(ctx context.Context, transport string, nodes, pods int, keepAlive time.Duration, profile bool) (s *stage, err error) {
	s = &stage{transport: transport, nodes: nodes}
	s.setup.Profile = profile
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.makeIdentity(); err != nil {
		return s, err
	}
	s.setup.Listen, s.setup.Nodes, s.setup.Pods, s.setup.KeepAlive = "127.0.0.1:0", nodes, pods, keepAlive
	if err := s.startHub(ctx); err != nil {
		return s, err
	}
	s.setup.Listen, s.setup.Lazy = s.address, true // for its next lives
	return s, s.startEdges(ctx, edgesSetup{
		CACert: s.ca.CertPEM, CAKey: s.ca.KeyPEM, Hub: s.address, Transport: transport, Pods: pods, KeepAlive: keepAlive,
	})
}

// makeIdentity makes the CA, the hub's certificate and what else outlives a hub.
func (s *stage) makeIdentity() error {
	var err error
	if s.ca, err = pki.NewCA("scale"); err != nil {
		return err
	}
	serving, err := s.ca.SignServer([]string{"127.0.0.1"}, pki.ServerTTL)
	if err != nil {
		return err
	}
	s.setup.CA = s.ca.CertPEM
	for _, der := range serving.Certificate {
		s.setup.Cert = append(s.setup.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	s.setup.Key, err = keyPEM(serving.PrivateKey)
	_, _ = rand.Read(s.setup.ResetKey[:]) // never fails
	return err
}

func (s *stage) startHub(ctx context.Context) error {
	var err error
	if s.hub, err = spawn("hub", "the hub"); err != nil {
		return err
	}
	at, err := call[hubAt](ctx, s.hub, "setup", s.setup)
	s.address = at.Address
	return err
}

func (s *stage) startEdges(ctx context.Context, setup edgesSetup) error {
	processes := (s.nodes + perProcess - 1) / perProcess
	for n := range processes {
		c, err := spawn("edges", fmt.Sprintf("edges %d", n+1))
		if err != nil {
			return err
		}
		first := s.nodes * n / processes
		size := s.nodes*(n+1)/processes - first
		s.edges, s.sizes = append(s.edges, c), append(s.sizes, size)
		setup.First, setup.Count = first, size
		if _, err := call[none](ctx, c, "setup", setup); err != nil {
			return err
		}
	}
	return nil
}

// close ends all processes.
func (s *stage) close() {
	all := slices.Clone(s.edges)
	if s.hub != nil {
		all = append(all, s.hub)
	}
	var group errgroup.Group
	for _, c := range all {
		group.Go(func() error {
			c.kill()
			return nil
		})
	}
	_ = group.Wait()
}

// each asks all processes of edges at once.
func each[R any](ctx context.Context, s *stage, do string, args func(n int) any) ([]R, error) {
	results := make([]R, len(s.edges))
	group, ctx := errgroup.WithContext(ctx)
	for n, c := range s.edges {
		group.Go(func() error {
			var err error
			results[n], err = call[R](ctx, c, do, args(n))
			return err
		})
	}
	return results, group.Wait()
}

// connectWithin bounds the coming of all nodes of a fleet.
const connectWithin = 5 * time.Minute

// connect lets part/parts of all nodes run, and returns when they are in sync.
func (s *stage) connect(ctx context.Context, part, parts int) error {
	return s.connectBy(ctx, part, parts, connectWithin)
}

func (s *stage) connectBy(ctx context.Context, part, parts int, within time.Duration) error {
	s.started = 0
	for _, size := range s.sizes {
		s.started += size * part / parts
	}
	_, err := each[none](ctx, s, "start", func(n int) any { return startArgs{s.sizes[n] * part / parts, within} })
	if err != nil {
		return fmt.Errorf("connect the edges: %w", err)
	}
	return nil
}

// state sums up what all edges say.
func (s *stage) state(ctx context.Context) (edgesState, error) {
	var sum edgesState
	states, err := each[edgesState](ctx, s, "state", func(int) any { return none{} })
	for _, one := range states {
		sum.Synced += one.Synced
		sum.Sessions += one.Sessions
		sum.Sent += one.Sent
		sum.Received += one.Received
		sum.Acknowledged += one.Acknowledged
		sum.Applied += one.Applied
		sum.Heaviest = max(sum.Heaviest, one.Heaviest)
		if one.LastSynced.After(sum.LastSynced) {
			sum.LastSynced = one.LastSynced
		}
		if one.Trouble != "" {
			sum.Trouble = one.Trouble
		}
	}
	return sum, err
}

func (s *stage) hubState(ctx context.Context) (hubState, error) {
	return call[hubState](ctx, s.hub, "state", none{})
}

// latency is what a changed object took from the hub's source to an edge's commit.
type latency struct {
	made, arrived int
	p50, p99, max time.Duration
}

// deliver changes objects at that rate for a while.
func (s *stage) deliver(ctx context.Context, rate int, during time.Duration) (latency, error) {
	if _, err := s.latencies(ctx); err != nil { // of before
		return latency{}, err
	}
	done, err := call[changeDone](ctx, s.hub, "change", changeArgs{rate, during})
	if err != nil {
		return latency{}, err
	}
	l := latency{made: done.Made}
	var all []time.Duration
	// What is on its way arrives. An object that changed twice before it was sent
	// comes once, so not all need come.
	for quiet := 0; quiet < 10; quiet++ {
		some, err := s.latencies(ctx)
		if err != nil {
			return l, err
		}
		if all = append(all, some...); len(all) >= done.Made {
			break
		}
		if len(some) > 0 {
			quiet = 0
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return l, err
		}
	}
	if l.arrived = len(all); l.arrived == 0 {
		return l, errors.New("no changed object arrived at any edge")
	}
	slices.Sort(all)
	at := func(q float64) time.Duration { return all[min(len(all)-1, int(q*float64(len(all))))] }
	l.p50, l.p99, l.max = at(0.5), at(0.99), all[len(all)-1]
	return l, nil
}

func (s *stage) latencies(ctx context.Context) ([]time.Duration, error) {
	parts, err := each[[]time.Duration](ctx, s, "latencies", func(int) any { return none{} })
	return slices.Concat(parts...), err
}

// report lets some edges report without a pause, each the statuses of its pods.
func (s *stage) report(ctx context.Context, edges int, during time.Duration) (perSecond float64, err error) {
	results, err := each[reported](ctx, s, "report", func(int) any { return reportArgs{edges / len(s.edges), during} })
	for _, r := range results {
		perSecond += float64(r.Acknowledged) / r.Took.Seconds()
	}
	return perSecond, err
}

// comeback is how all nodes came back to a hub that was killed.
type comeback struct {
	took, fromReady time.Duration // since the kill, and since the next hub listened
	messages        float64       // bytes of messages both ways, for each node
	heaviest        uint64        // the most of them on one connection
	wire            float64       // bytes of IP packets both ways, for each node
	sessions        uint64        // connections that it took
}

// restart kills the hub, starts the next one, and waits until all nodes are in
// sync with it.
func (s *stage) restart(ctx context.Context) (comeback, error) {
	var c comeback
	before, err := s.state(ctx)
	if err != nil {
		return c, err
	}
	wireBefore, err := loopback()
	if err != nil {
		return c, err
	}
	killed := time.Now()
	s.hub.kill()
	if err := s.startHub(ctx); err != nil {
		return c, err
	}
	ready := time.Now()
	after, err := s.allBack(ctx, before.Sessions)
	if err != nil {
		return c, err
	}
	wireAfter, err := loopback()
	if err != nil {
		return c, err
	}
	n := float64(s.started)
	c.took, c.fromReady = after.LastSynced.Sub(killed), after.LastSynced.Sub(ready)
	c.messages = float64(after.Sent+after.Received-before.Sent-before.Received) / n
	c.wire = float64(wireAfter-wireBefore) / n
	c.heaviest, c.sessions = after.Heaviest, after.Sessions-before.Sessions
	return c, nil
}

// allBack waits until every node has a session with the hub that runs now.
func (s *stage) allBack(ctx context.Context, sessions uint64) (edgesState, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("5 minutes are over"))
	defer cancel()
	var last string
	for {
		edges, err := s.state(ctx)
		if err == nil {
			var hub hubState
			hub, err = s.hubState(ctx)
			last = fmt.Sprintf("%d of %d nodes are back, the hub counts %d (%s)", edges.Synced, s.started, hub.Connected, edges.Trouble)
			if err == nil && edges.Synced == s.started && hub.Connected == s.started && edges.Sessions >= sessions+uint64(s.started) {
				return edges, nil
			}
		}
		if err == nil {
			err = pause(ctx, 200*time.Millisecond)
		}
		if err != nil {
			return edges, fmt.Errorf("wait for the nodes to come back to the hub: %s: %w", last, err)
		}
	}
}

// usualKeepAlive is the timing of a node whose config says nothing.
const usualKeepAlive = link.DefaultKeepAlive
