package mqtt

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
)

func TestWhatCannotBeStoredIsNotAcknowledged(t *testing.T) {
	n := newNode(t, Config{})
	watcher := dial(t, n.address(), "watcher", nil)
	watcher.sub(boiler + "result")
	n.devices.fail(fmt.Errorf("write: %w", errDiskFull))
	lost := make(chan error, 1)
	c := dial(t, n.address(), "boiler", func(o *paho.ClientOptions) {
		o.SetCleanSession(false).SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err })
	})
	token := c.Publish(boiler+"report/temperature", 1, false, "5")
	<-lost
	if a := unmarshal[payload.Answer](t, watcher.next(boiler+"result")); a.Code != 500 || !strings.Contains(a.Error, "disk is full") {
		t.Errorf("%+v", a)
	}
	select {
	case <-token.Done():
		if token.Error() == nil {
			t.Fatal("acknowledged, and not stored")
		}
	default:
	}
	n.devices.fail(nil)
	if again := c.Connect(); !again.WaitTimeout(patience) || again.Error() != nil { // paho sends it again
		t.Fatal(again.Error())
	}
	eventually(t, "it is stored when it can be", func() bool { return n.reported("boiler", "temperature") == "5" })
	out, err := run(t, "mosquitto_pub", "-V", "mqttv5", "-p", port(n.address()), "-q", "1", "-t", boiler+"report", "-m", `{"temperature":6}`)
	if err != nil {
		t.Errorf("afterwards: %v: %s", err, out)
	}
}

func TestAFloodOfOneStarvesNobody(t *testing.T) {
	n := newNode(t, Config{}, thermostats("plant"), thermostat("plant", "boiler"), thermostat("plant", "second"))
	stop := make(chan struct{})
	var flooding sync.WaitGroup
	for i := range 2 {
		c := dial(t, n.address(), fmt.Sprint("flood", i), nil)
		flooding.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				token := c.Publish(boiler+"report", 1, false, `{"temperature":`+fmt.Sprint(j%100)+`,"note":"`+strings.Repeat("x", 4000)+`"}`)
				if j%200 == 0 {
					token.WaitTimeout(patience)
				}
			}
		})
	}
	c := dial(t, n.address(), "second", nil)
	slowest := time.Duration(0)
	for i := range 100 {
		began := time.Now()
		c.pub("holdfast/plant/second/report/temperature", fmt.Sprint(i))
		slowest = max(slowest, time.Since(began))
	}
	close(stop)
	flooding.Wait()
	t.Logf("the slowest of 100 updates beside a flood took %s", slowest)
	if got := n.reported("second", "temperature"); got != "99" {
		t.Errorf("stored %s", got)
	}
}

func TestTooManyUpdatesAreAnsweredOnceASecond(t *testing.T) {
	n := newNode(t, Config{})
	n.devices.fail(device.ErrTooMany)
	c := dial(t, n.address(), "boiler", nil)
	c.sub(boiler+"result", "marker/#")
	for range 50 {
		c.pub(boiler+"report/temperature", "1")
	}
	if a := unmarshal[payload.Answer](t, c.next(boiler+"result")); a.Code != 429 {
		t.Errorf("%+v", a)
	}
	c.pub("marker/x", "")
	answers := 1
	for m := range c.got {
		if strings.HasPrefix(m, "marker/x") {
			break
		}
		answers++
	}
	if answers > 2 { // a slow machine takes more than a second
		t.Errorf("%d answers", answers)
	}
}

// TestAClientThatDoesNotReadHoldsUpNobody: it is cut off, or misses what there is no
// room for.
func TestAClientThatDoesNotReadHoldsUpNobody(t *testing.T) {
	n := newNode(t, Config{})
	raw, err := net.Dial("tcp", n.address())
	must(t, err)
	defer raw.Close()
	_, err = raw.Write([]byte("\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04lazy\x82\x0a\x00\x01\x00\x05app/#\x00"))
	must(t, err)
	eventually(t, "it has subscribed", func() bool { return n.server.current().listens("app/x") })
	c := dial(t, n.address(), "busy", nil)
	big := strings.Repeat("x", 60_000)
	eventually(t, "it is cut off", func() bool {
		c.pub("app/x", big)
		return !n.server.current().listens("app/x")
	})
	away := dial(t, n.address(), "away", func(o *paho.ClientOptions) { o.SetCleanSession(false) })
	away.sub("app/#")
	away.Disconnect(100)
	for range 100 {
		c.pub("app/x", big)
	}
	h := n.server.current().(*embedded).hook
	if waits := h.waits.Load(); waits > 3<<20 || waits < 1<<20 || n.server.desk.count.dropped.Load() == 0 {
		t.Errorf("%d bytes wait for a client that is away, %d messages were dropped", waits, n.server.desk.count.dropped.Load())
	}
	again := dial(t, n.address(), "away", func(o *paho.ClientOptions) { o.SetCleanSession(false) })
	again.next("app/x")
	eventually(t, "nothing waits when it has read", func() bool { return h.waits.Load() == 0 })
}

func TestStrangersAndGarbage(t *testing.T) {
	n := newNode(t, Config{})
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x10\xff\xff\xff\xff", "\x10\xff\xff\xff\x7f", "\x10\x02\x00\x00", "\x30\x05\x00\x01a12", strings.Repeat("\x00", 100)} {
		raw, err := net.Dial("tcp", n.address())
		must(t, err)
		_, err = raw.Write([]byte(garbage))
		must(t, err)
		must(t, raw.SetReadDeadline(time.Now().Add(patience)))
		for b := make([]byte, 64); err == nil; {
			_, err = raw.Read(b)
		}
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Errorf("%q: the connection stays", garbage)
		}
		raw.Close()
	}
	c := dial(t, n.address(), "big", nil)
	token := c.Publish("app/x", 1, false, strings.Repeat("x", maxPacket+1))
	eventually(t, "a packet that is too large ends its connection", func() bool { return !c.IsConnectionOpen() })
	if token.WaitTimeout(patience); token.Error() == nil {
		t.Error("it was acknowledged")
	}
	dial(t, n.address(), "fine", nil).pub(boiler+"report", `{"on":true}`)
}

func TestSomebodyElseHasThePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	n := newNode(t, Config{Listen: []string{l.Addr().String()}})
	eventually(t, "it says what to do", func() bool { return strings.Contains(n.log.String(), "set devices.mqtt.broker to tcp://") })
	l.Close()
	n.address()
	if strings.Count(n.log.String(), "cannot start") != 1 {
		t.Error("said more than once")
	}
}

func TestTheBrokerStartsWhenThereIsSomethingToServe(t *testing.T) {
	n := newNode(t, Config{}, thermostats("plant"))
	eventually(t, "the server follows the devices", func() bool { return n.server.routes.changed() != nil })
	if n.server.Address() != "" {
		t.Error("it listens for nobody")
	}
	n.apply(thermostat("plant", "boiler"))
	n.address()
	n.stop()
	n = newNode(t, Config{}, thermostats("plant"))
	n.routes.want("app/#")
	dial(t, n.address(), "x", nil).pub("app/1", "m")
	if got := n.routes.taken(); got != "app/1=m" {
		t.Errorf("routed %q", got)
	}
	n.routes.mu.Lock()
	n.routes.err = errDiskFull
	n.routes.mu.Unlock()
	c := dial(t, n.address(), "y", nil)
	c.Publish("app/2", 1, false, "m")
	eventually(t, "a message that could not be kept ends the connection", func() bool { return !c.IsConnectionOpen() })
	n = newNode(t, Config{Mode: Off})
	if err := n.server.Publish(t.Context(), "x", nil); err == nil {
		t.Error("published where MQTT is off")
	}
}

func TestWillsAreHeard(t *testing.T) {
	n := newNode(t, Config{})
	state := func() string { return string(n.devices.List()[0].Twin.State) }
	will := func(o *paho.ClientOptions) { o.SetWill(boiler+"state", "offline", 1, false) }
	c := dial(t, n.address(), "boiler", will)
	c.pub(boiler+"state", "online")
	c2 := dial(t, n.address(), "boiler", will) // takes over
	eventually(t, "the older connection ends", func() bool { return !c.IsConnectionOpen() })
	c2.pub(boiler+"report", `{"on":true}`)
	if got := state(); got != "online" {
		t.Errorf("connected anew, and %s", got)
	}
	raw, err := net.Dial("tcp", n.address())
	must(t, err)
	_, err = raw.Write([]byte("\x10\x35\x00\x04MQTT\x04\x06\x00\x00\x00\x03raw\x00\x1bholdfast/plant/boiler/state\x00\x07offline"))
	must(t, err)
	_, err = raw.Read(make([]byte, 4))
	must(t, err)
	raw.Close()
	eventually(t, "its will is heard", func() bool { return state() == "offline" })
}

// TestABurstOfRetainedMessagesIsWhole: more than the broker's queue of a client.
func TestABurstOfRetainedMessagesIsWhole(t *testing.T) {
	objects := []any{thermostats("plant")}
	const devices = 700
	for i := range devices {
		objects = append(objects, thermostat("plant", fmt.Sprint("d", i), desires("target", "21"), desires("on", "true")))
	}
	n := newNode(t, Config{}, objects...)
	n.address()
	eventually(t, "all is published", func() bool { return n.server.desk.count.published.Load() >= 3*devices })
	c := dial(t, n.address(), "dashboard", nil)
	c.sub("holdfast/+/+/desired/+", "holdfast/+/+/desired")
	eventually(t, "all has come", func() bool { return len(c.got) >= 3*devices })
	if n.server.desk.count.dropped.Load() != 0 {
		t.Error("some was dropped")
	}
}

func TestMetrics(t *testing.T) {
	n := newNode(t, Config{})
	dial(t, n.address(), "boiler", nil).pub(boiler+"report", `{"temperature":999}`)
	var b strings.Builder
	n.server.WriteMetrics(&b)
	contains(t, b.String(), "holdfast_edge_mqtt_up 1\n", "holdfast_edge_mqtt_clients 1\n", "holdfast_edge_mqtt_messages_refused_total 1\n")
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc+m.StackInuse) / 1024
}

// TestWhatTheBrokerCosts is a figure for the documents, and a bound against leaks.
func TestWhatTheBrokerCosts(t *testing.T) {
	n := newNode(t, Config{Mode: Auto}, thermostats("plant"))
	before := heap()
	n.apply(thermostat("plant", "boiler"))
	n.address()
	idle := heap()
	const clients = 200
	var conns []net.Conn
	for i := range clients {
		raw, err := net.Dial("tcp", n.address())
		must(t, err)
		_, err = raw.Write(fmt.Appendf(nil, "\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04%04d\x82\x0a\x00\x01\x00\x05app/x\x01", i))
		must(t, err)
		_, err = raw.Read(make([]byte, 4))
		must(t, err)
		conns = append(conns, raw)
	}
	busy := heap()
	t.Logf("the broker costs %.0f KiB, a client %.1f KiB", idle-before, (busy-idle)/clients)
	if idle-before > 1024 || (busy-idle)/clients > 64 {
		t.Error("that is too much")
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "the clients are gone", func() bool { return n.server.current().(*embedded).server.Clients.Len() == 1 })
	h := n.server.current().(*embedded).hook
	eventually(t, "nothing is kept of them", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.sessions) == 0 })
}

// TestTheNumbersOfBothDirectionsAreTwoThings: a client may publish with the number of a
// message that it has not acknowledged yet.
func TestTheNumbersOfBothDirectionsAreTwoThings(t *testing.T) {
	n := newNode(t, Config{})
	session := func() net.Conn {
		raw, err := net.Dial("tcp", n.address())
		must(t, err)
		must(t, raw.SetDeadline(time.Now().Add(patience)))
		_, err = raw.Write([]byte("\x10\x10\x00\x04MQTT\x04\x00\x00\x00\x00\x04slow"))
		must(t, err)
		return raw
	}
	expect := func(raw net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(raw, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	say := func(raw net.Conn, packet string) {
		t.Helper()
		_, err := raw.Write([]byte(packet))
		must(t, err)
	}
	raw := session()
	expect(raw, "\x20\x02\x00\x00")
	say(raw, "\x82\x0a\x00\x01\x00\x05app/x\x01")
	expect(raw, "\x90\x03\x00\x01\x01")
	c := dial(t, n.address(), "c", nil)
	c.pub("app/x", "m")
	expect(raw, "\x32\x0a\x00\x05app/x\x00\x01m") // not acknowledged
	say(raw, "\x82\x0a\x00\x01\x00\x05app/y\x01")
	expect(raw, "\x90\x03\x00\x01\x01")
	say(raw, "\x32\x0a\x00\x05app/z\x00\x01m")
	expect(raw, "\x40\x02\x00\x01")
	report := boiler + "report/temperature"
	say(raw, "\x32"+string(rune(2+len(report)+2+1))+"\x00"+string(rune(len(report)))+report+"\x00\x017")
	expect(raw, "\x40\x02\x00\x01")
	say(raw, "\x34\x0a\x00\x05app/z\x00\x01m") // QoS 2
	expect(raw, "\x50\x02\x00\x01")
	raw.Close()
	raw = session()
	expect(raw, "\x20\x02\x01\x00")
	both := make([]byte, 16)
	_, err := io.ReadFull(raw, both)
	must(t, err)
	contains(t, string(both), "\x3a\x0a\x00\x05app/x\x00\x01m", "\x50\x02\x00\x01") // again
	say(raw, "\x62\x02\x00\x01")
	expect(raw, "\x70\x02\x00\x01")
	say(raw, "\x40\x02\x00\x01\xc0\x00")
	expect(raw, "\xd0\x00")
	raw.Close()
	raw = session()
	defer raw.Close()
	expect(raw, "\x20\x02\x01\x00")
	say(raw, "\xc0\x00")
	expect(raw, "\xd0\x00") // nothing came before
	if got := n.reported("boiler", "temperature"); got != "7" {
		t.Errorf("stored %q", got)
	}
}
