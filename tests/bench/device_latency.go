package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"golang.org/x/sync/errgroup"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	latencyRate   = 100 // updates a second, of all devices together
	latencyLength = 10 * time.Second
	latencyAim    = "p99 < 150 ms"
)

// journeys are values on their way. Those of one device only grow, so that a value
// has arrived once it or a newer one is seen.
type journeys struct {
	mu      sync.Mutex
	waiting map[string][]departure
	took    []time.Duration
}

type departure struct {
	value int
	at    time.Time
}

func newJourneys() *journeys { return &journeys{waiting: make(map[string][]departure)} }

func (j *journeys) depart(device string, value int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting[device] = append(j.waiting[device], departure{value, time.Now()})
}

func (j *journeys) arrive(device string, value int) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	rest := j.waiting[device][:0]
	for _, one := range j.waiting[device] {
		if one.value <= value {
			j.took = append(j.took, now.Sub(one.at))
		} else {
			rest = append(rest, one)
		}
	}
	j.waiting[device] = rest
}

// arrived waits for all.
func (j *journeys) arrived(ctx context.Context, n int) error {
	return world.Eventually(ctx, 30*time.Second, fmt.Sprintf("%d values arrive", n), func(context.Context) (bool, error) {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.took) >= n, nil
	})
}

func (j *journeys) String() string {
	return fmt.Sprintf("p50 %s, p99 %s", ms(percentile(j.took, 0.5)), ms(percentile(j.took, 0.99)))
}

// latency measures how soon the cloud sees what devices say, and how soon devices
// hear what the cloud wants.
func (d *deviceBench) latency(ctx context.Context, broker string, names []string) error {
	say("latency, %s", broker)
	clients, hangUp, err := d.dialAll(ctx, names)
	if err != nil {
		return err
	}
	defer hangUp()
	// A first value of each: what is measured is not the first meeting.
	for i, c := range clients {
		if err := acknowledged(c.Publish(deviceTopic(names[i], "report"), 1, false, `{"temperature": 0, "target": 1}`)); err != nil {
			return err
		}
	}
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context, string, []string, []paho.Client) error{d.up, d.got, d.down} {
		if err := step(ctx, broker, names, clients); err != nil {
			return err
		}
	}
	return nil
}

// up is from publish until a watch shows the value.
func (d *deviceBench) up(ctx context.Context, broker string, names []string, clients []paho.Client) error {
	j, n := newJourneys(), 0
	watching, stop := context.WithCancel(ctx)
	defer stop()
	err := d.watch(watching, func(o *unstructured.Unstructured) {
		if r := twinOf(o, "temperature").Reported; r != nil {
			if value, err := strconv.Atoi(r.Value); err == nil {
				j.arrive(o.GetName(), value)
			}
		}
	})
	if err != nil {
		return err
	}
	err = steadily(ctx, latencyRate, latencyLength, func(i int) error {
		n++
		device := i % len(names)
		j.depart(names[device], n)
		clients[device].Publish(deviceTopic(names[device], "report/temperature"), 1, false, strconv.Itoa(n))
		return nil
	})
	if err != nil {
		return err
	}
	if err := j.arrived(ctx, n); err != nil {
		return err
	}
	d.add(fmt.Sprintf("device -> watch of devices, %d updates/s, %s", latencyRate, broker), latencyAim, "%s", j)
	return nil
}

// watch calls see with every device that is changed from now on.
func (d *deviceBench) watch(ctx context.Context, see func(*unstructured.Unstructured)) error {
	list, err := d.devices().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	w, err := d.devices().Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return fmt.Errorf("watch the devices: %w", err)
	}
	go func() {
		for e := range w.ResultChan() {
			if o, ok := e.Object.(*unstructured.Unstructured); ok && e.Type != watch.Deleted {
				see(o)
			}
		}
	}()
	return nil
}

// got is from publish until one of many GETs shows the value, as somebody sees it who
// asks with kubectl again and again.
func (d *deviceBench) got(ctx context.Context, broker string, names []string, clients []paho.Client) error {
	var took []time.Duration
	for i := range 20 {
		began, want := time.Now(), strconv.Itoa(1_000_000+i)
		if err := acknowledged(clients[i].Publish(deviceTopic(names[i], "report/temperature"), 1, false, want)); err != nil {
			return err
		}
		for {
			o, err := d.devices().Get(ctx, names[i], metav1.GetOptions{})
			if err != nil {
				return err
			}
			if r := twinOf(o, "temperature").Reported; r != nil && r.Value == want {
				break
			}
			if time.Since(began) > 30*time.Second {
				return fmt.Errorf("device %s: the apiserver has not shown %s for 30 s", names[i], want)
			}
		}
		took = append(took, time.Since(began))
	}
	d.add("device -> kubectl get, one at a time, "+broker, "", "p50 %s, most %s", ms(percentile(took, 0.5)), ms(percentile(took, 1)))
	return nil
}

// down is from the patch until the device is told.
func (d *deviceBench) down(ctx context.Context, broker string, names []string, _ []paho.Client) error {
	j, patched := newJourneys(), 0
	c, err := d.dial(ctx, "listener")
	if err != nil {
		return err
	}
	defer c.Disconnect(0)
	err = acknowledged(c.Subscribe(deviceTopic("+", "desired/target"), 1, func(_ paho.Client, m paho.Message) {
		if value, err := strconv.Atoi(string(m.Payload())); err == nil {
			j.arrive(strings.Split(m.Topic(), "/")[2], value)
		}
	}))
	if err != nil {
		return err
	}
	group, patching := errgroup.WithContext(ctx)
	group.SetLimit(len(names)) // beyond which the rate that is asked for is not reached
	began := time.Now()
	err = steadily(ctx, latencyRate, latencyLength, func(i int) error {
		patched++
		name, value := names[i%len(names)], patched+1 // 1 is desired already
		group.Go(func() error {
			patch := fmt.Sprintf(`[{"op": "replace", "path": "/spec/properties/0/desired/value", "value": "%d"}]`, value)
			j.depart(name, value)
			_, err := d.devices().Patch(patching, name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
			return err
		})
		return patching.Err()
	})
	if failed := group.Wait(); failed != nil {
		return failed
	}
	if err != nil {
		return err
	}
	reached := float64(patched) / time.Since(began).Seconds()
	if err := j.arrived(ctx, patched); err != nil {
		return err
	}
	d.add(fmt.Sprintf("kubectl patch -> device, %d offered/s, %s", latencyRate, broker), latencyAim, "%s, %.0f/s reached", j, reached)
	return nil
}
