package adm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/machine"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// edge plays edgecore: a test changes what it says.
type edge struct {
	mu     sync.Mutex
	status localstatus.Status
	outage localstatus.Outage
	slow   time.Duration // how long it takes to tell that the line is held
	held   []string      // what was asked of the line
	seen   int           // how often the line was seen held down
}

func (e *edge) set(change func(*localstatus.Status)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.status)
}

// start serves it in a run directory until the test ends.
func (e *edge) start(t *testing.T) (runDir string) {
	t.Helper()
	runDir = t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	routes := localstatus.OutageRoutes(func(context.Context) localstatus.Outage { return e.outage }, func(d time.Duration) (time.Time, error) {
		if d < time.Second {
			return time.Time{}, errors.New("choose 10s to 1h")
		}
		until := time.Now().Add(d)
		e.set(func(s *localstatus.Status) {
			e.held = append(e.held, "hold "+d.String())
			s.Line.Connected, s.Line.HeldUntil = false, until
		})
		if e.slow > 0 {
			time.AfterFunc(time.Until(until), func() {
				e.set(func(s *localstatus.Status) {
					s.Line.Connected, s.Line.Synced, s.Line.HeldUntil = true, true, time.Time{}
				})
			})
			time.Sleep(e.slow)
		}
		return until, nil
	}, func() {
		e.set(func(s *localstatus.Status) {
			e.held = append(e.held, "release")
			s.Line.Connected, s.Line.Synced, s.Line.HeldUntil = true, true, time.Time{}
		})
	})
	done := make(chan error, 1)
	go func() {
		done <- localstatus.Serve(ctx, runDir, func(context.Context) localstatus.Status {
			e.mu.Lock()
			defer e.mu.Unlock()
			if !e.status.Line.HeldUntil.IsZero() {
				e.seen++
			}
			return e.status
		}, nil, nil, routes...)
	}()
	for {
		_, err := localstatus.Get(ctx, runDir)
		if err == nil {
			break
		}
		if !errors.Is(err, localstatus.ErrNotRunning) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return runDir
}

// well is a node with one pod that runs, one that does not, and one that has ended.
func well() *edge {
	return &edge{
		outage: localstatus.Outage{Node: "pi", Ready: true, Reason: "AllChecksPassed"},
		status: localstatus.Status{Node: "pi", Line: localstatus.Line{Connected: true, Synced: true}, Runtime: localstatus.Runtime{Answers: true, Ready: true},
			Pods: []localstatus.PodSummary{
				{Namespace: "shop", Name: "till", UID: "1", Phase: "Running", Ready: true, Containers: []localstatus.Container{{Name: "main", State: "running", ID: "a"}}},
				{Namespace: "shop", Name: "sick", UID: "2", Phase: "Running"},
				{Namespace: "shop", Name: "job", UID: "3", Phase: "Succeeded"},
			}},
	}
}

func (e *edge) drill(t *testing.T, change func(*DrillOptions)) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o := DrillOptions{StatusOptions: StatusOptions{RunDir: e.start(t), Output: "table"}, For: 2 * time.Second, RestartRuntime: true, RuntimeCommand: "true"}
	if change != nil {
		change(&o)
	}
	err := (&App{Out: &out}).Drill(t.Context(), o)
	return out.String(), err
}

func TestADrillThatIsPassed(t *testing.T) {
	t.Parallel()
	e := well()
	out, err := e.drill(t, func(o *DrillOptions) {
		flag := filepath.Join(t.TempDir(), "restarted")
		o.RuntimeCommand = "touch " + flag
		t.Cleanup(func() {
			if _, err := os.Stat(flag); err != nil {
				t.Error("the runtime was not restarted")
			}
		})
	})
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, words := range []string{"PASSED", "shop/sick", "till  yes", "ready 0."} {
		if !strings.Contains(strings.Join(strings.Fields(out), "  "), strings.Join(strings.Fields(words), "  ")) {
			t.Errorf("the report does not say %q:\n%s", words, out)
		}
	}
	if strings.Contains(out, "job") {
		t.Errorf("a pod that has ended is in the report:\n%s", out)
	}
	if len(e.held) < 2 || e.held[0] != "hold 2s" || e.held[1] != "release" {
		t.Errorf("asked of the line: %v", e.held)
	}
}

// TestADrillOnASlowNodeEndsWithItsHold: the hold counts from when edgecore takes it, not from its answer.
func TestADrillOnASlowNodeEndsWithItsHold(t *testing.T) {
	t.Parallel()
	e := well()
	e.slow = 1200 * time.Millisecond
	if out, err := e.drill(t, func(o *DrillOptions) { o.For = 2500 * time.Millisecond }); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestDrillsThatAreNotPassed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		node   func(*edge)
		during func(*edge)
		change func(*DrillOptions)
		say    []string
	}{
		"a pod that does not come back": {during: func(e *edge) {
			e.set(func(s *localstatus.Status) {
				s.Pods = append([]localstatus.PodSummary{{Namespace: "shop", Name: "till", UID: "1", Phase: "Running", Restarts: 3, Reason: "CrashLoopBackOff"}}, s.Pods[1:]...)
			})
		}, say: []string{"NOT PASSED", "pod shop/till is not ready again (CrashLoopBackOff)", "NO: CrashLoopBackOff"}},
		"a pod that is gone":   {during: func(e *edge) { e.set(func(s *localstatus.Status) { s.Pods = nil }) }, say: []string{"pod shop/till is not ready again (it is gone)"}},
		"a restart that fails": {change: func(o *DrillOptions) { o.RuntimeCommand = "echo no such unit >&2; exit 5" }, say: []string{"could not be restarted: exit status 5: no such unit"}},
		"a restart that hangs": {change: func(o *DrillOptions) { o.RuntimeCommand = "sleep 60" }, say: []string{"did not end while the line was down"}},
		"a runtime that stays away": {during: func(e *edge) { e.set(func(s *localstatus.Status) { s.Runtime.Answers = false }) }, change: func(o *DrillOptions) { o.RuntimeCommand = "sleep 1" },
			say: []string{"was not ready again while the line was down"}},
		"a line that is let go": {during: func(e *edge) {
			e.set(func(s *localstatus.Status) { s.Line.HeldUntil, s.Line.Connected = time.Time{}, true })
		}, change: func(o *DrillOptions) { o.For = 20 * time.Second }, say: []string{"not held down to the end"}},
		"a node that is not ready": {node: func(e *edge) {
			e.outage.Ready, e.outage.Checks = false, []localstatus.Check{{Group: "images", Level: localstatus.CheckFailing, Message: "image x", Remedy: "pull it"}}
		}, say: []string{"NOT ready", "[FAIL]", "-> pull it", "--force"}},
		"a line that is down": {node: func(e *edge) { e.status.Line.Connected = false }, say: []string{"the line is down now"}},
		"a line that is held": {node: func(e *edge) { e.status.Line.HeldUntil = time.Now().Add(time.Minute) }, say: []string{"held down already"}},
		"a time that is too short": {change: func(o *DrillOptions) { o.For = time.Millisecond },
			say: []string{"choose 10s to 1h"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := well()
			if c.node != nil {
				c.node(e)
			}
			done := make(chan struct{})
			if c.during != nil {
				go func() {
					defer close(done)
					for seen := false; !seen; time.Sleep(time.Millisecond) {
						e.mu.Lock()
						seen = e.seen > 0
						e.mu.Unlock()
					}
					c.during(e)
				}()
			} else {
				close(done)
			}
			out, err := e.drill(t, c.change)
			if err == nil {
				t.Fatalf("passed:\n%s", out)
			}
			<-done
			for _, words := range c.say {
				if text := out + err.Error(); !strings.Contains(text, words) {
					t.Errorf("it does not say %q:\n%s\n%v", words, out, err)
				}
			}
			if len(e.held) > 0 && e.held[len(e.held)-1] != "release" {
				t.Errorf("the line was not let go: %v", e.held)
			}
		})
	}
}

func TestADrillThatIsEndedEarlyLetsTheLineGo(t *testing.T) {
	t.Parallel()
	e := well()
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	o := DrillOptions{StatusOptions: StatusOptions{RunDir: e.start(t), Output: "json"}, For: time.Hour, RestartRuntime: true, RuntimeCommand: "sleep 600"}
	done := make(chan error, 1)
	go func() { done <- (&App{Out: &out}).Drill(ctx, o) }()
	for held := false; !held; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		held = len(e.held) > 0
		e.mu.Unlock()
	}
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "ended early") || !strings.Contains(out.String(), `"passed": false`) {
		t.Errorf("%v:\n%s", err, out.String())
	}
	if fmt.Sprint(e.held) != "[hold 1h0m0s release]" {
		t.Errorf("asked of the line: %v", e.held)
	}
}

// TestALookThatWasNotMadeSaysWhy: there is nothing marked [FAIL] to mend, and the node may be ready.
func TestALookThatWasNotMadeSaysWhy(t *testing.T) {
	t.Parallel()
	e := well()
	e.outage = localstatus.Outage{Node: "pi", Reason: "TooSlow", Message: "another look has not ended within 20s"}
	var out bytes.Buffer
	o := StatusOptions{RunDir: e.start(t), Output: "table"}
	for what, err := range map[string]error{
		"doctor": (&App{Out: &out}).Doctor(t.Context(), o),
		"drill":  (&App{Out: &out}).Drill(t.Context(), DrillOptions{StatusOptions: o, For: 2 * time.Second}),
	} {
		if err == nil || errors.Is(err, ErrNotReady) || strings.Contains(err.Error(), "[FAIL]") || !strings.Contains(err.Error(), e.outage.Message+" (TooSlow)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if text := out.String(); strings.Contains(text, "NOT ready") {
		t.Errorf("it is called not ready:\n%s", text)
	}
	if len(e.held) != 0 {
		t.Errorf("asked of the line: %v", e.held)
	}
}

func TestDoctorOfANodeWhoseEdgecoreIsDown(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "edgecore.yaml")
	text := fmt.Sprintf("nodeName: pi\nhub: [\"127.0.0.1:1\"]\ndataDir: %[1]s/data\nrunDir: %[1]s/run\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "root/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	doctor := func(output string) (string, error) {
		var out bytes.Buffer
		err := (&App{Out: &out, Machine: machine.Machine{Root: filepath.Join(dir, "root")}}).Doctor(t.Context(), StatusOptions{Config: config, Output: output})
		return out.String(), err
	}
	for output, all := range map[string][]string{
		"table": {"Node pi is NOT ready", "systemctl start edgecore", config + " is good", "there is no container runtime", "ca.crt", "edgecore.service: it is not there"},
		"json":  {`"reason": "EdgecoreDown"`, `"ready": false`},
		"yaml":  {"reason: EdgecoreDown", "ready: false"},
	} {
		out, err := doctor(output)
		if !errors.Is(err, ErrNotReady) {
			t.Errorf("%s: %v", output, err)
		}
		for _, words := range all {
			if strings.Contains(words, "container runtime") {
				if _, err := os.Stat("/run/containerd/containerd.sock"); err == nil {
					continue // this machine has one
				}
			}
			if !strings.Contains(out, words) {
				t.Errorf("%s does not say %q:\n%s", output, words, out)
			}
		}
	}
	if err := os.WriteFile(config, []byte(text+"nodeNmae: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := doctor("table"); !errors.Is(err, ErrNotReady) || !strings.Contains(out, "nodeNmae") {
		t.Errorf("with a bad config: %v\n%s", err, out)
	}
	if _, err := doctor("xml"); err == nil || errors.Is(err, ErrNotReady) {
		t.Errorf("an unknown output: %v", err)
	}
}
