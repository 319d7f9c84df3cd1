package mqtt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = time.Minute

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is the machine's.
type clock struct{ began time.Time }

func (c clock) Wall() time.Time     { return time.Now() }
func (c clock) Mono() time.Duration { return time.Since(c.began) }

type noEvents struct{}

func (noEvents) Device(*v1beta1.Device, string, string, string) {}

// frail is the Manager, whose store fails when a test says so: a disk that is full
// exactly then cannot be had.
type frail struct {
	*device.Manager
	err   atomic.Pointer[error]
	tries atomic.Int64
}

func (f *frail) fail(err error) { f.err.Store(&err) }

func (f *frail) Submit(ctx context.Context, op device.Operation) error {
	if e := f.err.Load(); e != nil && *e != nil {
		f.tries.Add(1)
		go op.Done(device.View{}, device.View{}, *e)
		return nil
	}
	return f.Manager.Submit(ctx, op)
}

// node is a store, a Manager and a Server.
type node struct {
	t       testing.TB
	store   *store.Store
	devices *frail
	routes  *router
	server  *Server
	log     *lines
	stop    func() // the server alone
}

// lines keeps what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// router stands for edge/route: it keeps what it is offered.
type router struct {
	mu      sync.Mutex
	filters []string
	changed chan struct{}
	started chan struct{}
	got     []string
	err     error
}

func (r *router) Started() <-chan struct{} { return r.started }

// fail makes the router answer so.
func (r *router) fail(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
}

func (r *router) Filters() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.filters
}

func (r *router) Changed() <-chan struct{} { return r.changed }

func (r *router) Len() int { return len(r.Filters()) }

func (r *router) want(filters ...string) {
	r.mu.Lock()
	r.filters = filters
	r.mu.Unlock()
	r.changed <- struct{}{}
}

func (r *router) Offer(_ context.Context, name string, payload []byte, done func(error)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.filters {
		if topic.Matches(f, name) {
			if r.err == nil {
				r.got = append(r.got, name+"="+string(payload))
			}
			go done(r.err)
			return true
		}
	}
	return false
}

func (r *router) taken() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.got, " ")
}

func newNode(t testing.TB, config Config, objects ...any) *node {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(t, err)
	n := &node{t: t, store: s, log: new(lines), routes: &router{changed: make(chan struct{}, 1), started: make(chan struct{})}}
	close(n.routes.started)
	m := device.New(device.Options{Store: s, Clock: clock{time.Now()}, Events: noEvents{}, Rate: 100_000})
	n.devices = &frail{Manager: m}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		n.stop()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		must(t, s.Close())
		if t.Failed() {
			t.Log(n.log)
		}
	})
	<-m.Started()
	if objects == nil {
		objects = []any{thermostats("plant"), thermostat("plant", "boiler")}
	}
	n.apply(objects...)
	n.start(config)
	return n
}

// start runs a server, which may be the second one.
func (n *node) start(config Config) {
	n.t.Helper()
	if config.Listen == nil {
		config.Listen = []string{"127.0.0.1:0"}
	}
	server, err := New(Options{
		Node: "pi", Devices: n.devices, Routes: n.routes, Config: config, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		BackoffBase: 10 * time.Millisecond, BackoffCap: 100 * time.Millisecond,
	})
	must(n.t, err)
	n.server = server
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
}

// address waits for the embedded broker.
func (n *node) address() string {
	n.t.Helper()
	eventually(n.t, "the broker listens", func() bool { return n.server.Address() != "" })
	return n.server.Address()
}

func thermostats(namespace string) *v1beta1.DeviceModel {
	return &v1beta1.DeviceModel{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "thermostat", UID: types.UID("model-" + namespace)},
		Spec: v1beta1.DeviceModelSpec{Properties: []v1beta1.ModelProperty{
			{Name: "temperature", Type: v1beta1.TypeDouble, AccessMode: v1beta1.ReadOnly, Minimum: "-40", Maximum: "125"},
			{Name: "target", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "5", Maximum: "30"},
			{Name: "on", Type: v1beta1.TypeBoolean, AccessMode: v1beta1.ReadWrite},
			{Name: "note", Type: v1beta1.TypeString, AccessMode: v1beta1.ReadWrite},
		}},
	}
}

func thermostat(namespace, name string, properties ...v1beta1.DeviceProperty) *v1beta1.Device {
	return &v1beta1.Device{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + namespace + name), Generation: 1},
		Spec:       v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "thermostat"}, NodeName: "pi", Properties: properties},
	}
}

func desires(property, value string) v1beta1.DeviceProperty {
	return v1beta1.DeviceProperty{Name: property, Desired: &v1beta1.TwinProperty{Value: value}}
}

// put is the hub's word.
func (n *node) put(objects ...any) {
	n.t.Helper()
	var upserts []*wire.Object
	for _, o := range objects {
		b, err := json.Marshal(o)
		must(n.t, err)
		ref := &wire.ObjectRef{Version: wire.Version(b)}
		switch o := o.(type) {
		case *v1beta1.Device:
			ref.Kind, ref.Namespace, ref.Name, ref.Uid = wire.Kind_KIND_DEVICE, o.Namespace, o.Name, string(o.UID)
		case *v1beta1.DeviceModel:
			ref.Kind, ref.Namespace, ref.Name, ref.Uid = wire.Kind_KIND_DEVICE_MODEL, o.Namespace, o.Name, string(o.UID)
		}
		upserts = append(upserts, &wire.Object{Ref: ref, Payload: b})
	}
	must(n.t, n.store.Apply(n.t.Context(), upserts, nil))
}

// apply is put; what it says is in force when it returns.
func (n *node) apply(objects ...any) {
	n.t.Helper()
	n.put(objects...)
	for _, o := range objects {
		if d, ok := o.(*v1beta1.Device); ok {
			eventually(n.t, "device "+d.Name+" is there", func() bool {
				v, err := n.devices.Get(twin.Key{Namespace: d.Namespace, Name: d.Name})
				return err == nil && v.Generation == d.Generation && v.Problem == ""
			})
		}
	}
}

func (n *node) remove(d *v1beta1.Device) {
	n.t.Helper()
	must(n.t, n.store.Apply(n.t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_DEVICE, Namespace: d.Namespace, Name: d.Name, Uid: string(d.UID)}}))
}

// reported is what the twin has of a property.
func (n *node) reported(name, property string) string {
	v, err := n.devices.Get(twin.Key{Namespace: "plant", Name: name})
	if err != nil || v.Twin.Properties[property] == nil || v.Twin.Properties[property].Reported == nil {
		return ""
	}
	return v.Twin.Properties[property].Reported.Text
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// client is a device or a program, by paho.
type client struct {
	t testing.TB
	paho.Client
	got chan string // TOPIC PAYLOAD
}

func dial(t testing.TB, address, id string, change func(*paho.ClientOptions)) *client {
	t.Helper()
	c, err := tryDial(t, address, id, change)
	must(t, err)
	return c
}

func tryDial(t testing.TB, address, id string, change func(*paho.ClientOptions)) (*client, error) {
	c := &client{t: t, got: make(chan string, 100_000)}
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	o := paho.NewClientOptions().AddBroker(address).SetClientID(id).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience).
		SetConnectionLostHandler(func(paho.Client, error) {}).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { c.got <- m.Topic() + " " + string(m.Payload()) })
	if change != nil {
		change(o)
	}
	c.Client = paho.NewClient(o)
	token := c.Connect()
	if !token.WaitTimeout(patience) {
		t.Fatal("no connection")
	}
	if err := token.Error(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Disconnect(0) })
	return c, nil
}

func (c *client) sub(filters ...string) {
	c.t.Helper()
	for _, f := range filters {
		token := c.Subscribe(f, 1, nil)
		if !token.WaitTimeout(patience) || token.Error() != nil {
			c.t.Fatalf("subscribe to %s: %v", f, token.Error())
		}
	}
}

// pub publishes with QoS 1 and waits for the PUBACK.
func (c *client) pub(name, payload string) {
	c.t.Helper()
	token := c.Publish(name, 1, false, payload)
	if !token.WaitTimeout(patience) {
		c.t.Fatalf("no PUBACK for %s", name)
	}
	must(c.t, token.Error())
}

// next waits for a message that begins with the topic, and returns its payload.
func (c *client) next(name string) string {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-c.got:
			if rest, ok := strings.CutPrefix(m, name+" "); ok {
				return rest
			}
			c.t.Fatalf("got %s while waiting for %s", m, name)
		case <-deadline:
			c.t.Fatalf("nothing on %s", name)
		}
	}
}

// await is next, past others.
func (c *client) await(name string) string {
	c.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case m := <-c.got:
			if rest, ok := strings.CutPrefix(m, name+" "); ok {
				return rest
			}
		case <-deadline:
			c.t.Fatalf("nothing on %s", name)
		}
	}
}

// silent checks that what came before a marker was nothing.
func (c *client) silent() {
	c.t.Helper()
	c.pub("marker/"+c.name(), "m")
	c.next("marker/" + c.name())
}

func (c *client) name() string { r := c.OptionsReader(); return r.ClientID() }

func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func port(address string) string { return address[strings.LastIndex(address, ":")+1:] }

func write(t testing.TB, name, text string) string {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s\nhas no %s", text, p)
		}
	}
}

func unmarshal[T any](t testing.TB, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", text, err))
	}
	return v
}

var errDiskFull = errors.New("the disk is full")
