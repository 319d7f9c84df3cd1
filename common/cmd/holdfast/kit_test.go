package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// output is what a command prints; it may be read while the command runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// holdfast runs the command and returns its exit code and all that it printed.
func holdfast(t *testing.T, stdin string, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out output
	code := run(ctx, args, strings.NewReader(stdin), &out, &out)
	return code, out.String()
}

// says checks that text has every one of parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("it does not say %q:\n%s", p, text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), mode))
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// box is a machine made of a folder: a root for the operating system's places, a
// folder of played programs, and a folder for everything that flags name.
type box struct {
	*testing.T
	root, bin, dir string
	hub            *hub
	cri            *runtimeServer
}

// newBox makes a machine on which join succeeds: systemd, a runtime, plugins.
func newBox(t *testing.T) *box {
	t.Helper()
	// Unix sockets have short names.
	dir, err := os.MkdirTemp("", "hf")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b := &box{T: t, root: filepath.Join(dir, "root"), bin: filepath.Join(dir, "bin"), dir: filepath.Join(dir, "d")}
	must(t, os.MkdirAll(filepath.Join(b.root, "run/systemd/system"), 0o755))
	must(t, os.MkdirAll(filepath.Join(b.root, "proc"), 0o755))
	write(t, filepath.Join(b.root, "sys/fs/cgroup/cgroup.controllers"), "cpu memory pids\n", 0o644)
	// systemctl notes what it is told to do; is-active fails unless a unit is in "active".
	b.program("systemctl", `if [ "$1" = is-active ]; then exec grep -qx "$3" "`+filepath.Join(dir, "active")+`" 2>/dev/null; fi
echo "$@" >> "`+b.calls()+`"`)
	b.program("ip", "exit 0")
	for _, name := range []string{"edgecore", "cloudcore", "controlplane"} {
		b.program(name, "exec sleep 100000")
	}
	for _, name := range []string{"bridge", "host-local", "portmap", "loopback"} {
		write(t, filepath.Join(b.plugins(), name), "", 0o755)
	}
	t.Setenv("PATH", b.bin+":"+os.Getenv("PATH"))
	b.hub = newHub(t)
	b.cri = &runtimeServer{confDir: b.cniDir(), binDir: b.plugins(), ready: func() bool { return there(filepath.Join(b.cniDir(), "10-holdfast.conflist")) }}
	b.cri.serve(t, b.socket())
	return b
}

func (b *box) program(name, script string) {
	write(b.T, filepath.Join(b.bin, name), "#!/bin/sh\n"+script+"\n", 0o755)
}

func (b *box) calls() string   { return filepath.Join(filepath.Dir(b.root), "systemctl.calls") }
func (b *box) plugins() string { return filepath.Join(b.root, "usr/lib/cni") }
func (b *box) cniDir() string  { return filepath.Join(b.root, "etc/cni/net.d") }
func (b *box) socket() string  { return filepath.Join(filepath.Dir(b.root), "cri.sock") }
func (b *box) data() string    { return filepath.Join(b.dir, "data") }
func (b *box) runDir() string  { return filepath.Join(b.dir, "run") }
func (b *box) config() string  { return filepath.Join(b.dir, "etc/edgecore.yaml") }

// systemctl lists what systemctl was told since the last call.
func (b *box) systemctl() []string {
	text, err := os.ReadFile(b.calls())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(b.T, err)
	must(b.T, os.Remove(b.calls()))
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// joinArgs are those of a join that succeeds; extra ones may override.
func (b *box) joinArgs(extra ...string) []string {
	return append([]string{
		"join", b.hub.address, "--root", b.root, "--bin-dir", b.bin, "--token", b.hub.token.String(), "--ca-hash", b.hub.ca.Hash(),
		"--node-name", "shop", "--data-dir", b.data(), "--config", b.config(), "--run-dir", b.runDir(),
		"--pod-logs-dir", filepath.Join(b.dir, "logs"), "--container-runtime-endpoint", "unix://" + b.socket(),
	}, extra...)
}

// edgecore plays the daemon's local status once begin is closed. The function
// that it returns ends it.
func (b *box) edgecore(begin <-chan struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() {
		select {
		case <-begin:
			done <- localstatus.Serve(ctx, b.runDir(), func(context.Context) localstatus.Status {
				return localstatus.Status{
					Node: "shop", Version: "v1", Ready: true, NodeReported: true, Started: time.Now(),
					Line: localstatus.Line{Connected: true, Synced: true, Hub: b.hub.address, Since: time.Now()},
					Pods: []localstatus.PodSummary{{Namespace: "default", Name: "web", Phase: "Running", Restarts: 2}},
				}
			}, nil, nil)
		case <-ctx.Done():
			done <- nil
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(stop)
	return stop
}

// now is a begin that has come.
func now() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// hub is the hub's half of joining: real TLS, real certificates, one token.
type hub struct {
	ca      *pki.CA
	token   pki.Token
	address string
	date    time.Time   // the hub's clock when not zero
	void    atomic.Bool // it takes no certificate that it gave
	close   func()
	mu      sync.Mutex
	joined  []string
}

func newHub(t *testing.T) *hub {
	t.Helper()
	ca, err := pki.NewCA("holdfast")
	must(t, err)
	token, err := pki.NewToken()
	must(t, err)
	pair, err := ca.SignServer([]string{"127.0.0.1"}, time.Hour)
	must(t, err)
	h := &hub{ca: ca, token: token}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !h.date.IsZero() {
			w.Header().Set("Date", h.date.UTC().Format(http.TimeFormat))
		}
	})
	mux.HandleFunc("POST "+enrollment.Path, h.enroll)
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		if h.void.Load() {
			w.WriteHeader(http.StatusForbidden)
			json.NewEncoder(w).Encode(enrollment.Refusal{Error: "the certificate is revoked"})
			return
		}
		http.Error(w, "somebody else's business", http.StatusTeapot)
	}
	mux.HandleFunc(link.Path, refuse)
	mux.HandleFunc(enrollment.RenewPath, refuse)
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that trust nobody fail by design
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	h.close = sync.OnceFunc(server.Close)
	t.Cleanup(h.close)
	h.address = server.Listener.Addr().String()
	return h
}

func (h *hub) enroll(w http.ResponseWriter, r *http.Request) {
	token, node, csr, err := enrollment.DecodeAsk(r.Body)
	if err != nil || !token.Matches(h.token.Hash()) {
		w.WriteHeader(http.StatusUnauthorized)
		json.NewEncoder(w).Encode(enrollment.Refusal{Error: "token " + token.ID + " is not known here: make a new one with \"holdfast token create\""})
		return
	}
	cert, err := h.ca.SignNode(csr, node, time.Hour)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	h.joined = append(h.joined, node)
	h.mu.Unlock()
	json.NewEncoder(w).Encode(enrollment.Answer{Certificate: string(cert), CA: string(h.ca.CertPEM)})
}

func (h *hub) nodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.joined)
}

// runtimeServer is a container runtime as far as join and reset ask one.
type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	confDir, binDir string
	ready           func() bool
	mu              sync.Mutex
	pods            map[string]string // UID of the pods that run, by sandbox
}

// serve answers on a socket; a nil server answers there and speaks no CRI.
func (s *runtimeServer) serve(t *testing.T, socket string) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := grpc.NewServer()
	if s != nil {
		runtimeapi.RegisterRuntimeServiceServer(server, s)
		runtimeapi.RegisterImageServiceServer(server, s)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func (s *runtimeServer) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "1.6.20"}, nil
}

func (s *runtimeServer) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: s.ready()}
	if !network.Status {
		network.Reason, network.Message = "NetworkPluginNotReady", "cni plugin not initialized"
	}
	config, err := json.Marshal(map[string]any{
		"cni":        map[string]any{"binDir": s.binDir, "confDir": s.confDir},
		"containerd": map[string]any{"defaultRuntimeName": "runc", "runtimes": map[string]any{"runc": map[string]any{"options": map[string]any{"SystemdCgroup": true}}}},
	})
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: runtimeapi.RuntimeReady, Status: true}, network}},
		Info:   map[string]string{"config": string(config)},
	}, err
}

func (s *runtimeServer) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &runtimeapi.ListPodSandboxResponse{}
	for id, uid := range s.pods {
		r.Items = append(r.Items, &runtimeapi.PodSandbox{Id: id, Labels: map[string]string{
			"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "pod-" + uid, "io.kubernetes.pod.uid": uid,
		}})
	}
	return r, nil
}

func (s *runtimeServer) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{}, nil
}

func (s *runtimeServer) StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *runtimeServer) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, r.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}
