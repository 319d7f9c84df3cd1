package adm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopWithin is how long a daemon may take to end in good order.
const stopWithin = 60 * time.Second

// daemon is a child of --foreground, in a process group of its own: a Ctrl-C at
// the terminal reaches this command, which then stops the daemons in order. A nil
// daemon is one that systemd runs.
type daemon struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // set before done is closed
}

// spawn starts a daemon whose output goes to the end of the file at log.
func spawn(name, log, binary string, args ...string) (*daemon, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer file.Close() // the child has its own
	d := &daemon{name: name, cmd: exec.Command(binary, args...), log: log, done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = file, file
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// ended is closed when the daemon has ended; a nil daemon never tells.
func (d *daemon) ended() <-chan struct{} {
	if d == nil {
		return nil
	}
	return d.done
}

// failure says how the daemon ended, with the end of its log.
func (d *daemon) failure() error {
	how := "it ended by itself"
	if d.err != nil {
		how = d.err.Error()
	}
	return fmt.Errorf("%s stopped (%s); its log %s ends with:\n%s", d.name, how, d.log, lastLines(d.log, 12))
}

func (d *daemon) seeLog() string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("; the log of %s is %s, and ends with:\n%s", d.name, d.log, lastLines(d.log, 8))
}

// stop asks the daemon to end, and ends it when it does not.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", d.name, err)
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(stopWithin):
		// It has exceeded what its unit would grant it, too.
		return errors.Join(fmt.Errorf("%s did not stop within %s and was killed; see %s", d.name, stopWithin, d.log), d.cmd.Process.Kill())
	}
}

// stay is the parent of the daemons until ctx ends or one of them does; then it
// stops the others, the last started first.
func stay(ctx context.Context, daemons ...*daemon) error {
	fallen := make(chan *daemon, len(daemons))
	for _, d := range daemons {
		go func() {
			<-d.done
			fallen <- d
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case d := <-fallen:
		err = d.failure()
	}
	return errors.Join(err, stopAll(daemons))
}

func stopAll(daemons []*daemon) error {
	var errs []error
	for i := len(daemons) - 1; i >= 0; i-- {
		errs = append(errs, daemons[i].stop())
	}
	return errors.Join(errs...)
}

// lastLines is the end of a log, indented.
func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "    (" + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "    " + strings.Join(lines, "\n    ")
}
