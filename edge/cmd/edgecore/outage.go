package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/edge/outage"
	"github.com/holdfast-edge/holdfast/edge/pod"
)

// newOutage looks whether the node would come back from a reboot without the cloud.
func newOutage(e *engine) *outage.Checker {
	return outage.New(outage.Options{
		Node: e.cfg.NodeName, Store: e.store, Tokens: e.tokens.Kept, HubTime: e.line.HubTime, Wall: e.clock.Wall, Certificate: e.credential.Dates,
		Runtime: func() outage.Runtime {
			if rt := e.runtime.Load(); rt != nil {
				return rt
			}
			return nil // not a nil *runtime.Runtime, which would look like one
		},
		Pods: func() []pod.Summary {
			if manager := e.pods.Load(); manager != nil {
				return manager.Snapshot()
			}
			return nil
		},
		Database: databasePath(e.cfg), PodsDir: filepath.Join(e.cfg.DataDir, "pods"),
		Endpoint: e.cfg.ContainerRuntimeEndpoint, PauseImage: e.cfg.PauseImage,
		Changed: func() { e.node.Wake() }, Log: e.log,
	})
}

// offlineReady is the Node condition, for edge/node.
func (e *engine) offlineReady() (ready bool, reason, message string, known bool) {
	v, known := e.outage.Verdict()
	return v.Ready, v.Reason, v.Message, known
}

// outageRoutes serve `holdfast doctor` and `holdfast drill`.
func (e *engine) outageRoutes() []localstatus.Route {
	return localstatus.OutageRoutes(func(ctx context.Context) localstatus.Outage { return e.outage.Look(ctx, true) }, e.line.Hold, e.line.Release)
}

func (e *engine) writeOutageMetrics(w io.Writer) {
	if v, known := e.outage.Verdict(); known {
		fmt.Fprintf(w, "holdfast_edge_offline_ready %d\n", number(v.Ready))
	}
}
