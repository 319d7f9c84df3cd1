package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
	//lint:ignore SA1019 client-go's executor takes no other
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/client-go/tools/remotecommand"
	exitcode "k8s.io/client-go/util/exec"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// ExecOptions are what is run in a container.
type ExecOptions struct {
	Target
	Command []string
	Stdin   io.Reader // passed on where Interactive says so
	Interactive,
	TTY bool
}

// exitInterrupted is the exit code of a program that SIGINT ended.
const exitInterrupted = 130

// Exec runs a command in a container on this machine. Where the command fails the error
// is an ExitError with its exit code.
func (a *App) Exec(ctx context.Context, o ExecOptions) error {
	where, err := a.find(ctx, o.Target)
	if err != nil {
		return err
	}
	runDir, err := o.runDir()
	if err != nil {
		return err
	}
	streams := remotecommand.StreamOptions{Stdout: a.Out, Stderr: a.Err}
	if o.Interactive {
		streams.Stdin = o.Stdin
	}
	if o.TTY {
		restore, err := a.useTerminal(ctx, o, &streams)
		if err != nil {
			return err
		}
		defer restore()
	}
	err = stream(ctx, filepath.Join(runDir, localstatus.SocketName), nodeURL("exec", where, execQuery(o.Command, streams)), streams)
	var code exitcode.CodeExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &code):
		return &ExitError{code.Code, fmt.Errorf("the command in %s ended with exit code %d", where, code.Code)}
	case ctx.Err() != nil:
		return &ExitError{exitInterrupted, fmt.Errorf("the command in %s was left: %w", where, ctx.Err())}
	}
	return fmt.Errorf("run a command in %s: %w", where, notRunning(err, runDir))
}

// execQuery is the kubelet's.
func execQuery(command []string, s remotecommand.StreamOptions) url.Values {
	q := url.Values{"command": command}
	for name, set := range map[string]bool{"input": s.Stdin != nil, "output": s.Stdout != nil, "error": s.Stderr != nil, "tty": s.Tty} {
		if set {
			q.Set(name, "1")
		}
	}
	return q
}

// pingEvery keeps a stream on which nothing moves from being taken for dead.
const pingEvery = 5 * time.Second

// stream runs a command by the protocol that kubectl and kubelets speak, over a socket.
func stream(ctx context.Context, socket string, where *url.URL, s remotecommand.StreamOptions) error {
	connection, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: unixsocket.Transport(socket), PingPeriod: pingEvery})
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutorForTransports(connection, connection, http.MethodPost, where)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, s)
}

// useTerminal gives the command this terminal, if there is one: keys go to it as they
// are, and it hears of the terminal's size. restore takes it back.
func (a *App) useTerminal(ctx context.Context, o ExecOptions, s *remotecommand.StreamOptions) (restore func(), err error) {
	in, ok := o.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		fmt.Fprintln(a.Err, "the input is no terminal: the command gets none")
		return func() {}, nil
	}
	s.Tty, s.Stderr = true, nil // a terminal has one output
	s.TerminalSizeQueue = newSizes(ctx, in)
	if !o.Interactive {
		return func() {}, nil
	}
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("take the terminal over: %w", err)
	}
	return func() { _ = term.Restore(int(in.Fd()), before) }, nil // there is nobody left to tell
}

// sizes tells of the terminal's size, first and whenever it changes.
type sizes struct {
	ctx     context.Context
	of      *os.File
	changes chan os.Signal
}

func newSizes(ctx context.Context, of *os.File) *sizes {
	s := &sizes{ctx, of, make(chan os.Signal, 1)}
	s.changes <- syscall.SIGWINCH // what it is now
	signal.Notify(s.changes, syscall.SIGWINCH)
	return s
}

// Next waits for a size; nil: there will be none any more.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.changes:
	case <-s.ctx.Done():
		signal.Stop(s.changes)
		return nil
	}
	width, height, err := term.GetSize(int(s.of.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}
