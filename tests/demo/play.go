package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// nodeName is the node that is lost; witness stays in touch: where every node is
// silent, Kubernetes evicts nobody, and the demo would prove nothing.
const (
	nodeName = "shop-42"
	witness  = "shop-1"
)

// indent makes what the commands print part of the story.
type indent struct{ s *stage }

func (i indent) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		i.s.printf("          %s\n", strings.TrimRight(line, "\n"))
	}
	return len(b), nil
}

// raise starts the cloud.
func raise(ctx context.Context, s *stage) (*world.World, error) {
	s.act("A cloud: `holdfast init` starts a control plane and cloudcore")
	var w *world.World
	err := s.timed("holdfast init: control plane and cloudcore ready", func() error {
		var err error
		w, err = world.New(ctx, world.Options{Log: indent{s}})
		return err
	})
	return w, err
}

// play is the story from the first node to its return.
func play(ctx context.Context, s *stage, w *world.World) error {
	s.act("An edge node: its own network, its own containerd, and `holdfast join`")
	var node *world.Node
	if err := s.timed("holdfast join: from a bare machine to a Ready node", func() (err error) {
		node, err = w.AddNode(ctx, nodeName, world.NodeOptions{})
		return err
	}); err != nil {
		return err
	}
	s.note("A second node keeps its line all the time: with every node silent,")
	s.note("Kubernetes would evict nobody anyway.")
	if err := s.timed("holdfast join: the second node", func() error {
		_, err := w.AddNode(ctx, witness, world.NodeOptions{Quiet: true})
		return err
	}); err != nil {
		return err
	}

	s.act("Workloads: a Deployment of five, and two pods with needs of their own")
	file := filepath.Join(w.Dir, "demo.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o644); err != nil {
		return err
	}
	if err := s.timed("kubectl apply: all 7 pods Running", func() error {
		if err := kubectl(ctx, s, w, "apply", "-f", file); err != nil {
			return err
		}
		return settled(ctx, w, nil, 0)
	}); err != nil {
		return err
	}
	if err := kubectl(ctx, s, w, "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	before, err := uids(ctx, w)
	if err != nil {
		return err
	}
	if err := reach(ctx, s, w, node); err != nil {
		return err
	}
	if err := plugIn(ctx, s, w, node); err != nil {
		return err
	}
	if err := cutAndReboot(ctx, s, w, node, before); err != nil {
		return err
	}
	if err := steerOffline(ctx, s, w, node); err != nil {
		return err
	}

	s.act("The line comes back")
	if err := s.timed("line mended: node Ready, every pod Running with one restart more", func() error {
		if err := node.Mend(); err != nil {
			return err
		}
		if err := nodeTurns(ctx, w, corev1.ConditionTrue); err != nil {
			return err
		}
		return settled(ctx, w, before, 1)
	}); err != nil {
		return err
	}
	for _, args := range [][]string{{"get", "nodes"}, {"get", "pods", "-o", "wide"}} {
		if err := kubectl(ctx, s, w, args...); err != nil {
			return err
		}
	}
	s.note("The same pods, by their UIDs; what they went through stands under RESTARTS.")
	if err := shown(ctx, s, w, "17.5"); err != nil {
		return err
	}
	s.table()
	return nil
}

// cutAndReboot is the heart: no line, no power, and back again with no help.
func cutAndReboot(ctx context.Context, s *stage, w *world.World, node *world.Node, before map[string]types.UID) error {
	s.act("The line is cut")
	if err := node.Cut(); err != nil {
		return err
	}
	if err := s.timed("line cut: node NotReady", func() error { return nodeTurns(ctx, w, corev1.ConditionUnknown) }); err != nil {
		return err
	}
	if err := kubectl(ctx, s, w, "get", "nodes"); err != nil {
		return err
	}
	s.note("Ten seconds more: \"hasty\" tolerates a lost node for five only.")
	select {
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := kubectl(ctx, s, w, "get", "pods"); err != nil {
		return err
	}
	if after, err := uids(ctx, w); err != nil || !same(before, after) {
		return fmt.Errorf("pods were evicted for a lost line: before %v, after %v: %w", before, after, err)
	}
	if err := outOfReach(ctx, s, w, node); err != nil {
		return err
	}

	s.act("The power fails, with the line still cut")
	s.note("SIGKILL to edgecore, containerd, every shim and every container; mounts,")
	s.note("network namespaces, cgroups and the runtime's state are wiped.")
	if err := node.PowerCut(); err != nil {
		return err
	}
	if left, err := node.Running(ctx); err == nil {
		return fmt.Errorf("containerd answers after the power cut: %v", left)
	}

	s.act("The power returns; the cloud is out of reach")
	if err := s.timed("offline reboot: containerd up", func() error { return node.Containerd.Start(ctx) }); err != nil {
		return err
	}
	if err := s.timed("offline reboot: edgecore start to all 7 pods running", func() error {
		if err := node.StartEdgecore(); err != nil {
			return err
		}
		return world.Eventually(ctx, 2*time.Minute, "all pods run again", func(ctx context.Context) (bool, error) {
			running, err := node.Running(ctx)
			return len(running) == pods, err
		})
	}); err != nil {
		return err
	}
	running, err := node.Running(ctx)
	if err != nil {
		return err
	}
	var lines []string
	for _, c := range running {
		if before[c.Pod] != types.UID(c.PodUID) {
			return fmt.Errorf("pod %s came back with UID %s, was %s", c.Pod, c.PodUID, before[c.Pod])
		}
		lines = append(lines, fmt.Sprintf("%-28s uid %s  restarts %d", c.Pod, c.PodUID, c.Attempt))
	}
	s.show("(containers on the node, asked of containerd)", strings.Join(lines, "\n"))
	log, err := node.PodLog("default", "keeper", "keeper")
	if err != nil {
		return err
	}
	s.show("(last line of the log of pod keeper)", log)
	return nil
}

// kubectl runs kubectl as the administrator and shows what it says.
func kubectl(ctx context.Context, s *stage, w *world.World, args ...string) error {
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", w.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	s.show("kubectl "+strings.Join(args, " "), string(out))
	if err != nil {
		return fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// uids maps the names of the demo's pods to their UIDs.
func uids(ctx context.Context, w *world.World) (map[string]types.UID, error) {
	list, err := w.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	all := map[string]types.UID{}
	for _, p := range list.Items {
		all[p.Name] = p.UID
	}
	return all, nil
}

func same(a, b map[string]types.UID) bool {
	if len(a) != len(b) {
		return false
	}
	for name, uid := range a {
		if b[name] != uid {
			return false
		}
	}
	return true
}

// settled waits until every pod is Running and Ready in the cloud, is one of
// those of before (when given), and was restarted as often as stated.
func settled(ctx context.Context, w *world.World, before map[string]types.UID, restarts int32) error {
	return world.Eventually(ctx, 2*time.Minute, "all pods Running in the cloud", func(ctx context.Context) (bool, error) {
		list, err := w.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != pods {
			return false, err
		}
		for _, p := range list.Items {
			if !world.PodReady(&p) || p.Status.ContainerStatuses[0].RestartCount != restarts {
				return false, nil
			}
			if before != nil && before[p.Name] != p.UID {
				return false, fmt.Errorf("pod %s has UID %s, was %s", p.Name, p.UID, before[p.Name])
			}
		}
		return true, nil
	})
}

func nodeTurns(ctx context.Context, w *world.World, want corev1.ConditionStatus) error {
	return world.Eventually(ctx, 2*time.Minute, "node "+nodeName+" Ready="+string(want), func(ctx context.Context) (bool, error) {
		node, err := w.Client().CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return world.NodeReady(node) == want, nil
	})
}
