package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

const kubeEdgeModel = `apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: lamp, namespace: default}
spec: {properties: [{name: power, type: STRING, accessMode: ReadWrite, shape: round}]}
`

const kubeEdgeDevice = `apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: hall, namespace: default}
spec: {deviceModelRef: {name: lamp}, nodeName: shop-1, properties: [{name: power, desired: {value: "on"}}]}
`

// convert runs `holdfast convert devices` and returns both outputs.
func convert(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, warnings bytes.Buffer
	code = run(t.Context(), append([]string{"convert", "devices"}, args...), strings.NewReader(stdin), &out, &warnings)
	return code, out.String(), warnings.String()
}

func TestConvertWritesOurManifests(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "in/model.yaml"), kubeEdgeModel, 0o644)
	write(t, filepath.Join(dir, "in/device.yml"), kubeEdgeDevice, 0o644)
	write(t, filepath.Join(dir, "in/pod.json"), `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`, 0o644)
	write(t, filepath.Join(dir, "in/README"), "not a manifest", 0o644)
	out := filepath.Join(dir, "out.yaml")

	code, stdout, stderr := convert(t, "", "-f", filepath.Join(dir, "in"), "-o", out)
	if code != 1 || stdout != "" || there(out) {
		t.Errorf("a Pod among them: exit code %d, and something was written:\n%s", code, stdout)
	}
	says(t, stderr, "nothing was written", "Pod p ("+filepath.Join(dir, "in/pod.json")+")", "--skip-others")

	code, stdout, stderr = convert(t, "", "-f", filepath.Join(dir, "in"), "-o", out, "--skip-others")
	if code != 0 || stdout != "" {
		t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	says(t, stderr, "warning: DeviceModel default/lamp", "spec.properties[0].shape")
	text := read(t, out)
	says(t, text, "apiVersion: devices.holdfast.io/v1beta1\nkind: Device\n", "\n---\napiVersion: devices.holdfast.io/v1beta1\nkind: DeviceModel\n", "reportToCloud: false")

	// The same through a pipe.
	code, stdout, stderr = convert(t, kubeEdgeDevice+"---\n"+kubeEdgeModel)
	if code != 0 || stdout != text {
		t.Errorf("exit code %d; the standard output differs from the file:\n%s%s", code, stdout, stderr)
	}
}

func TestConvertNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, stdin string
		args        []string
		say         string
	}{
		{"no such file", "", []string{"-f", dir + "/none.yaml"}, dir + "/none.yaml"},
		{"an empty folder", "", []string{"-f", dir}, "has no file that ends in .yaml"},
		{"nothing", "", nil, "the input holds no object"},
		{"nothing of ours", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`, []string{"--skip-others"}, "none of the 1 objects"},
		{"no YAML", "a: [", nil, "standard input: document 1"},
		{"no folder for the output", kubeEdgeModel, []string{"-o", dir + "/none/out.yaml"}, dir + "/none/out.yaml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := convert(t, tt.stdin, tt.args...)
			if code != 1 || stdout != "" {
				t.Errorf("exit code %d, want 1 and no output:\n%s", code, stdout)
			}
			says(t, stderr, tt.say)
		})
	}
}
