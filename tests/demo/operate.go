package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// reach looks into a pod on a node that nobody can dial.
func reach(ctx context.Context, s *stage, w *world.World, node *world.Node) error {
	s.act("An operator: kubectl does not notice that the node has no address of its own")
	if err := kubectl(ctx, s, w, "logs", "keeper"); err != nil {
		return err
	}
	if err := s.timed("kubectl exec: a command in a pod and back", func() error {
		return kubectl(ctx, s, w, "exec", "keeper", "--", "sh", "-c", "echo $TEXT; uname -n")
	}); err != nil {
		return err
	}
	s.act("Would the node survive a reboot without the cloud? `holdfast doctor` at the node")
	if err := s.timed("condition OfflineReady is True in the cloud", func() error {
		return world.Eventually(ctx, 5*time.Minute, "node "+nodeName+" OfflineReady", func(ctx context.Context) (bool, error) {
			n, err := w.Client().CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			for _, c := range n.Status.Conditions {
				if c.Type == "OfflineReady" {
					return c.Status == corev1.ConditionTrue, nil
				}
			}
			return false, nil
		})
	}); err != nil {
		return err
	}
	return atNode(s, w, node, "doctor")
}

// outOfReach shows what is said while the line is cut, in the cloud and at the node.
func outOfReach(ctx context.Context, s *stage, w *world.World, node *world.Node) error {
	s.note("In the cloud, kubectl says why it cannot look into the node:")
	out, err := exec.CommandContext(ctx, "kubectl", "--kubeconfig", w.Kubeconfig(), "logs", "keeper").CombinedOutput()
	s.show("kubectl logs keeper", string(out))
	if err == nil || !strings.Contains(string(out), "is not connected to the cloud") {
		return fmt.Errorf("kubectl logs of a node that is away: %w, %q", err, out)
	}
	s.note("At the node itself one looks all the same:")
	return atNode(s, w, node, "logs", "keeper", "--tail", "1")
}

// atNode runs holdfast at the node and shows what it says.
func atNode(s *stage, w *world.World, node *world.Node, args ...string) error {
	all := append(args, "--run-dir", node.RunDir())
	out, err := node.Netns.Command(filepath.Join(w.Bin, "holdfast"), all...).CombinedOutput()
	s.show("holdfast "+strings.Join(args, " ")+"      (at the node)", string(out))
	if err != nil {
		return fmt.Errorf("holdfast %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
