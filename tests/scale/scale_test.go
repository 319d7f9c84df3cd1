package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestMain plays the roles of this program's children: the test's binary is
// started again for each.
func TestMain(m *testing.M) {
	if played, err := playRole(context.Background()); played {
		if err != nil {
			fmt.Fprintln(os.Stderr, "scale:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestASmallFleetIsHeldToTheEnd takes every figure of a small fleet but the bytes
// on the wire, and asks whether all arrived, not how fast.
func TestASmallFleetIsHeldToTheEnd(t *testing.T) {
	for _, transport := range []string{"websocket", "quic"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			const nodes, pods = 25, 2
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			// Edges on QUIC find out that a hub was killed when they next speak.
			s, err := open(ctx, transport, nodes, pods, 2*time.Second, false)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.close)
			for part := range 2 {
				if err := s.connect(ctx, part+1, 2); err != nil {
					t.Fatal(err)
				}
			}
			state, err := s.state(ctx)
			if err != nil {
				t.Fatal(err)
			}
			// Its pods, its Node and the ConfigMap, each once.
			if want := uint64(nodes * (pods + 2)); state.Synced != nodes || state.Applied != want {
				t.Errorf("%d of %d nodes hold %d objects, want %d", state.Synced, nodes, state.Applied, want)
			}
			m, err := call[hubMemory](ctx, s.hub, "memory", none{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Connected != nodes || m.Resident < m.Live() || m.Live() <= 0 {
				t.Errorf("the hub with %d nodes says: %+v", nodes, m)
			}
			back, err := s.restart(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if back.messages <= 0 || back.heaviest >= 1000 {
				t.Errorf("coming back unchanged took %.0f bytes of messages on average, %d at most; want less than 1,000", back.messages, back.heaviest)
			}
			l, err := s.deliver(ctx, 200, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			// An object that changes twice before it is sent arrives once.
			if l.made != 200 || l.arrived == 0 || l.arrived > l.made || l.p50 <= 0 || l.p50 > l.p99 || l.p99 > l.max {
				t.Errorf("delivery: %+v", l)
			}
			perSecond, err := s.report(ctx, nodes, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if perSecond <= 0 {
				t.Error("no status was acknowledged")
			}
			after, err := s.state(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if after.Synced != nodes || after.Applied != state.Applied+uint64(l.arrived) {
				t.Errorf("%d objects were applied before %d changed: at the end %+v", state.Applied, l.arrived, after)
			}
		})
	}
}

// TestThoseWhoNeverSpeakKeepNobodyOut lets a fleet come while others hold
// connections and half-made handshakes.
func TestThoseWhoNeverSpeakKeepNobodyOut(t *testing.T) {
	for _, transport := range []string{"websocket", "quic"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			const nodes, silent = 10, 300
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			s, err := open(ctx, transport, nodes, 1, usualKeepAlive, false)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.close)
			mute, err := spawn("mute", "those who never speak")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(mute.kill)
			if _, err := call[none](ctx, mute, "setup", muteSetup{s.ca.CertPEM, s.address, transport, silent}); err != nil {
				t.Fatal(err)
			}
			if err := s.connect(ctx, 1, 1); err != nil {
				t.Fatal(err)
			}
			if l, err := s.deliver(ctx, 50, time.Second); err != nil || l.arrived == 0 {
				t.Errorf("delivery: %+v, %v", l, err)
			}
			state, err := call[muteState](ctx, mute, "state", none{})
			if err != nil {
				t.Fatal(err)
			}
			if state.Made < silent {
				t.Errorf("only %d connections were made", state.Made)
			}
		})
	}
}

func TestAChangeBearsItsTime(t *testing.T) {
	s, err := newSource(1, 2, false)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 123456789)
	if err := s.change(nodeName(0), 1, at); err != nil {
		t.Fatal(err)
	}
	for i, want := range []time.Time{{}, at} {
		o, err := s.nodes[nodeName(0)].items[i].Object()
		if err != nil {
			t.Fatal(err)
		}
		if got := changeTime(o); !got.Equal(want) {
			t.Errorf("pod %d bears %v, want %v", i, got, want)
		}
	}
	if got := changeTime(&wire.Object{Payload: []byte(changedAt)}); !got.IsZero() {
		t.Errorf("half a change bears %v", got)
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	for args, want := range map[string]string{
		"--transport tcp":         "websocket, quic or both",
		"--figures cpu":           "no figure",
		"--nodes -1":              "count from one",
		"--quick --nodes 7":       "",
		"--figures rest,mute":     "",
		"--transport quic":        "",
		"--api-nodes 200 -pods 1": "",
	} {
		_, err := parse(strings.Fields(args), new(bytes.Buffer))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestTheTableShowsEachFigureBesideItsAim(t *testing.T) {
	var out bytes.Buffer
	table := &table{out: &out, began: time.Now()}
	table.add("nodes", count(15000), "20,000")
	table.add("latency", ms(1500*time.Microsecond), "")
	table.print("On a machine.")
	for _, want := range []string{"| nodes   | 15,000   | 20,000 |", "| latency | 1.5 ms   |  |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}
