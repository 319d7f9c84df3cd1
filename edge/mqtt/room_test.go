package mqtt

import (
	"net"
	"net/url"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// hookOf is that of the embedded broker.
func (n *node) hookOf() *hook {
	n.t.Helper()
	n.address()
	e, ok := n.server.current().(*embedded)
	if !ok {
		n.t.Fatal("the broker is not embedded")
	}
	return e.hook
}

// TestSessionsThatNobodyComesBackToSilenceNobody: what waits for them may fill the room
// of all; who has acknowledged what came is sent more.
func TestSessionsThatNobodyComesBackToSilenceNobody(t *testing.T) {
	n := newNode(t, Config{})
	n.hookOf().waits.Add(allInflightRoom + 1)
	c := dial(t, n.address(), "dashboard", nil)
	c.sub("app/x")
	dial(t, n.address(), "program", nil).pub("app/x", "1")
	if got := c.next("app/x"); got != "1" {
		t.Errorf("got %s", got)
	}
}

// TestWillsAreRetainedAsOtherMessagesAre: not beyond the room for them, and no updates.
func TestWillsAreRetainedAsOtherMessagesAre(t *testing.T) {
	n := newNode(t, Config{})
	h := n.hookOf()
	die := func(topic string) {
		var raw net.Conn
		dial(t, n.address(), "mortal", func(o *paho.ClientOptions) {
			o.SetWill(topic, "offline", 1, true).SetAutoReconnect(false).SetCustomOpenConnectionFn(func(u *url.URL, _ paho.ClientOptions) (net.Conn, error) {
				c, err := net.Dial("tcp", u.Host)
				raw = c
				return c, err
			})
		})
		watcher := dial(t, n.address(), "watcher", nil)
		watcher.sub(topic)
		must(t, raw.Close())
		if got := watcher.next(topic); got != "offline" {
			t.Errorf("the will says %q", got)
		}
	}
	retained := func(topic string) bool {
		_, there := h.embedded.server.Topics.Retained.Get(topic)
		return there
	}
	die("app/will")
	if !retained("app/will") {
		t.Error("a will that may be retained is not")
	}
	die(boiler + "state")
	if retained(boiler + "state") {
		t.Error("an update is retained")
	}
	h.mu.Lock()
	h.retainedBytes = maxRetainedBytes
	h.mu.Unlock()
	die("app/will/2")
	if retained("app/will/2") {
		t.Error("a will is retained without room")
	}
}
