package runtime_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// labels are those of an image's record, as containerd itself shows them.
func (n *node) labels(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("ctr", "-a", n.c.Socket(), "-n", "k8s.io", "images", "list", "name=="+name).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr: %v: %s", err, out)
	}
	return string(out)
}

// pin is TestContainerd/ImagesArePinned.
func (n *node) pin(t *testing.T) {
	ctx := t.Context()
	const name, pinned = image.BusyboxName, "io.cri-containerd.pinned=pinned"
	for _, changed := range []int{1, 0} { // what holds already is not written again
		got, err := n.rt.Pin(ctx, []string{name, "example.test/not-here:1"}, true)
		if err != nil || !got.Pinned[name] || len(got.Pinned) != 1 || got.Changed != changed {
			t.Fatalf("pin: %+v, %v; want %d changed", got, err, changed)
		}
	}
	if text := n.labels(t, name); !strings.Contains(text, pinned) {
		t.Errorf("labels of a pinned image: %s", text)
	}
	// Nobody's but ours is taken away.
	if out, err := exec.Command("ctr", "-a", n.c.Socket(), "-n", "k8s.io", "images", "label", image.PauseName, pinned).CombinedOutput(); err != nil {
		t.Fatalf("ctr: %v: %s", err, out)
	}
	// Who does not know all that is needed takes nothing away.
	if got, err := n.rt.Pin(ctx, nil, false); err != nil || got.Changed != 0 || !got.Pinned[name] {
		t.Fatalf("pin nothing more: %+v, %v", got, err)
	}
	got, err := n.rt.Pin(ctx, nil, true)
	if err != nil || got.Changed != 1 || got.Pinned[name] || !got.Pinned[image.PauseName] {
		t.Fatalf("unpin: %+v, %v", got, err)
	}
	if text := n.labels(t, name); strings.Contains(text, "pinned") {
		t.Errorf("labels of an image that is pinned no more: %s", text)
	}
	if text := n.labels(t, image.PauseName); !strings.Contains(text, pinned) {
		t.Errorf("somebody else's pin is gone: %s", text)
	}
	setup := n.rt.Setup(ctx)
	if setup.CNIConfDir != n.c.CNIConfDir() {
		t.Errorf("setup %+v", setup)
	}
	n.run(t, newPod("pinned", "sleep", "60"))
	// The newest sandbox tells what containerd 2.x does not.
	running, err := n.rt.RunningSandboxes(ctx)
	if err != nil || len(running) == 0 {
		t.Fatalf("sandboxes: %+v, %v", running, err)
	}
	for i, s := range running {
		if s.ID == "" || time.Since(s.Made) > time.Hour || i > 0 && s.Made.After(running[i-1].Made) {
			t.Errorf("sandbox %d of %+v", i, running)
		}
	}
	if got := n.rt.SandboxImage(ctx, running[0].ID); got == "" || setup.SandboxImage != "" && got != setup.SandboxImage {
		t.Errorf("sandbox image %q, configured %q", got, setup.SandboxImage)
	}
}
