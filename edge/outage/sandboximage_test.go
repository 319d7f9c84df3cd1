package outage

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

const newPause = "example.test/pause:4"

// restart is edgecore started anew on the same store.
func (n *node) restart() {
	n.checker = New(n.checker.o)
}

// upgrade is another version of the runtime that answers from now on: 2.x, which does not
// tell the image of sandboxes. The sandboxes go on running.
func (n *node) upgrade(version string) {
	n.runtime.set(func() { n.runtime.version, n.runtime.setup = version, runtime.Setup{} })
}

func (n *node) want(when string, reasons ...string) {
	n.t.Helper()
	if got := n.failing(false); !slices.Equal(got, reasons) {
		n.t.Errorf("%s: %v, want %v", when, got, reasons)
	}
}

// TestASandboxOfAnEarlierRuntimeProvesNothing: it outlives the upgrade, and the new
// version makes the next one from another image, which is not on the node.
func TestASandboxOfAnEarlierRuntimeProvesNothing(t *testing.T) {
	for name, between := range map[string]func(*node){
		"edgecore runs on":      func(*node) {},
		"edgecore is restarted": (*node).restart,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.holdAll()
			n.runtime.make("a", pauseImage, time.Now())
			n.want("1.7")
			n.upgrade("2.1.4")
			between(n)
			n.want("2.1.4 with the sandbox of 1.7", "SandboxImageUnknown")
			if n.runtime.pinsAll {
				t.Error("images are unpinned while it is not known what is needed")
			}
			n.restart()
			n.want("the same after a restart", "SandboxImageUnknown")
			n.runtime.make("b", newPause, time.Now().Add(-time.Hour)) // whatever the clock shows
			n.want("with a sandbox of its own", "SandboxImageMissing")
			n.runtime.set(func() { n.runtime.images = append(n.runtime.images, newPause) })
			n.want("with its image")
			if !slices.Contains(n.runtime.pinned, newPause) || !n.runtime.pinsAll {
				t.Errorf("pinned %v, as all: %v", n.runtime.pinned, n.runtime.pinsAll)
			}
			n.runtime.set(func() { n.runtime.running = n.runtime.running[1:] })
			n.restart()
			n.want("with that sandbox gone")
			n.upgrade("2.2.0")
			n.want("upgraded again", "SandboxImageUnknown")
		})
	}
}

// TestTheSandboxImageOfAWellNodeIsKnown: none of these is left in doubt.
func TestTheSandboxImageOfAWellNodeIsKnown(t *testing.T) {
	t.Run("a new node", func(t *testing.T) {
		n := newNode(t)
		n.upgrade("2.1.4")
		n.want("before the hub has told anything", "NeverSynced")
		if err := n.store.MarkSynced(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.want("without pods")
		n.holdAll()
		n.checker.changed.Store(true)
		n.want("before the pod's sandbox", "SandboxImageUnknown")
		n.runtime.make("a", pauseImage, time.Now())
		n.want("with it")
	})
	t.Run("a pod that is faster than the first look", func(t *testing.T) {
		n := newNode(t)
		n.upgrade("2.1.4")
		n.holdAll()
		n.runtime.make("a", pauseImage, time.Now())
		n.want("a new node")
	})
	t.Run("an upgrade with a reboot", func(t *testing.T) {
		n := newNode(t)
		n.holdAll()
		n.runtime.make("a", pauseImage, time.Now())
		n.want("1.7")
		n.upgrade("2.1.4")
		n.restart()
		n.runtime.set(func() { n.runtime.running = nil })
		n.runtime.make("b", pauseImage, time.Now())
		n.want("all sandboxes are made anew")
	})
	t.Run("a configured image", func(t *testing.T) {
		n := newNode(t)
		n.holdAll()
		n.upgrade("2.1.4")
		n.checker.o.PauseImage = pauseImage
		n.want("named in the configuration")
	})
}
