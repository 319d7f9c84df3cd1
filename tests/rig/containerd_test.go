package rig_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig"
)

func TestRebootTakesAllButTheDisk(t *testing.T) {
	ctx := testContext(t)
	node := newNetns(t, "node", rig.NetnsOptions{})
	wipe := t.TempDir()
	c := startContainerd(t, ctx, rig.Options{Netns: node, CNI: true, Wipe: []string{wipe}})
	importBusybox(t, ctx, c)
	p := runPod(t, ctx, c, "web", "httpd", "-f", "-p", "80", "-h", "/etc")
	if got := p.exec(t, ctx, "hostname"); strings.TrimSpace(got) == "" {
		t.Error("a command in the container printed nothing")
	}
	fetchFromPod(t, ctx, node, p)

	secret := filepath.Join(wipe, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", secret, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	shims := processesNaming(t, c.Socket())
	if len(shims) == 0 || len(cgroupsNamed(t, p.container)) == 0 {
		t.Fatalf("processes %v, cgroups %v: the running pod is not seen", shims, cgroupsNamed(t, p.container))
	}

	if err := c.Reboot(); err != nil {
		t.Fatal(err)
	}
	if c.PID() != 0 {
		t.Error("containerd survived the reboot")
	}
	assertOff(t, c, p)
	if entries, err := os.ReadDir(wipe); err != nil || len(entries) != 0 {
		t.Errorf("the directory to be wiped holds %v, error %v", entries, err)
	}
	if out, err := node.Command("ip", "-o", "link").CombinedOutput(); err != nil || strings.Contains(string(out), "cni0") || strings.Contains(string(out), "veth") {
		t.Errorf("interfaces of the pods' network are left (error %v):\n%s", err, out)
	}

	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if sandbox, container := p.state(t, ctx); sandbox != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || container == runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the reboot: sandbox %s, container %s", sandbox, container)
	}
	// Images are on the disk, and the network works again.
	fetchFromPod(t, ctx, node, runPod(t, ctx, c, "again", "httpd", "-f", "-p", "80", "-h", "/etc"))
}

func TestKill9LeavesContainersRunning(t *testing.T) {
	ctx := testContext(t)
	c := startContainerd(t, ctx, rig.Options{Netns: newNetns(t, "node", rig.NetnsOptions{}), CNI: true})
	importBusybox(t, ctx, c)
	p := runPod(t, ctx, c, "web", "sleep", "86400")
	before := p.exec(t, ctx, "cat", "/proc/1/stat")
	pid := c.PID()

	if err := c.Kill9(); err != nil {
		t.Fatal(err)
	}
	if len(processesNaming(t, c.Socket())) == 0 {
		t.Error("the shim died with containerd")
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if c.PID() == pid || c.PID() == 0 {
		t.Errorf("containerd has process %d, had %d before", c.PID(), pid)
	}
	if sandbox, container := p.state(t, ctx); sandbox != runtimeapi.PodSandboxState_SANDBOX_READY || container != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after containerd's death: sandbox %s, container %s", sandbox, container)
	}
	// Field 22 is the start time of the container's first process.
	if after := p.exec(t, ctx, "cat", "/proc/1/stat"); strings.Fields(after)[21] != strings.Fields(before)[21] {
		t.Error("the container was started anew")
	}
}

func TestStopLeavesNothing(t *testing.T) {
	ctx := testContext(t)
	node := newNetns(t, "node", rig.NetnsOptions{})
	c := startContainerd(t, ctx, rig.Options{Netns: node, CNI: true})
	importBusybox(t, ctx, c)
	p := runPod(t, ctx, c, "web", "sleep", "86400")
	// One whose containers died before, so that nothing but its files tells of it.
	if err := c.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	q := runPod(t, ctx, c, "more", "sleep", "86400")

	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	assertOff(t, c, p, q)
	assertErased(t, c.Root(), c.Log(), c.Socket(), filepath.Dir(c.Socket()), node.Path())
}

func TestNodesDoNotTouchEachOther(t *testing.T) {
	ctx := testContext(t)
	bridge, err := rig.NewBridge(rig.BridgeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bridge.Close(); err != nil {
			t.Error(err)
		}
	})
	var nodes []*rig.Netns
	var runtimes []*rig.Containerd
	var pods []*testPod
	for i := range 2 {
		name := fmt.Sprintf("node%d", i)
		node := newNetns(t, name, rig.NetnsOptions{Bridge: bridge})
		c := startContainerd(t, ctx, rig.Options{Netns: node, CNI: true})
		importBusybox(t, ctx, c)
		nodes, runtimes = append(nodes, node), append(runtimes, c)
		pods = append(pods, runPod(t, ctx, c, name, "httpd", "-f", "-p", "80", "-h", "/etc"))
	}
	ping(t, ctx, nodes[0], nodes[1].Addr().String())

	if err := runtimes[0].Reboot(); err != nil {
		t.Fatal(err)
	}
	fetchFromPod(t, ctx, nodes[1], pods[1])
	if err := runtimes[0].Stop(ctx); err != nil {
		t.Fatal(err)
	}
	fetchFromPod(t, ctx, nodes[1], pods[1])
	if _, container := pods[1].state(t, ctx); container != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container of the other node: %s", container)
	}
}

func TestFloorStartsAndRemovesPods(t *testing.T) {
	ctx := testContext(t)
	c := startContainerd(t, ctx, rig.Options{Netns: newNetns(t, "node", rig.NetnsOptions{}), CNI: true})
	importBusybox(t, ctx, c)
	d, err := rig.Floor(ctx, c, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("3 pods, 2 at a time: %s", d)
	if d <= 0 {
		t.Errorf("floor is %s", d)
	}
	list, err := c.CRI().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 0 {
		t.Errorf("%d pods are left", len(list.Items))
	}
}

func TestStartContainerdWithoutBinarySaysWhatToDo(t *testing.T) {
	_, err := rig.StartContainerd(testContext(t), rig.Options{Binary: "/nonexistent/containerd"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/containerd") {
		t.Errorf("error: %v", err)
	}
}
