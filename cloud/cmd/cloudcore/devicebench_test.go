package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// BenchmarkDeviceReports prints how long it takes from a report on the line until
// the apiserver has it and the edge knows, at 100 reports a second of 20 devices.
func BenchmarkDeviceReports(b *testing.B) {
	const devices, perSecond, seconds = 20, 100, 10
	p := newPlace(b)
	e := p.join(b, "bench")
	p.model(b, "sensor")
	made := make([]*v1beta1.Device, devices)
	for i := range made {
		made[i] = p.device(b, fmt.Sprint("d-", i), "sensor", "bench")
		e.WaitObjects("a device", edgetest.Has(fmt.Sprint("device/default/d-", i)))
	}
	version := uint64(0)
	for b.Loop() {
		took := make(chan time.Duration, perSecond*seconds)
		tick := time.NewTicker(time.Second / perSecond)
		for i := range perSecond * seconds {
			<-tick.C
			version++
			payload, err := proto.Marshal(said(made[i%devices], version, fmt.Sprint(version)))
			if err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			n := e.SendBytes(wire.ReportKind_REPORT_DEVICE, payload)
			go func() {
				e.Result(n)
				took <- time.Since(began)
			}()
		}
		tick.Stop()
		all := make([]time.Duration, 0, cap(took))
		for range cap(took) {
			all = append(all, <-took)
		}
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
}
