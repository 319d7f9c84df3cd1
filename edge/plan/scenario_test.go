package plan

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestScenarios plays the scripts in testdata and compares what is planned with what they say. A line that
// begins with "> " is a command, the lines below it are what it prints. With HOLDFAST_GOLDEN=write in the
// environment the scripts are written anew; read the difference before you keep it.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, want)
			if os.Getenv("HOLDFAST_GOLDEN") == "write" {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: played:\n%s\nwant:\n%s", file, got, want)
			}
		})
	}
}

func play(t *testing.T, script []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w *world
	for lines := bufio.NewScanner(bytes.NewReader(script)); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			words := strings.Fields(line[2:])
			if words[0] == "pod" {
				w = newWorld(scriptPod(t, words[1:]))
				continue
			}
			command(t, w, words, &out)
			for _, wrong := range w.wrongs {
				t.Errorf("%s: %s", line, wrong)
			}
			w.wrongs = nil
		}
	}
	return out.Bytes()
}

// scriptPod reads "pod <policy> [init:NAME|sidecar:NAME|NAME] ... [grace=S] [port]".
func scriptPod(t *testing.T, words []string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{}
	p.Spec.RestartPolicy = corev1.RestartPolicy(words[0])
	always := corev1.ContainerRestartPolicyAlways
	for _, word := range words[1:] {
		kind, name, _ := strings.Cut(word, ":")
		switch {
		case kind == "init":
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: name, Image: "v1"})
		case kind == "sidecar":
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: name, Image: "v1", RestartPolicy: &always})
		case strings.HasPrefix(word, "grace="):
			s, err := strconv.ParseInt(word[len("grace="):], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			p.Spec.TerminationGracePeriodSeconds = &s
		case word == "port":
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80}}
		default:
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: word, Image: "v1"})
		}
	}
	return p
}

// command carries one command out and prints what was planned.
func command(t *testing.T, w *world, words []string, out *bytes.Buffer) {
	t.Helper()
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "plan": // one plan; what it says is begun
		w.step(out)
	case "run": // plan and carry out until nothing is left to do
		for range 100 {
			if w.step(out) == 0 && len(w.busy) == 0 {
				return
			}
			for len(w.busy) > 0 {
				w.land(0, true)
			}
			if w.gone {
				fmt.Fprintln(out, "gone")
				return
			}
		}
	case "exit":
		code, err := strconv.Atoi(arg(2))
		if err != nil {
			t.Fatal(err)
		}
		w.exit(w.named(arg(1)).ID, int32(code))
	case "wait":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			t.Fatal(err)
		}
		w.now += d
	case "reboot":
		w.reboot()
	case "debug":
		w.debug(arg(1))
	case "cut": // edgecore is killed between the making of a container and its start
		w.ids++
		w.observed.Containers = append(w.observed.Containers, Container{ID: fmt.Sprintf("%s-%d", arg(1), w.ids), Name: arg(1), SandboxID: w.observed.Sandboxes[0].ID, State: Created})
	case "land": // the actions under way end
		for len(w.busy) > 0 {
			w.land(0, true)
		}
	case "sandbox-dies":
		w.observed.Sandboxes[0].Ready = false
	case "sick":
		w.sick[w.named(arg(1)).ID] = Unhealthy{Message: "failed its liveness probe"}
	case "slow": // its startup probe succeeds when the script says so
		w.slow[arg(1)] = true
	case "started":
		w.started[w.named(arg(1)).ID] = true
	case "image":
		w.hashes[arg(1)] = arg(2)
	case "forget": // the runtime's disk was wiped
		w.observed = Observed{}
	case "delete":
		s, err := strconv.Atoi(arg(1))
		if err != nil {
			t.Fatal(err)
		}
		w.ending = &Ending{Since: w.now, Grace: time.Duration(s) * time.Second}
	case "deadline":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			t.Fatal(err)
		}
		w.deadline = w.now + d
	case "running":
		fmt.Fprintln(out, "running:", w.running())
	default:
		t.Fatalf("unknown command %q", words[0])
	}
}

// step makes one plan, prints it and begins it.
func (w *world) step(out *bytes.Buffer) int {
	p := w.plan()
	for _, a := range p.Actions {
		fmt.Fprintln(out, describe(a, w.now))
		w.begin(a)
	}
	names := make([]string, 0, len(p.BackOff))
	for n := range p.BackOff {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(out, "%s waits: back-off %s\n", n, p.BackOff[n])
	}
	if p.Wake > 0 && len(p.Actions) == 0 {
		fmt.Fprintf(out, "again in %s\n", p.Wake-w.now)
	}
	return len(p.Actions)
}
