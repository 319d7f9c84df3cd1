package mqtt

import (
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
)

const boiler = "holdfast/plant/boiler/"

func TestAReportIsStoredBeforeItIsAcknowledged(t *testing.T) {
	n := newNode(t, Config{})
	c := dial(t, n.address(), "boiler", nil)
	c.sub(boiler + "result")
	c.pub(boiler+"report", `{"temperature": 21.50, "on": true, "note": {"value": "a", "timestamp": 1700000000000}}`)
	for property, want := range map[string]string{"temperature": "21.50", "on": "true", "note": "a"} {
		if got := n.reported("boiler", property); got != want {
			t.Errorf("after the PUBACK %s is %q, want %q", property, got, want)
		}
	}
	c.pub(boiler+"report/temperature", "22")
	if got := n.reported("boiler", "temperature"); got != "22" {
		t.Errorf("one value as text: %q", got)
	}
	c.pub(boiler+"report", `{"id": 7, "temperature": 23}`)
	if got := c.next(boiler + "result"); got != `{"ok":true,"id":7}` {
		t.Errorf("answer %s", got)
	}
	c.pub(boiler+"state", "offline")
	if v := n.devices.List()[0]; v.Twin.State != "offline" {
		t.Errorf("state %s", v.Twin.State)
	}
}

func TestWhatIsRefusedIsAnsweredOnceAndAcknowledged(t *testing.T) {
	n := newNode(t, Config{})
	c := dial(t, n.address(), "program", nil)
	c.sub("holdfast/+/+/result")
	for _, r := range []struct {
		topic, payload string
		code           int
		property, says string
	}{
		{boiler + "report", `{"temperature": 500}`, 400, "temperature", "above the maximum 125"},
		{boiler + "report", `{"temperature": "warm"}`, 400, "temperature", "not a finite number"},
		{boiler + "report", `{"pressure": 1}`, 400, "pressure", "no such property"},
		{boiler + "set", `{"temperature": 20}`, 400, "temperature", "read-only"},
		{boiler + "report", `{"temperature": null}`, 400, "", "null"},
		{boiler + "report", `{"temperature": [1]}`, 400, "", "send anything else as text"},
		{boiler + "report", `{"temperature": 1`, 400, "", "no JSON"},
		{boiler + "report", `21.5`, 400, "", "append /PROPERTY"},
		{boiler + "report", `{}`, 400, "", "names no property"},
		{boiler + "report", "{\"note\": \"\xff\"}", 400, "", "UTF-8"},
		{boiler + "report/note", "\xff", 400, "note", "UTF-8"},
		{boiler + "state", "asleep", 400, "", "neither online nor offline"},
		{"holdfast/plant/nothing/report", `{"a":1}`, 404, "", "spec.nodeName is pi"},
		{boiler + "report", `{"note": "` + strings.Repeat("x", 70_000) + `"}`, 413, "", "65536 is the limit"},
		{boiler + "report/note", strings.Repeat("x", 9_000), 400, "note", "8192 is the limit"},
	} {
		c.pub(r.topic, r.payload)
		where := strings.Join(strings.Split(r.topic, "/")[:3], "/") + "/result"
		a := unmarshal[payload.Answer](t, c.next(where))
		if a.OK || a.Code != r.code || a.Property != r.property || a.Topic != r.topic || !strings.Contains(a.Error, r.says) {
			t.Errorf("%s %.40q: %+v", r.topic, r.payload, a)
		}
	}
	if got := n.reported("boiler", "note"); got != "" {
		t.Errorf("refused, and stored: %q", got)
	}
}

func TestDesiredValuesAreRetained(t *testing.T) {
	n := newNode(t, Config{}, thermostats("plant"), thermostat("plant", "boiler", desires("target", "21")))
	c := dial(t, n.address(), "boiler", nil)
	c.sub(boiler + "desired")
	if got := c.next(boiler + "desired"); got != `{"target":21}` {
		t.Errorf("what the cloud wants: %s", got)
	}
	c.sub(boiler + "desired/target")
	if got := c.next(boiler + "desired/target"); got != "21" {
		t.Errorf("as text: %s", got)
	}
	c.pub(boiler+"set", `{"on": true}`)
	if got := c.next(boiler + "desired"); got != `{"on":true,"target":21}` {
		t.Errorf("with what was set here: %s", got)
	}
	c.pub(boiler+"set/target", `19`)
	if got := c.next(boiler + "desired/target"); got != "19" {
		t.Errorf("set here: %s", got)
	}
	if got := c.next(boiler + "desired"); got != `{"on":true,"target":19}` {
		t.Errorf("set here: %s", got)
	}
	d := thermostat("plant", "boiler", desires("target", "24"))
	d.Generation = 2
	n.apply(d)
	if got := c.next(boiler + "desired/target"); got != "24" {
		t.Errorf("the cloud's newer word: %s", got)
	}
	if got := c.next(boiler + "desired"); got != `{"on":true,"target":24}` {
		t.Errorf("the cloud's newer word: %s", got)
	}
	n.remove(d)
	eventually(t, "nothing is retained of a device that is gone", func() bool {
		return n.server.current().(*embedded).server.Topics.Retained.Len() == 20 // the broker's own $SYS
	})
	late := dial(t, n.address(), "late", nil)
	late.sub(boiler+"#", "marker/#")
	late.silent()
}

func TestADashboardSeesReports(t *testing.T) {
	n := newNode(t, Config{})
	dashboard := dial(t, n.address(), "dashboard", nil)
	dashboard.sub("holdfast/+/+/report")
	c := dial(t, n.address(), "boiler", nil)
	c.pub(boiler+"report", `{"temperature": 999}`)
	c.pub(boiler+"report", `{"temperature": 20}`)
	if got := dashboard.next(boiler + "report"); got != `{"temperature": 20}` {
		t.Errorf("got %s", got)
	}
}

func TestWithTheToolsOfMosquitto(t *testing.T) {
	n := newNode(t, Config{})
	p := port(n.address())
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		for _, qos := range []string{"0", "1", "2"} {
			value := strconv.Itoa(len(version)) + "." + qos
			out, err := run(t, "mosquitto_pub", "-V", version, "-p", p, "-q", qos, "-t", boiler+"report", "-m", `{"temperature":`+value+`}`)
			if err != nil {
				t.Fatalf("%s, QoS %s: %v: %s", version, qos, err, out)
			}
			eventually(t, "stored", func() bool { return n.reported("boiler", "temperature") == value })
		}
	}
	out, err := run(t, "mosquitto_pub", "-V", "mqttv5", "-p", p, "-q", "1", "-d", "-t", boiler+"report", "-m", `{"temperature":999}`)
	contains(t, out, "RC:153") // payload format invalid
	if err != nil {
		t.Logf("mosquitto_pub: %v", err)
	}
	out, err = run(t, "mosquitto_rr", "-V", "mqttv5", "-p", p, "-q", "1", "-t", boiler+"set", "-e", "answers/1", "-m", `{"target":20}`)
	if err != nil || strings.TrimSpace(out) != `{"ok":true}` {
		t.Errorf("an answer on a response topic: %v: %s", err, out)
	}
	out, err = run(t, "mosquitto_rr", "-V", "mqttv5", "-p", p, "-q", "1", "-t", boiler+"set", "-e", "answers/2", "-m", `{"target":99}`)
	contains(t, out, `"code":400`, "above the maximum 30")
	if err != nil {
		t.Error(err)
	}
	out, err = run(t, "mosquitto_sub", "-p", p, "-t", boiler+"desired/target", "-C", "1")
	if err != nil || strings.TrimSpace(out) != "20" {
		t.Errorf("retained: %v: %s", err, out)
	}
}
