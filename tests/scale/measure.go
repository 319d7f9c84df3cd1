package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// aimed is how many nodes one hub shall hold.
func aimed(transport string) int {
	if transport == "quic" {
		return 20_000
	}
	return 15_000
}

// aimedMemory is what a node at rest may take of the hub, in KiB.
func aimedMemory(transport string) int {
	if transport == "quic" {
		return 80
	}
	return 40
}

// measure takes all figures that were asked for. One that fails does not keep the
// next from being taken.
func measure(ctx context.Context, s settings, t *table) error {
	var errs []error
	do := func(what string, f func(context.Context, settings, string, *table) error, transports []string) {
		for _, transport := range transports {
			if ctx.Err() != nil {
				return
			}
			if err := f(ctx, s, transport, t); err != nil {
				err = fmt.Errorf("%s, %s: %w", transport, what, err)
				t.say("FAILED: %v", err)
				errs = append(errs, err)
			}
		}
	}
	if s.wants("memory") || s.wants("rest") || s.wants("delivery") || s.wants("status") || s.wants("resume") {
		do("fleet", fleet, s.transports)
	}
	if s.wants("line") {
		do("line", atRest, s.transports)
	}
	if s.wants("mute") {
		do("mute", besideMute, s.transports)
	}
	if s.wants("apiserver") && s.apiNodes > 0 && ctx.Err() == nil {
		if err := beforeApiserver(ctx, s, t); err != nil {
			err = fmt.Errorf("apiserver: %w", err)
			t.say("FAILED: %v", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, context.Cause(ctx))...)
}

// fleet measures a hub with all its nodes.
func fleet(ctx context.Context, s settings, transport string, t *table) error {
	nodes := s.nodes
	if nodes == 0 {
		nodes = aimed(transport)
	}
	t.say("%s: a hub and %s nodes", transport, count(nodes))
	site, err := open(ctx, transport, nodes, s.pods, usualKeepAlive, s.profiles != "")
	if err != nil {
		return err
	}
	defer site.close()
	began := time.Now()
	if err := grow(ctx, s, site, t); err != nil {
		return err
	}
	t.add(transport+": nodes held at once", count(site.started), "at least "+count(aimed(transport)))
	t.say("%s: all nodes came in %s", transport, time.Since(began).Round(time.Second))
	for _, part := range []struct {
		figure string
		take   func(context.Context, settings, *stage, *table) error
	}{{"rest", rest}, {"resume", resumption}, {"delivery", delivery}, {"status", status}} {
		if s.wants(part.figure) {
			if err := part.take(ctx, s, site, t); err != nil {
				return fmt.Errorf("%s: %w", part.figure, err)
			}
		}
	}
	return nil
}

// grow connects the nodes, a quarter at a time if memory is asked for, and works
// out what each takes.
func grow(ctx context.Context, s settings, stage *stage, t *table) error {
	parts := 1
	if s.wants("memory") {
		parts = 4
	}
	var points []hubMemory
	for part := range parts + 1 {
		if part > 0 {
			if err := stage.connect(ctx, part, parts); err != nil {
				return err
			}
		}
		if err := pause(ctx, 2*time.Second); err != nil { // what connecting left behind
			return err
		}
		m, err := call[hubMemory](ctx, stage.hub, "memory", none{})
		if err != nil {
			return err
		}
		if m.Connected != stage.started {
			return fmt.Errorf("the hub counts %d nodes, %d are in sync", m.Connected, stage.started)
		}
		t.say("%s: %6d nodes: resident %s, after a collection %s, of it live heap %s and stacks %s; %.1f goroutines a node", stage.transport, m.Connected,
			mib(m.Found), mib(m.Resident), mib(m.Heap), mib(m.Stacks), float64(m.Goroutines)/float64(max(1, m.Connected)))
		points = append(points, m)
	}
	if s.profiles != "" {
		if _, err := call[none](ctx, stage.hub, "profile", profileArgs{s.profiles + stage.transport}); err != nil {
			return err
		}
	}
	if s.wants("memory") {
		first, last := points[0], points[parts]
		n := float64(last.Connected - first.Connected)
		aim := fmt.Sprintf("at most %d KiB", aimedMemory(stage.transport))
		t.add(stage.transport+": memory of a node at rest, as the OS counts it", kib(float64(last.Resident-first.Resident)/n), aim)
		t.add(stage.transport+": of it live heap and stacks", kib(float64(last.Live()-first.Live())/n), "")
		t.add(stage.transport+": the OS's count for the last quarter, for each node", kib(float64(last.Resident-points[parts-1].Resident)/float64(last.Connected-points[parts-1].Connected)), "")
	}
	return nil
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }

// rest watches the CPU while nothing happens but keepalives and leases.
func rest(ctx context.Context, s settings, stage *stage, t *table) error {
	t.say("%s: nothing happens for %s", stage.transport, s.watch)
	if err := pause(ctx, min(5*time.Second, s.watch)); err != nil {
		return err
	}
	edgesBefore, err := stage.state(ctx)
	if err != nil {
		return err
	}
	before, err := stage.hubState(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, s.watch); err != nil {
		return err
	}
	after, err := stage.hubState(ctx)
	if err != nil {
		return err
	}
	share := float64(after.CPU-before.CPU) / float64(time.Since(began)) / float64(stage.started) * 1000 * 100
	t.add(stage.transport+": CPU for 1,000 nodes at rest", fmt.Sprintf("%.2f %% of a core", share), "")
	found, err := call[hubMemory](ctx, stage.hub, "memory", none{})
	if err != nil {
		return err
	}
	t.say("%s: resident after the rest %s, after a collection %s", stage.transport, mib(found.Found), mib(found.Resident))
	edges, err := stage.state(ctx)
	if err != nil {
		return err
	}
	if lost := edges.Sessions - edgesBefore.Sessions; edges.Synced != stage.started || lost > 0 {
		return fmt.Errorf("of %d nodes %d are in sync, after %d further connections (%s)", stage.started, edges.Synced, lost, edges.Trouble)
	}
	return nil
}

// delivery changes objects.
func delivery(ctx context.Context, s settings, stage *stage, t *table) error {
	t.say("%s: %d changes a second for %s; the generator and the edges run on the same cores", stage.transport, s.rate, s.deliver)
	l, err := stage.deliver(ctx, s.rate, s.deliver)
	if err != nil {
		return err
	}
	t.add(fmt.Sprintf("%s: a changed object, from the hub's source to the edge's commit, p50", stage.transport), ms(l.p50), "")
	t.add(fmt.Sprintf("%s: the same, p99", stage.transport), ms(l.p99), "under 100 ms")
	t.say("%s: %d changes were made, %d arrived, the slowest after %s", stage.transport, l.made, l.arrived, ms(l.max))
	return nil
}

// reporters is how many nodes report without a pause.
const reporters = 1000

// status lets nodes report.
func status(ctx context.Context, s settings, stage *stage, t *table) error {
	n := min(reporters, stage.started)
	t.say("%s: %d nodes report the status of %d pods each, again and again, for %s", stage.transport, n, s.pods, s.report)
	perSecond, err := stage.report(ctx, n, s.report)
	if err != nil {
		return err
	}
	t.add(stage.transport+": acknowledged status updates a second (no apiserver behind)", count(int(perSecond)), "")
	return pause(ctx, time.Second) // the last ones
}

// resumption kills the hub.
func resumption(ctx context.Context, s settings, stage *stage, t *table) error {
	t.say("%s: kill -9 of the hub with %s nodes", stage.transport, count(stage.started))
	c, err := stage.restart(ctx)
	if err != nil {
		return err
	}
	t.add(fmt.Sprintf("%s: %s nodes back after a kill -9 of the hub", stage.transport, count(stage.started)), fmt.Sprintf("%.1f s", c.took.Seconds()), "under 60 s")
	t.add(stage.transport+": messages of a node that comes back unchanged, both ways", fmt.Sprintf("%.0f B, at most %d B", c.messages, c.heaviest), "under 1 KB")
	t.add(stage.transport+": the rest of it: TLS, TCP or UDP, IP", fmt.Sprintf("%.0f B", c.wire-c.messages), "")
	t.say("%s: %.1f s after the next hub listened, in %d connections", stage.transport, c.fromReady.Seconds(), c.sessions)
	return nil
}

// restFactor is how many times faster keepalives go while bytes are counted: the
// hub's own come but every five minutes, and all that happens on a line at rest
// follows from the keepalive's interval.
const restFactor = 20

// atRest counts the bytes of a line at rest.
func atRest(ctx context.Context, s settings, transport string, t *table) error {
	const nodes = 100
	stage, err := open(ctx, transport, nodes, s.pods, usualKeepAlive/restFactor, false)
	if err != nil {
		return err
	}
	defer stage.close()
	period := 10 * usualKeepAlive / restFactor // of the hub's ping
	t.say("%s: %d nodes at rest for %s, with keepalives %d times as often as usual", transport, nodes, 2*period, restFactor)
	if err := stage.connect(ctx, 1, 1); err != nil {
		return err
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	before, err := loopback()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, 2*period); err != nil {
		return err
	}
	after, err := loopback()
	if err != nil {
		return err
	}
	days := float64(time.Since(began)) * restFactor / float64(24*time.Hour)
	perDay := float64(after-before) / nodes / days / 1e6
	t.add(transport+": bytes of a node at rest, IP packets both ways", fmt.Sprintf("%.2f MB a day", perDay), "at most 0.5 MB a day")
	return nil
}

// besideMute measures delivery with and without connections that never speak, and
// lets further nodes come while there are some.
func besideMute(ctx context.Context, s settings, transport string, t *table) error {
	t.say("%s: %d nodes beside %s connections that never speak", transport, s.muteNodes, count(s.mute))
	site, err := open(ctx, transport, s.muteNodes, s.pods, usualKeepAlive, false)
	if err != nil {
		return err
	}
	defer site.close()
	if err := site.connect(ctx, 9, 10); err != nil {
		return err
	}
	working := site.started
	alone, err := site.deliver(ctx, s.rate, s.deliver)
	if err != nil {
		return err
	}
	memory, err := call[hubMemory](ctx, site.hub, "memory", none{})
	if err != nil {
		return err
	}
	mute, err := spawn("mute", "those who never speak")
	if err != nil {
		return err
	}
	defer mute.kill()
	if _, err := call[none](ctx, mute, "setup", muteSetup{site.ca.CertPEM, site.address, transport, s.mute}); err != nil {
		return err
	}
	beside, err := site.deliver(ctx, s.rate, s.deliver)
	if err != nil {
		return err
	}
	began := time.Now()
	const latecomers = 30 * time.Second
	late := site.connectBy(ctx, 10, 10, latecomers)
	if late != nil {
		t.say("%s: not all further nodes came in %s: %v", transport, latecomers, late)
	}
	came := time.Since(began)
	found, err := resident(site.hub.cmd.Process.Pid)
	if err != nil {
		return err
	}
	state, err := call[muteState](ctx, mute, "state", none{})
	if err != nil {
		return err
	}
	edges, err := site.state(ctx)
	if err != nil {
		return err
	}
	t.add(fmt.Sprintf("%s: p99 of delivery, %d nodes alone", transport, working), ms(alone.p99), "")
	t.add(fmt.Sprintf("%s: the same beside %s connections that never speak", transport, count(s.mute)), ms(beside.p99), "as alone")
	t.add(fmt.Sprintf("%s: of %d further nodes came beside them", transport, site.started-working),
		fmt.Sprintf("%d in %.1f s", edges.Synced-working, came.Seconds()), "all")
	t.say("%s: %s of them waited at the end, %s were made, the hub had closed %s; its memory went from %s to %s", transport,
		count(int(state.Open)), count(int(state.Made)), count(int(state.Closed)), mib(memory.Resident), mib(found))
	if edges.Synced < working {
		return fmt.Errorf("of %d working nodes %d are in sync (%s)", working, edges.Synced, edges.Trouble)
	}
	return nil
}

// keyPEM encodes a private key.
func keyPEM(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the hub's key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
