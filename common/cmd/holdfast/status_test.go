package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// shortDir is a folder in which sockets have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// edgeOf plays an edgecore whose node has these pods, and serves more.
func edgeOf(t *testing.T, dir string, pods []localstatus.PodSummary, more ...localstatus.Route) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	status := func(context.Context) localstatus.Status {
		now := time.Now()
		return localstatus.Status{Node: "pi-7", Version: "v1", Started: now, Now: now, Clock: localstatus.Clock{System: now}, Pods: pods}
	}
	go func() { done <- localstatus.Serve(ctx, dir, status, nil, nil, more...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	wait(t, "edgecore's socket", func() bool { return there(filepath.Join(dir, localstatus.SocketName)) })
}

// cloudOf plays a cloudcore and notes what it is asked.
func cloudOf(t *testing.T, dir string) (asked func() string) {
	t.Helper()
	now := time.Now()
	nodes := []fleet.Node{{Name: "pi-1", Ready: "True", Hub: "hub-a", Connected: true, Transport: "quic", Since: &now}, {Name: "pi-2", Ready: "Unknown", Hub: "hub-a", Since: &now}}
	var mu sync.Mutex
	var last string
	answer := func(w http.ResponseWriter, r *http.Request, document any) {
		mu.Lock()
		last = r.URL.String()
		mu.Unlock()
		json.NewEncoder(w).Encode(document)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+fleet.Path, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, fleet.Fleet{Hub: "hub-a", Version: "v1", Started: now, Now: now, Nodes: nodes, Counts: fleet.Counts{All: 2, Connected: 1, Here: 1, Offline: 1}, Complete: true})
	})
	mux.HandleFunc("GET "+fleet.NodePath+"{node}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("node") != "pi-1" {
			http.Error(w, "there is no edge node "+r.PathValue("node"), http.StatusNotFound)
			return
		}
		answer(w, r, fleet.Detail{Node: nodes[0], PodList: []fleet.Pod{{Namespace: "shop", Name: "till", Phase: "Running"}}})
	})
	l, err := net.Listen("unix", filepath.Join(dir, fleet.SocketName))
	must(t, err)
	server := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func TestStatusOnAServerShowsTheNodes(t *testing.T) {
	dir := shortDir(t)
	config := filepath.Join(dir, "cloudcore.yaml")
	write(t, config, "runDir: "+dir+"\n", 0o600)
	code, out := holdfast(t, "", "status", "--config", config)
	if code != 1 {
		t.Errorf("exit code %d while nothing runs, want 1", code)
	}
	says(t, out, "cloudcore is not running", "systemctl start cloudcore")

	asked := cloudOf(t, dir)
	for _, args := range [][]string{{"--config", config}, {"--run-dir", dir}, {"--cloud", "--run-dir", dir}} {
		code, out = holdfast(t, "", append([]string{"status"}, args...)...)
		if code != 0 {
			t.Errorf("%v: exit code %d", args, code)
		}
		says(t, out, "hub hub-a", "1 of 2 nodes connected", "OFFLINE-READY", "pi-1", "quic", "pi-2")
	}
	var f fleet.Fleet
	_, out = holdfast(t, "", "status", "--config", config, "-o", "json")
	if err := json.Unmarshal([]byte(out), &f); err != nil || len(f.Nodes) != 2 {
		t.Errorf("%v in %s", err, out)
	}
	if _, out = holdfast(t, "", "status", "--config", config, "--offline"); asked() != fleet.Path+"?state=offline" {
		t.Errorf("--offline asks for %s:\n%s", asked(), out)
	}
	code, out = holdfast(t, "", "status", "pi-1", "--config", config)
	if code != 0 {
		t.Errorf("one node: exit code %d", code)
	}
	says(t, out, "pi-1", "connected", "shop", "till")
	var d fleet.Detail
	_, out = holdfast(t, "", "status", "pi-1", "--config", config, "-o", "yaml")
	text, err := yaml.YAMLToJSON([]byte(out))
	must(t, err)
	if err := json.Unmarshal(text, &d); err != nil || d.Name != "pi-1" || len(d.PodList) != 1 {
		t.Errorf("%v in %s", err, out)
	}
	code, out = holdfast(t, "", "status", "pi-9", "--config", config)
	if code != 1 {
		t.Errorf("a node that there is not: exit code %d", code)
	}
	says(t, out, "there is no edge node pi-9")

	write(t, config, "runDir: \"\"\n", 0o600)
	code, out = holdfast(t, "", "status", "--config", config)
	if code != 1 {
		t.Errorf("without a socket: exit code %d", code)
	}
	says(t, out, config, "runDir is empty")
}

func TestAMachineThatIsBothShowsBoth(t *testing.T) {
	dir := shortDir(t)
	cloudOf(t, dir)
	edgeOf(t, dir, nil)
	code, out := holdfast(t, "", "status", "--run-dir", dir)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	says(t, out, "pi-7", "no pods", "hub hub-a", "pi-1")
	var both struct {
		Edge  localstatus.Status
		Cloud fleet.Fleet
	}
	_, out = holdfast(t, "", "status", "--run-dir", dir, "-o", "yaml")
	if err := yaml.Unmarshal([]byte(out), &both); err != nil || both.Edge.Node != "pi-7" || both.Cloud.Hub != "hub-a" {
		t.Errorf("%v in %s", err, out)
	}
	if _, out = holdfast(t, "", "status", "--run-dir", dir, "--edge"); strings.Contains(out, "hub-a") {
		t.Errorf("--edge shows the cloud:\n%s", out)
	}
	if _, out = holdfast(t, "", "status", "--run-dir", dir, "--cloud"); strings.Contains(out, "pi-7") {
		t.Errorf("--cloud shows the edge:\n%s", out)
	}
}

func TestStatusAsYAMLIsWhatItIsAsJSON(t *testing.T) {
	dir := shortDir(t)
	edgeOf(t, dir, someContainers())
	var a, b localstatus.Status
	_, out := holdfast(t, "", "status", "--run-dir", dir, "-o", "json")
	must(t, json.Unmarshal([]byte(out), &a))
	_, out = holdfast(t, "", "status", "--run-dir", dir, "-o", "yaml")
	must(t, yaml.Unmarshal([]byte(out), &b))
	if a.Node != "pi-7" || fmt.Sprint(len(a.Pods), a.Pods[0].Containers[0].Name) != fmt.Sprint(len(b.Pods), b.Pods[0].Containers[0].Name) {
		t.Errorf("json %+v, yaml %+v", a, b)
	}
}

func someContainers() []localstatus.PodSummary {
	zero := int32(0)
	running := func(name string) localstatus.Container {
		return localstatus.Container{Name: name, State: localstatus.StateRunning, Ready: true, Image: "example.test/" + name + ":1", ID: "0123456789abcdef" + name}
	}
	return []localstatus.PodSummary{
		{Namespace: "office", Name: "till", Phase: "Running", Containers: []localstatus.Container{running("main")}},
		{Namespace: "shop", Name: "pair", Phase: "Running", DefaultContainer: "two", Containers: []localstatus.Container{
			{Name: "setup", Kind: localstatus.KindInit, State: localstatus.StateExited, ExitCode: &zero, Reason: "Completed"}, running("one"), running("two")}},
		{Namespace: "shop", Name: "plain", Phase: "Running", Containers: []localstatus.Container{running("one"), running("two")}},
		{Namespace: "shop", Name: "till", Phase: "Running", Containers: []localstatus.Container{running("main")}},
		{Namespace: "shop", Name: "unseen"},
	}
}

func TestPsListsContainers(t *testing.T) {
	dir := shortDir(t)
	edgeOf(t, dir, someContainers())
	code, out := holdfast(t, "", "ps", "--run-dir", dir)
	if code != 0 || strings.Count(out, "\n") != 7 || strings.Contains(out, "setup") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	says(t, out, "NAMESPACE", "0123456789abc", "example.test/main:1", "Running")
	if _, out = holdfast(t, "", "ps", "--run-dir", dir, "-n", "shop", "-a"); strings.Contains(out, "office") || !strings.Contains(out, "setup (init)") {
		t.Errorf("of one namespace, ended ones too:\n%s", out)
	}
	var pods []localstatus.PodSummary
	_, out = holdfast(t, "", "ps", "--run-dir", dir, "-o", "json")
	if err := json.Unmarshal([]byte(out), &pods); err != nil || len(pods) != 5 || len(pods[1].Containers) != 2 {
		t.Errorf("%v in %s", err, out)
	}
}

// TestLogsAsksForWhatIsMeant: the container, and the kubelet's words for the flags.
func TestLogsAsksForWhatIsMeant(t *testing.T) {
	dir := shortDir(t)
	edgeOf(t, dir, someContainers(), localstatus.NodeRoute(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "plain/two") {
			http.Error(w, "the container has not started", http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "asked for %s?%s\n", r.URL.Path, r.URL.Query().Encode())
	})))
	for _, tt := range []struct {
		args string
		code int
		say  string
	}{
		{"office/till", 0, "asked for /containerLogs/office/till/main?\n"},
		{"till -n shop -f -p --timestamps", 0, "asked for /containerLogs/shop/till/main?follow=true&previous=true&timestamps=true\n"},
		{"shop/till --tail 0 --since 90s --limit-bytes 10", 0, "/main?limitBytes=10&sinceSeconds=90&tailLines=0\n"},
		{"shop/till --since 1ms", 0, "sinceSeconds=1\n"},
		{"pair", 0, "container two of pod shop/pair, which has one, two: name another with -c\nasked for /containerLogs/shop/pair/two?\n"},
		{"plain", 0, "container one of pod shop/plain, which has one, two"},
		{"pair -c setup", 0, "asked for /containerLogs/shop/pair/setup?\n"},
		{"plain -c two", 1, "container two of pod shop/plain: the container has not started"},
		{"pair -c three", 1, "pod shop/pair has no container three; it has setup, one, two"},
		{"till", 2, "pod till is in several namespaces: name one of office/till, shop/till"},
		{"nobody", 1, "this node has no pod nobody; it has office/till, shop/pair, shop/plain, shop/till"},
		{"nobody -n shop", 1, "no pod shop/nobody"},
		{"unseen", 1, "before the container runtime has answered"},
	} {
		code, out := holdfast(t, "", append(append([]string{"logs"}, strings.Fields(tt.args)...), "--run-dir", dir)...)
		if code != tt.code {
			t.Errorf("logs %s: exit code %d, want %d", tt.args, code, tt.code)
		}
		says(t, out, tt.say)
	}
	code, out := holdfast(t, "", "logs", "x", "--run-dir", filepath.Join(dir, "none"))
	if code != 1 {
		t.Errorf("without edgecore: exit code %d", code)
	}
	says(t, out, "edgecore is not running")
}

// TestALogThatBreaksOffIsNoLogThatEnds: and one that a person stops following is.
func TestALogThatBreaksOffIsNoLogThatEnds(t *testing.T) {
	dir := shortDir(t)
	edgeOf(t, dir, someContainers(), localstatus.NodeRoute(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "a line")
		w.(http.Flusher).Flush()
		if r.URL.Query().Has("follow") {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	})))
	code, out := holdfast(t, "", "logs", "shop/till", "--run-dir", dir)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, out, "a line", "broke off")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var followed output
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"logs", "shop/till", "-f", "--run-dir", dir}, strings.NewReader(""), &followed, &followed)
	}()
	wait(t, "the line is printed", func() bool { return strings.Contains(followed.String(), "a line") })
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("stopped following: exit code %d:\n%s", code, followed.String())
	}
}
