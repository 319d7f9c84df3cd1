// Command bench measures what an issue or the README states: how fast pods come
// up and come back beside the bare runtime in the same run, what edgecore costs a
// small machine, what it puts on a metered line at rest, how many devices it
// serves how soon, and how logs, exec, cp and port-forward do beside a kubelet's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/tests/tool"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// settings say what is measured, and how long.
type settings struct {
	pods    int           // of the speed and memory measurements
	rounds  int           // of floor, apply and reboot, one after the other
	rest    time.Duration // how long the line and the CPU are watched
	figures []string
	streams []string // which of their figures
	against []string // folders with other builds' edgecore, to compare with
}

// allFigures are those that can be asked for. Where one is about pods, the floor is measured too: it is
// what they are multiples of.
const allFigures = "apply,reboot,memory,line,devices,streams"

func (s *settings) wants(figure string) bool { return slices.Contains(s.figures, figure) }

func main() {
	var s settings
	flag.IntVar(&s.pods, "pods", 20, "one-container pods")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds of floor, apply and reboot")
	flag.DurationVar(&s.rest, "rest", 3*time.Minute, "how long the line is watched at rest")
	figures := flag.String("figures", allFigures, "what is measured, separated by commas; beside pods, the floor")
	streams := flag.String("streams", "exec,logs,cp,forward,deliver", "which figures of streams, separated by commas")
	against := flag.String("against", "", "`folders` of other builds' edgecore, separated by commas: each round measures all, one after the other")
	flag.Parse()
	if *against != "" {
		s.against = strings.Split(*against, ",")
	}
	s.figures, s.streams = strings.Split(*figures, ","), strings.Split(*streams, ",")
	if err := errors.Join(world.Outside(s.build), world.Enter()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// build brings what is compared with up to date, where the network is.
func (s *settings) build() error {
	if !s.wants("streams") {
		return nil
	}
	root, err := world.Root()
	if err != nil {
		return err
	}
	for _, name := range []string{"echo", "hop"} {
		cmd := exec.Command("go", "build", "-trimpath", "-o", helper(root, name), "./tests/bench/"+name)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s, which the figures of streams need: %w: %s", name, err, out)
		}
	}
	return tool.Build(tool.Kubelet)
}

// helper is a program that only the bench uses.
func helper(root, name string) string { return filepath.Join(root, "_output", "tools", name) }

func run(ctx context.Context, s settings) (err error) {
	say("starting the cloud and one node")
	w, err := world.New(ctx, world.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	node, err := w.AddNode(ctx, "bench", world.NodeOptions{})
	if err != nil {
		return err
	}
	b := &bench{settings: s, world: w, node: node, builds: []*build{{name: "this build", dir: w.Bin}}}
	for _, dir := range s.against {
		b.builds = append(b.builds, &build{name: filepath.Base(dir), dir: dir})
	}
	return b.run(ctx)
}

func (b *bench) run(ctx context.Context) error {
	if slices.ContainsFunc(b.figures, func(figure string) bool { return figure != "devices" && figure != "streams" }) {
		if err := b.measurePods(ctx); err != nil {
			return err
		}
	}
	if b.wants("devices") {
		if err := b.measureDevices(ctx); err != nil {
			return err
		}
	}
	if b.wants("streams") {
		return b.measureStreams(ctx)
	}
	return nil
}

// measurePods takes all figures but those of devices and streams, beside the floor.
func (b *bench) measurePods(ctx context.Context) error {
	if err := b.verbose(); err != nil {
		return err
	}
	if b.wants("memory") {
		if err := b.empty(ctx); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		say("round %d of %d", round+1, b.rounds)
		// The order changes from round to round, so that what grows with time is shared out.
		for i := range b.builds {
			if err := b.round(ctx, b.builds[(i+round)%len(b.builds)]); err != nil {
				return err
			}
		}
	}
	if err := b.use(ctx, b.builds[0]); err != nil {
		return err
	}
	if b.wants("memory") {
		if err := b.full(ctx); err != nil {
			return err
		}
	}
	if b.wants("line") {
		if err := b.atRest(ctx); err != nil {
			return err
		}
	}
	b.report()
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// report prints the tables.
func (b *bench) report() {
	floor := median(b.floor)
	fmt.Printf("\n%d one-container pods on CNI, parallelism %d, %d rounds, medians\n", b.pods, parallelism, b.rounds)
	fmt.Printf("  %-46s %8s %12s %s\n", "", "SECONDS", "x THE FLOOR", "SINGLE ROUNDS")
	fmt.Printf("  %-46s %8.2f %12s %s\n", "CRI floor (sandbox, create, start)", floor.Seconds(), "1.00", seconds(b.floor))
	for _, one := range b.builds {
		label := ""
		if len(b.builds) > 1 {
			label = ", " + one.name
		}
		if len(one.apply) > 0 {
			apply := median(one.apply)
			fmt.Printf("  %-46s %8.2f %12.2f %s\n", "apply -> Running in the cloud"+label, apply.Seconds(), apply.Seconds()/floor.Seconds(), seconds(one.apply))
		}
		if len(one.reboot) > 0 {
			reboot := median(one.reboot)
			fmt.Printf("  %-46s %8.2f %12.2f %s\n", "offline reboot -> running"+label, reboot.Seconds(), reboot.Seconds()/floor.Seconds(), seconds(one.reboot))
		}
	}
	fmt.Printf("  seconds of CPU of the last floor, the removal of its pods included: %s\n", b.floorUsed)
	fmt.Printf("  aims: apply 1.40, reboot 1.25 times the floor\n")
	for _, one := range b.builds {
		if one.last != nil {
			fmt.Printf("\nthe last apply of %s, in milliseconds\n", one.name)
			one.last.table(one.began)
			fmt.Printf("  seconds of CPU: %s\n", one.used)
			fmt.Printf("  requests at the apiserver: %s\n", one.asked)
		}
	}
	if b.wants("memory") {
		fmt.Printf("\nedgecore\n")
		fmt.Printf("  %-46s %8.1f / %.1f MiB\n", "resident / anonymous, no pods", b.memoryEmpty.resident, b.memoryEmpty.anonymous)
		fmt.Printf("  %-46s %8.1f / %.1f MiB (aim 40 / 12)\n", fmt.Sprintf("resident / anonymous, %d pods", b.pods), b.memoryFull.resident, b.memoryFull.anonymous)
		fmt.Printf("  %-46s %8.2f %% of one core\n", fmt.Sprintf("CPU at rest, %d pods", b.pods), b.cpu)
		fmt.Printf("  %-46s %8.1f MB (aim 30)\n", "binary", float64(b.binary)/1e6)
		fmt.Printf("  %-46s %8.0f KiB and %.0f KiB of write-ahead log\n", "database", float64(b.database)/1024, float64(b.wal)/1024)
	}
	if b.wants("line") {
		fmt.Printf("  %-46s %8.2f MB a day (aim 1), watched for %s\n", fmt.Sprintf("line at rest, %d pods, both ways, all layers", restPods), b.lineMBaDay, b.rest)
	}
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Clone(d)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

func seconds(d []time.Duration) string {
	s := ""
	for _, one := range d {
		s += fmt.Sprintf("%.2f ", one.Seconds())
	}
	return s
}

func size(paths ...string) (int64, error) {
	info, err := os.Stat(filepath.Join(paths...))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
