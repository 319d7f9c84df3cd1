package main

import (
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// TestWrongUsageIsSaidAndExitsWithTwo: one clear message that names what was
// wrong, before anything is touched.
func TestWrongUsageIsSaidAndExitsWithTwo(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	must(t, err)
	dir := t.TempDir()
	join := func(args ...string) []string {
		return append([]string{"join", "hub.example.test:10350", "--token", "q1w2e3.zyxwvutsrq987654", "--ca-hash", ca.Hash(), "--node-name", "shop", "--data-dir", dir, "--config", dir + "/edgecore.yaml"}, args...)
	}
	for _, tt := range []struct {
		name string
		args []string
		say  string
	}{
		{"unknown command", []string{"jion"}, `no command "jion"`},
		{"unknown token command", []string{"token", "make"}, `"make"`},
		{"unknown flag", []string{"init", "--data-dri", "x"}, "--data-dri"},
		{"bad duration", []string{"init", "--token-ttl", "soon"}, "soon"},
		{"join without a hub", []string{"join"}, "HOST:PORT"},
		{"join nowhere", []string{"join", "--token", "x"}, "HOST:PORT"},
		{"token", join("--token", "secret"), "--token"},
		{"CA hash", join("--ca-hash", "sha256:123"), "--ca-hash"},
		{"node name", join("--node-name", "Shop_42"), "Shop_42"},
		{"endpoint", join("--container-runtime-endpoint", "containerd.sock"), "containerRuntimeEndpoint"},
		{"label", join("--label", "shop"), "KEY=VALUE"},
		{"taint", join("--taint", "x:Sometimes"), "Sometimes"},
		{"token life", []string{"token", "create", "--ttl", "-1h"}, "--ttl"},
		{"token uses", []string{"token", "create", "--uses", "-1"}, "--uses"},
		{"delete nothing", []string{"token", "delete"}, "token list"},
		{"delete no id", []string{"token", "delete", "Nobody"}, "Nobody"},
		{"unknown node command", []string{"node", "steal"}, `"steal"`},
		{"revoke nobody", []string{"node", "revoke"}, "node list"},
		{"revoke two", []string{"node", "revoke", "a", "b"}, "the one node"},
		{"revoke no name", []string{"node", "revoke", "Shop_42"}, "Shop_42"},
		{"unknown conversion", []string{"convert", "pods"}, `"pods"`},
		{"convert without -f", []string{"convert", "devices", "a.yaml"}, "with -f"},
		{"status format", []string{"status", "-o", "xml"}, "xml"},
		{"status of two nodes", []string{"status", "a", "b"}, "one node"},
		{"status of no name", []string{"status", "Shop_42"}, "Shop_42"},
		{"status of a node and of all", []string{"status", "a", "--offline"}, "--offline"},
		{"status of both sides", []string{"status", "--edge", "--offline"}, "--edge"},
		{"doctor format", []string{"doctor", "-o", "xml"}, "xml"},
		{"doctor of something", []string{"doctor", "till"}, `"till"`},
		{"drill format", []string{"drill", "-o", "xml"}, "xml"},
		{"drill for a while", []string{"drill", "--for", "soon"}, "soon"},
		{"ps of something", []string{"ps", "till"}, `"till"`},
		{"logs of nothing", []string{"logs"}, "NAMESPACE/NAME"},
		{"logs of no pod", []string{"logs", "a/b/c"}, "a/b/c"},
		{"logs of two namespaces", []string{"logs", "a/b", "-n", "c"}, "--namespace says c"},
		{"logs since tomorrow", []string{"logs", "a", "--since", "-1h"}, "--since"},
		{"logs of few bytes", []string{"logs", "a", "--limit-bytes", "-1"}, "--limit-bytes"},
		{"logs of few lines", []string{"logs", "a", "--tail", "-2"}, "--tail"},
		{"exec without a command", []string{"exec", "a"}, "-- COMMAND"},
		{"exec without a command after --", []string{"exec", "a", "--"}, "-- COMMAND"},
		{"exec without --", []string{"exec", "a", "ls"}, "-- COMMAND"},
		{"exec in no pod", []string{"exec", "--", "ls"}, "NAMESPACE/NAME"},
		{"listen", []string{"init", "--listen", "10350", "--data-dir", dir, "--config", dir + "/cloudcore.yaml"}, "listen"},
		{"kubeconfig", []string{"init", "--kubeconfig", dir + "/none", "--data-dir", dir, "--config", dir + "/cloudcore.yaml"}, dir + "/none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out := holdfast(t, "", tt.args...)
			if code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			says(t, out, tt.say)
			if strings.Contains(out, "zyxwvutsrq987654") {
				t.Error("the token's secret is in the message")
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"join", "--help"}, {"token"}, {"node"}, {"node", "revoke", "--help"}, {"convert"}, {"convert", "devices", "--help"}, {"status", "--help"}, {"ps", "--help"}, {"logs", "--help"}, {"exec", "--help"}, {"version"}, {"--version"}} {
		code, out := holdfast(t, "", args...)
		if code != 0 || !strings.Contains(out, "holdfast") {
			t.Errorf("%v: exit code %d:\n%s", args, code, out)
		}
	}
}

func TestAConfigFileWithAnUnknownKeyIsNamed(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	must(t, err)
	dir := t.TempDir()
	write(t, dir+"/edgecore.yaml", "hub: [h:1]\nmaxPodz: 3\n", 0o600)
	code, out := holdfast(t, "", "join", "h:1", "--token", "q1w2e3.zyxwvutsrq987654", "--ca-hash", ca.Hash(), "--data-dir", dir+"/data", "--config", dir+"/edgecore.yaml")
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, dir+"/edgecore.yaml", "maxPodz", "maxPods")
}

func TestAFolderOfSomebodyElseIsRefused(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	must(t, err)
	dir := t.TempDir()
	write(t, dir+"/home/letter.txt", "dear", 0o600)
	code, out := holdfast(t, "", "join", "h:1", "--token", "q1w2e3.zyxwvutsrq987654", "--ca-hash", ca.Hash(), "--node-name", "shop", "--data-dir", dir+"/home", "--config", dir+"/edgecore.yaml")
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, dir+"/home", "letter.txt", "--data-dir")
}
