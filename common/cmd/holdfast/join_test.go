package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/pki"
)

func TestJoinMakesANodeOnceAndResetUndoesIt(t *testing.T) {
	b := newBox(t)
	stop := b.edgecore(now())
	code, out := holdfast(t, "", b.joinArgs("--label", "shop=42")...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	says(t, out, "Node shop is Ready", "[ok]", "containerd 1.6.20", "10-holdfast.conflist")
	c, err := config.LoadEdge(b.config())
	must(t, err)
	if c.NodeName != "shop" || c.Hub[0] != b.hub.address || c.CgroupDriver != "systemd" || c.Labels["shop"] != "42" {
		t.Errorf("config %+v", c)
	}
	credentials, err := enrollment.Load(b.data())
	must(t, err)
	if credentials.NodeName != "shop" {
		t.Errorf("the certificate is node %s's", credentials.NodeName)
	}
	const unit = "edgecore-shop.service"
	unitFile := filepath.Join(b.root, "etc/systemd/system", unit)
	says(t, read(t, unitFile), "ExecStart="+filepath.Join(b.bin, "edgecore")+" --config "+b.config(), "KillMode=process")
	if got, want := b.systemctl(), []string{"daemon-reload", "enable " + unit, "restart --no-block " + unit}; !slices.Equal(got, want) {
		t.Errorf("systemctl was told %q, want %q", got, want)
	}

	// Again: the same certificate, and nothing is restarted.
	code, out = holdfast(t, "", b.joinArgs("--label", "shop=42")...)
	if code != 0 {
		t.Fatalf("again: exit code %d:\n%s", code, out)
	}
	again, err := enrollment.Load(b.data())
	must(t, err)
	if string(again.Cert) != string(credentials.Cert) || len(b.hub.nodes()) != 1 {
		t.Errorf("joined anew: the hub signed for %v", b.hub.nodes())
	}
	if got := b.systemctl(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "restart") }) {
		t.Errorf("systemctl was told %q: a restart for nothing", got)
	}

	// Reset takes away what join made, and nobody else's pod.
	must(t, os.MkdirAll(filepath.Join(b.data(), "pods/ours/volumes"), 0o755))
	must(t, os.MkdirAll(filepath.Join(b.dir, "logs/default_pod-ours_ours"), 0o755))
	must(t, os.MkdirAll(filepath.Join(b.dir, "logs/default_pod-other_other"), 0o755))
	b.cri.mu.Lock()
	b.cri.pods = map[string]string{"s1": "ours", "s2": "other"}
	b.cri.mu.Unlock()
	code, out = holdfast(t, "n\n", "reset", "--root", b.root, "--data-dir", b.data())
	if code != 2 || !there(b.config()) {
		t.Errorf("reset with the answer no: exit code %d:\n%s", code, out)
	}
	stop()
	code, out = holdfast(t, "y\n", "reset", "--root", b.root, "--data-dir", b.data())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	says(t, out, "kubectl delete node shop", "default/pod-ours")
	if len(b.cri.pods) != 1 || b.cri.pods["s2"] != "other" {
		t.Errorf("pods left: %v, want the other's alone", b.cri.pods)
	}
	for _, path := range []string{b.config(), b.data(), unitFile, filepath.Join(b.cniDir(), "10-holdfast.conflist"), filepath.Join(b.dir, "logs/default_pod-ours_ours")} {
		if there(path) {
			t.Errorf("%s is left", path)
		}
	}
	if !there(filepath.Join(b.dir, "logs/default_pod-other_other")) {
		t.Error("the log of somebody else's pod is gone")
	}
	if got := b.systemctl(); !slices.Contains(got, "disable --now "+unit) {
		t.Errorf("systemctl was told %q", got)
	}
	code, out = holdfast(t, "", "reset", "--force", "--root", b.root, "--data-dir", b.data())
	if code != 0 {
		t.Errorf("reset again: exit code %d", code)
	}
	says(t, out, "nothing to undo")
}

func TestJoinKeepsWhatItDidNotMake(t *testing.T) {
	b := newBox(t)
	stop := b.edgecore(now())
	own := filepath.Join(b.cniDir(), "05-mine.conf")
	write(t, own, "{}", 0o644)
	b.cri.ready = func() bool { return true }
	write(t, b.config(), "maxPods: 7\nhub: [old.example.test]\n", 0o600)
	if code, out := holdfast(t, "", b.joinArgs()...); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	c, err := config.LoadEdge(b.config())
	must(t, err)
	if c.MaxPods != 7 || !slices.Equal(c.Hub, []string{b.hub.address}) {
		t.Errorf("config: maxPods %d, hub %v", c.MaxPods, c.Hub)
	}
	stop()
	code, out := holdfast(t, "", "reset", "--force", "--root", b.root, "--data-dir", b.data())
	if code != 0 {
		t.Fatalf("reset: exit code %d:\n%s", code, out)
	}
	for _, path := range []string{own, b.config()} {
		if !there(path) {
			t.Errorf("%s was there before join and is gone after reset", path)
		}
	}
}

// TestJoinNamesEveryProblemWithItsRemedy: nothing is made on a machine that is not
// ready, and every failed check says what to do.
func TestJoinNamesEveryProblemWithItsRemedy(t *testing.T) {
	stranger, err := pki.NewCA("stranger")
	must(t, err)
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, b *box) (extra []string)
		say   []string
	}{
		{"no runtime", func(t *testing.T, b *box) []string {
			return []string{"--container-runtime-endpoint", "unix:///nonexistent/c.sock"}
		}, []string{"runtime", "/nonexistent/c.sock", "--install-runtime", "--container-runtime-endpoint"}},
		{"CRI disabled", func(t *testing.T, b *box) []string {
			socket := filepath.Join(filepath.Dir(b.root), "nocri.sock")
			(*runtimeServer)(nil).serve(t, socket)
			write(t, filepath.Join(b.root, "etc/containerd/config.toml"), "version = 2\n# disabled_plugins = [\"cri\"]\ndisabled_plugins = [\n  \"cri\",\n]\n", 0o644)
			return []string{"--container-runtime-endpoint", "unix://" + socket}
		}, []string{"CRI plugin disabled", "line 4 of", "etc/containerd/config.toml", "systemctl restart containerd"}},
		{"kubelet", func(t *testing.T, b *box) []string {
			write(t, filepath.Join(b.root, "proc/4711/cmdline"), "/usr/bin/kubelet\x00--config=x\x00", 0o644)
			return nil
		}, []string{"a kubelet runs here, process 4711", "systemctl disable --now kubelet"}},
		{"no plugins", func(t *testing.T, b *box) []string {
			must(t, os.Remove(filepath.Join(b.plugins(), "bridge")))
			return nil
		}, []string{"CNI plugins bridge are not in", "containernetworking-plugins"}},
		{"no systemd", func(t *testing.T, b *box) []string {
			must(t, os.Remove(filepath.Join(b.root, "run/systemd/system")))
			return nil
		}, []string{"systemd does not run", "--foreground"}},
		{"no memory cgroup", func(t *testing.T, b *box) []string {
			write(t, filepath.Join(b.root, "sys/fs/cgroup/cgroup.controllers"), "cpu pids\n", 0o644)
			return nil
		}, []string{"without the memory controller", "cgroup_enable=memory"}},
		{"no edgecore", func(t *testing.T, b *box) []string {
			must(t, os.Remove(filepath.Join(b.bin, "edgecore")))
			return nil
		}, []string{"edgecore is neither in", "copy edgecore beside holdfast"}},
		{"wrong CA hash", func(t *testing.T, b *box) []string { return []string{"--ca-hash", stranger.Hash()} },
			[]string{"shows a CA with hash", "--ca-hash", stranger.Hash()}},
		{"other CNI folder", func(t *testing.T, b *box) []string { return []string{"--cni-conf-dir", "/elsewhere"} },
			[]string{"/elsewhere", "--cni-conf-dir", "etc/cni/net.d"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t)
			code, out := holdfast(t, "", b.joinArgs(tt.spoil(t, b)...)...)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			says(t, out, append(tt.say, "[fail]", "--ignore-preflight-errors=")...)
			if there(b.dir) || len(b.systemctl()) > 0 || len(b.hub.nodes()) > 0 {
				t.Errorf("a machine that is not ready was changed: %v", b.hub.nodes())
			}
		})
	}
}

func TestJoinRefusesAWrongTokenAndLeavesNothing(t *testing.T) {
	b := newBox(t)
	code, out := holdfast(t, "", b.joinArgs("--token", "aaaaaa.aaaaaaaaaaaaaaaa")...)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, "token aaaaaa", "holdfast token create")
	if strings.Contains(out, "aaaaaaaaaaaaaaaa") {
		t.Error("the secret is in the message")
	}
	if there(b.dir) {
		t.Error("a refused join left something behind")
	}
}

func TestJoinWarnsOfAClockThatIsOff(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	b.hub.date = time.Now().Add(-48 * time.Hour)
	code, out := holdfast(t, "", b.joinArgs()...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	says(t, out, "[warn] clock", "48h0m", "timedatectl")
}

func TestJoinOfAnotherCloudNeedsAReset(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	if code, out := holdfast(t, "", b.joinArgs()...); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	other := newHub(t)
	args := b.joinArgs("--token", other.token.String(), "--ca-hash", other.ca.Hash())
	args[1] = other.address
	code, out := holdfast(t, "", args...)
	if code != 1 || len(other.nodes()) > 0 {
		t.Errorf("exit code %d, the other hub signed for %v", code, other.nodes())
	}
	says(t, out, "earlier-join", b.hub.ca.Hash(), "holdfast reset")
	code, out = holdfast(t, "", b.joinArgs("--node-name", "other")...)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, "belongs to node shop, not other", "--data-dir")
}

// TestJoinAgainNeedsNoHub: a node that has joined starts its pods, line or no line.
// TestANodeWhoseCertificateIsVoidJoinsAnewAndKeepsItsData: revoked, or away for
// longer than its key could renew it.
func TestANodeWhoseCertificateIsVoidJoinsAnewAndKeepsItsData(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	code, out := holdfast(t, "", b.joinArgs()...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	b.systemctl()
	before, err := enrollment.Load(b.data())
	must(t, err)
	write(t, filepath.Join(b.data(), "store.db"), "pods", 0o600)

	b.hub.void.Store(true)
	good := b.hub.token
	b.hub.token, err = pki.NewToken() // the one that the node joined with is no more
	must(t, err)
	args := b.joinArgs()
	args[slices.Index(args, "--token")+1] = good.String()
	code, out = holdfast(t, "", args...)
	if code != 1 {
		t.Errorf("with an old token: exit code %d", code)
	}
	says(t, out, "the certificate is revoked", "holdfast token create")
	if now, err := enrollment.Load(b.data()); err != nil || string(now.Cert) != string(before.Cert) {
		t.Errorf("with an old token the certificate is lost: %v", err)
	}

	code, out = holdfast(t, "", b.joinArgs()...)
	if code != 0 {
		t.Fatalf("with a new token: exit code %d:\n%s", code, out)
	}
	says(t, out, "joining anew; its pods and data stay", "Node shop is Ready")
	after, err := enrollment.Load(b.data())
	must(t, err)
	if string(after.Cert) == string(before.Cert) || len(b.hub.nodes()) != 2 {
		t.Errorf("the hub signed for %v", b.hub.nodes())
	}
	if read(t, filepath.Join(b.data(), "store.db")) != "pods" {
		t.Error("the data is gone")
	}
	if got := b.systemctl(); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "restart") }) {
		t.Errorf("systemctl was told %q: edgecore goes on with the old certificate", got)
	}
}

func TestJoinAgainNeedsNoHub(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	if code, out := holdfast(t, "", b.joinArgs()...); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	b.hub.close()
	code, out := holdfast(t, "", b.joinArgs("--token", "")...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	says(t, out, "joined before", "Node shop is Ready")
}

func TestIgnoredChecksAreNamed(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	write(t, filepath.Join(b.root, "proc/4711/cmdline"), "kubelet\x00", 0o644)
	code, out := holdfast(t, "", b.joinArgs("--ignore-preflight-errors", "kubelet")...)
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	says(t, out, "[warn] kubelet", "ignored as you asked")
	code, out = holdfast(t, "", b.joinArgs("--ignore-preflight-errors", "kubelets")...)
	if code == 0 {
		t.Error("a check that there is not was ignored")
	}
	says(t, out, `no check "kubelets"`, "earlier-join")
}

func TestJoinInstallsTheRuntime(t *testing.T) {
	b := newBox(t)
	b.edgecore(now())
	must(t, os.Remove(filepath.Join(b.plugins(), "bridge")))
	log := filepath.Join(filepath.Dir(b.root), "apt.calls")
	b.program("apt-get", `echo "$@" >> "`+log+`"; case "$*" in *" install "*) touch "`+filepath.Join(b.plugins(), "bridge")+`";; esac`)
	code, out := holdfast(t, "", b.joinArgs("--install-runtime")...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	says(t, read(t, log), "update", "containerd runc containernetworking-plugins iptables")
	if got := b.systemctl(); !slices.Contains(got, "enable --now containerd.service") {
		t.Errorf("systemctl was told %q: containerd was not started", got)
	}
	// All is there now: the package manager is left alone.
	must(t, os.Remove(log))
	if code, out = holdfast(t, "", b.joinArgs("--install-runtime")...); code != 0 || there(log) {
		t.Errorf("again: exit code %d, installed again: %v\n%s", code, there(log), out)
	}
}

func TestForegroundIsTheParentOfEdgecore(t *testing.T) {
	b := newBox(t)
	started, ended := filepath.Join(filepath.Dir(b.root), "started"), filepath.Join(filepath.Dir(b.root), "ended")
	b.program("edgecore", `trap 'echo "$@" > "`+ended+`"; exit 0' TERM
echo running; touch "`+started+`"
while :; do sleep 0.1; done`)
	begin := make(chan struct{})
	b.edgecore(begin)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, b.joinArgs("--foreground"), strings.NewReader(""), &out, &out)
	}()
	wait(t, "edgecore starts", func() bool { return there(started) })
	close(begin)
	wait(t, "join says that the node is Ready", func() bool { return strings.Contains(out.String(), "Node shop is Ready") })
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d after Ctrl-C:\n%s", code, out.String())
	}
	says(t, read(t, ended), "--config "+b.config())
	if len(b.systemctl()) > 0 || there(filepath.Join(b.root, "etc/systemd")) {
		t.Error("--foreground used systemd")
	}
}

func TestForegroundTellsWhyEdgecoreEnded(t *testing.T) {
	b := newBox(t)
	b.program("edgecore", `echo "the disk is full" >&2; exit 1`)
	code, out := holdfast(t, "", b.joinArgs("--foreground")...)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, "edgecore stopped (exit status 1)", "the disk is full", filepath.Join(b.data(), "edgecore.log"))
}

func TestStatusShowsTheNode(t *testing.T) {
	b := newBox(t)
	code, out := holdfast(t, "", "status", "--run-dir", b.runDir())
	if code != 1 {
		t.Errorf("exit code %d while nothing runs, want 1", code)
	}
	says(t, out, "edgecore is not running", "systemctl start edgecore")
	b.edgecore(now())
	wait(t, "status answers", func() bool {
		code, out = holdfast(t, "", "status", "--run-dir", b.runDir())
		return code == 0
	})
	says(t, out, "shop", "connected to "+b.hub.address, "web", "Running")
	code, out = holdfast(t, "", "status", "--run-dir", b.runDir(), "-o", "json")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	says(t, out, `"node": "shop"`, `"restarts": 2`)
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}
