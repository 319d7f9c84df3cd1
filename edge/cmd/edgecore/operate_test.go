package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/common/adm"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// TestLogsAtTheMachine: what `holdfast logs` does, with a real containerd and no cloud
// anywhere. (`holdfast exec` needs edgecore in the network of its containerd: tests/e2e.)
func TestLogsAtTheMachine(t *testing.T) {
	m := newMachine(t, 1)
	stop := m.edgecore(t)
	for _, id := range m.running(t, 1, 0) {
		_, err := m.containerd.CRI().ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: id, Timeout: 60,
			Cmd: []string{"sh", "-c", "for i in 1 2 3; do echo line $i > /proc/1/fd/1; done"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	target := adm.Target{StatusOptions: adm.StatusOptions{RunDir: filepath.Join(m.dir, "run")}, Pod: "pod-0"}
	logs := func(o adm.LogsOptions) (string, error) {
		o.Target = target
		var out bytes.Buffer
		err := (&adm.App{Out: &out, Err: io.Discard}).Logs(t.Context(), o)
		return out.String(), err
	}
	m.status(t, "the log has three lines", func(localstatus.Status) bool {
		out, err := logs(adm.LogsOptions{Tail: -1})
		return err == nil && out == "line 1\nline 2\nline 3\n"
	})
	if out, err := logs(adm.LogsOptions{Tail: 1, Timestamps: true}); err != nil || !strings.HasSuffix(out, " line 3\n") || strings.Count(out, "\n") != 1 {
		t.Errorf("the last line: %q, %v", out, err)
	}
	if out, err := logs(adm.LogsOptions{Tail: -1, LimitBytes: 4}); err != nil || out != "line" {
		t.Errorf("4 bytes: %q, %v", out, err)
	}
	if _, err := logs(adm.LogsOptions{Tail: -1, Previous: true}); err == nil || !strings.Contains(err.Error(), "previous") {
		t.Errorf("of an attempt that there was not: %v", err)
	}

	// A log that is followed when edgecore ends does not end as if the container had.
	said, out := io.Pipe()
	followed := make(chan error, 1)
	go func() {
		err := (&adm.App{Out: out, Err: io.Discard}).Logs(context.Background(), adm.LogsOptions{Target: target, Tail: -1, Follow: true})
		out.CloseWithError(err)
		followed <- err
	}()
	if _, err := io.ReadFull(said, make([]byte, len("line 1\n"))); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	stop()
	if err := <-followed; err == nil {
		t.Error("edgecore stopped, and a followed log ended as if the container had")
	}
}
