package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// BusyboxImage is on every node from the start.
const BusyboxImage = image.BusyboxName

// Node is one edge node: a network namespace, a containerd and an edgecore.
type Node struct {
	Name       string
	Netns      *rig.Netns
	Containerd *rig.Containerd

	world *World
	dir   string
	quiet bool
	hubs  []string
	join  *Process // `holdfast join --foreground`, parent of the first edgecore
	edge  *Process // edgecore, when the world itself started it
}

// NodeOptions change how a node is made.
type NodeOptions struct {
	Containerd string   // another containerd binary
	JoinArgs   []string // further arguments of `holdfast join`
	Hubs       []string // that it joins; none: the world's first
	NoJoin     bool     // the machine alone: Join is called later
	Quiet      bool     // what join prints is not for Options.Log
}

// AddNode makes a machine and joins it; it returns when the node is Ready.
func (w *World) AddNode(ctx context.Context, name string, o NodeOptions) (*Node, error) {
	n := &Node{Name: name, world: w, dir: filepath.Join(w.Dir, name), quiet: o.Quiet, hubs: o.Hubs}
	if len(n.hubs) == 0 {
		n.hubs = []string{w.Hub()}
	}
	w.mu.Lock()
	w.nodes = append(w.nodes, n)
	w.mu.Unlock()
	for _, dir := range []string{n.dir, n.RunDir(), n.PodLogs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make node %s: %w", name, err)
		}
	}
	var err error
	if n.Netns, err = rig.NewNetns(name, rig.NetnsOptions{Bridge: w.Bridge}); err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	n.Containerd, err = rig.StartContainerd(ctx, rig.Options{
		Netns: n.Netns, CNI: true, Binary: o.Containerd, CgroupParent: n.CgroupRoot(), Wipe: []string{n.RunDir()},
	})
	if err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	busybox, err := image.Busybox(BusyboxImage)
	if err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	if err := n.Containerd.Import(ctx, busybox); err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	if o.NoJoin {
		return n, nil
	}
	return n, n.Join(ctx, o.JoinArgs...)
}

// DataDir holds edgecore's store and keys.
func (n *Node) DataDir() string { return filepath.Join(n.dir, "data") }

// RunDir is what a reboot empties.
func (n *Node) RunDir() string { return filepath.Join(n.dir, "run") }

// PodLogs is where the containers' logs are.
func (n *Node) PodLogs() string { return filepath.Join(n.dir, "pod-logs") }

// Config is edgecore's configuration file.
func (n *Node) Config() string { return filepath.Join(n.dir, "edgecore.yaml") }

// CgroupRoot is the cgroup that holds this node's kubepods.
func (n *Node) CgroupRoot() string { return filepath.Join(CgroupRoot(), n.Name) }

// JoinArgs are the arguments of `holdfast join` that make the node what it is.
func (n *Node) JoinArgs(token, caHash string) []string {
	return append(append([]string{"join"}, n.hubs...),
		"--token", token, "--ca-hash", caHash, "--node-name", n.Name,
		"--data-dir", n.DataDir(), "--config", n.Config(), "--run-dir", n.RunDir(), "--pod-logs-dir", n.PodLogs(),
		"--container-runtime-endpoint", n.Containerd.Endpoint(), "--cni-conf-dir", n.Containerd.CNIConfDir(),
		"--cgroup-root", n.CgroupRoot(), "--foreground",
	)
}

// Join runs `holdfast join --foreground` and waits until the node is Ready.
func (n *Node) Join(ctx context.Context, extra ...string) error {
	args := append(n.JoinArgs(n.world.join.token, n.world.join.caHash), extra...)
	cmd := n.Netns.Command(filepath.Join(n.world.Bin, "holdfast"), args...)
	if !n.quiet {
		cmd = n.world.logged(cmd)
	}
	p, err := start("holdfast join", cmd, filepath.Join(n.dir, "join.log"))
	if err != nil {
		return err
	}
	n.join = p
	return waitFor(ctx, p, 2*time.Minute, "become Ready", func() (bool, error) {
		return n.world.nodeReady(ctx, n.Name)
	})
}

// JoinOutput is what `holdfast join` has printed.
func (n *Node) JoinOutput() string { return n.join.Output() }

// Cut takes the node's line away: packets vanish, connections stay silent.
func (n *Node) Cut() error { return n.Netns.Cut() }

// Mend gives the line back.
func (n *Node) Mend() error { return n.Netns.Mend() }

// KillConnections ends the node's TCP connections to the hub at the node's end, as
// a router that lost its table does to both.
func (n *Node) KillConnections() error {
	cmd := n.Netns.Command("ss", "--kill", "--tcp", "dst", n.world.Bridge.Addr().String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("end the connections of node %s: %w: %s", n.Name, err, out)
	}
	return nil
}

// EdgecorePid is the running edgecore, or an error.
func (n *Node) EdgecorePid() (int, error) {
	pids, err := find("edgecore", n.Config())
	if err != nil {
		return 0, err
	}
	if len(pids) != 1 {
		return 0, fmt.Errorf("node %s: %d processes of edgecore, want one", n.Name, len(pids))
	}
	return pids[0], nil
}

// KillEdgecore ends edgecore, and what started it, with SIGKILL.
func (n *Node) KillEdgecore() error {
	if n.join != nil {
		if err := n.join.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	pids, err := find("edgecore", n.Config())
	if err != nil {
		return err
	}
	return kill(pids...)
}

// StopEdgecore ends edgecore as systemd does.
func (n *Node) StopEdgecore() error {
	pid, err := n.EdgecorePid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop edgecore of node %s: %w", n.Name, err)
	}
	for range 12_000 { // two minutes
		if syscall.Kill(pid, 0) != nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("edgecore of node %s ignores SIGTERM", n.Name)
}

// StartEdgecore starts edgecore the way its unit does.
func (n *Node) StartEdgecore() error {
	cmd := n.Netns.Command(filepath.Join(n.world.Bin, "edgecore"), "--config", n.Config())
	p, err := start("edgecore of "+n.Name, cmd, filepath.Join(n.dir, "edgecore.log"))
	if err != nil {
		return err
	}
	n.edge = p
	return nil
}

// EdgecoreOutput is what the edgecore of the last StartEdgecore has printed.
func (n *Node) EdgecoreOutput() string { return n.edge.Output() }

// EdgecoreDone is closed when the edgecore of the last StartEdgecore has ended.
func (n *Node) EdgecoreDone() <-chan struct{} { return n.edge.Done() }

// PowerCut ends everything on the node at once and wipes what a reboot wipes.
func (n *Node) PowerCut() error {
	if err := n.KillEdgecore(); err != nil {
		return err
	}
	if err := n.Containerd.Reboot(); err != nil {
		return err
	}
	// The data folder stays, but nothing that was mounted in it does.
	if err := UnmountBelow(n.DataDir()); err != nil {
		return fmt.Errorf("cut the power of node %s: %w", n.Name, err)
	}
	return nil
}

// Boot starts containerd and edgecore, as units do after power came back.
func (n *Node) Boot(ctx context.Context) error {
	if err := os.MkdirAll(n.RunDir(), 0o755); err != nil {
		return err
	}
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	return n.StartEdgecore()
}

// Kubernetes is a client that acts on the apiserver with the node's own rights,
// as cloudcore does for it.
func (n *Node) Kubernetes() (kubernetes.Interface, error) {
	config := n.world.RestConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + n.Name, Groups: []string{"system:nodes"}}
	return kubernetes.NewForConfig(config)
}

func (n *Node) close() error {
	errs := []error{n.KillEdgecore()}
	if n.Containerd != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, n.Containerd.Stop(ctx))
	}
	if n.Netns != nil {
		errs = append(errs, n.Netns.Close())
	}
	return errors.Join(errs...)
}
