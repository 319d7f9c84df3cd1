// These tests start the real binary, as `make build` leaves it, on loopback.
package main_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// patience is for a slow machine under load, not for this program: it starts in about 5 s.
const patience = 3 * time.Minute

// plane is a running binary.
type plane struct {
	t          *testing.T
	dir        string
	cmd        *exec.Cmd
	stderr     *lines
	ended      chan struct{} // closed when the process has been waited for
	url        string
	kubeconfig string
}

// lines collects what the process says, for the log of a failing test.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("_output", "controlplane"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first, or `make test`", err)
	}
	return path
}

// launch starts the binary so that the kernel ends it when this test does not.
func launch(t *testing.T, cmd *exec.Cmd) (ended chan struct{}) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	ended = make(chan struct{})
	go func() {
		// The kernel sends the death signal when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // tests read cmd.ProcessState
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return ended
}

// start runs the binary in dir until it says that it is ready.
func start(t *testing.T, dir string, flags ...string) *plane {
	t.Helper()
	p := &plane{t: t, dir: dir, stderr: &lines{}}
	p.cmd = exec.Command(binary(t), append([]string{"--data-dir", dir, "--listen", "127.0.0.1:0"}, flags...)...)
	p.cmd.Stderr = p.stderr
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = in
	p.ended = launch(t, p.cmd)
	in.Close()
	t.Cleanup(func() {
		p.kill()
		out.Close()
		if t.Failed() {
			t.Logf("control plane %s said:\n%s", dir, p.stderr)
		}
	})
	ready := make(chan string, 1)
	go func() {
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			if rest, ok := strings.CutPrefix(scanner.Text(), "ready: "); ok {
				ready <- rest
			}
		}
	}()
	select {
	case line := <-ready:
		var ok bool
		if p.url, p.kubeconfig, ok = strings.Cut(line, ", kubeconfig "); !ok {
			t.Fatalf("the ready line says %q", line)
		}
	case <-p.ended:
		t.Fatalf("control plane ended with %v before it was ready", p.cmd.ProcessState)
	case <-time.After(patience):
		t.Fatal("control plane is not ready")
	}
	return p
}

func (p *plane) kill() {
	// The process may have ended already: then there is nothing to kill.
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	<-p.ended
}

// terminate stops as a service manager does, and wants a clean end.
func (p *plane) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("control plane does not end after SIGTERM")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("control plane ended with %v after SIGTERM, want exit code 0", p.cmd.ProcessState)
	}
}

// config is the administrator's, with a rate that does not slow the tests down.
func (p *plane) config() *rest.Config {
	p.t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
	if err != nil {
		p.t.Fatal(err)
	}
	c.QPS, c.Burst = 1000, 1000
	return c
}

func (p *plane) admin() kubernetes.Interface {
	p.t.Helper()
	return clientFor(p.t, p.config())
}

func clientFor(t *testing.T, c *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// eventually polls until the condition is met.
func eventually(t *testing.T, what string, met func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		last := met(ctx)
		if last == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, last)
		case <-tick.C:
		}
	}
}

// refused runs the binary, which must end by itself with exit code 1 and one line.
func refused(t *testing.T, flags ...string) string {
	t.Helper()
	var said lines
	cmd := exec.Command(binary(t), flags...)
	cmd.Stdout, cmd.Stderr = &said, &said
	ended := launch(t, cmd)
	select {
	case <-ended:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("control plane did not refuse %v; it said:\n%s", flags, &said)
	}
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d with %v, want 1", code, flags)
	}
	text := strings.TrimSpace(said.String())
	if strings.Count(text, "\n") != 0 || !strings.HasPrefix(text, "controlplane: ") {
		t.Errorf("with %v it said %q, want one line that begins with controlplane:", flags, text)
	}
	return text
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
}

// listeners counts the TCP ports on which a process listens.
func listeners(pid int) (int, error) {
	sockets := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return 0, err
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return 0, err
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			sockets[strings.TrimSuffix(inode, "]")] = true
		}
	}
	n := 0
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			const listening = "0A"
			if f := strings.Fields(line); len(f) > 9 && f[3] == listening && sockets[f[9]] {
				n++
			}
		}
	}
	return n, nil
}
