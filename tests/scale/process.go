package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// roleVariable tells a re-executed program which part it plays.
const roleVariable = "HOLDFAST_SCALE_ROLE"

// request and answer are what the conductor and its children say to each other,
// one JSON value after the other on the child's standard input and output.
type request struct {
	Do   string          `json:"do"`
	Args json.RawMessage `json:"args"`
}

type answer struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// none is a method's argument or result that says nothing.
type none struct{}

// method makes one method of a role from a function.
func method[A, R any](f func(context.Context, A) (R, error)) func(context.Context, json.RawMessage) (any, error) {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, fmt.Errorf("read the arguments: %w", err)
		}
		return f(ctx, args)
	}
}

type methods map[string]func(context.Context, json.RawMessage) (any, error)

// obey answers requests until the conductor closes in, which is how a child is
// told to end.
func obey(ctx context.Context, in io.Reader, out io.Writer, m methods) error {
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		err := requests.Decode(&r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		var a answer
		if do := m[r.Do]; do == nil {
			a.Error = fmt.Sprintf("no method %q", r.Do)
		} else if value, err := do(ctx, r.Args); err != nil {
			a.Error = err.Error()
		} else if a.Value, err = json.Marshal(value); err != nil {
			return fmt.Errorf("answer %s: %w", r.Do, err)
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answer %s: %w", r.Do, err)
		}
	}
}

// playRole runs a child's part, if this process is one.
func playRole(ctx context.Context) (played bool, err error) {
	role := os.Getenv(roleVariable)
	switch role {
	case "":
		return false, nil
	case "hub":
		err = playHub(ctx, os.Stdin, os.Stdout)
	case "edges":
		err = playEdges(ctx, os.Stdin, os.Stdout)
	case "mute":
		err = playMute(ctx, os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("%s=%s: no such role", roleVariable, role)
	}
	if err != nil {
		return true, fmt.Errorf("%s: %w", role, err)
	}
	return true, nil
}

// child is a process that plays a role.
type child struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	say     *json.Encoder
	hear    *json.Decoder
	ended   chan struct{} // closed when it has been waited for
	talking sync.Mutex    // one request at a time
}

// spawn starts this program again in a role; it dies with this process.
func spawn(role, name string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, ended: make(chan struct{})}
	c.cmd = exec.Command(self)
	c.cmd.Env = append(os.Environ(), roleVariable+"="+role)
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c.say, c.hear = json.NewEncoder(c.in), json.NewDecoder(out)
	started := make(chan error, 1)
	go func() {
		defer close(c.ended)
		// The kernel sends the death signal when the starting thread ends, not the
		// program: this one stays as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			// A child that died shows in the next call.
			_, _ = c.cmd.Process.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// call asks the child for something and waits for its answer. When ctx ends, the
// child is killed: whoever waits no longer ends the run.
func call[R any](ctx context.Context, c *child, do string, args any) (R, error) {
	var result R
	c.talking.Lock()
	defer c.talking.Unlock()
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	raw, err := json.Marshal(args)
	if err != nil {
		return result, fmt.Errorf("%s %s: %w", c.name, do, err)
	}
	var a answer
	if err = c.say.Encode(request{do, raw}); err == nil {
		err = c.hear.Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return result, fmt.Errorf("%s %s: %w", c.name, do, context.Cause(ctx))
	case err != nil:
		return result, fmt.Errorf("%s %s: the process is gone: %w", c.name, do, err)
	case a.Error != "":
		return result, fmt.Errorf("%s %s: %s", c.name, do, a.Error)
	}
	if err := json.Unmarshal(a.Value, &result); err != nil {
		return result, fmt.Errorf("%s %s: read the answer: %w", c.name, do, err)
	}
	return result, nil
}

// kill ends the process at once and waits until it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // an error says that it has ended
	<-c.ended
}
