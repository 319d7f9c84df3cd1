package scene

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/tests/tool"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// Protocol is what kubectl speaks with the apiserver when it streams.
type Protocol string

// The protocols, by the names that kubectl's users know.
const (
	Websocket Protocol = "websocket" // kubectl's own choice
	SPDY      Protocol = "SPDY"      // of older clients
)

// Kubectl runs kubectl as the administrator, in this test's namespace. TestMain must have built it:
// world.Main(m, tool.Ready(tool.Kubectl)).
type Kubectl struct {
	*Scene
	Protocol Protocol
}

// By is a kubectl that streams by a protocol.
func (s *Scene) By(p Protocol) *Kubectl { return &Kubectl{s, p} }

// Kubectl runs kubectl and returns what it printed to stdout; a failure ends the test.
func (s *Scene) Kubectl(args ...string) string {
	s.Helper()
	return s.By(Websocket).Do(args...)
}

// Command is a kubectl that has not been started.
func (k *Kubectl) Command(args ...string) *exec.Cmd {
	k.Helper()
	path, err := tool.Path(tool.Kubectl)
	k.Must(err)
	cmd := exec.CommandContext(k.Ctx, path, append([]string{"--kubeconfig", k.World.Kubeconfig(), "--namespace", k.NS}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+k.World.Dir, "TERM=dumb") // where it caches what the apiserver offers
	if k.Protocol == SPDY {
		cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false")
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Do runs kubectl and returns what it printed to stdout; a failure ends the test.
func (k *Kubectl) Do(args ...string) string {
	k.Helper()
	out, failed, code := k.Run(nil, args...)
	if code != 0 {
		k.Fatalf("kubectl %s (%s): exit code %d: %s%s", strings.Join(args, " "), k.Protocol, code, failed, tailOf(out))
	}
	return out
}

// Run runs kubectl with stdin (nil: none) to its end, for Patience at most.
func (k *Kubectl) Run(stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	k.Helper()
	call := k.Call(stdin, args...)
	code = call.Wait(Patience)
	return call.Out.String(), call.Err.String(), code
}

// Call runs kubectl in the background, with stdin (nil: none); it is killed at the end of the test.
func (k *Kubectl) Call(stdin io.Reader, args ...string) *Call {
	k.Helper()
	cmd := k.Command(args...)
	c := &Call{s: k.Scene, what: fmt.Sprintf("kubectl %s (%s)", strings.Join(args, " "), k.Protocol), cmd: cmd, done: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &c.Out, &c.Err
	c.begin()
	return c
}

// Call is a command that runs, mostly kubectl. On a terminal Out has all that it prints.
type Call struct {
	Out, Err Text

	s    *Scene
	what string
	cmd  *exec.Cmd
	pty  *os.File
	done chan struct{}
}

func (c *Call) begin() {
	c.s.Helper()
	c.s.Must(c.cmd.Start())
	var shown sync.WaitGroup
	if c.pty != nil {
		// It ends with an error when the last who has the terminal open closes it.
		shown.Go(func() { _, _ = io.Copy(&c.Out, c.pty) })
	}
	go func() {
		// How it ended is in its state.
		_ = c.cmd.Wait()
		shown.Wait()
		close(c.done)
	}()
	c.s.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
		if c.pty != nil {
			_ = c.pty.Close()
		}
	})
}

// Signal sends it a signal.
func (c *Call) Signal(s syscall.Signal) {
	c.s.Helper()
	c.s.Must(c.cmd.Process.Signal(s))
}

// Wait waits for the end and returns the exit code; -1 after a signal.
func (c *Call) Wait(limit time.Duration) int {
	c.s.Helper()
	select {
	case <-c.done:
	case <-time.After(limit):
		c.s.Fatalf("%s has not ended within %s; it printed:\n%s%s", c.what, limit, tailOf(c.Out.String()), tailOf(c.Err.String()))
	}
	return c.cmd.ProcessState.ExitCode()
}

// Ended says whether it has.
func (c *Call) Ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Says waits until stdout contains text.
func (c *Call) Says(text string) {
	c.s.Helper()
	c.SaysWhere("says "+text, func(out string) bool { return strings.Contains(out, text) })
}

// SaysLast waits until text is in the last 4 KiB of stdout: to look through all of a long
// one again and again would take the processor from whoever writes it.
func (c *Call) SaysLast(text string) {
	c.s.Helper()
	c.says("says "+text, func() bool { return strings.Contains(c.Out.Tail(4<<10), text) })
}

// SaysWhere waits until stdout is as wanted.
func (c *Call) SaysWhere(what string, is func(string) bool) {
	c.s.Helper()
	c.says(what, func() bool { return is(c.Out.String()) })
}

func (c *Call) says(what string, is func() bool) {
	c.s.Helper()
	err := world.Eventually(c.s.Ctx, Patience, c.what+" "+what, func(context.Context) (bool, error) {
		if is() {
			return true, nil
		}
		if c.Ended() && !is() {
			return false, fmt.Errorf("it has ended with %d: %s", c.cmd.ProcessState.ExitCode(), c.Err.String())
		}
		return false, nil
	})
	if err != nil {
		c.s.Fatalf("%v; it printed:\n%s%s", err, tailOf(c.Out.String()), tailOf(c.Err.String()))
	}
}

// Terminal runs kubectl on a terminal of its own.
func (k *Kubectl) Terminal(rows, columns uint16, args ...string) *Call {
	k.Helper()
	return k.OnTerminal(fmt.Sprintf("kubectl %s (%s, on a terminal)", strings.Join(args, " "), k.Protocol), k.Command(args...), rows, columns)
}

// OnTerminal runs a command on a terminal of its own.
func (s *Scene) OnTerminal(what string, cmd *exec.Cmd, rows, columns uint16) *Call {
	s.Helper()
	pty, tty, err := openTerminal()
	s.Must(err)
	defer tty.Close()
	c := &Call{s: s, what: what, cmd: cmd, pty: pty, done: make(chan struct{})}
	c.Resize(rows, columns)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = tty, tty, tty
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	c.begin()
	return c
}

// Resize changes the terminal's size, as dragging a window does.
func (c *Call) Resize(rows, columns uint16) {
	c.s.Helper()
	c.s.Must(unix.IoctlSetWinsize(int(c.pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
}

// Type types on the terminal.
func (c *Call) Type(text string) {
	c.s.Helper()
	_, err := c.pty.WriteString(text)
	c.s.Must(err)
}

func openTerminal() (pty, tty *os.File, err error) {
	if pty, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, pty.Close())
	}
	return pty, tty, nil
}

// Text is what a process has printed so far; many may read it.
type Text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *Text) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Write(b)
}

// String is all of it.
func (t *Text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// Tail is the last n bytes of it, or all.
func (t *Text) Tail(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buf.Bytes()
	return string(b[max(0, len(b)-n):])
}

// Len is how much there is.
func (t *Text) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Len()
}

// Configure changes settings of a node's edgecore ("key: value") and starts it anew.
func (s *Scene) Configure(n *world.Node, settings ...string) {
	s.Helper()
	s.Must(n.StopEdgecore())
	var lines []string
	for line := range strings.Lines(ReadFile(s.T, n.Config())) {
		key, _, _ := strings.Cut(line, ":")
		if !slices.ContainsFunc(settings, func(set string) bool { return strings.HasPrefix(set, key+":") }) {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	s.Must(os.WriteFile(n.Config(), []byte(strings.Join(append(lines, settings...), "\n")+"\n"), 0o600))
	s.Must(n.StartEdgecore())
}

// Scratch is an empty file's path, for what kubectl writes.
func (s *Scene) Scratch(name string) string { return filepath.Join(s.TempDir(), name) }

func tailOf(text string) string {
	const most = 4000
	if len(text) > most {
		return "..." + text[len(text)-most:]
	}
	return text
}
