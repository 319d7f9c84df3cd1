package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/tests/rig"
)

// Options say what a world is made of; the zero value serves a test.
type Options struct {
	Dir string    // of everything; empty: a new folder below TMPDIR
	Log io.Writer // what `holdfast init` and `join` print, as they print it; nil: nobody
	// InitArgs are further arguments of `holdfast init`.
	InitArgs []string
}

// World is a cloud and the nodes that joined it.
type World struct {
	Dir    string
	Bridge *rig.Bridge
	Bin    string // folder of the binaries

	options Options
	client  kubernetes.Interface
	config  *rest.Config
	init    *Process
	join    joinCommand

	mu    sync.Mutex
	nodes []*Node
	hubs  []*Hub // beside the one of `holdfast init`
}

// joinCommand is what `holdfast init` told the operator to type.
type joinCommand struct{ hub, token, caHash string }

// hubPort is where nodes reach cloudcore.
const hubPort = 10350

// New makes the wire and starts the cloud with `holdfast init`. The caller is
// inside a world already (Enter).
func New(ctx context.Context, o Options) (*World, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	w := &World{Dir: o.Dir, Bin: filepath.Join(root, "_output"), options: o}
	if w.Dir == "" {
		if w.Dir, err = os.MkdirTemp("", "w"); err != nil {
			return nil, fmt.Errorf("make a world: %w", err)
		}
	}
	w.Bridge, err = rig.NewBridge(rig.BridgeOptions{Prefix: netip.MustParsePrefix("192.0.2.0/24")})
	if err != nil {
		return nil, fmt.Errorf("make a world: %w", err)
	}
	if err := w.StartCloud(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Hub is the HOST:PORT that nodes dial.
func (w *World) Hub() string { return netip.AddrPortFrom(w.Bridge.Addr(), hubPort).String() }

func (w *World) cloudDir() string        { return filepath.Join(w.Dir, "cloud") }
func (w *World) controlPlaneDir() string { return filepath.Join(w.Dir, "controlplane") }
func (w *World) cloudConfig() string     { return filepath.Join(w.Dir, "cloudcore.yaml") }

// CloudConfig is the config file of the world's first cloudcore.
func (w *World) CloudConfig() string { return w.cloudConfig() }

// placeSocket gives a cloudcore a socket that no other on this machine has: its config
// file says so before init writes the rest, unless there is one already.
func placeSocket(config, dir string, settings ...string) error {
	if _, err := os.Stat(config); err == nil {
		return nil
	}
	return os.WriteFile(config, []byte(strings.Join(append(settings, "runDir: "+dir), "\n")+"\n"), 0o600)
}

// Kubeconfig is the administrator's.
func (w *World) Kubeconfig() string { return filepath.Join(w.controlPlaneDir(), "admin.kubeconfig") }

// Client talks to the apiserver as the administrator.
func (w *World) Client() kubernetes.Interface { return w.client }

// RestConfig is the administrator's way to the apiserver; a copy.
func (w *World) RestConfig() *rest.Config { return rest.CopyConfig(w.config) }

// InitOutput is what the running `holdfast init` has printed.
func (w *World) InitOutput() string { return w.init.Output() }

var joinPattern = regexp.MustCompile(`holdfast join (\S+)[\s\\]+--token[= ](\S+)[\s\\]+--ca-hash[= ](\S+)`)

// StartCloud runs `holdfast init --foreground` and returns when it has printed
// the join command. Called again after StopCloud or KillCloud it finds its data.
func (w *World) StartCloud(ctx context.Context) error {
	if err := placeSocket(w.cloudConfig(), filepath.Join(w.Dir, "cloud-run")); err != nil {
		return fmt.Errorf("start the cloud: %w", err)
	}
	args := append([]string{
		"init", "--foreground",
		"--data-dir", w.cloudDir(), "--config", w.cloudConfig(),
		"--control-plane-dir", w.controlPlaneDir(), "--control-plane-listen", netip.AddrPortFrom(w.Bridge.Addr(), 6443).String(),
		"--listen", w.Hub(), "--advertise-address", w.Bridge.Addr().String(),
	}, w.options.InitArgs...)
	cmd := exec.Command(filepath.Join(w.Bin, "holdfast"), args...)
	p, err := start("holdfast init", w.logged(cmd), filepath.Join(w.Dir, "init.log"))
	if err != nil {
		return err
	}
	w.init = p
	var found []string
	err = waitFor(ctx, p, 3*time.Minute, "print the join command", func() (bool, error) {
		found = joinPattern.FindStringSubmatch(p.Output())
		return found != nil, nil
	})
	if err != nil {
		return err
	}
	w.join = joinCommand{hub: found[1], token: found[2], caHash: found[3]}
	if w.config, err = clientcmd.BuildConfigFromFlags("", w.Kubeconfig()); err != nil {
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	w.config.QPS, w.config.Burst = 200, 400
	w.client, err = kubernetes.NewForConfig(w.config)
	return err
}

// StopCloud ends control plane and cloudcore as an operator does, with SIGTERM.
func (w *World) StopCloud() error { return w.init.Signal(syscall.SIGTERM) }

// KillCloud ends control plane and cloudcore without a word.
func (w *World) KillCloud() error {
	if err := w.init.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return errors.Join(killAll("controlplane", w.controlPlaneDir()), killAll("cloudcore", w.cloudConfig()))
}

// Token makes a fresh join token.
func (w *World) Token(args ...string) (string, error) {
	out, err := w.Admin(append([]string{"token", "create"}, args...)...)
	if err != nil {
		return "", err
	}
	token := regexp.MustCompile(`[a-z0-9]{6}\.[a-z0-9]{16}`).FindString(out)
	if token == "" {
		return "", fmt.Errorf("holdfast token create printed no token: %s", out)
	}
	return token, nil
}

// Admin runs the command as the administrator does, and returns what it printed.
func (w *World) Admin(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(w.Bin, "holdfast"), append(args, "--kubeconfig", w.Kubeconfig(), "--config", w.cloudConfig())...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// CAHash is what a joining node must be told.
func (w *World) CAHash() string { return w.join.caHash }

// Close ends everything and removes it.
func (w *World) Close() error {
	var errs []error
	for _, n := range w.nodes {
		errs = append(errs, n.close())
	}
	for _, h := range w.hubs {
		errs = append(errs, h.Kill())
	}
	if w.init != nil {
		errs = append(errs, w.KillCloud())
	}
	if w.Bridge != nil {
		errs = append(errs, w.Bridge.Close())
	}
	if w.options.Dir == "" {
		errs = append(errs, os.RemoveAll(w.Dir))
	}
	return errors.Join(errs...)
}

// logged lets the caller of New read along.
func (w *World) logged(cmd *exec.Cmd) *exec.Cmd {
	if w.options.Log != nil {
		cmd.Stdout = w.options.Log
	}
	return cmd
}

// waitFor polls until done holds. It fails at once when p ends.
func waitFor(ctx context.Context, p *Process, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-p.Done():
			if ok, err := done(); err != nil || ok {
				return err
			}
			return fmt.Errorf("%s ended (%v) and did not %s; it printed:\n%s", p.Name, p.Err(), what, tail(p.Output(), 60))
		case <-ctx.Done():
			return fmt.Errorf("%s did not %s within %s; it printed:\n%s", p.Name, what, limit, tail(p.Output(), 60))
		case <-tick.C:
		}
	}
}
