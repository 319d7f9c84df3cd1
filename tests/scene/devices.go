package scene

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// dynamic is a client for devices, such as a user's own controller has.
func (s *Scene) dynamic(resource string) dynamic.ResourceInterface {
	s.Helper()
	client, err := dynamic.NewForConfig(s.World.RestConfig())
	s.Must(err)
	return client.Resource(v1beta1.GroupVersion().WithResource(resource)).Namespace(s.NS)
}

func kinds() map[string]string {
	return map[string]string{"devicemodels": "DeviceModel", "devices": "Device", "routes": "Route"}
}

// CreateObject creates a DeviceModel, Device or Route of this test's namespace; spec is
// JSON.
func (s *Scene) CreateObject(resource, name, spec string) {
	s.Helper()
	var content map[string]any
	s.Must(json.Unmarshal([]byte(spec), &content))
	o := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": name}, "spec": content}}
	o.SetGroupVersionKind(schema.GroupVersionKind{Group: v1beta1.GroupName, Version: "v1beta1", Kind: kinds()[resource]})
	_, err := s.dynamic(resource).Create(s.Ctx, o, metav1.CreateOptions{})
	s.Must(err)
}

// Desire sets the desired value of a device's first property, as kubectl patch does.
func (s *Scene) Desire(device, value string) {
	s.Helper()
	patch := fmt.Sprintf(`[{"op":"add","path":"/spec/properties/0/desired","value":{"value":%q}}]`, value)
	_, err := s.dynamic("devices").Patch(s.Ctx, device, "application/json-patch+json", []byte(patch), metav1.PatchOptions{})
	s.Must(err)
}

// DeleteObject deletes a DeviceModel, Device or Route.
func (s *Scene) DeleteObject(resource, name string) {
	s.Helper()
	s.Must(s.dynamic(resource).Delete(s.Ctx, name, metav1.DeleteOptions{}))
}

// Device waits until a Device's status is as wanted, and returns it.
func (s *Scene) Device(name, what string, is func(*v1beta1.Device) bool) *v1beta1.Device {
	s.Helper()
	var last *v1beta1.Device
	err := world.Eventually(s.Ctx, Patience, fmt.Sprintf("device %s: %s", name, what), func(ctx context.Context) (bool, error) {
		o, err := s.dynamic("devices").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		b, err := o.MarshalJSON()
		if err != nil {
			return false, err
		}
		last = new(v1beta1.Device)
		return json.Unmarshal(b, last) == nil && is(last), nil
	})
	if err != nil {
		b, _ := json.Marshal(last)
		s.Fatalf("%v; it is %s", err, b)
	}
	return last
}

// TwinOf is a property's part of a status, empty where there is none.
func TwinOf(d *v1beta1.Device, property string) v1beta1.Twin {
	for _, t := range d.Status.Twins {
		if t.PropertyName == property {
			return t
		}
	}
	return v1beta1.Twin{}
}

// Reported is a property's reported value, "" where there is none.
func Reported(d *v1beta1.Device, property string) string {
	if r := TwinOf(d, property).Reported; r != nil {
		return r.Value
	}
	return ""
}

// Publish publishes a message at the node, by mosquitto_pub.
func (s *Scene) Publish(n *world.Node, topic, payload string) {
	s.Helper()
	if out, err := n.Netns.Command("mosquitto_pub", "-q", "1", "-t", topic, "-m", payload).CombinedOutput(); err != nil {
		s.Fatalf("mosquitto_pub -t %s: %v: %s", topic, err, out)
	}
}

// PublishLines publishes each line as a message of its own, in one connection.
func (s *Scene) PublishLines(n *world.Node, topic string, lines []string) {
	s.Helper()
	cmd := n.Netns.Command("mosquitto_pub", "-q", "1", "-t", topic, "-l")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("mosquitto_pub -t %s: %v: %s", topic, err, out)
	}
}

// Message waits for the first message on a topic at the node that is as wanted, by
// mosquitto_sub; retained ones count.
func (s *Scene) Message(n *world.Node, topic, want string) {
	s.Helper()
	s.Until(fmt.Sprintf("%q is told on %s at node %s", want, topic, n.Name), func(context.Context) (bool, error) {
		out, err := n.Netns.Command("mosquitto_sub", "-q", "1", "-t", topic, "-C", "1", "-W", "2").Output()
		return strings.Contains(string(out), want), err
	})
}

// AtNode runs the holdfast command at the node, and returns what it printed.
func (s *Scene) AtNode(n *world.Node, args ...string) string {
	s.Helper()
	out, err := n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), append(args, "--run-dir", n.RunDir())...).CombinedOutput()
	if err != nil {
		s.Fatalf("holdfast %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
