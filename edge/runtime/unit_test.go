package runtime

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func testPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "0d5b2e4c-7f3a-4f0e-9f63-1c2d3e4f5a6b"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example.test/app:1"}}},
	}
}

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func with(req, lim corev1.ResourceList) *corev1.Pod {
	p := testPod()
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: req, Limits: lim}
	return p
}

// The values were computed with the kubelet's own code, v1.36.
func TestHashIsTheKubelets(t *testing.T) {
	for _, c := range [][3]string{
		{"main", "example.test/app:1", "cd44cb2e"},
		{"", "", "edd67cc4"},
		{"a", "b", "646fef1b"},
		{"web", "docker.io/library/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "5f6e3e43"},
	} {
		got := Hash(&corev1.Container{Name: c[0], Image: c[1], Command: []string{"not hashed"}})
		if got != c[2] {
			t.Errorf("%s of %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestCgroupNamesAreTheKubelets(t *testing.T) {
	const uid, escaped = "0d5b2e4c-7f3a-4f0e-9f63-1c2d3e4f5a6b", "0d5b2e4c_7f3a_4f0e_9f63_1c2d3e4f5a6b"
	best, burst, guaranteed := testPod(), with(list("100m", ""), nil), with(list("1", "1Gi"), list("1", "1Gi"))
	for _, c := range []struct {
		root, driver string
		pod          *corev1.Pod
		want         string
	}{
		{"/", "cgroupfs", best, "/kubepods/besteffort/pod" + uid},
		{"/", "cgroupfs", burst, "/kubepods/burstable/pod" + uid},
		{"/", "cgroupfs", guaranteed, "/kubepods/pod" + uid},
		{"", "", best, "/kubepods/besteffort/pod" + uid},
		{"/edge/one", "cgroupfs", burst, "/edge/one/kubepods/burstable/pod" + uid},
		{"/", "systemd", best, "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + escaped + ".slice"},
		{"/", "systemd", burst, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + escaped + ".slice"},
		{"/", "systemd", guaranteed, "/kubepods.slice/kubepods-pod" + escaped + ".slice"},
		{"/edge-one", "systemd", guaranteed, "/edge_one.slice/edge_one-kubepods.slice/edge_one-kubepods-pod" + escaped + ".slice"},
	} {
		if got := CgroupParent(c.root, c.driver, c.pod); got != c.want {
			t.Errorf("root %q, driver %q: %s, want %s", c.root, c.driver, got, c.want)
		}
	}
	for _, uid := range []string{"", "../x", "a/b"} {
		if err := RemovePodCgroup("/", "cgroupfs", uid); err == nil {
			t.Errorf("UID %q was taken", uid)
		}
	}
}

func TestQOSAndOOMScore(t *testing.T) {
	const gib = 1 << 30
	sidecar := with(list("", "256Mi"), nil)
	sidecar.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicy)}}
	*sidecar.Spec.InitContainers[0].RestartPolicy = corev1.ContainerRestartPolicyAlways
	critical := testPod()
	critical.Spec.PriorityClassName = "system-node-critical"
	whole := testPod()
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: list("", "512Mi")}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		qos  corev1.PodQOSClass
		want int64
	}{
		"nothing asked":               {testPod(), corev1.PodQOSBestEffort, 1000},
		"all bound":                   {with(list("1", "1Gi"), list("1", "1Gi")), corev1.PodQOSGuaranteed, -997},
		"limits alone":                {with(nil, list("1", "1Gi")), corev1.PodQOSGuaranteed, -997},
		"a quarter of the memory":     {with(list("", "256Mi"), nil), corev1.PodQOSBurstable, 750},
		"more than the memory":        {with(list("", "4Gi"), nil), corev1.PodQOSBurstable, 3},
		"CPU alone":                   {with(list("1", ""), nil), corev1.PodQOSBurstable, 999},
		"limit above request":         {with(list("1", "256Mi"), list("1", "512Mi")), corev1.PodQOSBurstable, 750},
		"critical":                    {critical, corev1.PodQOSBestEffort, -997},
		"asked by the pod as a whole": {whole, corev1.PodQOSBurstable, 500},
		"beside a sidecar":            {sidecar, corev1.PodQOSBurstable, 750},
	} {
		if got := QOS(c.pod); got != c.qos {
			t.Errorf("%s: class %s, want %s", name, got, c.qos)
		}
		if got := OOMScoreAdj(c.pod, &c.pod.Spec.Containers[0], gib); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := OOMScoreAdj(sidecar, &sidecar.Spec.InitContainers[0], gib); got != 750 {
		t.Errorf("a sidecar is killed before the container that it serves: %d", got)
	}
	told := testPod()
	told.Status.QOSClass = corev1.PodQOSGuaranteed
	if QOS(told) != corev1.PodQOSGuaranteed {
		t.Error("the class in the status does not hold")
	}
}

func TestContainerResources(t *testing.T) {
	r := &Runtime{memoryTotal: 1 << 30, unified: true, swapAccounting: true}
	for name, c := range map[string]struct {
		pod                            *corev1.Pod
		shares, quota, memory, memory2 int64
	}{
		"nothing":        {testPod(), 2, 0, 0, 0},
		"request":        {with(list("250m", "64Mi"), nil), 256, 0, 0, 0},
		"limit":          {with(nil, list("500m", "64Mi")), 512, 50000, 64 << 20, 64 << 20},
		"both":           {with(list("250m", ""), list("2", "64Mi")), 256, 200000, 64 << 20, 64 << 20},
		"least quota":    {with(nil, list("1m", "")), 2, 1000, 0, 0},
		"asked for zero": {with(list("0", ""), list("1", "")), 2, 100000, 0, 0},
	} {
		got := r.containerResources(c.pod, &c.pod.Spec.Containers[0])
		if got.CpuShares != c.shares || got.CpuQuota != c.quota || got.CpuPeriod != 100000 || got.MemoryLimitInBytes != c.memory ||
			got.MemorySwapLimitInBytes != c.memory2 || got.Unified["memory.oom.group"] != "1" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for s, want := range map[int64]int64{2: 1, 1024: 39, 262144: 10000} {
		if got := weight(s); got != want {
			t.Errorf("%d shares weigh %d, want %d", s, got, want)
		}
	}
}

func TestPodResourcesCountWhatRunsTogether(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := with(list("100m", "64Mi"), list("200m", "128Mi"))
	pod.Spec.InitContainers = []corev1.Container{
		{Name: "side", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: list("50m", "32Mi"), Limits: list("50m", "32Mi")}},
		{Name: "init", Resources: corev1.ResourceRequirements{Requests: list("1", "16Mi"), Limits: list("1", "16Mi")}},
	}
	pod.Spec.Overhead = list("10m", "8Mi")
	got := podResources(pod)
	// CPU: the init container (1) beside the sidecar (50m) is the highest; memory: containers and sidecar together.
	if got.CpuShares != shares(1060) || got.CpuQuota != 106000 || got.MemoryLimitInBytes != 168<<20 {
		t.Errorf("%+v", got)
	}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "open"})
	if got := podResources(pod); got.CpuQuota != 0 || got.MemoryLimitInBytes != 0 || got.CpuShares != shares(1060) {
		t.Errorf("with a container that has no limit: %+v", got)
	}
}

// fakeUnified is a directory with the files of a cgroup v2 node; the kernel makes them with each directory, here the
// test has to.
func fakeUnified(t *testing.T, below ...string) cgroupTree {
	t.Helper()
	root := t.TempDir()
	for _, dir := range append([]string{""}, below...) {
		dir = filepath.Join(root, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"cgroup.subtree_control", "cpu.weight", "cpu.max", "memory.max", "memory.swap.max"} {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return cgroupTree{mount: root, unified: true}
}

func TestUnifiedLimitsAreWritten(t *testing.T) {
	pod := with(list("250m", "64Mi"), list("500m", "128Mi"))
	cg := CgroupParent("/", "cgroupfs", pod)
	tree := fakeUnified(t, "kubepods", "kubepods/burstable", cg)
	if err := tree.ensure("/", "cgroupfs", pod); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cpu.weight": fmt.Sprint(weight(256)), "cpu.max": "50000 100000", "memory.max": "134217728",
	} {
		b, err := os.ReadFile(filepath.Join(tree.mount, cg, file))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", file, b, err, want)
		}
	}
	for _, dir := range []string{"", "kubepods", "kubepods/burstable"} {
		if b, err := os.ReadFile(filepath.Join(tree.mount, dir, "cgroup.subtree_control")); err != nil || len(b) == 0 {
			t.Errorf("nothing was handed down by /%s: %v", dir, err)
		}
	}
	if !tree.swapAccounting() {
		t.Error("swap can be limited here")
	}
	best := testPod()
	cg = CgroupParent("/", "cgroupfs", best)
	tree = fakeUnified(t, "kubepods", "kubepods/besteffort", cg)
	if err := tree.ensure("/", "cgroupfs", best); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{filepath.Dir(cg) + "/cpu.weight": "1", cg + "/cpu.weight": "1", cg + "/memory.max": ""} {
		if b, err := os.ReadFile(filepath.Join(tree.mount, file)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", file, b, err, want)
		}
	}
}

// A cgroup of the kind that this machine has, with a process in it.
func TestPodCgroupGoesWithItsProcesses(t *testing.T) {
	root := fmt.Sprintf("/holdfast-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	pod := with(list("100m", "32Mi"), list("200m", "64Mi"))
	cgroups := Cgroups{Root: root, Driver: "cgroupfs"}
	tree := cgroupTree{mount: cgroupMount, unified: isUnified(cgroupMount)}
	dirs, err := tree.controllers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range dirs {
			if err := removeCgroupDir(filepath.Join(d, root)); err != nil {
				t.Error(err)
			}
		}
	})
	if err := cgroups.Ensure(pod); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "100000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	joined := 0
	for _, d := range dirs {
		below := filepath.Join(d, cgroups.Parent(pod), "container")
		if !exists(filepath.Dir(below)) {
			continue
		}
		if err := os.Mkdir(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		joined++
	}
	if joined == 0 {
		t.Fatal("the pod has no cgroup")
	}
	for deadline := time.Now().Add(time.Minute); ; {
		err := cgroups.Remove(pod)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := <-waited; err == nil {
		t.Error("the process ended by itself")
	}
	for _, d := range dirs {
		if exists(filepath.Join(d, cgroups.Parent(pod))) {
			t.Errorf("%s is still there", filepath.Join(d, cgroups.Parent(pod)))
		}
	}
}

func TestReferencesAreWrittenInFull(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"busybox":                      "docker.io/library/busybox:latest",
		"busybox:1.36":                 "docker.io/library/busybox:1.36",
		"team/app":                     "docker.io/team/app:latest",
		"index.docker.io/team/app:2":   "docker.io/team/app:2",
		"example.test/app":             "example.test/app:latest",
		"example.test:5000/a/b/c:v1.0": "example.test:5000/a/b/c:v1.0",
		"localhost/app":                "localhost/app:latest",
		"localhost:5000/app":           "localhost:5000/app:latest",
		"[::1]:5000/app":               "[::1]:5000/app:latest",
		"example.test/app@" + digest:   "example.test/app@" + digest,
		"example.test/app:1@" + digest: "example.test/app@" + digest,
		"app__x/a-b--c.d_e:A_b-1.c":    "docker.io/app__x/a-b--c.d_e:A_b-1.c",
		digest:                         digest,
	} {
		if got, err := Normalize(in); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "UPPER", "UPPER/case", "a:", "a@", "a@sha256:12", "a@sha256:" + strings.Repeat("g", 64), "a b", "a/", "/a", "a//b", "a..b", "a___b", "-a", "a-",
		"example.test:port/a", "example.test:/a", "exa mple.test/a", "a:" + strings.Repeat("x", 129), "a:-x", "https://example.test/a", "a.b/c.-d",
		strings.Repeat("a", 5000),
	} {
		if got, err := Normalize(in); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

func secret(kind corev1.SecretType, key, data string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pull"}, Type: kind, Data: map[string][]byte{key: []byte(data)}}
}

func TestCredentialsFitTheirRegistries(t *testing.T) {
	enc := base64.StdEncoding.EncodeToString
	var k Keyring
	if err := k.Add(secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{
		"https://index.docker.io/v1/":{"auth":"`+enc([]byte("hub:pw:with:colons"))+`"},
		"example.test":{"username":"all","password":"1"},
		"example.test/team":{"username":"team","password":"2"},
		"https://example.test/v2/team/app":{"auth":"`+strings.TrimRight(enc([]byte("app:3")), "=")+`"},
		"*.wild.test":{"username":"wild","password":"4"},
		"ported.test:5000":{"identitytoken":"5"}},"credsStore":"ignored"}`)); err != nil {
		t.Fatal(err)
	}
	if err := k.Add(secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"old.test":{"username":"old","password":"6","email":"x"}}`)); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"busybox":                   "hub:pw:with:colons",
		"example.test/team/app:1":   "app:3 team:2 all:1",
		"example.test/other":        "all:1",
		"a.wild.test/x":             "wild:4",
		"a.b.wild.test/x":           "",
		"wild.test/x":               "",
		"ported.test:5000/x":        ":",
		"ported.test/x":             "",
		"sub.example.test/team/app": "",
		"old.test/x":                "old:6",
		"NOT AN IMAGE":              "",
	} {
		var got []string
		for _, a := range k.For(image) {
			got = append(got, a.Username+":"+a.Password)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", image, s, want)
		}
	}
	for name, s := range map[string]*corev1.Secret{
		"wrong type":  secret(corev1.SecretTypeOpaque, "x", "SECRETVALUE"),
		"not JSON":    secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `SECRETVALUE`),
		"wrong shape": secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{"a.test":{"username":["SECRETVALUE"]}}}`),
		"not base64":  secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"a.test":{"auth":"SECRETVALUE!"}}`),
		"no password": secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"a.test":{"auth":"`+enc([]byte("SECRETVALUE"))+`"}}`),
		"no data":     {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pull"}, Type: corev1.SecretTypeDockerConfigJson},
	} {
		err := new(Keyring).Add(s)
		if err == nil || !strings.Contains(err.Error(), "ns/pull") || strings.Contains(err.Error(), "SECRETVALUE") {
			t.Errorf("%s: %v", name, err)
		}
	}
	var partly Keyring
	if err := partly.Add(secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"a.test":{"auth":"!"},"b.test":{"username":"b"}}`)); err == nil {
		t.Error("a broken entry was not told")
	}
	if len(partly.For("b.test/x")) != 1 {
		t.Error("a broken entry took the others with it")
	}
}

func TestSecurityProfiles(t *testing.T) {
	text := func(s string) *string { return &s }
	for name, c := range map[string]struct {
		p    *corev1.SeccompProfile
		want cri.SecurityProfile_ProfileType
		ref  string
	}{
		"none":       {nil, cri.SecurityProfile_Unconfined, ""},
		"default":    {&corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}, cri.SecurityProfile_RuntimeDefault, ""},
		"unconfined": {&corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}, cri.SecurityProfile_Unconfined, ""},
		"own": {&corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: text("a/b.json")}, cri.SecurityProfile_Localhost,
			"/var/lib/kubelet/seccomp/a/b.json"},
	} {
		if got, err := seccomp(c.p); err != nil || got.ProfileType != c.want || got.LocalhostRef != c.ref {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, p := range []*corev1.SeccompProfile{
		{Type: corev1.SeccompProfileTypeLocalhost}, {Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: text("../../etc/x")}, {Type: "Other"},
	} {
		if got, err := seccomp(p); !errors.Is(err, ErrInvalidSpec) {
			t.Errorf("%+v: %v, %v", p, got, err)
		}
	}
	pod := testPod()
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{
		SELinuxOptions:  &corev1.SELinuxOptions{Level: "s0:c1"},
		AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: text("tight")},
		RunAsUser:       new(int64), RunAsGroup: new(int64),
	}
	*pod.Spec.SecurityContext.RunAsUser, *pod.Spec.SecurityContext.RunAsGroup = 5, 6
	seven := int64(7)
	unmasked := corev1.UnmaskedProcMount
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &seven, ProcMount: &unmasked}
	got, err := containerSecurity(pod, &pod.Spec.Containers[0], imageUser{})
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 containerd 1.6 reads it
	old := got.ApparmorProfile
	if got.RunAsUser.GetValue() != 7 || got.RunAsGroup.GetValue() != 6 || got.SelinuxOptions.GetLevel() != "s0:c1" || len(got.MaskedPaths) != 0 ||
		got.Apparmor.GetLocalhostRef() != "tight" || old != "localhost/tight" {
		t.Errorf("%v", got)
	}
	no := false
	pod.Spec.HostUsers = &no
	if _, err := sandboxSecurity(pod); !errors.Is(err, ErrInvalidSpec) {
		t.Errorf("user namespaces: %v", err)
	}
}

func TestHostnames(t *testing.T) {
	yes, override := true, "over"
	for _, c := range []struct {
		change       func(*corev1.Pod)
		name, domain string
	}{
		{func(*corev1.Pod) {}, "web", ""},
		{func(p *corev1.Pod) { p.Spec.Hostname = "h" }, "h", ""},
		{func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "h", "sub" }, "h", "sub.ns.svc.cluster.local"},
		{func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "h", "sub", &yes }, "h.sub.ns.svc.cluster.local", "sub.ns.svc.cluster.local"},
		{func(p *corev1.Pod) { p.Name = strings.Repeat("a", 62) + "-b" }, strings.Repeat("a", 62), ""},
		{func(p *corev1.Pod) { p.Spec.HostnameOverride = &override }, "over", ""},
	} {
		p := testPod()
		c.change(p)
		if name, domain := Hostname(p, "cluster.local"); name != c.name || domain != c.domain {
			t.Errorf("%s, %s; want %s, %s", name, domain, c.name, c.domain)
		}
	}
}

func TestCallThatHangsEndsSomeTime(t *testing.T) {
	for method, want := range map[string]bool{
		"/runtime.v1.RuntimeService/RunPodSandbox": true, "/runtime.v1.RuntimeService/ListContainers": true,
		"/runtime.v1.ImageService/PullImage": false, "/runtime.v1.RuntimeService/ExecSync": false, "/runtime.v1.RuntimeService/StopContainer": false,
	} {
		called := false
		err := bounded(t.Context(), method, nil, nil, nil, func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			called = true
			if _, ends := ctx.Deadline(); ends != want {
				t.Errorf("%s: it ends by itself: %t, want %t", method, ends, want)
			}
			return nil
		})
		if err != nil || !called {
			t.Errorf("%s: called %t, %v", method, called, err)
		}
	}
}
