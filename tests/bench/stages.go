package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// The stages of a pod between kubectl and Running, each ending where the next begins.
const (
	stageBound     = iota // the scheduler has chosen the node
	stageKnown            // edgecore has committed it and its worker has taken it
	stageSandbox          // containerd dates the sandbox
	stageCreated          // containerd dates the container
	stageContainer        // containerd dates the container's start
	stageShown            // the apiserver shows it Running and Ready
	stages
)

var stageNames = [stages]string{
	"apply -> bound", "bound -> known at the edge", "known -> sandbox up", "sandbox up -> container made",
	"container made -> container runs", "container runs -> Running and Ready shown",
}

// trip is one pod's way; a zero time was not seen.
type trip struct {
	applied time.Time
	at      [stages]time.Time
}

// trips are those of one apply, by pod name.
type trips struct {
	mu    sync.Mutex
	pods  map[string]*trip
	shown int // that run and are Ready
}

// follow watches the pods until ctx ends and keeps when each step was first shown.
func (b *bench) follow(ctx context.Context, t *trips) error {
	w, err := b.world.Client().CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("watch the pods: %w", err)
	}
	go func() {
		for e := range w.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted {
				t.see(p)
			}
		}
	}()
	return nil
}

func (t *trips) see(p *corev1.Pod) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.of(p.Name)
	if p.Spec.NodeName != "" && one.at[stageBound].IsZero() {
		one.at[stageBound] = now
	}
	if world.PodReady(p) && one.at[stageShown].IsZero() {
		one.at[stageShown] = now
		t.shown++
	}
}

func (t *trips) of(name string) *trip {
	one := t.pods[name]
	if one == nil {
		one = &trip{}
		t.pods[name] = one
	}
	return one
}

// apply notes that a pod is created now.
func (t *trips) apply(name string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(name).applied = time.Now()
}

// end is when the last pod was shown Running and Ready.
func (t *trips) end() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var last time.Time
	for _, one := range t.pods {
		if one.at[stageShown].After(last) {
			last = one.at[stageShown]
		}
	}
	return last
}

// all says whether n pods are shown Running and Ready.
func (t *trips) all(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown >= n
}

// complete adds what containerd dates and edgecore logs.
func (b *bench) complete(ctx context.Context, t *trips) error {
	cri := b.node.Containerd.CRI()
	sandboxes, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list the sandboxes: %w", err)
	}
	containers, err := cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list the containers: %w", err)
	}
	known, err := b.known()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sandboxes.Items {
		t.of(s.Metadata.Name).at[stageSandbox] = time.Unix(0, s.CreatedAt)
	}
	for _, c := range containers.Containers {
		st, err := cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			return fmt.Errorf("status of container %s: %w", c.Id, err)
		}
		one := t.of(c.Labels["io.kubernetes.pod.name"])
		one.at[stageCreated], one.at[stageContainer] = time.Unix(0, st.Status.CreatedAt), time.Unix(0, st.Status.StartedAt)
	}
	for name, at := range known {
		if one := t.pods[name]; one != nil {
			one.at[stageKnown] = at
		}
	}
	return nil
}

// known reads out of edgecore's log when it last took a pod of each name.
func (b *bench) known() (map[string]time.Time, error) {
	out := map[string]time.Time{}
	files, err := filepath.Glob(filepath.Join(filepath.Dir(b.node.Config()), "*.log"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(text) {
			if !bytes.Contains(line, []byte(`msg="pod is known"`)) {
				continue
			}
			fields := map[string]string{}
			for _, f := range strings.Fields(string(line)) {
				key, value, _ := strings.Cut(f, "=")
				fields[key] = value
			}
			_, name, _ := strings.Cut(fields["pod"], "/")
			at, err := time.Parse(time.RFC3339Nano, fields["time"])
			if err == nil && at.After(out[name]) {
				out[name] = at
			}
		}
	}
	return out, nil
}

// table prints how long the stages of one apply took, over its pods, and when the last pod had each behind it.
func (t *trips) table(began time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Printf("  %-46s %8s %8s %8s %12s %12s\n", "STAGE (ms)", "LEAST", "MEDIAN", "MOST", "FIRST BEHIND", "LAST BEHIND")
	for stage := range stages {
		var took, behind []time.Duration
		for _, one := range t.pods {
			from, to := one.applied, one.at[stage]
			for before := range stage { // the last that was seen
				if !one.at[before].IsZero() {
					from = one.at[before]
				}
			}
			if !from.IsZero() && !to.IsZero() {
				took, behind = append(took, to.Sub(from)), append(behind, to.Sub(began))
			}
		}
		if len(took) == 0 {
			continue
		}
		fmt.Printf("  %-46s %8d %8d %8d %12d %12d\n", stageNames[stage], slices.Min(took).Milliseconds(), median(took).Milliseconds(),
			slices.Max(took).Milliseconds(), slices.Min(behind).Milliseconds(), slices.Max(behind).Milliseconds())
	}
}

// requests are those that the apiserver has answered, by verb and resource.
type requests map[string]int

var requestPattern = regexp.MustCompile(`^apiserver_request_total\{.*code="2.*resource="([^"]*)".*subresource="([^"]*)".*verb="([A-Z]+)".*\} ([0-9.e+]+)$`)

func (b *bench) requests(ctx context.Context) (requests, error) {
	text, err := b.world.Client().CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the apiserver's metrics: %w", err)
	}
	out := requests{}
	for line := range strings.Lines(string(text)) {
		m := requestPattern.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[3] == "WATCH" {
			continue
		}
		n, err := strconv.ParseFloat(m[4], 64)
		if err != nil {
			return nil, fmt.Errorf("read the apiserver's metrics: %w", err)
		}
		out[strings.TrimSuffix(m[3]+" "+m[1]+"/"+m[2], "/")] += int(n)
	}
	return out, nil
}

// since are those between two readings, the most frequent first.
func (r requests) since(before requests) string {
	var names []string
	for name, n := range r {
		if n > before[name] {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(r[b]-before[b], r[a]-before[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%d %s", r[name]-before[name], name))
	}
	return strings.Join(parts, ", ")
}

// usage is the CPU time of all processes of a name, with that of their children that have ended.
type usage map[string]time.Duration

// processor reads what all processes of this world have used so far, and the machine as a whole.
func processor() (usage, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	out := usage{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		line := string(text)
		open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
		// Behind the name: user and system time are the 12th and 13th field, the ended children's the 14th and 15th.
		fields := strings.Fields(line[end+1:])
		var ticks int64
		for _, f := range fields[11:15] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read the CPU time in %s: %w", file, err)
			}
			ticks += n
		}
		out[line[open+1:end]] += time.Duration(ticks) * 10 * time.Millisecond
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(first)[1:9] {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i != 3 && i != 4 { // neither idle nor waiting for a disk
			out[machine] += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return out, nil
}

const machine = "the machine"

// since is what was used between two readings.
func (u usage) since(before usage) usage {
	out := usage{}
	for name, d := range u {
		if d -= before[name]; d > 0 {
			out[name] = d
		}
	}
	return out
}

func (u usage) String() string {
	names := make([]string, 0, len(u))
	for name := range u {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(u[b] - u[a]) })
	var parts []string
	for _, name := range names {
		if u[name] >= 50*time.Millisecond {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, u[name].Seconds()))
		}
	}
	return strings.Join(parts, ", ")
}
