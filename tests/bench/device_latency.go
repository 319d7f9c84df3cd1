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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// latencyRates are updates a second, of all devices together: one at which the way
// itself is seen, and the one of the aim, which an apiserver that shares two cores
// with everything else may not take.
func latencyRates() []pace {
	return []pace{{20, 4 * time.Second, ""}, {100, 8 * time.Second, "p99 < 150 ms"}}
}

// pace is how many updates a second are offered, for how long.
type pace struct {
	rate   int
	length time.Duration
	aim    string
}

func (p pace) step() time.Duration { return time.Second / time.Duration(p.rate) }

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
func (d *deviceBench) latency(ctx context.Context, broker string, names []string, paces []pace) error {
	say("latency, %s", broker)
	clients, hangUp, err := d.dialAll(ctx, names)
	if err != nil {
		return err
	}
	defer hangUp()
	// A first value of each: what is measured is not the first meeting.
	for i, c := range clients {
		if err := acknowledged(c.Publish(deviceTopic(names[i], "report"), 1, false, `{"temperature": 1, "target": 1}`)); err != nil {
			return err
		}
	}
	if err := d.caughtUp(ctx); err != nil {
		return err
	}
	first := 2 // 1 was reported, and is desired
	for _, p := range paces {
		if err := d.up(ctx, broker, names, clients, first, p); err != nil {
			return err
		}
		if err := d.down(ctx, broker, names, first, p); err != nil {
			return err
		}
		first += 10_000
	}
	return d.got(ctx, broker, names, clients)
}

// up is from publish until a watch shows the value.
func (d *deviceBench) up(ctx context.Context, broker string, names []string, clients []paho.Client, first int, p pace) error {
	j, published := newJourneys(), 0
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
	err = steadily(ctx, p.step(), p.length, func(n int) error {
		published++
		i := n % len(names)
		j.depart(names[i], first+n)
		clients[i].Publish(deviceTopic(names[i], "report/temperature"), 1, false, strconv.Itoa(first+n))
		return nil
	})
	if err != nil {
		return err
	}
	if err := j.arrived(ctx, published); err != nil {
		return err
	}
	d.add(fmt.Sprintf("device -> watch of devices, %d updates/s, %s", p.rate, broker), p.aim, "%s", j)
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
func (d *deviceBench) down(ctx context.Context, broker string, names []string, first int, p pace) error {
	j := newJourneys()
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
	began := time.Now()
	group, patching := errgroup.WithContext(ctx)
	counts := make([]int, len(names))
	for i, name := range names {
		// One patch of a device after the other, or an older one may come last.
		group.Go(func() error {
			if err := pause(patching, time.Duration(i)*p.step()); err != nil {
				return err
			}
			return steadily(patching, time.Duration(len(names))*p.step(), p.length, func(n int) error {
				counts[i]++
				patch := fmt.Sprintf(`[{"op": "replace", "path": "/spec/properties/0/desired/value", "value": "%d"}]`, first+n)
				j.depart(name, first+n)
				_, err := d.devices().Patch(patching, name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	patched := 0
	for _, n := range counts {
		patched += n
	}
	reached := float64(patched) / time.Since(began).Seconds()
	if err := j.arrived(ctx, patched); err != nil {
		return err
	}
	d.add(fmt.Sprintf("kubectl patch -> device, %d/s offered, %s", p.rate, broker), p.aim, "%s, %.0f/s reached", j, reached)
	return nil
}

// ceiling measures how many writes this apiserver takes when it is asked by several at
// once, and how long one takes that is alone: what latency and drain depend on.
func (d *deviceBench) ceiling(ctx context.Context) error {
	const writers, length = 16, 3 * time.Second
	maps := d.world.Client().CoreV1().ConfigMaps(deviceNamespace)
	write := func(ctx context.Context, i, n int) error {
		_, err := maps.Patch(ctx, fmt.Sprintf("ceiling-%d", i), types.MergePatchType, fmt.Appendf(nil, `{"data": {"n": "%d"}}`, n), metav1.PatchOptions{})
		return err
	}
	for i := range writers {
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ceiling-%d", i)}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	var alone []time.Duration
	for n := range 100 {
		began := time.Now()
		if err := write(ctx, 0, n); err != nil {
			return err
		}
		alone = append(alone, time.Since(began))
	}
	counts, until := make([]int, writers), time.Now().Add(length)
	group, writing := errgroup.WithContext(ctx)
	for i := range writers {
		group.Go(func() error {
			for ; time.Now().Before(until); counts[i]++ {
				if err := write(writing, i, counts[i]+1000); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	sum := 0
	for i, n := range counts {
		sum += n
		if err := maps.Delete(ctx, fmt.Sprintf("ceiling-%d", i), metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	d.add(fmt.Sprintf("the apiserver alone: writes by %d at once", writers), "", "%.0f/s; one at a time p50 %s, p99 %s",
		float64(sum)/length.Seconds(), ms(percentile(alone, 0.5)), ms(percentile(alone, 0.99)))
	return nil
}
