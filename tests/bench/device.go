package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	deviceNamespace = "default"
	deviceModel     = "bench"
	manyDevices     = 1000 // that the memory is measured with
	someDevices     = 50   // that the speed is measured with, each with a connection of its own
)

// deviceBench measures what devices cost and how soon they are heard.
type deviceBench struct {
	*bench
	kinds dynamic.Interface
	rows  []row
}

// row is one figure with the aim beside it; aim may be empty.
type row struct{ figure, measured, aim string }

func (d *deviceBench) add(figure, aim, format string, args ...any) {
	r := row{figure, fmt.Sprintf(format, args...), aim}
	d.rows = append(d.rows, r)
	say("%s: %s", r.figure, r.measured)
}

// measureDevices takes all figures about devices, first those of the embedded broker,
// which is edgecore itself, then those of mosquitto.
func (b *bench) measureDevices(ctx context.Context) error {
	config := b.world.RestConfig()
	config.QPS = -1 // the apiserver is asked as fast as it answers
	kinds, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	d := &deviceBench{bench: b, kinds: kinds}
	if err := d.createModel(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.ceiling, d.memoryOfMany, d.embedded, d.offline, d.external} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.print()
	return nil
}

// embedded takes the figures of the embedded broker.
func (d *deviceBench) embedded(ctx context.Context) error {
	names := deviceNames("some", someDevices)
	if err := d.create(ctx, names, 0); err != nil {
		return err
	}
	if err := d.restart(ctx); err != nil {
		return err
	}
	const broker = "embedded broker"
	if err := d.latency(ctx, broker, names, latencyRates()); err != nil {
		return err
	}
	if err := d.slowly(ctx, names); err != nil {
		return err
	}
	if err := d.coalescing(ctx, names); err != nil {
		return err
	}
	if err := d.flood(ctx, broker, names); err != nil {
		return err
	}
	return d.clearDevices(ctx)
}

// external takes those of mosquitto.
func (d *deviceBench) external(ctx context.Context) (err error) {
	m, err := d.startMosquitto(ctx)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, m.stop()) }()
	names := deviceNames("some", someDevices)
	if err := d.create(ctx, names, 0); err != nil {
		return err
	}
	const broker = "mosquitto"
	if err := d.latency(ctx, broker, names, latencyRates()[1:]); err != nil {
		return err
	}
	if err := d.flood(ctx, broker, names); err != nil {
		return err
	}
	return d.clearDevices(ctx)
}

// memoryOfMany compares edgecore without a device with the same edgecore with many.
func (d *deviceBench) memoryOfMany(ctx context.Context) error {
	say("memory with %d devices", manyDevices)
	if err := d.restart(ctx); err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	without, err := d.memory()
	if err != nil {
		return err
	}
	names := deviceNames("many", manyDevices)
	began := time.Now()
	if err := d.create(ctx, names, 0); err != nil {
		return err
	}
	say("%d devices are made and known at the node after %.1f s", len(names), time.Since(began).Seconds())
	if err := d.reportOnce(ctx, names); err != nil {
		return err
	}
	say("all have reported after %.1f s", time.Since(began).Seconds())
	busy, err := d.memory()
	if err != nil {
		return err
	}
	if err := pause(ctx, 60*time.Second); err != nil {
		return err
	}
	quiet, err := d.memory()
	if err != nil {
		return err
	}
	title := fmt.Sprintf("resident / anonymous, %d devices", manyDevices)
	d.add("resident / anonymous, no devices", "40 / 12 MiB", "%s MiB", without)
	d.add(title+", all just reported", "", "%s MiB", busy)
	d.add(title+", after 60 s of quiet", "50 / 22 MiB", "%s MiB", quiet)
	d.add(fmt.Sprintf("what %d devices add then", manyDevices), "10 MiB", "%+.1f / %+.1f MiB", quiet.resident-without.resident, quiet.anonymous-without.anonymous)
	return d.clearDevices(ctx)
}

func (m memory) String() string { return fmt.Sprintf("%.1f / %.1f", m.resident, m.anonymous) }

// reportOnce lets each device report both properties once, and waits until the
// apiserver shows all of them.
func (d *deviceBench) reportOnce(ctx context.Context, names []string) error {
	c, err := d.dial(ctx, "all")
	if err != nil {
		return err
	}
	defer c.Disconnect(100)
	for _, name := range names {
		if err := acknowledged(c.Publish(deviceTopic(name, "report"), 1, false, `{"temperature": 20.5, "target": 20}`)); err != nil {
			return err
		}
	}
	return world.Eventually(ctx, patience, "all devices' reports are shown", func(ctx context.Context) (bool, error) {
		list, err := d.devices().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return false, err
		}
		shown := 0
		for i := range list.Items {
			if twinOf(&list.Items[i], "temperature").Reported != nil {
				shown++
			}
		}
		return shown == len(names), nil
	})
}

// print prints the table.
func (d *deviceBench) print() {
	width, least := 0, 0
	for _, r := range d.rows {
		width, least = max(width, len(r.figure)), max(least, len(r.measured))
	}
	fmt.Printf("\ndevices\n  %-*s %-*s %s\n", width, "", least, "MEASURED", "AIM")
	for _, r := range d.rows {
		fmt.Printf("  %-*s %-*s %s\n", width, r.figure, least, r.measured, r.aim)
	}
}

func deviceNames(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return names
}

func deviceTopic(name, rest string) string {
	return "holdfast/" + deviceNamespace + "/" + name + "/" + rest
}

func (d *deviceBench) devices() dynamic.ResourceInterface {
	return d.kinds.Resource(v1beta1.GroupVersion().WithResource("devices")).Namespace(deviceNamespace)
}

func object(kind, name string, spec any) (*unstructured.Unstructured, error) {
	b, err := json.Marshal(map[string]any{
		"apiVersion": v1beta1.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec,
	})
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	return o, o.UnmarshalJSON(b)
}

func (d *deviceBench) createModel(ctx context.Context) error {
	o, err := object("DeviceModel", deviceModel, v1beta1.DeviceModelSpec{Protocol: "mqtt", Properties: []v1beta1.ModelProperty{
		{Name: "temperature", Type: v1beta1.TypeDouble, AccessMode: v1beta1.ReadOnly, Minimum: "-40", Unit: "°C"},
		{Name: "target", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "0", Unit: "°C"},
	}})
	if err != nil {
		return err
	}
	_, err = d.kinds.Resource(v1beta1.GroupVersion().WithResource("devicemodels")).Namespace(deviceNamespace).Create(ctx, o, metav1.CreateOptions{})
	return err
}

// create makes devices of the node, whose temperatures keep that many values (0:
// none), and waits until the node knows them.
func (d *deviceBench) create(ctx context.Context, names []string, history int32) error {
	group, creating := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, name := range names {
		spec := v1beta1.DeviceSpec{
			DeviceModelRef: &v1beta1.LocalObjectReference{Name: deviceModel}, NodeName: d.node.Name,
			Properties: []v1beta1.DeviceProperty{{Name: "target", Desired: &v1beta1.TwinProperty{Value: "1"}}},
		}
		if history > 0 {
			spec.Properties = append(spec.Properties, v1beta1.DeviceProperty{Name: "temperature", History: &v1beta1.History{Limit: history}})
		}
		o, err := object("Device", name, spec)
		if err != nil {
			return err
		}
		group.Go(func() error {
			_, err := d.devices().Create(creating, o, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return d.known(ctx, len(names))
}

// known waits until the node has so many devices.
func (d *deviceBench) known(ctx context.Context, n int) error {
	return world.Eventually(ctx, patience, fmt.Sprintf("the node has %d devices", n), func(ctx context.Context) (bool, error) {
		m, err := d.edge(ctx)
		return err == nil && int(m["holdfast_edge_devices"]) == n, err
	})
}

// clearDevices deletes all devices, and waits until the node has forgotten them.
func (d *deviceBench) clearDevices(ctx context.Context) error {
	err := d.devices().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return d.known(ctx, 0)
}

// restart makes a new edgecore, which knows nothing of what was measured before, and
// waits until it is connected.
func (d *deviceBench) restart(ctx context.Context) error {
	if err := d.node.StopEdgecore(); err != nil {
		return err
	}
	if err := d.node.StartEdgecore(); err != nil {
		return err
	}
	return d.lineUp(ctx)
}

func (d *deviceBench) lineUp(ctx context.Context) error {
	return world.Eventually(ctx, patience, "the line is up", func(ctx context.Context) (bool, error) {
		m, err := d.edge(ctx)
		return m["holdfast_edge_line_up"] == 1 && m["holdfast_edge_line_synced"] == 1, err
	})
}

// configure adds a line to edgecore's configuration.
func (d *deviceBench) configure(line string) error {
	text, err := os.ReadFile(d.node.Config())
	if err != nil {
		return err
	}
	return os.WriteFile(d.node.Config(), append(text, line+"\n"...), 0o600)
}

// edge reads edgecore's metrics; series of one name are added up, and also to be had
// with their labels.
func (d *deviceBench) edge(ctx context.Context) (map[string]float64, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.node.RunDir(), localstatus.SocketName))
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://edgecore/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var text strings.Builder
	if err := response.Write(&text); err != nil {
		return nil, err
	}
	out := make(map[string]float64)
	for line := range strings.Lines(text.String()) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		value, err := strconv.ParseFloat(number, 64)
		if err != nil || !strings.HasPrefix(name, "holdfast_") {
			continue
		}
		out[name] += value
		if bare, _, labelled := strings.Cut(name, "{"); labelled {
			out[bare] += value
		}
	}
	return out, nil
}

const acceptedOperations = `holdfast_edge_device_operations_total{result="accepted"}`

func (d *deviceBench) accepted(ctx context.Context) (int, error) {
	m, err := d.edge(ctx)
	return int(m[acceptedOperations]), err
}

// written is what edgecore has made the kernel write to disks.
func (d *deviceBench) written() (int64, error) {
	pid, err := d.node.EdgecorePid()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			return strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/%d/io says nothing of what was written", pid)
}

// twinOf is a property's part of a device's status; empty where there is none.
func twinOf(o *unstructured.Unstructured, property string) v1beta1.Twin {
	status, _ := o.Object["status"].(map[string]any)
	twins, _ := status["twins"].([]any)
	for _, t := range twins {
		m, _ := t.(map[string]any)
		var out v1beta1.Twin
		if m["propertyName"] == property && runtime.DefaultUnstructuredConverter.FromUnstructured(m, &out) == nil {
			return out
		}
	}
	return v1beta1.Twin{}
}

// percentile of durations, which it sorts.
func percentile(took []time.Duration, share float64) time.Duration {
	slices.Sort(took)
	return took[min(len(took)-1, int(share*float64(len(took))))]
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}
