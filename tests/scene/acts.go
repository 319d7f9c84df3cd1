package scene

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// Crash kills a running container's process from outside, as a crash would.
func (s *Scene) Crash(n *world.Node, c world.Running) {
	s.Helper()
	pid, err := n.ContainerPid(s.Ctx, c.ID)
	s.Must(err)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.Fatal(err)
	}
}

// RunsAgain waits until containers run under names, each with the attempt stated.
func (s *Scene) RunsAgain(n *world.Node, attempts map[string]uint32) {
	s.Helper()
	var last map[string]world.Running
	err := world.Eventually(s.Ctx, Patience, fmt.Sprintf("containers run with attempts %v", attempts), func(ctx context.Context) (bool, error) {
		all, err := n.Running(ctx)
		if err != nil {
			return false, err
		}
		last = map[string]world.Running{}
		for _, c := range all {
			if c.Namespace == s.NS {
				last[c.Pod+"/"+c.Name] = c
			}
		}
		for name, attempt := range attempts {
			if c, ok := last[name]; !ok || c.Attempt != attempt {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		s.Fatalf("%v; running: %v", err, last)
	}
}

// Reported waits for an Event with this reason about the pod, and returns its message.
func (s *Scene) Reported(pod, reason string) string {
	s.Helper()
	var message string
	s.Until("an event "+reason+" about pod "+pod, func(ctx context.Context) (bool, error) {
		list, err := s.Client.CoreV1().Events(s.NS).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
		if err != nil {
			return false, err
		}
		for _, e := range list.Items {
			if e.Reason == reason {
				message = e.Message
				return true, nil
			}
		}
		return false, nil
	})
	return message
}

// Holdfast runs the command on a node and returns what it printed and its exit
// code. A command that has not ended after Patience is ended, and fails the test.
func (s *Scene) Holdfast(n *world.Node, args ...string) (string, int) {
	s.Helper()
	cmd := n.Netns.Command(filepath.Join(s.World.Bin, "holdfast"), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second
	s.Must(cmd.Start())
	late := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		s.Fatalf("holdfast %s has not ended within %s: %v; it printed:\n%s", strings.Join(args, " "), Patience, err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// Refused checks that a command failed with exit code 1 and said every one of words.
func (s *Scene) Refused(out string, code int, words ...string) {
	s.Helper()
	if code != 1 {
		s.Errorf("exit code %d, want 1", code)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			s.Errorf("the message does not say %q:\n%s", w, out)
		}
	}
}

// EdgeLog is everything that the node's edgecore has printed so far.
func (s *Scene) EdgeLog(n *world.Node) string {
	s.Helper()
	var all strings.Builder
	for _, log := range []string{"join.log", "edgecore.log"} {
		b, err := os.ReadFile(filepath.Join(s.World.Dir, n.Name, log))
		if err != nil && !os.IsNotExist(err) {
			s.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
