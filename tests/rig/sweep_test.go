package rig_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// victimVariable makes the test binary play the process that is killed with a node on its hands.
const victimVariable = "HOLDFAST_RIG_VICTIM"

// possessions are what the victim tells of itself.
type possessions struct {
	Socket, Root, Log, Netns, CgroupParent, Sandbox string
}

func TestMain(m *testing.M) {
	if os.Getenv(victimVariable) == "" {
		os.Exit(m.Run())
	}
	if err := playVictim(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// playVictim starts a node with a pod, tells of it, and waits to be killed.
func playVictim() error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	node, err := rig.NewNetns("victim", rig.NetnsOptions{})
	if err != nil {
		return err
	}
	c, err := rig.StartContainerd(ctx, rig.Options{Netns: node, CNI: true})
	if err != nil {
		return errors.Join(err, node.Close())
	}
	sandbox, err := c.CRI().RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "orphan", Namespace: "rig", Uid: "orphan"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.CgroupParent() + "/podorphan"},
	}})
	if err != nil {
		return errors.Join(err, c.Stop(ctx), node.Close())
	}
	err = json.NewEncoder(os.Stdout).Encode(possessions{
		c.Socket(), c.Root(), c.Log(), node.Path(), c.CgroupParent(), sandbox.PodSandboxId,
	})
	if err != nil {
		return errors.Join(err, c.Stop(ctx), node.Close())
	}
	<-ctx.Done()
	return errors.Join(c.Stop(context.WithoutCancel(ctx)), node.Close())
}

// TestSweepClearsWhatAKilledProcessLeft also shows that all of the rig works in a process that has a
// network namespace of its own.
func TestSweepClearsWhatAKilledProcessLeft(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// unshare replaces itself by the command, so that the process below is the victim itself.
	victim := exec.CommandContext(testContext(t), "unshare", "--net", "--", self)
	victim.Env = append(os.Environ(), victimVariable+"=1")
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadBytes('\n')
	if readErr != nil {
		t.Fatalf("the victim told nothing: %v, %v", readErr, victim.Wait())
	}
	var left possessions
	if err := json.Unmarshal(line, &left); err != nil {
		t.Fatal(err)
	}
	if len(processesNaming(t, left.Socket)) < 1 || len(cgroupsNamed(t, left.Sandbox)) == 0 {
		t.Error("the victim's pod is not seen")
	}
	if err := rig.Sweep(); err != nil {
		t.Fatal(err)
	}
	if len(processesNaming(t, left.Socket)) < 1 {
		t.Error("the sweep took a living process's node")
	}

	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil {
		t.Error("the victim ended well")
	}
	if err := rig.Sweep(); err != nil {
		t.Fatal(err)
	}
	assertOffAt(t, left.Socket, left.CgroupParent)
	assertErased(t, left.Root, left.Log, left.Socket, filepath.Dir(left.Socket), left.Netns)
	if dirs := cgroupsNamed(t, left.Sandbox); len(dirs) != 0 {
		t.Errorf("cgroups are left: %v", dirs)
	}
}

func TestImagesArePulledFromARegistry(t *testing.T) {
	ctx := testContext(t)
	node := newNetns(t, "node", rig.NetnsOptions{})
	reg, err := image.NewRegistry(image.RegistryOptions{
		Addr: node.Bridge().Addr().String() + ":0", Username: "edge", Password: "secret",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	const name = "pull.example.test/holdfast/web:1"
	img, err := image.Busybox(name)
	if err != nil {
		t.Fatal(err)
	}
	reg.Add(img)
	c := startContainerd(t, ctx, rig.Options{Netns: node, Mirrors: map[string]string{"pull.example.test": reg.URL()}})
	pull := func(password string) error {
		_, err := c.CRI().PullImage(ctx, &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: name},
			Auth:  &runtimeapi.AuthConfig{Username: "edge", Password: password},
		})
		return err
	}

	if err := pull("wrong"); err == nil {
		t.Error("a wrong password was taken")
	}
	reg.SetDown(true)
	if err := pull("secret"); err == nil {
		t.Error("an image came from a registry that is down")
	}
	reg.SetDown(false)
	reg.ForgetRequests()
	if err := pull("secret"); err != nil {
		t.Fatal(err)
	}
	blobs := 0
	for _, r := range reg.Requests() {
		if r.Status == 200 && r.Method == "GET" && filepath.Base(filepath.Dir(r.Path)) == "blobs" {
			blobs++
		}
	}
	if blobs != 2 {
		t.Errorf("%d blobs were fetched, not layer and config: %v", blobs, reg.Requests())
	}
	st, err := c.CRI().ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil || st.Image == nil {
		t.Errorf("the pulled image is not there: %v, error %v", st, err)
	}
}
