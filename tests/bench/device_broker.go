package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// brokerAddress is the broker's at the node, whichever it is.
const brokerAddress = "127.0.0.1:1883"

// dial connects a client to the node's broker, which may be about to start.
func (d *deviceBench) dial(ctx context.Context, id string) (paho.Client, error) {
	o := paho.NewClientOptions().AddBroker("tcp://" + brokerAddress).SetClientID(id).
		SetProtocolVersion(4).SetCleanSession(true).SetAutoReconnect(false).
		SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return d.node.Netns.Dial(brokerAddress) })
	var c paho.Client
	err := world.Eventually(ctx, patience, "the node's broker takes client "+id, func(context.Context) (bool, error) {
		c = paho.NewClient(o)
		err := acknowledged(c.Connect())
		return err == nil, err
	})
	return c, err
}

// dialAll connects a client for each device.
func (d *deviceBench) dialAll(ctx context.Context, names []string) (clients []paho.Client, hangUp func(), err error) {
	hangUp = func() {
		for _, c := range clients {
			c.Disconnect(0)
		}
	}
	for _, name := range names {
		c, err := d.dial(ctx, name)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		clients = append(clients, c)
	}
	return clients, hangUp, nil
}

// acknowledged waits for the broker's answer.
func acknowledged(t paho.Token) error {
	if !t.WaitTimeout(30 * time.Second) {
		return fmt.Errorf("the node's broker has not answered for 30 s")
	}
	return t.Error()
}

// mosquitto is a broker at the node that is not edgecore.
type mosquitto struct {
	cmd *exec.Cmd
	dir string
}

// startMosquitto makes mosquitto the node's broker: one that holds back what edgecore
// cannot take yet, and hands it enough at once to fill a commit.
func (d *deviceBench) startMosquitto(ctx context.Context) (*mosquitto, error) {
	dir, err := os.MkdirTemp("", "mosquitto")
	if err != nil {
		return nil, err
	}
	m := &mosquitto{dir: dir}
	config := filepath.Join(dir, "mosquitto.conf")
	text := fmt.Sprintf("listener 1883 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location %s/\n"+
		"max_queued_messages 0\nmax_inflight_messages %d\n", dir, mosquittoInflight)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	// The embedded broker gives the address up together with its edgecore.
	if err := d.node.StopEdgecore(); err != nil {
		return nil, err
	}
	if err := d.configure("mqtt: {broker: \"tcp://" + brokerAddress + "\"}"); err != nil {
		return nil, err
	}
	m.cmd = d.node.Netns.Command("mosquitto", "-c", config)
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	c, err := d.dial(ctx, "first")
	if err != nil {
		return nil, err
	}
	c.Disconnect(0)
	if err := d.node.StartEdgecore(); err != nil {
		return nil, err
	}
	return m, d.lineUp(ctx)
}

// mosquittoInflight is how many messages mosquitto hands edgecore before it wants an
// acknowledgement; its default of 20 would make commits small.
const mosquittoInflight = 1000

func (m *mosquitto) stop() error {
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := m.cmd.Wait(); err != nil {
		return fmt.Errorf("mosquitto: %w", err)
	}
	return os.RemoveAll(m.dir)
}
