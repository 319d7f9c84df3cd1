package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// tailSize bounds what is kept of the process's output for error messages, in bytes.
const tailSize = 8 << 10

// process is one run of the control plane.
type process struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed when it has said that it is ready
	ended chan struct{} // closed when it has been waited for; cmd.ProcessState is set then

	mu      sync.Mutex
	tail    []byte
	line    []byte // of the standard output, as far as it has come
	isReady bool
	log     io.Writer
}

// launch starts cmd so that it dies with this program.
func launch(cmd *exec.Cmd, log io.Writer) (*process, error) {
	p := &process{cmd: cmd, ready: make(chan struct{}), ended: make(chan struct{}), log: log}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Stdout, cmd.Stderr = (*output)(p), (*chatter)(p)
	started := make(chan error, 1)
	go func() {
		defer close(p.ended)
		// The kernel sends the death signal when the thread ends that started the process,
		// not when the program does: this one stays until the process is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			// How it ended is read from ProcessState by those to whom it matters.
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// kill returns when the process is gone.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill control plane, process %d: %w", p.cmd.Process.Pid, err)
	}
	<-p.ended
	return nil
}

// said is the end of what the process wrote.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tail) == 0 {
		return "(nothing)"
	}
	return strings.TrimSpace(string(p.tail))
}

// hear keeps and passes on what the process wrote; p.mu is held.
func (p *process) hear(text []byte) {
	p.tail = append(p.tail, text...)
	if over := len(p.tail) - tailSize; over > 0 {
		p.tail = append(p.tail[:0], p.tail[over:]...)
	}
	if p.log != nil {
		// A log that cannot be written must not stop the control plane.
		_, _ = p.log.Write(text)
	}
}

// output is the process's standard output: it says once that it is ready.
type output process

// Write looks for the line that begins with "ready:".
func (o *output) Write(text []byte) (int, error) {
	p := (*process)(o)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hear(text)
	if p.isReady {
		return len(text), nil
	}
	p.line = append(p.line, text...)
	for {
		line, rest, whole := bytes.Cut(p.line, []byte("\n"))
		if !whole {
			return len(text), nil
		}
		p.line = rest
		if bytes.HasPrefix(line, []byte("ready:")) {
			p.isReady = true
			p.line = nil
			close(p.ready)
			return len(text), nil
		}
	}
}

// chatter is its standard error output.
type chatter process

// Write keeps the text.
func (c *chatter) Write(text []byte) (int, error) {
	p := (*process)(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hear(text)
	return len(text), nil
}
