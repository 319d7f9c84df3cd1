package show

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

var update = flag.Bool("update", false, "write what is shown into testdata")

// golden compares what is written with a file in testdata, that people can read.
func golden(t *testing.T, name string, write func(io.Writer) error) {
	t.Helper()
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("shown:\n%s\nwant (go test -update writes it):\n%s", out.String(), want)
	}
}

func now() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

func before(d time.Duration) *time.Time {
	t := now().Add(-d)
	return &t
}

const day24 = 24 * time.Hour

func code(n int32) *int32 { return &n }

// node is an edge node that has been away from its hub for a while.
func node() localstatus.Status {
	return localstatus.Status{
		Node: "pi-7", Version: "v0.5.0", Started: *before(3 * day24), Now: now(), Ready: true, NodeReported: false,
		Line: localstatus.Line{Since: *before(12 * time.Minute), Hub: "hub.example.test:10350", Transport: "quic", LastError: "the other side fell silent"},
		Pods: []localstatus.PodSummary{
			{Namespace: "shop", Name: "sensor", Phase: "Running", Restarts: 4, Reason: "CrashLoopBackOff", Started: before(2 * time.Hour), Containers: []localstatus.Container{
				{Name: "main", State: localstatus.StateWaiting, Reason: "CrashLoopBackOff", Restarts: 4, Image: "example.test/sensor:2", ID: "0123456789abcdef", Last: &localstatus.Ending{Reason: "OOMKilled", ExitCode: 137, At: before(30 * time.Second)}},
				{Name: "side", State: localstatus.StateRunning, Ready: true, Image: "example.test/side:1", ID: "fedcba9876543210", Started: before(2 * time.Hour)},
			}},
			{Namespace: "shop", Name: "till", Phase: "Running", Ready: true, Created: before(5 * day24), Started: before(4 * day24), Containers: []localstatus.Container{
				{Name: "setup", Kind: localstatus.KindInit, State: localstatus.StateExited, Reason: "Completed", ExitCode: code(0), Image: "example.test/till:1", ID: "aaaaaaaaaaaaaaaa", Finished: before(4 * day24)},
				{Name: "main", State: localstatus.StateRunning, Ready: true, Image: "example.test/till:1", ID: "bbbbbbbbbbbbbbbb", Started: before(4 * day24)},
			}},
			{Namespace: "jobs", Name: "count", Phase: "Failed", Containers: []localstatus.Container{
				{Name: "main", State: localstatus.StateExited, Reason: "Error", ExitCode: code(3), Image: "example.test/count:1", ID: "cccccccccccccccc", Finished: before(time.Hour)},
			}},
			{Namespace: "jobs", Name: "unseen"},
		},
		Images: localstatus.Images{Bytes: 34 << 20, List: []localstatus.Image{
			{ID: "sha256:1", Names: []string{"example.test/till:1", "example.test/till@sha256:1"}, Bytes: 30 << 20, Containers: 2, Pinned: true},
			{ID: "sha256:2", Bytes: 4 << 20},
		}},
		Outbox:  15,
		Waiting: localstatus.Waiting{Reports: map[string]int64{"podStatus": 3, "event": 11, "node": 1}, Values: 120, Messages: 1, Oldest: before(11 * time.Minute)},
		Store: localstatus.Store{Path: "/var/lib/holdfast/edge/store.db", Bytes: 1<<20 + 300<<10, Objects: 9, Kinds: map[string]int64{"pods": 4, "configMaps": 5},
			EventsDropped: 2, Copied: before(40 * time.Minute), SyncedOnce: true},
		Certificate: localstatus.Certificate{State: localstatus.CertificateValid, Node: "pi-7", Issued: *before(100 * day24), RenewalDue: now().Add(140 * day24), Ends: now().Add(265 * day24)},
		Clock:       localstatus.Clock{System: now(), Hub: before(0)},
		Disk:        localstatus.Disk{Path: "/var/lib/holdfast/edge", Bytes: 29 << 30, Free: 12 << 30, Reserve: 2 << 20},
		Runtime:     localstatus.Runtime{Endpoint: "unix:///run/containerd/containerd.sock", Name: "containerd", Version: "1.7.24", Answers: true, Ready: true},
	}
}

func TestANodeThatIsAway(t *testing.T) {
	golden(t, "away", func(w io.Writer) error { return Edge(w, node()) })
}

func TestANodeInTrouble(t *testing.T) {
	s := node()
	s.Ready, s.ReadyReason = false, "the container runtime does not answer"
	s.Line = localstatus.Line{Connected: true, Since: *before(3 * time.Hour), Hub: "hub.example.test:10350", Transport: "websocket", RTTMillis: 48.4,
		Session: localstatus.Bytes{Sent: 300 << 10, Received: 5 << 20}, Sessions: 22}
	s.Pods, s.Images = nil, localstatus.Images{Problem: "no answer within 2s"}
	s.Outbox, s.Waiting = 0, localstatus.Waiting{}
	s.Store.SyncedOnce, s.Store.Copied, s.Store.Recovery, s.Store.EventsDropped = false, nil, "the database was damaged; there was no good copy, so it began empty", 0
	s.Certificate = localstatus.Certificate{State: localstatus.CertificateEnded, Ends: *before(3 * day24)}
	s.Clock = localstatus.Clock{System: time.Unix(60, 0), Hub: before(0), OffSeconds: time.Unix(60, 0).Sub(now()).Seconds(), Behind: true}
	s.Disk.Problem = "no answer within 2s"
	s.Runtime = localstatus.Runtime{Endpoint: "unix:///run/containerd/containerd.sock", Problem: "no answer within 2s"}
	golden(t, "trouble", func(w io.Writer) error { return Edge(w, s) })
}

func TestALineThatIsHeldDown(t *testing.T) {
	s := node()
	s.Line.HeldUntil = now().Add(4 * time.Minute)
	var out bytes.Buffer
	if err := Edge(&out, s); err != nil || !strings.Contains(out.String(), "on purpose for another 4m") || strings.Contains(out.String(), "silent") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestContainers(t *testing.T) {
	s := node()
	golden(t, "ps", func(w io.Writer) error { return Containers(w, s, s.Pods) })
}

func fleetOf() fleet.Fleet {
	return fleet.Fleet{
		Hub: "hub-a", Version: "v0.5.0", Started: *before(3 * day24), Now: now(), Complete: true,
		Counts: fleet.Counts{All: 3, Connected: 2, Here: 1, Offline: 1, NotOfflineReady: 1}, Matched: 3,
		Nodes: []fleet.Node{
			{Name: "pi-1", Ready: "True", Hub: "hub-a", Connected: true, LastSeen: before(4 * time.Second), Since: before(3 * time.Hour), Transport: "quic", Remote: "192.0.2.7:4711",
				RTTMillis: 12.3, BytesToday: fleet.Bytes{Down: 1 << 20, Up: 300 << 10}, OfflineReady: "True", Pods: fleet.PodCount{Total: 5, Ready: 5}, Version: "v0.5.0",
				Kubelet: "v1.36.3", Runtime: "containerd://1.7.24", OS: "Debian 12", Arch: "arm64"},
			{Name: "pi-2", Ready: "True", Hub: "hub-b", Connected: true, LastSeen: before(20 * time.Second), Since: before(time.Minute), OfflineReady: "False", OfflineReadyReason: "ImagesMissing",
				Pods: fleet.PodCount{Unknown: true}, Version: "v0.5.0"},
			{Name: "pi-3", Ready: "Unknown", Hub: "hub-a", LastSeen: before(12 * time.Minute), Since: before(12 * time.Minute), Pods: fleet.PodCount{Total: 3}, Version: "v0.4.1"},
		},
	}
}

func TestTheFleet(t *testing.T) {
	golden(t, "fleet", func(w io.Writer) error { return Fleet(w, fleetOf()) })
	golden(t, "fleet-empty", func(w io.Writer) error {
		return Fleet(w, fleet.Fleet{Hub: "hub-a", Version: "v0.5.0", Started: *before(time.Minute), Now: now(), Complete: true})
	})
}

func TestOneNodeOfTheFleet(t *testing.T) {
	d := fleet.Detail{
		Node:       fleetOf().Nodes[0],
		Conditions: []fleet.Condition{{Type: "Ready", Status: "True", Reason: "EdgecoreReady", Message: "edgecore is ready", Since: *before(3 * time.Hour)}},
		PodList:    []fleet.Pod{{Namespace: "shop", Name: "till", Phase: "Running", Ready: true, Containers: []string{"main", "side"}}, {Namespace: "shop", Name: "x", Phase: "Pending", Reason: "ErrImagePull", Restarts: 2, Containers: []string{"main"}}},
		Line:       []fleet.Span{{From: *before(5 * time.Hour), To: before(3 * time.Hour)}, {From: *before(3 * time.Hour), Connected: true, Transport: "quic"}},
		Events:     []fleet.Event{{At: *before(time.Minute), Type: "Warning", Object: "Pod/shop/x", Reason: "Failed", Message: "no such image", Count: 7}},
		Remarks:    []string{"the events were not read"},
	}
	golden(t, "node", func(w io.Writer) error { return Node(w, d, now()) })
	gone := fleetOf().Nodes[2]
	golden(t, "node-away", func(w io.Writer) error { return Node(w, fleet.Detail{Node: gone}, now()) })
}

// TestNothingThatAPodSaysReachesTheTerminalAsACommand: and no cell breaks the table.
func TestNothingThatAPodSaysReachesTheTerminalAsACommand(t *testing.T) {
	s := node()
	s.Pods[0].Reason = "\x1b[2Jgone\n\tand\rmore" + strings.Repeat("x", 1000)
	var out bytes.Buffer
	if err := Edge(&out, s); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\r") || !strings.Contains(out.String(), "?[2Jgone  and?more") || strings.Contains(out.String(), strings.Repeat("x", maxCell)) {
		t.Errorf("%q", out.String())
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 200 << 10: "200 KiB", 1020 << 10: "1.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d bytes are shown as %q, want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 21: "21st", 113: "113th"} {
		if got := ordinal(n); got != want {
			t.Errorf("%d is the %q, want %q", n, got, want)
		}
	}
	for ms, want := range map[float64]string{0: "-", 0.34: "0.3 ms", 48.4: "48 ms"} {
		if got := millis(ms); got != want {
			t.Errorf("%g ms are shown as %q, want %q", ms, got, want)
		}
	}
	if got := age(time.Unix(60, 0), now()); got != "?" {
		t.Errorf("the age of what a clock that was not set dated: %q", got)
	}
}
