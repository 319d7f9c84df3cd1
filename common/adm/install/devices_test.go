package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/tests/cluster"
)

const testdata = "../../../build/manifests/testdata"

// furnished is a real cluster with Holdfast's objects in it.
type furnished struct {
	config  *rest.Config
	install *install.Cluster
	objects []*unstructured.Unstructured
}

func furnish(t *testing.T) *furnished {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // a cold build of the control plane
	defer cancel()
	plane, err := cluster.Start(ctx, cluster.Options{Dir: filepath.Join(t.TempDir(), "controlplane"), Log: io.Discard})
	must(t, err)
	t.Cleanup(func() {
		if err := plane.Kill(); err != nil {
			t.Error(err)
		}
	})
	f := new(furnished)
	f.config, err = plane.RestConfig()
	must(t, err)
	f.objects, err = install.Objects(manifests.Files)
	must(t, err)
	f.install, err = install.New(f.config)
	must(t, err)
	must(t, f.install.Apply(ctx, f.objects))
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what must come.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit, tick := time.After(2*time.Minute), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("it never came that %s", what)
		case <-tick.C:
		}
	}
}

// resource is the resource of a kind of ours in namespace default, as a user has it;
// an empty one is the administrator.
func (f *furnished) resource(t *testing.T, kind, user string) dynamic.ResourceInterface {
	t.Helper()
	config := rest.CopyConfig(f.config)
	if user != "" {
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:nodes"}}
	}
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	return client.Resource(v1beta1.GroupVersion().WithResource(strings.ToLower(kind) + "s")).Namespace("default")
}

// documents are the objects of a YAML file, each with the text of its "# says:" line.
func documents(t *testing.T, file string) (objects []*unstructured.Unstructured, says []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		must(t, yaml.Unmarshal(doc, &o.Object))
		_, say, _ := strings.Cut(string(doc), "# says: ")
		say, _, _ = strings.Cut(say, "\n")
		objects, says = append(objects, o), append(says, say)
	}
	return objects, says
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(testdata, pattern))
	must(t, err)
	if len(names) == 0 {
		t.Fatalf("no file is %s", pattern)
	}
	return names
}

// TestDevicesOnARealCluster: what the definitions of devices take, refuse and show,
// and who may write what.
func TestDevicesOnARealCluster(t *testing.T) {
	f := furnish(t)
	t.Run("a second time", func(t *testing.T) { must(t, f.install.Apply(t.Context(), f.objects)) })
	t.Run("samples", f.takesSamples)
	t.Run("converted", f.takesWhatIsConverted)
	t.Run("refusals", f.refuses)
	t.Run("largest", f.takesTheLargest)
	t.Run("columns", f.showsColumns)
	t.Run("nodes", f.nodesWriteTheirOwn)
	t.Run("cloudcore", f.cloudcoreMay)
	t.Run("delete", f.deletes)
}

func (f *furnished) takesSamples(t *testing.T) {
	ctx := t.Context()
	for _, file := range files(t, "samples/*.yaml") {
		objects, _ := documents(t, file)
		for _, o := range objects {
			if _, err := f.resource(t, o.GetKind(), "").Create(ctx, o, metav1.CreateOptions{FieldValidation: "Strict"}); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	got, err := f.resource(t, "Device", "").Get(ctx, "hall-heater", metav1.GetOptions{})
	must(t, err)
	var device v1beta1.Device
	must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &device))
	if p := device.Spec.Properties[0]; p.ReportToCloud == nil || !*p.ReportToCloud {
		t.Errorf("property %s: reportToCloud is not true by default", p.Name)
	}
	if p := device.Spec.Properties[2]; p.ReportToCloud == nil || *p.ReportToCloud {
		t.Errorf("property %s: reportToCloud is not what the sample says", p.Name)
	}
	meter, err := f.resource(t, "Device", "").Get(ctx, "cellar-meter", metav1.GetOptions{})
	must(t, err)
	if id, _, _ := unstructured.NestedInt64(meter.Object, "spec", "protocol", "configData", "unit"); id != 1 {
		t.Error("what configData holds is not kept")
	}
}

// takesWhatIsConverted: what `holdfast convert devices` makes of KubeEdge's manifests.
func (f *furnished) takesWhatIsConverted(t *testing.T) {
	outputs, err := filepath.Glob("../convert/testdata/*/out.yaml")
	must(t, err)
	if len(outputs) < 4 {
		t.Fatalf("%d outputs: too few to be all", len(outputs))
	}
	for _, file := range outputs {
		objects, _ := documents(t, file)
		for _, o := range objects {
			o.SetNamespace("default") // the one that is there, with the samples in it
			o.SetName("converted-" + o.GetName())
			if _, err := f.resource(t, o.GetKind(), "").Create(t.Context(), o, metav1.CreateOptions{FieldValidation: "Strict", DryRun: []string{metav1.DryRunAll}}); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

func (f *furnished) refuses(t *testing.T) {
	for _, file := range files(t, "refused/*.yaml") {
		objects, says := documents(t, file)
		for i, o := range objects {
			_, err := f.resource(t, o.GetKind(), "").Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if says[i] == "" {
				t.Errorf("%s, document %d: it has no line that begins with # says:", file, i+1)
			}
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), says[i]) {
				t.Errorf("%s, document %d: the answer is %v, and should say %q", file, i+1, err, says[i])
			}
		}
	}
}

// takesTheLargest: a device with as many properties as there may be, with values as
// long as they may be together in one object, is refused by no rule for its cost.
func (f *furnished) takesTheLargest(t *testing.T) {
	ctx, devices := t.Context(), f.resource(t, "Device", "")
	device := &v1beta1.Device{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1beta1.GroupVersion().String(), Kind: "Device"},
		ObjectMeta: metav1.ObjectMeta{Name: "largest"},
		Spec:       v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "largest"}, NodeName: "shop-42"},
	}
	model := &v1beta1.DeviceModel{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1beta1.GroupVersion().String(), Kind: "DeviceModel"},
		ObjectMeta: metav1.ObjectMeta{Name: "largest"},
	}
	for i := range 256 {
		name := fmt.Sprintf("p%03d", i) + strings.Repeat("x", 124)
		model.Spec.Properties = append(model.Spec.Properties, v1beta1.ModelProperty{
			Name: name, Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "-9223372036854775808", Maximum: "+9223372036854775807",
		})
		device.Spec.Properties = append(device.Spec.Properties, v1beta1.DeviceProperty{
			Name: name, Desired: &v1beta1.TwinProperty{Value: strings.Repeat("v", 2048)}, History: &v1beta1.History{Limit: v1beta1.MaxHistory},
		})
		device.Status.Twins = append(device.Status.Twins, v1beta1.Twin{
			PropertyName: name, Reported: &v1beta1.TwinProperty{Value: strings.Repeat("v", 2048)}, History: make([]v1beta1.HistoryValue, 4),
		})
	}
	if _, err := f.resource(t, "DeviceModel", "").Create(ctx, plain(t, model), metav1.CreateOptions{}); err != nil {
		t.Errorf("a model of 256 properties: %v", err)
	}
	made, err := devices.Create(ctx, plain(t, device), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("a device of 256 properties: %v", err)
	}
	status := plain(t, device)
	status.SetResourceVersion(made.GetResourceVersion())
	if _, err := devices.UpdateStatus(ctx, status, metav1.UpdateOptions{}); err != nil {
		t.Errorf("the status of a device of 256 properties: %v", err)
	}
	must(t, devices.Delete(ctx, "largest", metav1.DeleteOptions{}))
}

func plain(t *testing.T, o any) *unstructured.Unstructured {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	u := &unstructured.Unstructured{}
	must(t, json.Unmarshal(text, &u.Object))
	return u
}

func (f *furnished) showsColumns(t *testing.T) {
	ctx := t.Context()
	now := metav1.Now().UTC().Format(time.RFC3339)
	_, err := f.resource(t, "Device", "").Patch(ctx, "hall-heater", "application/merge-patch+json",
		[]byte(`{"status":{"state":"online","lastReportTime":"`+now+`"}}`), metav1.PatchOptions{}, "status")
	must(t, err)
	for _, want := range []struct{ resource, name, columns, cells string }{
		{"devices", "hall-heater", "Name Model Node State Last-Report Age", "hall-heater thermostat shop-42 online AGE AGE"},
		{"devices", "cellar-meter", "Name Model Node State Last-Report Age", "cellar-meter meter - - - AGE"},
		{"devicemodels", "meter", "Name Protocol Age", "meter modbus AGE"},
		{"routes", "sales", "Name Up Down Node Age", "sales shop/+/sales - - AGE"},
		{"routes", "prices", "Name Up Down Node Age", "prices - shop/prices - AGE"},
	} {
		columns, cells := f.table(t, want.resource, want.name)
		if columns != want.columns {
			t.Errorf("%s show the columns %q, want %q", want.resource, columns, want.columns)
		}
		if cells != want.cells {
			t.Errorf("%s %s shows %q, want %q", want.resource, want.name, cells, want.cells)
		}
	}
}

// table is what kubectl get shows of an object: the columns that are not for -o wide
// alone, and the cells, with - for one that is empty and AGE for a short time.
func (f *furnished) table(t *testing.T, resource, name string) (columns, cells string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(f.config)
	must(t, err)
	text, err := client.Discovery().RESTClient().Get().
		AbsPath("/apis", v1beta1.GroupName, "v1beta1", "namespaces", "default", resource, name).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	must(t, err)
	var got metav1.Table
	must(t, json.Unmarshal(text, &got))
	if len(got.Rows) != 1 {
		t.Fatalf("%s %s: %d rows", resource, name, len(got.Rows))
	}
	for i, c := range got.ColumnDefinitions {
		if c.Priority > 0 {
			continue
		}
		columns += " " + strings.ReplaceAll(c.Name, " ", "-")
		switch cell := fmt.Sprint(got.Rows[0].Cells[i]); {
		case cell == "" || cell == "<nil>":
			cells += " -"
		case c.Type == "date" && cell != "<unknown>":
			cells += " AGE"
		default:
			cells += " " + cell
		}
	}
	return strings.TrimSpace(columns), strings.TrimSpace(cells)
}

// nodesWriteTheirOwn: a node writes the status of its own devices, and nothing else
// of any device.
func (f *furnished) nodesWriteTheirOwn(t *testing.T) {
	ctx := t.Context()
	patch := func(user, name string, subresources ...string) error {
		_, err := f.resource(t, "Device", user).Patch(ctx, name, "application/merge-patch+json", []byte(`{"status":{"reason":"`+user+`"}}`), metav1.PatchOptions{}, subresources...)
		return err
	}
	const own, other = "system:node:shop-42", "system:node:shop-43"
	eventually(t, "the role and the policy are in force", func() bool {
		err := patch(other, "hall-heater", "status")
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
	})
	if err := patch(own, "hall-heater", "status"); err != nil {
		t.Errorf("a node may not write the status of its own device: %v", err)
	}
	const say = "system:node:shop-43 may not write the status of device default/hall-heater, which is at node shop-42 (spec.nodeName)"
	if err := patch(other, "hall-heater", "status"); err == nil || !strings.Contains(err.Error(), say) {
		t.Errorf("the status of another node's device: %v, and it should say %q", err, say)
	}
	if err := patch(own, "cellar-meter", "status"); err == nil || !strings.Contains(err.Error(), "which is at no node") {
		t.Errorf("the status of a device at no node: %v", err)
	}
	if err := patch("system:node:", "cellar-meter", "status"); err == nil {
		t.Error("a node without a name may write the status of a device at no node")
	}
	if err := patch("shop-42", "hall-heater", "status"); !apierrors.IsForbidden(err) {
		t.Errorf("a user in group system:nodes who is no node: %v", err)
	}
	if err := patch(own, "hall-heater"); !apierrors.IsForbidden(err) {
		t.Errorf("a node changes more of its device than the status: %v", err)
	}
	if _, err := f.resource(t, "Device", own).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a node lists devices: %v", err)
	}
	if err := patch("", "hall-heater", "status"); err != nil {
		t.Errorf("the administrator may not write the status of a device: %v", err)
	}
	// The spec cannot be changed by way of the status.
	_, err := f.resource(t, "Device", own).Patch(ctx, "hall-heater", "application/merge-patch+json", []byte(`{"spec":{"nodeName":"shop-43"}}`), metav1.PatchOptions{}, "status")
	must(t, err)
	got, err := f.resource(t, "Device", "").Get(ctx, "hall-heater", metav1.GetOptions{})
	must(t, err)
	if node, _, _ := unstructured.NestedString(got.Object, "spec", "nodeName"); node != "shop-42" {
		t.Errorf("a node moved its device to %s through the status", node)
	}
}

// cloudcoreMay: what cloudcore needs to do with devices in its own name.
func (f *furnished) cloudcoreMay(t *testing.T) {
	config := rest.CopyConfig(f.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "holdfast:cloudcore", Groups: []string{"system:authenticated"}}
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	devices := client.Resource(v1beta1.GroupVersion().WithResource("devices")).Namespace("default")
	if _, err := devices.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := devices.Patch(t.Context(), "cellar-meter", "application/merge-patch+json", []byte(`{"spec":{"nodeName":"shop-7"}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("cloudcore chooses a node: %v", err)
	}
	if _, err := devices.Patch(t.Context(), "hall-heater", "application/merge-patch+json", []byte(`{"status":{"state":"unknown"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Errorf("cloudcore says that a device cannot be heard: %v", err)
	}
	routes := client.Resource(v1beta1.GroupVersion().WithResource("routes")).Namespace("default")
	if _, err := routes.Patch(t.Context(), "sales", "application/merge-patch+json", []byte(`{"status":{"nodes":[{"node":"shop-42","dropped":3}]}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Errorf("cloudcore counts what was dropped: %v", err)
	}
	if err := devices.Delete(t.Context(), "hall-heater", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("cloudcore may delete devices: %v", err)
	}
}

// deletes: with the definitions all devices go.
func (f *furnished) deletes(t *testing.T) {
	ctx := t.Context()
	must(t, f.install.Delete(ctx, f.objects))
	client, err := dynamic.NewForConfig(f.config)
	must(t, err)
	definitions := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, name := range []string{"devices", "devicemodels", "routes"} {
		eventually(t, "the definition of "+name+" is gone", func() bool {
			_, err := definitions.Get(ctx, name+"."+v1beta1.GroupName, metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
	if err := f.install.Delete(ctx, f.objects); err != nil {
		t.Errorf("a second time: %v", err)
	}
}
