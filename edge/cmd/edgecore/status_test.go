package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// status asks edgecore until what it says fulfils cond.
func (m *machine) status(t *testing.T, what string, cond func(localstatus.Status) bool) localstatus.Status {
	t.Helper()
	deadline := time.After(patience)
	for {
		s, err := localstatus.Get(t.Context(), filepath.Join(m.dir, "run"))
		if err == nil && cond(s) {
			return s
		}
		select {
		case <-deadline:
			t.Fatalf("%s: not in time: %+v, %v", what, s, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// join gives the machine a certificate that is as old as that.
func (m *machine) join(t *testing.T, age, life time.Duration) {
	t.Helper()
	ca, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewKeyAndCSR("pi")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNodeAt(csr, "pi", time.Now().Add(-age), life)
	if err != nil {
		t.Fatal(err)
	}
	if err := (enrollment.Credentials{NodeName: "pi", CA: ca.CertPEM, Cert: cert, Key: key}).Save(filepath.Join(m.dir, "data")); err != nil {
		t.Fatal(err)
	}
}

// heard is a node to which a hub told the time, some day.
func (m *machine) heard(t *testing.T, at time.Time) {
	t.Helper()
	st, err := store.Open(filepath.Join(m.dir, "data", "store.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.SetMeta(t.Context(), "hub-time", strconv.AppendInt(nil, at.UnixMilli(), 10)); err != nil {
		t.Fatal(err)
	}
}

// pid is the first process of a container.
func (m *machine) pid(t *testing.T, id string) int {
	t.Helper()
	answer, err := m.containerd.CRI().ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil || info.Pid <= 0 {
		t.Fatalf("container %s has no process: %v", id, err)
	}
	return info.Pid
}

// TestTheStatusTellsAllWithoutALine, and goes on when the runtime hangs or is gone.
func TestTheStatusTellsAllWithoutALine(t *testing.T) {
	m := newMachine(t, 2)
	m.join(t, 100*24*time.Hour, 120*24*time.Hour) // less than a third is left
	m.heard(t, time.Now().Add(time.Hour))         // so this machine's clock is behind
	m.edgecore(t)
	ids := m.running(t, 2, 0)
	pid := m.pid(t, ids["0a1b2c3d-0000-4000-8000-000000000000"])
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := m.status(t, "the crash is counted", func(s localstatus.Status) bool {
		return len(s.Pods) == 2 && s.Pods[0].Restarts == 1 && s.Pods[0].Ready && len(s.Images.List) > 0
	})

	p := s.Pods[0]
	if p.Namespace != "shop" || p.Name != "pod-0" || p.Phase != "Running" || p.Started == nil || p.IP == "" || len(p.Containers) != 1 {
		t.Fatalf("pod %+v", p)
	}
	c := p.Containers[0]
	if c.Name != "main" || c.State != localstatus.StateRunning || !c.Ready || c.Restarts != 1 || c.ID == "" || c.Image != image.BusyboxName || c.Started == nil {
		t.Errorf("container %+v", c)
	}
	if c.Last == nil || c.Last.ExitCode != 137 || c.Last.Reason != "Error" || c.Last.At == nil {
		t.Errorf("how it ended before: %+v", c.Last)
	}
	used := s.Images.List[0]
	if used.Names[0] != image.BusyboxName || used.Containers != 2 || used.Bytes == 0 || s.Images.Bytes < used.Bytes {
		t.Errorf("images %+v", s.Images)
	}
	if s.Store.Kinds["pods"] != 2 || s.Store.Objects != 2 || s.Store.Bytes == 0 || s.Store.Problem != "" {
		t.Errorf("store %+v", s.Store)
	}
	if s.Outbox < 3 || s.Waiting.Reports["node"] != 1 || s.Waiting.Reports["podStatus"] != 2 {
		t.Errorf("outbox %d, %+v", s.Outbox, s.Waiting)
	}
	if got := s.Certificate; got.State != localstatus.CertificateRenewalDue || got.Node != "pi" || !got.RenewalDue.Before(s.Now) || !got.Ends.After(s.Now) {
		t.Errorf("certificate %+v", got)
	}
	if !s.Clock.Behind || s.Clock.OffSeconds > -3500 || s.Clock.Hub == nil || s.Now.Before(s.Clock.Hub.Add(-time.Second)) {
		t.Errorf("clock %+v at %s", s.Clock, s.Now)
	}
	if age := s.Now.Sub(s.Started); age < 0 || age > patience {
		t.Errorf("up %s by its own account: the ages count by another clock than now", age)
	}
	if s.Disk.Bytes == 0 || s.Disk.Free == 0 || s.Disk.Problem != "" {
		t.Errorf("disk %+v", s.Disk)
	}
	if s.Runtime.Name != "containerd" || s.Runtime.Version == "" || !s.Runtime.Answers || !s.Runtime.Ready {
		t.Errorf("runtime %+v", s.Runtime)
	}
	if s.Line.Connected || s.Line.RTTMillis != 0 || s.Line.LastError == "" {
		t.Errorf("line %+v", s.Line)
	}

	// A runtime that hangs.
	if err := syscall.Kill(m.containerd.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s, err := localstatus.Get(t.Context(), filepath.Join(m.dir, "run"))
	took := time.Since(began)
	if err := syscall.Kill(m.containerd.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err != nil || s.Runtime.Answers || s.Runtime.Problem == "" || s.Images.Problem == "" || len(s.Pods) != 2 || s.Store.Objects != 2 || s.Disk.Bytes == 0 {
		t.Errorf("with a runtime that hangs: %+v, %v", s, err)
	}
	if took > 20*time.Second { // two seconds on a machine that has nothing else to do
		t.Errorf("with a runtime that hangs the status took %s", took)
	}
	if err := m.containerd.Kill9(); err != nil {
		t.Fatal(err)
	}
	s = m.status(t, "the runtime is gone", func(s localstatus.Status) bool { return !s.Runtime.Answers })
	if s.Runtime.Problem == "" || len(s.Pods) != 2 || s.Pods[0].Containers[0].State != localstatus.StateRunning {
		t.Errorf("with a runtime that is gone: %+v", s)
	}
}

// TestThePodsAreNamedBeforeTheRuntimeAnswers: their state is not known, but which they
// are is.
func TestThePodsAreNamedBeforeTheRuntimeAnswers(t *testing.T) {
	file, dir := configFile(t)
	m := &machine{config: file, dir: dir}
	m.remember(t, 2)
	m.edgecore(t)
	s := m.status(t, "edgecore answers", func(localstatus.Status) bool { return true })
	if len(s.Pods) != 2 || s.Pods[1].Name != "pod-1" || s.Pods[1].Phase != "" || s.Pods[1].Reason == "" {
		t.Errorf("pods %+v", s.Pods)
	}
	if s.Runtime.Answers || !strings.Contains(s.Runtime.Problem, "none.sock") || s.Certificate.State != localstatus.CertificateMissing || s.Clock.Hub != nil || s.Clock.Behind {
		t.Errorf("runtime %+v, certificate %+v, clock %+v", s.Runtime, s.Certificate, s.Clock)
	}
}

// TestAQuestionThatHangsIsAskedOnce: whoever asks meanwhile waits for the same answer,
// and nobody longer than he would.
func TestAQuestionThatHangsIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q question[runtime.Info]
		asked, release := 0, make(chan struct{})
		find := func(context.Context) (runtime.Info, error) {
			asked++
			<-release
			return runtime.Info{Name: "late"}, nil
		}
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := q.ask(ctx, find).wait(ctx); err == nil || !strings.Contains(err.Error(), "no answer") {
				t.Errorf("a question that hangs: %v", err)
			}
			cancel()
		}
		last := q.ask(t.Context(), find)
		close(release)
		if info, err := last.wait(t.Context()); err != nil || info.Name != "late" || asked != 1 {
			t.Errorf("the answer %+v, %v; asked %d times", info, err, asked)
		}
		broken := errors.New("broken")
		if _, err := q.ask(t.Context(), func(context.Context) (runtime.Info, error) { return runtime.Info{}, broken }).wait(t.Context()); !errors.Is(err, broken) {
			t.Errorf("asked again: %v", err)
		}
	})
}

func TestNamesOfKinds(t *testing.T) {
	var got bytes.Buffer
	for _, words := range []string{"POD", "CONFIG_MAP", "DEVICE_MODEL", "POD_STATUS", ""} {
		got.WriteString(camel(words) + " ")
	}
	if got.String() != "pod configMap deviceModel podStatus  " {
		t.Errorf("%q", got.String())
	}
}
