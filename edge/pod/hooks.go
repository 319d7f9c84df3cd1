package pod

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/probe"
)

// hook runs a lifecycle handler. left bounds what it may take; 0: nothing but ctx does.
func (m *Manager) hook(ctx context.Context, h *corev1.LifecycleHandler, id string, c *corev1.Container, ip string, left time.Duration) error {
	switch {
	case h.Exec != nil:
		r, err := m.o.Runtime.Exec(ctx, id, h.Exec.Command, left)
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			return fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, r.ExitCode, clip(string(append(r.Stdout, r.Stderr...)), 256))
		}
		return nil
	case h.HTTPGet != nil:
		return probe.Get(ctx, h.HTTPGet, c, ip, "kube-lifecycle/")
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("container %s: hook without an action that this node knows", c.Name)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
