package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	floodLength = 10 * time.Second
	inFlight    = 20 // messages of one device that wait for their acknowledgement
)

// flood measures how many updates edgecore takes durably when each device publishes
// as fast as it is acknowledged, with the line up: edgecore, cloudcore, the apiserver
// and the devices share the machine.
func (d *deviceBench) flood(ctx context.Context, broker string, names []string) error {
	say("a flood, %s", broker)
	clients, hangUp, err := d.dialAll(ctx, names)
	if err != nil {
		return err
	}
	defer hangUp()
	accepted, err := d.accepted(ctx)
	if err != nil {
		return err
	}
	written, err := d.written()
	if err != nil {
		return err
	}
	used, err := processor()
	if err != nil {
		return err
	}
	began := time.Now()
	published, err := publishAll(ctx, clients, names, began.Add(floodLength))
	if err != nil {
		return err
	}
	// What a broker that is not edgecore has acknowledged, edgecore may have yet to take.
	now := 0
	err = world.Eventually(ctx, patience, fmt.Sprintf("edgecore accepts %d updates", published), func(ctx context.Context) (bool, error) {
		total, err := d.accepted(ctx)
		now = total - accepted
		return now >= published, err
	})
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%w; it has accepted %d", err, now)
	}
	d.add(fmt.Sprintf("updates accepted durably, %d connections, %s", len(names), broker), "5,000/s", "%.0f/s", float64(now)/took.Seconds())
	after, err := d.written()
	if err != nil {
		return err
	}
	d.add("  written to the disk by edgecore", "", "%.0f bytes an update", float64(after-written)/float64(now))
	then, err := processor()
	if err != nil {
		return err
	}
	spent := then.since(used)
	d.add("  cores busy, of which edgecore", "", "%.2f, %.2f", spent[machine].Seconds()/took.Seconds(), spent["edgecore"].Seconds()/took.Seconds())
	say("seconds of CPU meanwhile: %s", spent)
	return d.caughtUp(ctx)
}

// publishAll publishes from each client until the time is over, and returns how many
// messages were acknowledged: all that were sent.
func publishAll(ctx context.Context, clients []paho.Client, names []string, until time.Time) (published int, err error) {
	counts := make([]int, len(clients))
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range clients {
		group.Go(func() error {
			var waiting []paho.Token
			for time.Now().Before(until) && ctx.Err() == nil {
				if len(waiting) == inFlight {
					if err := acknowledged(waiting[0]); err != nil {
						return err
					}
					waiting = waiting[1:]
				}
				counts[i]++
				waiting = append(waiting, c.Publish(deviceTopic(names[i], "report/temperature"), 1, false, fmt.Sprint(counts[i]%100)))
			}
			for _, t := range waiting {
				if err := acknowledged(t); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	for _, n := range counts {
		published += n
	}
	return published, nil
}

// caughtUp waits until the hub has heard everything.
func (d *deviceBench) caughtUp(ctx context.Context) error {
	return world.Eventually(ctx, patience, "the hub has heard all reports", func(ctx context.Context) (bool, error) {
		m, err := d.edge(ctx)
		return err == nil && m["holdfast_edge_devices_unreported"] == 0, err
	})
}

// steadily calls publish once a step for so long, with the number of the call.
func steadily(ctx context.Context, step, length time.Duration, publish func(n int) error) error {
	began := time.Now()
	for n := range int(length / step) {
		if err := pause(ctx, time.Until(began.Add(time.Duration(n)*step))); err != nil {
			return err
		}
		if err := publish(n); err != nil {
			return err
		}
	}
	return nil
}

// slowly measures what an update writes to the disk where no two share a commit.
func (d *deviceBench) slowly(ctx context.Context, names []string) error {
	const rate = 10
	say("%d updates a second", rate)
	c, err := d.dial(ctx, "slow")
	if err != nil {
		return err
	}
	defer c.Disconnect(0)
	before, err := d.written()
	if err != nil {
		return err
	}
	updates := 0
	err = steadily(ctx, time.Second/rate, 5*time.Second, func(n int) error {
		updates++
		return acknowledged(c.Publish(deviceTopic(names[n%len(names)], "report/temperature"), 1, false, fmt.Sprint(n)))
	})
	if err != nil {
		return err
	}
	after, err := d.written()
	if err != nil {
		return err
	}
	d.add(fmt.Sprintf("written to the disk at %d updates a second", rate), "", "%.0f bytes an update", float64(after-before)/float64(updates))
	return nil
}

// coalescing counts what a device that reports too often costs the apiserver.
func (d *deviceBench) coalescing(ctx context.Context, names []string) error {
	const rate, length = 100, 10 * time.Second
	say("one device that reports %d times a second", rate)
	c, err := d.dial(ctx, "often")
	if err != nil {
		return err
	}
	defer c.Disconnect(0)
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	before, err := d.requests(ctx)
	if err != nil {
		return err
	}
	err = steadily(ctx, time.Second/rate, length, func(n int) error {
		return acknowledged(c.Publish(deviceTopic(names[0], "report/temperature"), 1, false, fmt.Sprint(n)))
	})
	if err != nil {
		return err
	}
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	after, err := d.requests(ctx)
	if err != nil {
		return err
	}
	writes := 0
	for name, n := range after {
		if verb, what, _ := strings.Cut(name, " "); what == "devices/status" && verb != "GET" {
			writes += n - before[name]
		}
	}
	if writes == 0 {
		return fmt.Errorf("the apiserver's metrics show no write of devices/status: %s", after.since(before))
	}
	d.add(fmt.Sprintf("API writes, one device that reports %d times a second", rate), "a handful/s", "%.1f/s", float64(writes)/length.Seconds())
	return nil
}
