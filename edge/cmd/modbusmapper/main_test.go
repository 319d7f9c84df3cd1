package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/dmi"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

func TestHelpTeachesAndBadCallsAreTold(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--help"}, &out, &out); err != nil || !strings.Contains(out.String(), "protocolName: modbus") || !strings.Contains(out.String(), "-edgecore-socket") {
		t.Errorf("--help: %v\n%s", err, out.String())
	}
	out.Reset()
	if err := run(context.Background(), []string{"--version"}, &out, &out); err != nil || out.String() != "modbusmapper unreleased\n" {
		t.Errorf("--version: %v %q", err, out.String())
	}
	var wrong usageError
	for _, args := range [][]string{{"now"}, {"--socket", "relative"}, {"--log-level", "loud"}, {"--no-such-flag"}} {
		if err := run(context.Background(), args, &out, &out); !errors.As(err, &wrong) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

type clock struct{ start time.Time }

func (c clock) Wall() time.Time     { return time.Now() }
func (c clock) Mono() time.Duration { return time.Since(c.start) }

type noEvents struct{}

func (noEvents) Device(*v1beta1.Device, string, string, string) {}

func background(t *testing.T, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// modbusServer starts pymodbus and returns its port.
func modbusServer(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "../../mapper/modbus/testdata/server.py", "tcp")
	if _, err := cmd.StdinPipe(); err != nil { // it ends with it
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the Modbus server did not start: is python3-pymodbus installed?")
	}
	go func() {
		for lines.Scan() {
		}
	}()
	return strings.TrimPrefix(lines.Text(), "listening ")
}

func apply(t *testing.T, st *store.Store, kind wire.Kind, meta *metav1.ObjectMeta, version int, object any) {
	t.Helper()
	b, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	ref := &wire.ObjectRef{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Uid: string(meta.UID), Version: fmt.Append(nil, version)}
	if err := st.Apply(context.Background(), []*wire.Object{{Ref: ref, Payload: b}}, nil); err != nil {
		t.Fatal(err)
	}
}

// TestFromTheCloudsWordToTheRegisterAndBack: the mapper, edgecore's devices and a
// Modbus server; then edgecore restarts, and the mapper as well.
func TestFromTheCloudsWordToTheRegisterAndBack(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(filepath.Join(dir, "edge.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	manager := device.New(device.Options{Store: st, Clock: clock{time.Now()}, Events: noEvents{}})
	background(t, manager.Run)
	serve := func() func() {
		return background(t, dmi.New(dmi.Options{Socket: filepath.Join(dir, "dmi.sock"), Devices: manager, StateFile: filepath.Join(dir, "mappers.json"), Silence: time.Second}).Run)
	}
	work := func() func() {
		return background(t, func(ctx context.Context) error {
			return run(ctx, []string{"--edgecore-socket", filepath.Join(dir, "dmi.sock"), "--socket", filepath.Join(dir, "mappers", "modbus.sock")}, t.Output(), t.Output())
		})
	}
	endMapper := work() // before edgecore: it waits
	endEdgecore := serve()

	model := &v1beta1.DeviceModel{ObjectMeta: metav1.ObjectMeta{Namespace: "plant", Name: "boiler", UID: "m"}}
	model.Spec.Properties = []v1beta1.ModelProperty{
		{Name: "temperature", Type: v1beta1.TypeFloat, AccessMode: v1beta1.ReadOnly},
		{Name: "target", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "0", Maximum: "90"},
	}
	apply(t, st, wire.Kind_KIND_DEVICE_MODEL, &model.ObjectMeta, 1, model)
	raw := func(s string) *v1beta1.RawObject { return &v1beta1.RawObject{RawMessage: json.RawMessage(s)} }
	d := &v1beta1.Device{ObjectMeta: metav1.ObjectMeta{Namespace: "plant", Name: "b1", UID: "d"}}
	d.Spec.DeviceModelRef = &v1beta1.LocalObjectReference{Name: "boiler"}
	d.Spec.Protocol = v1beta1.ProtocolConfig{ProtocolName: "modbus", ConfigData: raw(`{"communicateMode":"TCP","ip":"127.0.0.1","port":` + modbusServer(t) + `,"slaveID":1}`)}
	d.Spec.Properties = []v1beta1.DeviceProperty{
		{Name: "temperature", CollectCycle: 50, Visitors: v1beta1.VisitorConfig{ProtocolName: "modbus", ConfigData: raw(`{"register":"InputRegister","offset":7,"limit":1,"scale":0.1}`)}},
		{Name: "target", CollectCycle: 50, Desired: &v1beta1.TwinProperty{Value: "60"}, Visitors: v1beta1.VisitorConfig{ConfigData: raw(`{"register":"HoldingRegister","offset":8}`)}},
	}
	apply(t, st, wire.Kind_KIND_DEVICE, &d.ObjectMeta, 1, d)

	key := twin.Key{Namespace: "plant", Name: "b1"}
	reported := func(property, text string) func() bool {
		return func() bool {
			v, err := manager.Get(key)
			if err != nil || v.Twin.Properties[property] == nil || v.Twin.Properties[property].Reported == nil {
				return false
			}
			return v.Twin.Properties[property].Reported.Text == text
		}
	}
	state := func(s v1beta1.DeviceState) func() bool {
		return func() bool { v, err := manager.Get(key); return err == nil && v.Twin.State == s }
	}
	set := func(text string) {
		t.Helper()
		if _, _, err := manager.Do(context.Background(), device.Operation{Key: key, Desired: []device.Update{{Property: "target", Value: twin.Value{Text: text}}}}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the temperature", reported("temperature", "100.7"))
	await(t, "the desired value of the cloud", reported("target", "60"))
	await(t, "online", state(v1beta1.StateOnline))
	set("55")
	await(t, "the desired value of the node", reported("target", "55"))

	endEdgecore()
	set("50") // by another way, while the mapper cannot be told
	serve()
	await(t, "the desired value after edgecore's restart", reported("target", "50"))

	endMapper()
	await(t, "offline without its mapper", state(v1beta1.StateOffline))
	set("45")
	work()
	await(t, "the desired value after the mapper's restart", reported("target", "45"))
	await(t, "online", state(v1beta1.StateOnline))
}
