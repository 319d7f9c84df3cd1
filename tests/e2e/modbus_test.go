package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// TestAModbusDeviceIsReadAndSteeredByTheMappersPod: the delivered manifest, as a pod of
// the node, and a Modbus server that is not ours.
func TestAModbusDeviceIsReadAndSteeredByTheMappersPod(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-modbus", world.NodeOptions{})
	set, port := startModbusServer(s, n)
	set("1 h 10 215")

	startMapper(s, n)
	s.CreateObject("devicemodels", "meter", `{"protocol": "modbus", "properties": [
		{"name": "target", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "1000"},
		{"name": "temperature", "type": "DOUBLE", "accessMode": "ReadOnly", "unit": "°C"}]}`)
	s.CreateObject("devices", "cellar", fmt.Sprintf(`{"deviceModelRef": {"name": "meter"}, "nodeName": %q,
		"protocol": {"protocolName": "modbus", "configData": {"address": "127.0.0.1:%s", "unit": 1}},
		"properties": [
			{"name": "target", "collectCycle": 200, "visitors": {"protocolName": "modbus", "configData": {"register": "holdingRegister", "offset": 20, "dataType": "uint16"}}},
			{"name": "temperature", "collectCycle": 200, "visitors": {"protocolName": "modbus", "configData": {"register": "holdingRegister", "offset": 10, "dataType": "int16", "scale": 0.1}}}]}`,
		n.Name, port))
	s.Device("cellar", "21.5 is read", func(d *v1beta1.Device) bool {
		return scene.Reported(d, "temperature") == "21.5" && d.Status.State == v1beta1.StateOnline
	})
	set("1 h 10 220")
	s.Device("cellar", "22 is read", func(d *v1beta1.Device) bool { return scene.Reported(d, "temperature") == "22" })

	// From the cloud into the register and back, and from the node with the line cut.
	s.Desire("cellar", "300")
	s.Device("cellar", "300 is written and read back", func(d *v1beta1.Device) bool { return scene.Reported(d, "target") == "300" })
	s.Must(n.Cut())
	s.Publish(n, "holdfast/"+s.NS+"/cellar/set/target", "400")
	s.Until("the register holds 400 with the line cut", func(context.Context) (bool, error) {
		d, err := s.LocalDevice(n, "cellar")
		return err == nil && len(d.Properties) > 0 && d.Properties[0].Reported != nil && *d.Properties[0].Reported == "400", err
	})
	s.Must(n.Mend())
	s.Device("cellar", "400 is told", func(d *v1beta1.Device) bool {
		return scene.Reported(d, "target") == "400" && scene.TwinOf(d, "target").DesiredBy == v1beta1.ByEdge
	})
}

// startModbusServer starts pymodbus in the node's network; set writes into it, as
// "UNIT TABLE ADDRESS VALUE...".
func startModbusServer(s *scene.Scene, n *world.Node) (set func(string), port string) {
	s.Helper()
	root, err := world.Root()
	s.Must(err)
	cmd := n.Netns.Command("/usr/bin/python3", filepath.Join(root, "edge/mapper/modbus/testdata/server.py"), "tcp")
	in, err := cmd.StdinPipe()
	s.Must(err)
	out, err := cmd.StdoutPipe()
	s.Must(err)
	s.Must(cmd.Start())
	s.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	said := make(chan struct{}, 1)
	listening := make(chan string, 1)
	go func() {
		for lines.Scan() {
			if p, ok := strings.CutPrefix(lines.Text(), "listening "); ok {
				listening <- p
			} else if lines.Text() == "set" {
				said <- struct{}{}
			}
		}
		close(listening)
	}()
	port, ok := <-listening
	if !ok {
		s.Fatal("the Modbus server does not start")
	}
	return func(line string) {
		s.Helper()
		_, err := fmt.Fprintln(in, line)
		s.Must(err)
		<-said
	}, port
}

// startMapper applies the delivered manifest, with this node's folders.
func startMapper(s *scene.Scene, n *world.Node) {
	s.Helper()
	root, err := world.Root()
	s.Must(err)
	binary, err := os.ReadFile(filepath.Join(s.World.Bin, "modbusmapper"))
	s.Must(err)
	const name = "example.test/holdfast/modbus-mapper:test"
	mapper, err := image.Build(image.Spec{Name: name, Files: []image.File{{Path: "modbusmapper", Data: binary}}, Entrypoint: []string{"/modbusmapper"}})
	s.Must(err)
	s.Must(n.Containerd.Import(s.Ctx, mapper))

	text, err := os.ReadFile(filepath.Join(root, "build/mappers/modbus/mapper.yaml"))
	s.Must(err)
	manifest := strings.NewReplacer("/run/holdfast", n.RunDir(), "holdfast/modbus-mapper:VERSION", name).Replace(string(text))
	asJSON, err := yaml.YAMLToJSON([]byte(manifest))
	s.Must(err)
	set := new(appsv1.DaemonSet)
	s.Must(json.Unmarshal(asJSON, set))
	_, err = s.Client.AppsV1().DaemonSets(set.Namespace).Create(s.Ctx, set, metav1.CreateOptions{})
	s.Must(err)
	label := []byte(`{"metadata": {"labels": {"devices.holdfast.io/modbus": ""}}}`)
	_, err = s.Client.CoreV1().Nodes().Patch(s.Ctx, n.Name, types.MergePatchType, label, metav1.PatchOptions{})
	s.Must(err)
}
