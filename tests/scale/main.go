// Command scale measures a hub with thousands of simulated edges: the real
// cloud/hub behind the real links in a process of its own, and in others the real
// edge/uplink with a certificate and a connection for each edge, a store in memory
// and a fake runtime. It prints figures with the aims beside them. A person runs
// it (`make bench-scale`, as root); its own test runs it small. It never touches a
// network but the loopback of a namespace of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// settings are what a run measures, and how large it is.
type settings struct {
	nodes      int // 0: the aims'
	transports []string
	figures    []string
	pods       int
	rate       int           // changes a second
	watch      time.Duration // how long the CPU is watched at rest
	deliver    time.Duration // how long objects change
	report     time.Duration // how long nodes report
	mute       int           // connections that never speak
	muteNodes  int           // nodes that work beside them
	apiNodes   int           // nodes of a real cloudcore before a real apiserver
	profiles   string        // prefix of the hub's profiles; empty: none
}

// allFigures lists what can be asked for.
func allFigures() []string {
	return []string{"memory", "rest", "delivery", "status", "resume", "line", "mute", "apiserver"}
}

func (s settings) wants(figure string) bool { return slices.Contains(s.figures, figure) }

func parse(args []string, out io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	flags.SetOutput(out)
	transport := flags.String("transport", "both", "websocket, quic or both")
	figures := flags.String("figures", strings.Join(allFigures(), ","), "which figures, a `list`")
	quick := flags.Bool("quick", false, "1,000 nodes and short looks: under two minutes")
	flags.IntVar(&s.nodes, "nodes", 0, "nodes (default 15,000 on websocket and 20,000 on QUIC)")
	flags.IntVar(&s.pods, "pods", 5, "pods of each node")
	flags.IntVar(&s.rate, "rate", 1000, "changes a second over all nodes")
	flags.DurationVar(&s.watch, "watch", time.Minute, "how long the CPU is watched at rest")
	flags.IntVar(&s.mute, "mute", 10_000, "connections that never speak")
	flags.IntVar(&s.apiNodes, "api-nodes", 1000, "nodes of a real cloudcore before a real apiserver")
	flags.StringVar(&s.profiles, "profiles", "", "write profiles of the hub with all its nodes to files with this `prefix`")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	s.deliver, s.report, s.muteNodes = 20*time.Second, 10*time.Second, 1000
	switch *transport {
	case "both":
		s.transports = []string{"websocket", "quic"}
	case "websocket", "quic":
		s.transports = []string{*transport}
	default:
		return s, fmt.Errorf("--transport %q: want websocket, quic or both", *transport)
	}
	s.figures = strings.Split(*figures, ",")
	for _, f := range s.figures {
		if !slices.Contains(allFigures(), f) {
			return s, fmt.Errorf("--figures: no figure %q; there are %s", f, strings.Join(allFigures(), ", "))
		}
	}
	if *quick {
		s.watch, s.deliver, s.report, s.muteNodes = 5*time.Second, 5*time.Second, 3*time.Second, 300
		set := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
		if !set["nodes"] {
			s.nodes = 1000
		}
		if !set["mute"] {
			s.mute = 2000
		}
		if !set["figures"] {
			s.figures = []string{"memory", "rest", "delivery", "status", "resume", "mute"}
		}
	}
	if s.nodes < 0 || s.pods < 1 || s.rate < 1 || s.watch <= 0 || s.mute < 0 || s.apiNodes < 0 {
		return s, errors.New("--nodes, --pods, --rate, --watch, --mute and --api-nodes count from one")
	}
	return s, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	played, err := playRole(ctx)
	if !played {
		err = conduct(ctx, os.Args[1:])
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func conduct(ctx context.Context, args []string) error {
	s, err := parse(args, os.Stdout)
	if err != nil {
		return err
	}
	// The loopback's counters, its ports and its processes are then ours alone.
	if err := world.Enter(); err != nil {
		return err
	}
	machine, err := describeMachine()
	if err != nil {
		return err
	}
	t := &table{out: os.Stdout, began: time.Now()}
	t.say("%s; the edges run on the same machine as the hub", machine)
	err = measure(ctx, s, t)
	t.print(fmt.Sprintf("On %s; hub and edges share it. %d pods a node, %s changes a second.", machine, s.pods, count(s.rate)))
	t.say("done")
	return err
}
