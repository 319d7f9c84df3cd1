package runtime_test

import (
	"os/exec"
	"strings"
	"testing"

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
		got, err := n.rt.Pin(ctx, []string{name, "example.test/not-here:1"})
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
	got, err := n.rt.Pin(ctx, nil)
	if err != nil || got.Changed != 1 || got.Pinned[name] || !got.Pinned[image.PauseName] {
		t.Fatalf("unpin: %+v, %v", got, err)
	}
	if text := n.labels(t, name); strings.Contains(text, "pinned") {
		t.Errorf("labels of an image that is pinned no more: %s", text)
	}
	if text := n.labels(t, image.PauseName); !strings.Contains(text, pinned) {
		t.Errorf("somebody else's pin is gone: %s", text)
	}
	if s := n.rt.Setup(ctx); s.SandboxImage == "" && n.rt.SandboxImage(ctx) == "" || s.CNIConfDir != n.c.CNIConfDir() {
		t.Errorf("setup %+v", s)
	}
}
