package rig_test

import (
	"context"
	"os"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// deadline is for the whole of one test: generous, because it only has to end what hangs.
const deadline = 5 * time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until check gives no error.
func eventually(t *testing.T, ctx context.Context, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
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

func newNetns(t *testing.T, name string, o rig.NetnsOptions) *rig.Netns {
	t.Helper()
	n, err := rig.NewNetns(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func startContainerd(t *testing.T, ctx context.Context, o rig.Options) *rig.Containerd {
	t.Helper()
	c, err := rig.StartContainerd(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if b, err := os.ReadFile(c.Log()); err == nil {
				t.Logf("log of containerd %s:\n%s", c.Socket(), b)
			}
		}
		// The test's own context ends before its cleanup begins.
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

func importBusybox(t *testing.T, ctx context.Context, c *rig.Containerd) {
	t.Helper()
	img, err := image.Busybox(image.BusyboxName)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Import(ctx, img); err != nil {
		t.Fatal(err)
	}
}

// testPod is a pod with one container, made by CRI calls alone.
type testPod struct {
	cri       rig.CRI
	sandbox   string
	container string
	ip        string
}

func runPod(t *testing.T, ctx context.Context, c *rig.Containerd, name string, command ...string) *testPod {
	t.Helper()
	p := &testPod{cri: c.CRI()}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "rig", Uid: name},
		LogDirectory: t.TempDir(),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.CgroupParent() + "/pod" + name},
	}
	sandbox, err := p.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox of pod %s: %v", name, err)
	}
	p.sandbox = sandbox.PodSandboxId
	created, err := p.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  p.sandbox,
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: image.BusyboxName},
			Command:  command,
			LogPath:  "main.log",
			Linux:    &runtimeapi.LinuxContainerConfig{},
		},
	})
	if err != nil {
		t.Fatalf("create container of pod %s: %v", name, err)
	}
	p.container = created.ContainerId
	if _, err := p.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		t.Fatalf("start container of pod %s: %v", name, err)
	}
	st, err := p.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	if err != nil {
		t.Fatal(err)
	}
	p.ip = st.Status.GetNetwork().GetIp()
	return p
}

func (p *testPod) exec(t *testing.T, ctx context.Context, command ...string) string {
	t.Helper()
	r, err := p.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: command})
	if err != nil {
		t.Fatalf("exec %q: %v", command, err)
	}
	if r.ExitCode != 0 {
		t.Fatalf("exec %q ended with %d: %s%s", command, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

func (p *testPod) state(t *testing.T, ctx context.Context) (runtimeapi.PodSandboxState, runtimeapi.ContainerState) {
	t.Helper()
	s, err := p.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
	if err != nil {
		t.Fatal(err)
	}
	return s.Status.State, c.Status.State
}
