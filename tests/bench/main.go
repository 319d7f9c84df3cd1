// Command bench measures what an issue or the README states: how fast pods come
// up and come back beside the bare runtime in the same run, what edgecore costs a
// small machine, and what it puts on a metered line at rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// settings are the sizes of a run.
type settings struct {
	pods   int           // of the speed and memory measurements
	rounds int           // of floor, apply and reboot, one after the other
	rest   time.Duration // how long the line and the CPU are watched
}

func main() {
	if err := world.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	var s settings
	flag.IntVar(&s.pods, "pods", 20, "one-container pods")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds of floor, apply and reboot")
	flag.DurationVar(&s.rest, "rest", 3*time.Minute, "how long the line is watched at rest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

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
	b := &bench{settings: s, world: w, node: node}

	if err := b.empty(ctx); err != nil {
		return err
	}
	for round := range s.rounds {
		say("round %d of %d", round+1, s.rounds)
		if err := b.round(ctx); err != nil {
			return err
		}
	}
	if err := b.full(ctx); err != nil {
		return err
	}
	if err := b.atRest(ctx); err != nil {
		return err
	}
	b.report()
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// report prints the tables.
func (b *bench) report() {
	floor, apply, reboot := median(b.floor), median(b.apply), median(b.reboot)
	fmt.Printf("\n%d one-container pods on CNI, parallelism %d, %d rounds, medians\n", b.pods, parallelism, b.rounds)
	fmt.Printf("  %-46s %8s %12s %s\n", "", "SECONDS", "x THE FLOOR", "SINGLE ROUNDS")
	fmt.Printf("  %-46s %8.2f %12s %s\n", "CRI floor (sandbox, create, start)", floor.Seconds(), "1.00", seconds(b.floor))
	fmt.Printf("  %-46s %8.2f %12.2f %s\n", "apply -> Running in the cloud (aim 1.40)", apply.Seconds(), apply.Seconds()/floor.Seconds(), seconds(b.apply))
	fmt.Printf("  %-46s %8.2f %12.2f %s\n", "offline reboot -> running (aim 1.25)", reboot.Seconds(), reboot.Seconds()/floor.Seconds(), seconds(b.reboot))
	fmt.Printf("\nedgecore\n")
	fmt.Printf("  %-46s %8.1f / %.1f MiB\n", "resident / anonymous, no pods", b.memoryEmpty.resident, b.memoryEmpty.anonymous)
	fmt.Printf("  %-46s %8.1f / %.1f MiB (aim 40 / 12)\n", fmt.Sprintf("resident / anonymous, %d pods", b.pods), b.memoryFull.resident, b.memoryFull.anonymous)
	fmt.Printf("  %-46s %8.2f %% of one core\n", fmt.Sprintf("CPU at rest, %d pods", b.pods), b.cpu)
	fmt.Printf("  %-46s %8.1f MB (aim 30)\n", "binary", float64(b.binary)/1e6)
	fmt.Printf("  %-46s %8.0f KiB and %.0f KiB of write-ahead log\n", "database", float64(b.database)/1024, float64(b.wal)/1024)
	fmt.Printf("  %-46s %8.2f MB a day (aim 1), watched for %s\n", fmt.Sprintf("line at rest, %d pods, both ways, all layers", restPods), b.lineMBaDay, b.rest)
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
