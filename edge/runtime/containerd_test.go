package runtime_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// deadline only ends what hangs.
const deadline = 5 * time.Minute

// node is a real containerd with our client on it. All tests of one run share it: starting one takes seconds.
type node struct {
	c    *rig.Containerd
	rt   *runtime.Runtime
	logs string
}

// TestContainerd runs everything that needs a real containerd.
func TestContainerd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	t.Cleanup(cancel)
	netns, err := rig.NewNetns("node", rig.NetnsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := rig.StartContainerd(ctx, rig.Options{Netns: netns, CNI: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(c.Log()); t.Failed() && err == nil {
			t.Logf("end of containerd's log:\n%s", b[max(0, len(b)-16<<10):])
		}
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	busybox, err := image.Busybox(image.BusyboxName)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Import(ctx, busybox); err != nil {
		t.Fatal(err)
	}
	rt, err := runtime.Dial(ctx, c.Endpoint(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	n := &node{c: c, rt: rt, logs: filepath.Join(t.TempDir(), "pods")}

	t.Run("InfoSaysWhoAnswers", n.info)
	t.Run("PodFromStartToEnd", n.podFromStartToEnd)
	t.Run("NotFoundIsNoErrorOnRemoval", n.removalOfNothing)
	t.Run("ExecTellsExitCodeOutputAndTimeout", n.exec)
	t.Run("SecurityContextHolds", n.security)
	t.Run("NonRootIsProved", n.nonRoot)
	t.Run("NamespacesAreShared", n.namespaces)
	t.Run("LimitsReachTheCgroups", n.limits)
	t.Run("OOMKillIsToldAsSuch", n.oom)
	t.Run("TerminationMessages", n.terminationMessages)
	t.Run("RotationLosesNoLine", n.rotation)
	t.Run("Pull", n.pull)
	t.Run("ImagesArePinned", n.pin)
	t.Run("UsageIsPlausibleAndGrows", n.usage)
	// Last, because it kills containerd under everything else.
	t.Run("ContainersOutliveContainerd", n.containerdKilled)
}

// eventually polls until check gives no error.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// running is a pod that a test has started.
type running struct {
	n       *node
	pod     *corev1.Pod
	sandbox runtime.SandboxSpec
	id      string // of the sandbox
}

// newPod is a pod of one container that sleeps; a test changes what it is about.
func newPod(name string, command ...string) *corev1.Pod {
	if len(command) == 0 {
		command = []string{"sleep", "100000"}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(uuid.NewUUID()), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: image.BusyboxName, Command: command,
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		}}},
	}
}

// run starts the pod's sandbox and removes all of the pod when the test ends.
func (n *node) run(t *testing.T, pod *corev1.Pod) *running {
	t.Helper()
	root := n.c.CgroupParent()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		p, err := n.rt.Inspect(ctx, string(pod.UID))
		if err != nil {
			t.Error(err)
			return
		}
		if p != nil {
			for _, s := range p.Sandboxes {
				if err := errors.Join(n.rt.StopSandbox(ctx, s.ID), n.rt.RemoveSandbox(ctx, s.ID)); err != nil {
					t.Error(err)
				}
			}
		}
		for {
			err := runtime.RemovePodCgroup(root, "cgroupfs", string(pod.UID))
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Error(err)
				return
			}
		}
	})
	if err := runtime.EnsurePodCgroup(root, "cgroupfs", pod); err != nil {
		t.Fatal(err)
	}
	host, _ := runtime.Hostname(pod, "")
	r := &running{n: n, pod: pod, sandbox: runtime.SandboxSpec{
		Pod: pod, LogDir: runtime.LogDir(n.logs, pod), CgroupParent: runtime.CgroupParent(root, "cgroupfs", pod), Hostname: host,
		DNS: &runtime.DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"example.test"}, Options: []string{"ndots:3"}},
	}}
	id, err := n.rt.RunSandbox(t.Context(), r.sandbox)
	if err != nil {
		t.Fatal(err)
	}
	r.id = id
	return r
}

func (r *running) spec(i int) runtime.ContainerSpec {
	c := &r.pod.Spec.Containers[i]
	return runtime.ContainerSpec{
		Pod: r.pod, Container: c, SandboxID: r.id, Sandbox: r.sandbox, ImageRef: c.Image, Command: c.Command, Args: c.Args,
	}
}

// start creates and starts the pod's container.
func (r *running) start(t *testing.T, change ...func(*runtime.ContainerSpec)) string {
	t.Helper()
	spec := r.spec(0)
	for _, f := range change {
		f(&spec)
	}
	id, err := r.n.rt.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.n.rt.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) sh(t *testing.T, id, script string) string {
	t.Helper()
	res, err := n.rt.Exec(t.Context(), id, []string{"sh", "-c", script}, 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if res.ExitCode != 0 {
		t.Fatalf("%q ended with %d: %s%s", script, res.ExitCode, res.Stdout, res.Stderr)
	}
	return strings.TrimSpace(string(res.Stdout))
}

func (r *running) inspect(t *testing.T) *runtime.Pod {
	t.Helper()
	p, err := r.n.rt.Inspect(t.Context(), string(r.pod.UID))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// exited waits for the container's end and returns what is observed of it.
func (r *running) exited(t *testing.T, id string) runtime.Container {
	t.Helper()
	var out runtime.Container
	eventually(t, "container "+id+" ends", func() error {
		p, err := r.n.rt.Inspect(t.Context(), string(r.pod.UID))
		if err != nil {
			return err
		}
		for _, c := range p.Containers {
			if c.ID == id && c.State == runtime.Exited {
				out = c
				return nil
			}
		}
		return errors.New("not yet")
	})
	return out
}

func (n *node) info(t *testing.T) {
	info, err := n.rt.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "containerd" || info.Version == "" || info.APIVersion != "v1" || !info.Ready || !info.NetworkReady || info.Reason != "" ||
		info.CgroupDriver != "cgroupfs" {
		t.Errorf("info: %+v", info)
	}
	_, err = runtime.Dial(t.Context(), "unix://"+filepath.Join(t.TempDir(), "none.sock"), slog.New(slog.DiscardHandler))
	if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("dialling nothing: %v", err)
	}
	if _, err := runtime.Dial(t.Context(), "/run/x.sock", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "unix://") {
		t.Errorf("an endpoint without a scheme: %v", err)
	}
}

func (n *node) podFromStartToEnd(t *testing.T) {
	ctx := t.Context()
	events := n.rt.Events(ctx)
	pod := newPod("life")
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"alias.example.test", "other"}}}
	pod.Spec.Containers[0].WorkingDir = "/tmp"
	r := n.run(t, pod)

	p := r.inspect(t)
	if len(p.Sandboxes) != 1 || !p.Sandboxes[0].Ready || len(p.Sandboxes[0].IPs) != 1 || p.Namespace != "ns" || p.Name != "life" {
		t.Fatalf("observed %+v", p)
	}
	ip := p.Sandboxes[0].IPs[0]
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shown"), []byte("from the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(dir, "etc-hosts")
	if err := runtime.WriteEtcHosts(hosts, pod, []string{ip}, "life", ""); err != nil {
		t.Fatal(err)
	}
	message := runtime.TerminationLogPath(dir, "main", 0)
	id := r.start(t, func(s *runtime.ContainerSpec) {
		s.Envs = []runtime.Env{{Name: "GREETING", Value: "hello ünïverse $(X)"}}
		s.Mounts = []runtime.Mount{{HostPath: dir, ContainerPath: "/mnt/ro", ReadOnly: true}, {HostPath: dir, ContainerPath: "/mnt/rw"}}
		s.EtcHosts, s.TerminationLog = hosts, message
	})
	for script, want := range map[string]string{
		"echo $GREETING":    "hello ünïverse $(X)",
		"pwd":               "/tmp",
		"hostname":          "life",
		"cat /mnt/ro/shown": "from the node",
		"touch /mnt/ro/x 2>/dev/null || echo read-only": "read-only",
		"grep -c alias.example.test /etc/hosts":         "1",
		"grep " + ip + " /etc/hosts":                    ip + "\tlife",
		"cat /etc/resolv.conf":                          "search example.test\nnameserver 192.0.2.53\noptions ndots:3",
		"touch /mnt/rw/written && echo ok":              "ok",
	} {
		if got := n.sh(t, id, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	p = r.inspect(t)
	c := p.Containers[0]
	if c.ID != id || c.Name != "main" || c.State != runtime.Running || c.Hash != runtime.Hash(&pod.Spec.Containers[0]) ||
		c.SandboxID != r.id || c.StartedAt.IsZero() || c.Annotations[runtime.AnnotationRestartCount] != "0" ||
		c.LogPath != filepath.Join(runtime.LogDir(n.logs, pod), "main", "0.log") || c.Image != image.BusyboxName {
		t.Errorf("observed %+v", c)
	}
	all, err := n.rt.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if l := all[string(pod.UID)]; l == nil || len(l.Containers) != 1 || l.Containers[0].ID != id {
		t.Errorf("the list shows %+v", l)
	}
	link := filepath.Join(filepath.Dir(n.logs), "containers", "life_ns_main-"+id+".log")
	if _, err := os.Stat(link); err != nil {
		t.Errorf("link for log collectors: %v", err)
	}

	n.sh(t, id, "echo 'the end' > /dev/termination-log")
	if err := n.rt.StopContainer(ctx, id, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := n.rt.StopContainer(ctx, id, time.Second); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	waitEvent(t, events, runtime.Event{ContainerID: id, Kind: runtime.ContainerExited})
	// The event comes when CRI says so too: no waiting here.
	c = r.inspect(t).Containers[0]
	if c.State != runtime.Exited || c.ExitCode != 137 && c.ExitCode != 143 || c.Message != "the end\n" || c.FinishedAt.IsZero() {
		t.Errorf("after its end: %+v", c)
	}

	again := r.start(t, func(s *runtime.ContainerSpec) { s.Attempt = 1 })
	p = r.inspect(t)
	if len(p.Containers) != 2 || p.Containers[0].ID != again || p.Containers[0].Attempt != 1 {
		t.Errorf("second attempt: %+v", p.Containers)
	}
	if err := n.rt.RemoveContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, events, runtime.Event{ContainerID: id, Kind: runtime.ContainerRemoved})
	for _, gone := range []string{c.LogPath, link} {
		if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after the container's removal: %v", gone, err)
		}
	}
	if err := errors.Join(n.rt.StopSandbox(ctx, r.id), n.rt.StopSandbox(ctx, r.id)); err != nil {
		t.Fatal(err)
	}
	p = r.inspect(t)
	if p.Sandboxes[0].Ready || p.Containers[0].State != runtime.Exited {
		t.Errorf("after the sandbox was stopped: %+v", p)
	}
	if err := errors.Join(n.rt.RemoveSandbox(ctx, r.id), n.rt.RemoveSandbox(ctx, r.id)); err != nil {
		t.Fatal(err)
	}
	if p := r.inspect(t); p != nil {
		t.Errorf("after removal: %+v", p)
	}
	if err := runtime.RemovePodLogs(runtime.LogDir(n.logs, pod)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(runtime.LogDir(n.logs, pod)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log directory after removal: %v", err)
	}
}

func waitEvent(t *testing.T, events <-chan runtime.Event, want runtime.Event) {
	t.Helper()
	late := time.NewTimer(deadline)
	defer late.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the events ended before %+v", want)
			}
			if e == want {
				return
			}
		case <-late.C:
			t.Fatalf("no event %+v", want)
		}
	}
}

func (n *node) removalOfNothing(t *testing.T) {
	ctx, id := t.Context(), strings.Repeat("0", 64)
	for what, err := range map[string]error{
		"StopSandbox":     n.rt.StopSandbox(ctx, id),
		"RemoveSandbox":   n.rt.RemoveSandbox(ctx, id),
		"StopContainer":   n.rt.StopContainer(ctx, id, 0),
		"RemoveContainer": n.rt.RemoveContainer(ctx, id),
		"RemovePodCgroup": runtime.RemovePodCgroup(n.c.CgroupParent(), "cgroupfs", string(uuid.NewUUID())),
	} {
		if err != nil {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
	if err := n.rt.StartContainer(ctx, id); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("starting nothing: %v", err)
	}
	if p, err := n.rt.Inspect(ctx, string(uuid.NewUUID())); p != nil || err != nil {
		t.Errorf("inspecting nothing: %v, %v", p, err)
	}
}

func (n *node) exec(t *testing.T) {
	id := n.run(t, newPod("exec")).start(t)
	res, err := n.rt.Exec(t.Context(), id, []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, time.Minute)
	if err != nil || string(res.Stdout) != "out\n" || string(res.Stderr) != "err\n" || res.ExitCode != 7 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := n.rt.Exec(t.Context(), id, []string{"sleep", "100000"}, time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the timeout: %v", err)
	}
	if res, err := n.rt.Exec(t.Context(), id, []string{"/no/such/program"}, time.Minute); err == nil && res.ExitCode == 0 {
		t.Error("a program that does not exist ran")
	}
}

func ptr[T any](v T) *T { return &v }

func (n *node) security(t *testing.T) {
	pod := newPod("secure")
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsUser: ptr(int64(1000)), RunAsGroup: ptr(int64(2000)), FSGroup: ptr(int64(3000)), SupplementalGroups: []int64{4000},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "77"}},
	}
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}},
	}
	id := n.run(t, pod).start(t)
	for script, want := range map[string]string{
		"id -u":                                             "1000",
		"id -g":                                             "2000",
		"id -G | tr ' ' '\\n' | sort | xargs":               "2000 3000 4000",
		"touch /x 2>/dev/null || echo ro":                   "ro",
		"grep NoNewPrivs /proc/1/status":                    "NoNewPrivs:\t1",
		"grep Seccomp: /proc/1/status":                      "Seccomp:\t2",
		"grep CapBnd /proc/1/status":                        "CapBnd:\t0000000000000400",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "77",
		"wc -c < /proc/timer_list 2>/dev/null || echo 0":    "0",
	} {
		if got := n.sh(t, id, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}

	open := newPod("privileged")
	open.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(true)}
	id = n.run(t, open).start(t)
	if got := n.sh(t, id, "grep Seccomp: /proc/1/status"); got != "Seccomp:\t0" {
		t.Errorf("privileged: %s", got)
	}
	if got := n.sh(t, id, "grep CapBnd /proc/1/status"); strings.HasSuffix(got, "00000000a80425fb") {
		t.Errorf("privileged has only the default capabilities: %s", got)
	}
}

func (n *node) nonRoot(t *testing.T) {
	pod := newPod("nonroot")
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}
	r := n.run(t, pod)
	_, err := n.rt.CreateContainer(t.Context(), r.spec(0))
	if !errors.Is(err, runtime.ErrRunAsNonRoot) || !strings.Contains(err.Error(), "ns/nonroot") || !strings.Contains(err.Error(), "main") {
		t.Errorf("an image of root: %v", err)
	}
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(0))}
	if _, err := n.rt.CreateContainer(t.Context(), r.spec(0)); !errors.Is(err, runtime.ErrRunAsNonRoot) {
		t.Errorf("runAsUser 0: %v", err)
	}
	pod.Spec.Containers[0].SecurityContext.RunAsUser = ptr(int64(7))
	if got := n.sh(t, r.start(t), "id -u"); got != "7" {
		t.Errorf("runs as %s", got)
	}

	for user, want := range map[string]string{"nobody": "names its user", "65534": ""} {
		spec, err := image.BusyboxSpec("example.test/holdfast/user-" + user + ":1")
		if err != nil {
			t.Fatal(err)
		}
		spec.User = user
		img, err := image.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.c.Import(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		pod := newPod("user-" + user)
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}
		pod.Spec.Containers[0].Image = spec.Name
		r := n.run(t, pod)
		_, err = n.rt.CreateContainer(t.Context(), r.spec(0))
		switch {
		case want == "" && err != nil:
			t.Errorf("user %s: %v", user, err)
		case want != "" && (!errors.Is(err, runtime.ErrRunAsNonRoot) || !strings.Contains(err.Error(), want)):
			t.Errorf("user %s: %v", user, err)
		}
	}
}

func (n *node) namespaces(t *testing.T) {
	shared := newPod("shared")
	shared.Spec.ShareProcessNamespace = ptr(true)
	id := n.run(t, shared).start(t)
	if got := n.sh(t, id, "tr '\\0' ' ' < /proc/1/cmdline"); strings.HasPrefix(got, "sleep") {
		t.Errorf("process 1 of a shared namespace is the container's own: %s", got)
	}
	host := newPod("host")
	host.Spec.HostPID, host.Spec.HostIPC, host.Spec.HostNetwork = true, true, true
	r := n.run(t, host)
	id = r.start(t)
	for ns, want := range map[string]bool{"pid": true, "ipc": true, "mnt": false} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.sh(t, id, "readlink /proc/self/ns/"+ns); (got == own) != want {
			t.Errorf("namespace %s is %s, the node's %s", ns, got, own)
		}
	}
	p := r.inspect(t)
	if s := p.Sandboxes[0]; !s.HostNetwork || len(s.IPs) != 0 {
		t.Errorf("with host networking: %+v", s)
	}
}

func (n *node) limits(t *testing.T) {
	pod := newPod("limits")
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
	n.run(t, pod).start(t)
	cg := runtime.CgroupParent(n.c.CgroupParent(), "cgroupfs", pod)
	if !strings.HasSuffix(cg, "/kubepods/burstable/pod"+string(pod.UID)) {
		t.Errorf("cgroup %s", cg)
	}
	memory, cpu := "/sys/fs/cgroup"+cg+"/memory.max", "/sys/fs/cgroup"+cg+"/cpu.max"
	wantCPU := "50000 100000"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		memory, cpu = "/sys/fs/cgroup/memory"+cg+"/memory.limit_in_bytes", "/sys/fs/cgroup/cpu"+cg+"/cpu.cfs_quota_us"
		wantCPU = "50000"
	}
	for file, want := range map[string]string{memory: "67108864", cpu: wantCPU} {
		// The pod's own, and the container's below it.
		below, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*", filepath.Base(file)))
		if err != nil || len(below) == 0 {
			t.Fatalf("no container below %s: %v", filepath.Dir(file), err)
		}
		set := 0
		for _, f := range append(below, file) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(string(b)) == want {
				set++
			}
		}
		if set != 2 {
			t.Errorf("%s: %d of the pod's and the container's cgroups have %s", filepath.Base(file), set, want)
		}
	}
	if err := runtime.EnsurePodCgroup(n.c.CgroupParent(), "cgroupfs", pod); err != nil {
		t.Errorf("making it again: %v", err)
	}
}

func (n *node) oom(t *testing.T) {
	events := n.rt.Events(t.Context())
	waitEvent(t, events, runtime.Event{Kind: runtime.Resync})
	pod := newPod("oom", "sh", "-c", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done")
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("24Mi")}
	r := n.run(t, pod)
	id := r.start(t)
	if c := r.exited(t, id); c.ExitCode != 137 {
		t.Errorf("reason %s, exit code %d", c.Reason, c.ExitCode)
	}
	// The kernel's word may come after the end.
	waitEvent(t, events, runtime.Event{ContainerID: id, Kind: runtime.ContainerOOM})
	eventually(t, "the reason is known", func() error {
		if c := r.exited(t, id); c.Reason != "OOMKilled" {
			return errors.New("reason " + c.Reason)
		}
		return nil
	})
}
