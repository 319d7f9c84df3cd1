package status

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

func web() *corev1.Pod {
	p := &corev1.Pod{}
	p.Generation = 4
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	p.Spec.Containers = []corev1.Container{{Name: "web", Image: "web:1"}}
	return p
}

func running(id string, attempt uint32) Container {
	return Container{ID: id, Name: "web", SandboxID: "s", Attempt: attempt, State: plan.Running, Started: time.Unix(1000, 5)}
}

func exited(id string, attempt uint32, code int32) Container {
	return Container{ID: id, Name: "web", SandboxID: "s", Attempt: attempt, State: plan.Exited, ExitCode: code, Started: time.Unix(1000, 0), Finished: time.Unix(2000, 0)}
}

// TestStatusReadsAsTheKubelets names the situations that people look for.
func TestStatusReadsAsTheKubelets(t *testing.T) {
	up := map[string]bool{"a": true}
	for name, test := range map[string]struct {
		in       Input
		phase    corev1.PodPhase
		waiting  string
		exit     int32 // of state.terminated; -1: none
		last     int32 // of lastState; -1: none
		restarts int32
		ready    bool
	}{
		"new":            {Input{}, corev1.PodPending, "ContainerCreating", -1, -1, 0, false},
		"runs":           {Input{SandboxID: "s", Initialized: true, Containers: []Container{running("a", 0)}, Started: up, Ready: up}, corev1.PodRunning, "", -1, -1, 0, true},
		"not started":    {Input{SandboxID: "s", Initialized: true, Containers: []Container{running("a", 0)}, Ready: up}, corev1.PodRunning, "", -1, -1, 0, false},
		"restarted":      {Input{SandboxID: "s", Initialized: true, Containers: []Container{exited("b", 1, 3), running("a", 2)}, Started: up, Ready: up}, corev1.PodRunning, "", -1, 3, 2, true},
		"crash loop":     {Input{SandboxID: "s", Initialized: true, Containers: []Container{exited("a", 3, 7)}, Waiting: map[string]Waiting{"web": {"CrashLoopBackOff", ""}}}, corev1.PodRunning, "CrashLoopBackOff", -1, 7, 3, false},
		"after a reboot": {Input{SandboxID: "s2", Initialized: true, Containers: []Container{exited("a", 0, 255)}}, corev1.PodRunning, "ContainerCreating", -1, 255, 0, false},
		"no image":       {Input{SandboxID: "s", Initialized: true, Waiting: map[string]Waiting{"web": {"ImagePullBackOff", ""}}}, corev1.PodPending, "ImagePullBackOff", -1, -1, 0, false},
		"being started":  {Input{SandboxID: "s", Initialized: true, Containers: []Container{exited("a", 0, 1), {ID: "n", Name: "web", SandboxID: "s", Attempt: 1, State: plan.Created}}}, corev1.PodRunning, "", 1, -1, 0, false},
		"succeeded":      {Input{Initialized: true, Containers: []Container{exited("a", 0, 0)}, Memory: plan.Memory{Outcome: &plan.Outcome{Phase: corev1.PodSucceeded}}}, corev1.PodSucceeded, "", 0, -1, 0, false},
		"ending":         {Input{SandboxID: "s", Initialized: true, Ending: true, Containers: []Container{running("a", 0)}, Started: up}, corev1.PodRunning, "", -1, -1, 0, false},
		"ended":          {Input{Initialized: true, Ending: true, Containers: []Container{exited("a", 0, 143)}}, corev1.PodFailed, "", 143, -1, 0, false},
		"lost": {Input{Memory: plan.Memory{Attempts: map[string]uint32{"web": 3}, Outcome: &plan.Outcome{Phase: corev1.PodFailed}}},
			corev1.PodFailed, "", plan.LostCode, -1, 2, false},
		"never falls back": {Input{Previous: &corev1.PodStatus{Phase: corev1.PodRunning}}, corev1.PodRunning, "ContainerCreating", -1, -1, 0, false},
		"refused":          {Input{Refused: &Waiting{"FieldNotSupported", "spec.x"}}, corev1.PodPending, "FieldNotSupported", -1, -1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := test.in
			in.Pod, in.Now, in.StartTime = web(), time.Unix(5000, 0), time.Unix(900, 0)
			s := Of(in)
			c := s.ContainerStatuses[0]
			if s.Phase != test.phase || c.RestartCount != test.restarts || c.Ready != test.ready {
				t.Errorf("phase %s, %d restarts, ready %t; want %s, %d, %t", s.Phase, c.RestartCount, c.Ready, test.phase, test.restarts, test.ready)
			}
			if got := c.State.Waiting; (got != nil) != (test.waiting != "") || got != nil && got.Reason != test.waiting {
				t.Errorf("waiting: %v, want %q", got, test.waiting)
			}
			if got := code(c.State.Terminated); got != test.exit {
				t.Errorf("terminated with %d, want %d", got, test.exit)
			}
			if got := code(c.LastTerminationState.Terminated); got != test.last {
				t.Errorf("lastState %d, want %d", got, test.last)
			}
			if s.ObservedGeneration != 4 || s.StartTime == nil || s.StartTime.Unix() != 900 {
				t.Errorf("generation %d, start %v", s.ObservedGeneration, s.StartTime)
			}
		})
	}
}

func code(t *corev1.ContainerStateTerminated) int32 {
	if t == nil {
		return -1
	}
	return t.ExitCode
}

func TestTransitionTimeMovesOnlyWithTheStatus(t *testing.T) {
	in := Input{Pod: web(), SandboxID: "s", PodIPs: []string{"10.0.0.2"}, Initialized: true, Containers: []Container{running("a", 0)},
		Started: map[string]bool{"a": true}, Ready: map[string]bool{"a": true}, Now: time.Unix(5000, 0)}
	first := Of(in)
	in.Previous, in.Now = &first, time.Unix(6000, 0)
	if second := Of(in); !Equal(&first, &second) {
		t.Errorf("nothing changed, but the status reads:\n%v\nbefore:\n%v", second, first)
	}
	in.Ready = nil
	third := Of(in)
	for _, c := range third.Conditions {
		moved := c.LastTransitionTime.Unix() == 6000
		if want := c.Type == corev1.PodReady || c.Type == corev1.ContainersReady; moved != want || want && c.Status != corev1.ConditionFalse {
			t.Errorf("%s is %s since %d", c.Type, c.Status, c.LastTransitionTime.Unix())
		}
	}
}

// TestEphemeralContainersCountForNothing: they are shown, and neither the phase nor readiness hangs on them.
func TestEphemeralContainersCountForNothing(t *testing.T) {
	shell := func(state plan.State, code int32) Container {
		return Container{ID: "e", Name: "shell", SandboxID: "s", State: state, ExitCode: code, Started: time.Unix(1000, 0)}
	}
	ran := plan.Memory{Attempts: map[string]uint32{"shell": 1}}
	for name, test := range map[string]struct {
		in   Input
		want string // of the state
		exit int32
	}{
		"its image comes": {Input{}, "ContainerCreating", -1},
		"it has no image": {Input{Waiting: map[string]Waiting{"shell": {"ImagePullBackOff", ""}}}, "ImagePullBackOff", -1},
		"being started":   {Input{Containers: []Container{shell(plan.Created, 0)}}, "ContainerCreating", -1},
		"runs":            {Input{Containers: []Container{shell(plan.Running, 0)}, Memory: ran}, "", -1},
		"ended":           {Input{Containers: []Container{shell(plan.Exited, 2)}, Memory: ran}, "", 2},
		"forgotten":       {Input{Memory: ran, Last: map[string]corev1.ContainerStateTerminated{"shell": {ExitCode: 4}}}, "", 4},
		"lost":            {Input{Memory: ran}, "", plan.LostCode},
	} {
		t.Run(name, func(t *testing.T) {
			in := test.in
			in.Pod, in.SandboxID, in.Initialized, in.Now = web(), "s", true, time.Unix(5000, 0)
			in.Containers = append(in.Containers, running("a", 0))
			in.Started, in.Ready = map[string]bool{"a": true}, map[string]bool{"a": true}
			plain := Of(in)
			in.Pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "shell", Image: "shell:1"}}}
			s := Of(in)
			c := s.EphemeralContainerStatuses[0]
			if got := c.State.Waiting; (got != nil) != (test.want != "") || got != nil && got.Reason != test.want {
				t.Errorf("waiting: %v, want %q", got, test.want)
			}
			if got := code(c.State.Terminated); got != test.exit {
				t.Errorf("terminated with %d, want %d", got, test.exit)
			}
			if c.Ready || c.RestartCount != 0 || c.Image != "shell:1" {
				t.Errorf("status %v, want it unready, never restarted", c)
			}
			s.EphemeralContainerStatuses = nil
			if !Equal(&s, &plain) {
				t.Errorf("the rest of the status is %v, want it as without the container: %v", s, plain)
			}
		})
	}
}

func TestInitContainersHoldThePodBack(t *testing.T) {
	p := web()
	always := corev1.ContainerRestartPolicyAlways
	p.Spec.InitContainers = []corev1.Container{{Name: "fetch"}, {Name: "proxy", RestartPolicy: &always}}
	in := Input{Pod: p, SandboxID: "s", Containers: []Container{{ID: "i", Name: "fetch", SandboxID: "s", State: plan.Running}}}
	s := Of(in)
	if s.Phase != corev1.PodPending || s.ContainerStatuses[0].State.Waiting.Reason != "PodInitializing" {
		t.Errorf("while an init container runs: %v", s)
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodInitialized && (c.Status != corev1.ConditionFalse || c.Message != "containers with incomplete status: [fetch proxy]") {
			t.Errorf("condition: %v", c)
		}
	}
	in.Containers = []Container{{ID: "i", Name: "fetch", SandboxID: "s", State: plan.Exited}, {ID: "p", Name: "proxy", SandboxID: "s", State: plan.Running}, running("a", 0)}
	in.Initialized, in.Started, in.Ready = true, map[string]bool{"a": true, "p": true}, map[string]bool{"a": true}
	s = Of(in)
	if s.Phase != corev1.PodRunning || !s.InitContainerStatuses[0].Ready || s.InitContainerStatuses[1].Ready {
		t.Errorf("running: %v", s)
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady && c.Status != corev1.ConditionFalse {
			t.Error("the pod is ready although its sidecar is not")
		}
	}
}

func TestQOS(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	for want, r := range map[corev1.PodQOSClass]corev1.ResourceRequirements{
		corev1.PodQOSBestEffort: {},
		corev1.PodQOSBurstable:  {Requests: list("100m", "64Mi")},
		corev1.PodQOSGuaranteed: {Requests: list("100m", "64Mi"), Limits: list("100m", "64Mi")},
	} {
		p := web()
		p.Spec.Containers[0].Resources = r
		if got := QOS(p); got != want {
			t.Errorf("%v: %s, want %s", r, got, want)
		}
	}
}
