package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Hub is a further cloudcore in front of the world's cluster, made as an operator
// makes one: `holdfast init --kubeconfig` on another machine.
type Hub struct {
	Address string // HOST:PORT that nodes dial

	world  *World
	dir    string
	health string
	init   *Process
}

// AddHub starts another hub and returns when it is ready for nodes. settings are
// lines of its config file.
func (w *World) AddHub(ctx context.Context, settings ...string) (*Hub, error) {
	w.mu.Lock()
	number := uint16(len(w.hubs) + 1)
	h := &Hub{
		Address: netip.AddrPortFrom(w.Bridge.Addr(), hubPort+10*number).String(),
		world:   w, dir: filepath.Join(w.Dir, fmt.Sprintf("hub-%d", number)), health: fmt.Sprintf("127.0.0.1:%d", hubPort+1+10*number),
	}
	w.hubs = append(w.hubs, h)
	w.mu.Unlock()
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return nil, fmt.Errorf("add a hub: %w", err)
	}
	if err := placeSocket(h.config(), filepath.Join(h.dir, "run"), settings...); err != nil {
		return nil, fmt.Errorf("add a hub: %w", err)
	}
	return h, h.Start(ctx)
}

func (h *Hub) config() string { return filepath.Join(h.dir, "cloudcore.yaml") }

// Start starts the hub, again after Kill.
func (h *Hub) Start(ctx context.Context) error {
	cmd := exec.Command(filepath.Join(h.world.Bin, "holdfast"),
		"init", "--foreground", "--kubeconfig", h.world.Kubeconfig(), "--data-dir", filepath.Join(h.dir, "data"), "--config", h.config(),
		"--listen", h.Address, "--health-listen", h.health, "--advertise-address", h.world.Bridge.Addr().String())
	var err error
	if h.init, err = start("holdfast init of another hub", cmd, filepath.Join(h.dir, "init.log")); err != nil {
		return err
	}
	return waitFor(ctx, h.init, 3*time.Minute, "print the join command", func() (bool, error) {
		return joinPattern.MatchString(h.init.Output()), nil
	})
}

// Kill ends the hub without a word.
func (h *Hub) Kill() error {
	if h.init == nil {
		return nil
	}
	return errors.Join(h.init.Signal(syscall.SIGKILL), killAll("cloudcore", h.config()))
}

// KillHub ends the world's first cloudcore without a word, and leaves the control
// plane running. `holdfast init --foreground` ends with it, and takes the control
// plane along if it can: so it goes first.
func (w *World) KillHub() error {
	return errors.Join(w.init.Signal(syscall.SIGKILL), killAll("cloudcore", w.cloudConfig()))
}

// CloudcorePid is the world's first cloudcore, or an error.
func (w *World) CloudcorePid() (int, error) {
	pids, err := find("cloudcore", w.cloudConfig())
	if err == nil && len(pids) != 1 {
		err = fmt.Errorf("%d processes of cloudcore, want one", len(pids))
	}
	if err != nil {
		return 0, err
	}
	return pids[0], nil
}

func killAll(name string, words ...string) error {
	pids, err := find(name, words...)
	if err != nil {
		return err
	}
	return kill(pids...)
}
