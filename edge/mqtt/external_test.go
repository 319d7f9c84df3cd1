package mqtt

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/route"
)

// mosquitto is a real broker in a folder of its own.
type mosquitto struct {
	t       testing.TB
	address string
	config  string
	cmd     *exec.Cmd
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// newMosquitto writes a config; start starts it.
func newMosquitto(t testing.TB, lines ...string) *mosquitto {
	dir := t.TempDir()
	m := &mosquitto{t: t, address: freeAddress(t), config: filepath.Join(dir, "mosquitto.conf")}
	text := fmt.Sprintf("listener %s 127.0.0.1\npersistence true\npersistence_location %s/\nautosave_interval 1\nautosave_on_changes true\nuser root\n", port(m.address), dir)
	if len(lines) == 0 {
		lines = []string{"allow_anonymous true"}
	}
	write(t, m.config, text+strings.Join(lines, "\n")+"\n")
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command("/usr/sbin/mosquitto", "-c", m.config)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(m.t, m.cmd.Start())
	eventually(m.t, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", m.address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (m *mosquitto) stop() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// connected waits until the node uses the broker.
func (n *node) connected() {
	n.t.Helper()
	eventually(n.t, "the broker is used", func() bool { return n.server.current() != nil })
}

func TestAnExternalBroker(t *testing.T) {
	m := newMosquitto(t)
	n := newNode(t, Config{Broker: "tcp://" + m.address}, thermostats("plant"), thermostat("plant", "boiler", desires("target", "21")))
	eventually(t, "that it is away is logged", func() bool { return strings.Contains(n.log.String(), "goes on trying") })
	m.start()
	n.connected()
	if strings.Count(n.log.String(), "goes on trying") != 1 {
		t.Errorf("one reason is logged more than once")
	}
	c := dial(t, m.address, "program", nil)
	c.sub("holdfast/pi/state")
	if got := c.next("holdfast/pi/state"); got != "online" {
		t.Errorf("the node is %s", got)
	}
	c.sub(boiler + "desired/target")
	if got := c.next(boiler + "desired/target"); got != "21" {
		t.Errorf("desired %s", got)
	}
	c.sub(boiler+"result", hw+"twin/update/result", hw+"twin/update/document", hw+"twin/update/delta")
	c.pub(boiler+"report", `{"id":"a","temperature":20}`)
	if got := c.next(boiler + "result"); got != `{"ok":true,"id":"a"}` || n.reported("boiler", "temperature") != "20" {
		t.Errorf("%s, %s", got, n.reported("boiler", "temperature"))
	}
	c.pub(boiler+"report", `{"temperature":200}`)
	if a := unmarshal[payload.Answer](t, c.next(boiler+"result")); a.Code != 400 {
		t.Errorf("%+v", a)
	}
	c.pub(hw+"twin/update", `{"event_id":"e1","twin":{"temperature":{"actual":{"value":"22"}}}}`)
	c.next(hw + "twin/update/result")
	c.next(hw + "twin/update/document")
	c.next(hw + "twin/update/delta")
	c.pub(boiler+"set", `{"target":19}`)
	if got := c.next(boiler + "desired/target"); got != "19" {
		t.Errorf("desired %s", got)
	}

	m.stop()
	eventually(t, "the broker is missed", func() bool { return n.server.current() == nil })
	m.start()
	n.connected()
	c = dial(t, m.address, "program", nil)
	c.sub(boiler + "desired")
	for c.next(boiler+"desired") != `{"target":19}` { // the broker may have an older one
	}
	c = dial(t, m.address, "watcher", nil)
	c.sub("holdfast/pi/state")
	for c.next("holdfast/pi/state") != "online" { // the will, at first
	}
	n.stop()
	if got := c.next("holdfast/pi/state"); got != "offline" {
		t.Errorf("edgecore has stopped, and the node is %s", got)
	}
}

// TestNothingIsLostWhileEdgecoreOrTheBrokerIsAway: what the broker acknowledged to a
// device is in the twin in the end.
func TestNothingIsLostWhileEdgecoreOrTheBrokerIsAway(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	n.connected()
	n.stop()
	c := dial(t, m.address, "device", nil)
	for i := range 50 {
		c.pub(boiler+"report/temperature", fmt.Sprint(i))
	}
	n.start(Config{Broker: "tcp://" + m.address})
	eventually(t, "what came while edgecore was away", func() bool { return n.reported("boiler", "temperature") == "49" })
	n.stop()
	c.pub(boiler+"report/temperature", "60")
	eventually(t, "the broker has it on its disk", func() bool {
		out, err := run(t, "grep", "-c", "report/temperature", filepath.Join(filepath.Dir(m.config), "mosquitto.db"))
		return err == nil && strings.TrimSpace(out) != "0"
	})
	m.stop()
	m.start()
	n.start(Config{Broker: "tcp://" + m.address})
	eventually(t, "what came before the broker's restart", func() bool { return n.reported("boiler", "temperature") == "60" })
}

func TestWhatCannotBeStoredComesAgainFromTheBroker(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	n.connected()
	c := dial(t, m.address, "device", nil)
	c.sub(boiler + "result")
	n.devices.fail(fmt.Errorf("write: %w", errDiskFull))
	c.pub(boiler+"report/temperature", "5") // acknowledged by mosquitto, not by edgecore
	if a := unmarshal[payload.Answer](t, c.next(boiler+"result")); a.Code != 500 || !strings.Contains(a.Error, "the disk is full") {
		t.Errorf("%+v", a)
	}
	eventually(t, "it comes again", func() bool { return n.devices.tries.Load() > 2 })
	n.devices.fail(nil)
	eventually(t, "it is stored when it can be", func() bool { return n.reported("boiler", "temperature") == "5" })
}

func TestRoutedMessagesOfAnExternalBroker(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	n.connected()
	n.routes.want("app/#", "app/x", "holdfast/+/+/report", "holdfast/plant/#")
	c := dial(t, m.address, "program", nil)
	eventually(t, "routed topics are subscribed to", func() bool {
		c.pub("app/x", "1")
		return strings.Contains(n.routes.taken(), "app/x=1")
	})
	c.pub("app/x", "once")
	c.pub("app/y", "2")
	eventually(t, "another one", func() bool { return strings.Contains(n.routes.taken(), "app/y=2") })
	if got := strings.Count(n.routes.taken(), "app/x=once"); got != 1 {
		t.Errorf("one message came %d times", got)
	}
	c.pub(boiler+"report", `{"temperature":1}`)
	c.pub(boiler+"note", "x")
	eventually(t, "a report is a message too", func() bool { return strings.Contains(n.routes.taken(), "boiler/note=x") })
	if got := strings.Count(n.routes.taken(), "boiler/report="); got != 1 {
		t.Errorf("the report came %d times: %s", got, n.routes.taken())
	}
	n.routes.want()
	eventually(t, "not wanted any more", func() bool {
		size := len(n.routes.taken())
		c.pub("app/x", "3")
		c.pub(boiler+"report", `{"temperature":2}`)
		eventually(t, "the report is there", func() bool { return n.reported("boiler", "temperature") == "2" })
		return len(n.routes.taken()) == size
	})
	c.sub("down/x")
	must(t, n.server.Publish(t.Context(), "down/x", []byte("hello")))
	if got := c.next("down/x"); got != "hello" {
		t.Errorf("got %s", got)
	}
	m.stop()
	eventually(t, "the broker is missed", func() bool { return n.server.current() == nil })
	ctx, cancel := context.WithTimeout(t.Context(), 1)
	defer cancel()
	if err := n.server.Publish(ctx, "down/x", nil); err == nil {
		t.Error("published without a broker")
	}
}

// TestAMessageThatNoRouteCanKeepHoldsUpNothing: it would come again for ever, and with
// it all that comes after.
func TestAMessageThatNoRouteCanKeepHoldsUpNothing(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	n.connected()
	n.routes.want("app/#")
	c := dial(t, m.address, "program", nil)
	eventually(t, "routed topics are subscribed to", func() bool {
		c.pub("app/x", "1")
		return n.routes.taken() != ""
	})
	n.routes.fail(fmt.Errorf("route plant/app: %w", route.ErrTooLarge))
	c.pub("app/x", "large")
	c.pub(boiler+"report/temperature", "7")
	eventually(t, "what came after is taken", func() bool { return n.reported("boiler", "temperature") == "7" })
	if strings.Contains(n.log.String(), "cannot be used") {
		t.Error("the connection to the broker was given up")
	}
}

// TestMessagesWaitUntilTheRoutesAreKnown: what the broker has kept comes with the
// connection.
func TestMessagesWaitUntilTheRoutesAreKnown(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	n.connected()
	n.routes.want("app/#")
	c := dial(t, m.address, "program", nil)
	eventually(t, "routed topics are subscribed to", func() bool {
		c.pub("app/x", "1")
		return n.routes.taken() != ""
	})
	n.stop()
	c.pub("app/x", "kept")
	n.routes.mu.Lock()
	n.routes.filters, n.routes.started = nil, make(chan struct{})
	n.routes.mu.Unlock()
	n.start(Config{Broker: "tcp://" + m.address})
	time.AfterFunc(500*time.Millisecond, func() { // as long as it takes to read them
		n.routes.want("app/#")
		close(n.routes.started)
	})
	eventually(t, "what the broker has kept", func() bool { return strings.Contains(n.routes.taken(), "app/x=kept") })
}

func TestCredentialsAtAnExternalBroker(t *testing.T) {
	authority := newCA(t)
	cert, key := authority.issue("broker")
	file := passwordFile(t, "edge", "program")
	m := newMosquitto(t, "allow_anonymous false", "password_file "+file, "cafile "+authority.file(), "certfile "+cert, "keyfile "+key, "require_certificate true")
	m.start()
	mine, mineKey := authority.issue("edge")
	config := Config{Broker: "ssl://" + m.address, CAFile: authority.file(), CertFile: mine, KeyFile: mineKey, User: "edge", Password: "wrong"}
	n := newNode(t, config)
	eventually(t, "the refusal is logged", func() bool { return strings.Contains(strings.ToLower(n.log.String()), "not authorized") })
	n.stop()
	config.Password, config.UserPasswordFile = "", write(t, filepath.Join(t.TempDir(), "password"), "secret-of-edge\n")
	n.start(config)
	n.connected()
	c := dial(t, "ssl://"+m.address, "program", func(o *paho.ClientOptions) { as("program")(o); authority.client("program")(o) })
	c.sub(boiler + "result")
	c.pub(boiler+"report", `{"id":1,"on":true}`)
	c.next(boiler + "result")
}

func TestRetainedUpdatesAreNoNews(t *testing.T) {
	m := newMosquitto(t)
	m.start()
	c := dial(t, m.address, "program", nil)
	for name, text := range map[string]string{"report/temperature": "1", "set/target": "7", "state": "offline"} {
		c.Publish(boiler+name, 1, true, text).WaitTimeout(patience)
	}
	n := newNode(t, Config{Broker: "tcp://" + m.address})
	eventually(t, "the state is known", func() bool { return n.devices.List()[0].Twin.State == "offline" })
	c.sub(boiler + "result")
	c.pub(boiler+"report", `{"id":1,"on":true}`)
	c.next(boiler + "result")
	if got := n.reported("boiler", "temperature"); got != "" || n.devices.List()[0].Twin.Properties["target"] != nil {
		t.Errorf("taken from before: %s", got)
	}
}

func TestDistinctFilters(t *testing.T) {
	got := fmt.Sprint(distinct([]string{"a/#", "a/b", "a/+", "c", "holdfast/+/+/report", "holdfast/x/y/report"}, topic.Filters("n")))
	if got != "[a/# c]" {
		t.Error(got)
	}
}
