package stream_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestContainerd runs everything that needs a real containerd: starting one takes
// seconds.
func TestContainerd(t *testing.T) {
	n := newNode(t)
	web := newPod("web", shell("main", "echo one; echo two >&2; echo three; "+forever), shell("other", "echo beside; "+forever))
	web.Spec.InitContainers = []corev1.Container{shell("prepare", "echo prepared")}
	n.apply(web)
	n.await(web, "web runs", running)
	run := func(name string, f func(*testing.T, *node)) {
		t.Run(name, func(t *testing.T) {
			here, its := *n, *n.api
			here.t, its.t, here.api = t, t, &its
			f(t, &here)
		})
	}
	run("LogsOfAPod", logsOfAPod)
	run("ExecInAContainer", execInAContainer)
	run("AttachToAContainer", attachToAContainer)
	run("ForwardPorts", forwardPorts)
}

func logsOfAPod(t *testing.T, n *node) {
	const main = "/containerLogs/shop/web/main"
	eventually(t, "it has written", func() error {
		if got := lines(n.want(main)); len(got) != 3 {
			return http.ErrNoLocation
		}
		return nil
	})
	got := lines(n.want(main))
	slices.Sort(got)
	if strings.Join(got, " ") != "one three two" {
		t.Errorf("log: %q", got)
	}
	if got := n.want("/containerLogs/shop/web/prepare"); got != "prepared\n" {
		t.Errorf("log of the init container: %q", got)
	}
	if got := n.want(main + "?stream=Stderr"); got != "two\n" {
		t.Errorf("stderr: %q", got)
	}
	if got := n.want(main + "?stream=Stdout"); got != "one\nthree\n" {
		t.Errorf("stdout: %q", got)
	}
}
