package rig_test

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig"
)

func TestPodRunsAndIsGoneAfterReboot(t *testing.T) {
	ctx := testContext(t)
	node := newNetns(t, "node", rig.NetnsOptions{})
	c := startContainerd(t, ctx, rig.Options{Netns: node, CNI: true})
	importBusybox(t, ctx, c)

	p := runPod(t, ctx, c, "web", "httpd", "-f", "-p", "80", "-h", "/etc")
	if got := p.exec(t, ctx, "hostname"); strings.TrimSpace(got) == "" {
		t.Error("a command in the container printed nothing")
	}
	// The node reaches its pod, as probes do.
	eventually(t, ctx, "fetch a file from the pod", func() error {
		out, err := node.Command("busybox", "wget", "-q", "-O", "-", "http://"+p.ip+"/passwd").CombinedOutput()
		if err == nil && !strings.HasPrefix(string(out), "root:") {
			t.Fatalf("pod served %q", out)
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})

	if err := c.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if sandbox, container := p.state(t, ctx); sandbox != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || container == runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the reboot: sandbox %s, container %s", sandbox, container)
	}
	// The images are still there.
	runPod(t, ctx, c, "again", "sleep", "3600")
}
