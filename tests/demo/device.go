package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// heater is a device beside the node that will be lost.
const heater = `
apiVersion: devices.holdfast.io/v1beta1
kind: DeviceModel
metadata: {name: heater}
spec:
  properties:
  - {name: target, type: INT, accessMode: ReadWrite, minimum: "5", maximum: "30", unit: "°C"}
  - {name: temperature, type: DOUBLE, accessMode: ReadOnly, unit: "°C"}
---
apiVersion: devices.holdfast.io/v1beta1
kind: Device
metadata: {name: hall}
spec:
  deviceModelRef: {name: heater}
  nodeName: shop-42
  properties:
  - {name: target, desired: {value: "20"}}
`

const heaterTopic = "holdfast/default/hall/"

// plugIn makes the heater known, and lets it speak.
func plugIn(ctx context.Context, s *stage, w *world.World, node *world.Node) error {
	s.act("A device: a heater beside the node speaks MQTT with edgecore")
	file := filepath.Join(w.Dir, "heater.yaml")
	if err := os.WriteFile(file, []byte(heater), 0o644); err != nil {
		return err
	}
	if err := kubectl(ctx, s, w, "apply", "-f", file); err != nil {
		return err
	}
	err := s.timed("kubectl apply: the heater is told what it shall do", func() error {
		return world.Eventually(ctx, time.Minute, "the heater is told 20", func(context.Context) (bool, error) {
			told, err := desired(node)
			return told == `{"target":20}`, err
		})
	})
	if err != nil {
		return err
	}
	if err := mosquitto(s, node, "mosquitto_pub", "-q", "1", "-t", heaterTopic+"report", "-m", `{"temperature": 18.5, "target": 20}`); err != nil {
		return err
	}
	return shown(ctx, s, w, "18.5")
}

// steerOffline sets what the heater shall do from the node itself.
func steerOffline(ctx context.Context, s *stage, w *world.World, node *world.Node) error {
	s.act("The heater is steered, and heard, with the line cut")
	for _, m := range [][2]string{{"set/target", "17"}, {"report", `{"temperature": 17.5, "target": 17}`}} {
		if err := mosquitto(s, node, "mosquitto_pub", "-q", "1", "-t", heaterTopic+m[0], "-m", m[1]); err != nil {
			return err
		}
	}
	if told, err := desired(node); err != nil || told != `{"target":17}` {
		return fmt.Errorf("the heater is told %q, want 17: %w", told, err)
	}
	out, err := node.Netns.Command(filepath.Join(w.Bin, "holdfast"), "devices", "default/hall", "--run-dir", node.RunDir()).CombinedOutput()
	s.show("holdfast devices default/hall      (at the node)", string(out))
	if err != nil {
		return fmt.Errorf("holdfast devices: %w", err)
	}
	return ctx.Err()
}

// shown waits until the cloud shows a temperature of the heater.
func shown(ctx context.Context, s *stage, w *world.World, temperature string) error {
	const values = `jsonpath={range .status.twins[*]}{.propertyName}: {.reported.value}, desired {.observedDesired.value} {.desiredBy}{"\n"}{end}`
	out := ""
	err := world.Eventually(ctx, time.Minute, "the cloud shows "+temperature, func(ctx context.Context) (bool, error) {
		b, err := exec.CommandContext(ctx, "kubectl", "--kubeconfig", w.Kubeconfig(), "get", "device", "hall", "-o", values).Output()
		out = string(b)
		return strings.Contains(out, "temperature: "+temperature), err
	})
	if err != nil {
		return err
	}
	if err := kubectl(ctx, s, w, "get", "devices"); err != nil {
		return err
	}
	s.show("(status.twins of the Device)", out)
	return nil
}

// desired is what edgecore tells the heater.
func desired(node *world.Node) (string, error) {
	out, err := node.Netns.Command("mosquitto_sub", "-t", heaterTopic+"desired", "-C", "1", "-W", "2").Output()
	return strings.TrimSpace(string(out)), err
}

func mosquitto(s *stage, node *world.Node, name string, args ...string) error {
	out, err := node.Netns.Command(name, args...).CombinedOutput()
	s.show(name+" "+strings.Join(args, " "), string(out))
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
