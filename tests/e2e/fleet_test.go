package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/tests/browser"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// TestTheFleetsPageShowsANodeAndItsLogs, which come from containerd's files on the
// node.
func TestTheFleetsPageShowsANodeAndItsLogs(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("shown", world.NodeOptions{})
	s.Start("web", n, func(p *corev1.Pod) {
		p.Spec.Containers[0].Command = scene.Shell(`trap 'exit 0' TERM; echo hello from the edge; i=0; while :; do i=$((i+1)); echo "tick $i"; sleep 0.2; done`)
	})
	address, err := exec.CommandContext(s.Ctx, filepath.Join(s.World.Bin, "holdfast"), "fleet", "-q", "--config", s.World.CloudConfig()).CombinedOutput()
	if err != nil {
		t.Fatalf("holdfast fleet: %v: %s", err, address)
	}
	page := browser.Start(t).Open(strings.TrimSpace(string(address)))
	row := func(cell, says string) string {
		return fmt.Sprintf(`document.querySelector('tr[data-node=%q] [data-key=%q]')?.innerText.includes(%q)`, n.Name, cell, says)
	}
	page.Wait("the node with its pod", row("line", "websocket")+" && "+row("pods", "1/1")+" && "+row("bytes", "kB"))
	page.Wait("whether it is ready for an outage", "!("+row("offlineReady", "not told")+")")
	page.Do(fmt.Sprintf(`document.querySelector('tr[data-node=%q] a').click()`, n.Name))
	page.Wait("its pod", `document.querySelector('section[aria-label=Pods]')?.innerText.includes('web')`)
	page.Wait("its events", `document.querySelector('section[aria-label=Events]').innerText.includes('Started')`)
	page.Wait("its condition", `document.querySelector('section[aria-label=Conditions]').innerText.includes('OfflineReady')`)
	page.Do(`document.querySelector('section[aria-label=Pods] button').click()`)
	page.Wait("its log", `document.querySelector('pre').innerText.includes('hello from the edge')`)
	page.Do(`document.querySelector('#follow').click()`)
	page.Wait("that it is followed", `document.querySelector('section[aria-label=Log] [role=status]').innerText === 'following' && document.querySelector('pre').innerText.includes('tick ')`)
	page.Do(`window.ticks = (document.querySelector('pre').innerText.match(/tick/g) || []).length`)
	page.Wait("what the container writes now", `(document.querySelector('pre').innerText.match(/tick/g) || []).length > window.ticks + 3`)
	s.Must(n.Cut())
	page.Wait("the node is offline", `document.querySelector('dl.facts').innerText.includes('offline')`)
	page.Wait("the log has ended", `document.querySelector('section[aria-label=Log] [role=status]').innerText !== 'following'`)
	page.Wait("the outage in the plot", `document.querySelectorAll('svg.plot rect.off').length > 0`)
	if c := page.Complaints(); len(c) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(c, "\n"))
	}
}
