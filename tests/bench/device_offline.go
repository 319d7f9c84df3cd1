package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"golang.org/x/sync/errgroup"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// offline measures how soon the cloud has what devices said while the line was cut.
func (d *deviceBench) offline(ctx context.Context) error {
	for _, shape := range []struct{ devices, values int }{{100, 100}, {10, 1000}} {
		if err := d.drain(ctx, shape.devices, shape.values); err != nil {
			return err
		}
	}
	return nil
}

// drain makes so many values of each of so many devices offline, and measures from
// the mended line until the apiserver has all of them, in order.
func (d *deviceBench) drain(ctx context.Context, devices, values int) error {
	say("%d devices with %d values each, made offline", devices, values)
	names := deviceNames("kept", devices)
	if err := d.create(ctx, names, int32(values)); err != nil {
		return err
	}
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	if err := d.node.Cut(); err != nil {
		return err
	}
	// One that starts without a line knows at once that it has none.
	if err := d.node.StopEdgecore(); err != nil {
		return err
	}
	if err := d.node.StartEdgecore(); err != nil {
		return err
	}
	if err := d.known(ctx, devices); err != nil {
		return err
	}
	if err := d.makeValues(ctx, names, values); err != nil {
		return err
	}
	all := devices * values
	m, err := d.edge(ctx)
	if err != nil {
		return err
	}
	if waiting := int(m["holdfast_edge_device_history_values"]); waiting != all || m["holdfast_edge_line_up"] != 0 {
		return fmt.Errorf("%d values wait at the node, want %d, and no line", waiting, all)
	}
	there := &arrivals{of: make(map[string]int)}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if err := d.watch(watching, there.see); err != nil {
		return err
	}
	began := time.Now()
	if err := d.node.Mend(); err != nil {
		return err
	}
	if err := d.lineUp(ctx); err != nil {
		return err
	}
	up := time.Since(began)
	err = world.Eventually(ctx, patience, fmt.Sprintf("the apiserver shows %d values", all), func(context.Context) (bool, error) {
		return there.count() >= all, nil
	})
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%w; it shows %d", err, there.count())
	}
	if err := d.completeHistory(ctx, values); err != nil {
		return err
	}
	d.add(fmt.Sprintf("mend -> %d values of %d devices in the cloud, none lost, in order", all, devices), "10 s", "%.1f s, %.1f s of it until the line is up", took.Seconds(), up.Seconds())
	return d.clearDevices(ctx)
}

// makeValues lets each device report 1, 2, 3 and so on.
func (d *deviceBench) makeValues(ctx context.Context, names []string, values int) error {
	clients, hangUp, err := d.dialAll(ctx, names)
	if err != nil {
		return err
	}
	defer hangUp()
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range clients {
		group.Go(func() error {
			var last paho.Token
			for v := 1; v <= values && ctx.Err() == nil; v++ {
				last = c.Publish(deviceTopic(names[i], "report/temperature"), 1, false, fmt.Sprint(v))
				if v%inFlight == 0 || v == values {
					if err := acknowledged(last); err != nil {
						return err
					}
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// arrivals are the values that a watch has shown so far, by device.
type arrivals struct {
	mu sync.Mutex
	of map[string]int
}

func (a *arrivals) see(o *unstructured.Unstructured) {
	n := len(twinOf(o, "temperature").History)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of[o.GetName()] = n
}

func (a *arrivals) count() (sum int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.of {
		sum += n
	}
	return sum
}

// completeHistory checks that every device has exactly its values, in order.
func (d *deviceBench) completeHistory(ctx context.Context, values int) error {
	list, err := d.devices().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		t := twinOf(&list.Items[i], "temperature")
		if len(t.History) != values || t.HistoryDropped != 0 {
			return fmt.Errorf("device %s has %d values, %d dropped, want %d", list.Items[i].GetName(), len(t.History), t.HistoryDropped, values)
		}
		for n, v := range t.History {
			if v.Number != int64(n+1) || v.Value != fmt.Sprint(n+1) {
				return fmt.Errorf("device %s: value %d is %+v", list.Items[i].GetName(), n+1, v)
			}
		}
	}
	return nil
}
