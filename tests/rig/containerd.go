package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// startDeadline bounds the wait for containerd to answer over CRI, when the caller's context does not.
const startDeadline = 2 * time.Minute

// BinaryVariable names the environment variable with the containerd for all who do not choose one, so that
// the same tests run on several versions.
const BinaryVariable = "HOLDFAST_TEST_CONTAINERD"

// maxSocketPath is what the kernel allows, less the ending of containerd's second socket.
const maxSocketPath = 107 - len(".ttrpc")

// Options say how a containerd is started; the zero value runs one without pod networking in the caller's
// own network namespace.
type Options struct {
	Dir          string            // for root, configuration and log; empty: one of its own, removed by Stop
	Netns        *Netns            // the node's network; nil: the caller's
	Binary       string            // name in PATH or absolute path, shim and ctr beside it; empty: see BinaryVariable
	CNI          bool              // write a bridge network for pods, and wait until it is ready
	PodCIDR      netip.Prefix      // zero: 10.88.0.0/24
	CgroupParent string            // cgroup that only this node's pods use, gone with Reboot and Stop; empty: a unique name
	Mirrors      map[string]string // registry host in image names -> URL to pull from
	Wipe         []string          // directories that a reboot empties, mounts below included
}

// Containerd is a containerd with nothing shared but the kernel. What starts and ends it is for one
// goroutine at a time; CRI and the names of its parts are for all.
type Containerd struct {
	opts   Options
	place  place
	claim  *claim
	binary string
	conn   *grpc.ClientConn
	daemon *daemon // the last run, nil before the first
	erased bool
}

// daemon is one run of the process. done is closed when it has ended and err says how.
type daemon struct {
	process *os.Process
	done    chan struct{}
	err     error
}

// CRI are the two services of the runtime on one connection, which outlives restarts of containerd.
type CRI struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	Conn *grpc.ClientConn
}

// StartContainerd starts a containerd of its own and returns when it answers over CRI and has the sandbox
// image.
func StartContainerd(ctx context.Context, o Options) (*Containerd, error) {
	c := &Containerd{opts: o}
	c.opts.Wipe = slices.Clone(o.Wipe)
	if err := c.prepare(); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.erase())
	}
	return c, nil
}

func (c *Containerd) prepare() error {
	name := cmp.Or(c.opts.Binary, os.Getenv(BinaryVariable), "containerd")
	var err error
	if c.binary, err = exec.LookPath(name); err != nil {
		return fmt.Errorf("install containerd, or name its binary: %w", err)
	}
	major, err := majorVersion(c.binary)
	if err != nil {
		return err
	}
	for i, w := range c.opts.Wipe {
		if c.opts.Wipe[i], err = cleanDir(w); err != nil {
			return err
		}
	}
	if c.opts.Dir != "" {
		if c.opts.Dir, err = cleanDir(c.opts.Dir); err != nil {
			return err
		}
	}
	base, err := cleanDir(baseDir())
	if err != nil {
		return err
	}
	c.claim, err = newClaim(func(id string, _ []record) (record, error) {
		run := filepath.Join(base, id)
		p := place{
			Dir: c.opts.Dir, Socket: filepath.Join(run, "containerd.sock"), State: filepath.Join(run, "state"),
			CNIName: "holdfast-" + id, CgroupParent: c.opts.CgroupParent, Wipe: c.opts.Wipe,
		}
		if p.CgroupParent == "" {
			p.CgroupParent = "/holdfast-rig-" + id
		}
		if p.Dir == "" {
			p.Dir, p.OwnDir = filepath.Join(run, "disk"), true
		}
		if len(p.Socket) > maxSocketPath {
			return record{}, fmt.Errorf("socket path %s is too long; set TMPDIR to a shorter folder", p.Socket)
		}
		p.Root, p.Config = filepath.Join(p.Dir, "root"), filepath.Join(p.Dir, "containerd-"+id+".toml")
		if c.opts.Netns != nil {
			p.Netns, p.CNIBridge = c.opts.Netns.Path(), "cni0"
		} else if c.opts.CNI {
			p.CNIBridge = "hfc" + id
		}
		c.place = p
		return record{Place: &p}, nil
	})
	if err != nil {
		return err
	}
	if err := c.writeFiles(major); err != nil {
		return errors.Join(err, c.erase())
	}
	// The connection is made when it is used, and made again whenever containerd comes back. The back-off
	// is short because nobody but the test waits for it.
	c.conn, err = grpc.NewClient("unix://"+c.place.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return errors.Join(err, c.erase())
	}
	return nil
}

func (c *Containerd) writeFiles(major int) error {
	for _, dir := range []string{c.place.Root, c.place.cniDir(), c.place.certsDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := c.place.writeConfig(major); err != nil {
		return err
	}
	if c.opts.CNI {
		pods := c.opts.PodCIDR
		if !pods.IsValid() {
			pods = netip.MustParsePrefix(defaultPodCIDR)
		}
		if err := c.place.writeCNI(pods); err != nil {
			return err
		}
	}
	for host, url := range c.opts.Mirrors {
		if err := c.place.writeMirror(host, url); err != nil {
			return err
		}
	}
	return nil
}

// Start starts containerd again on the same root, after Kill9 or Reboot, and returns when it answers over
// CRI. It does nothing if containerd runs.
func (c *Containerd) Start(ctx context.Context) error {
	if c.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	if err := c.spawn(); err != nil {
		return fmt.Errorf("start containerd %s: %w", c.binary, err)
	}
	if err := c.awaitReady(ctx); err != nil {
		return fmt.Errorf("containerd %s is not ready: %w; its log ends:\n%s", c.binary, err, tail(c.place.log()))
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	if _, err := c.imageID(ctx, image.PauseName); err == nil {
		return nil
	}
	pause, err := image.Pause(image.PauseName, cache)
	if err != nil {
		return err
	}
	return c.Import(ctx, pause)
}

// spawn starts the process in the node's network namespace.
func (c *Containerd) spawn() error {
	log, err := os.OpenFile(c.place.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.binary, "--config", c.place.Config)
	if c.opts.Netns != nil {
		cmd = c.opts.Netns.Command(c.binary, "--config", c.place.Config)
	}
	cmd.Stdout, cmd.Stderr = log, log
	// The shim that belongs to this containerd lies beside it.
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(c.binary)+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	d := &daemon{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the parent's thread ends, so the thread is kept for as long
		// as the process lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			d.err = cmd.Wait()
			close(d.done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	d.process = cmd.Process
	c.daemon = d
	return nil
}

func (c *Containerd) running() bool {
	if c.daemon == nil {
		return false
	}
	select {
	case <-c.daemon.done:
		return false
	default:
		return true
	}
}

// awaitReady polls CRI until the runtime, and the network if there is one, say they are ready.
func (c *Containerd) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.daemon.done:
			return fmt.Errorf("it ended: %v", c.daemon.err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (c *Containerd) ready(ctx context.Context) error {
	st, err := c.CRI().RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, cond := range st.Status.Conditions {
		if !cond.Status && (cond.Type == runtimeapi.RuntimeReady || cond.Type == runtimeapi.NetworkReady && c.opts.CNI) {
			return fmt.Errorf("%s: %s: %s", cond.Type, cond.Reason, cond.Message)
		}
	}
	return nil
}

// CRI gives the clients.
func (c *Containerd) CRI() CRI {
	return CRI{runtimeapi.NewRuntimeServiceClient(c.conn), runtimeapi.NewImageServiceClient(c.conn), c.conn}
}

// Socket is the path of the socket that serves CRI, containerd's own API and events.
func (c *Containerd) Socket() string { return c.place.Socket }

// Endpoint is Socket as kubelets and their like want it: unix:///...
func (c *Containerd) Endpoint() string { return "unix://" + c.place.Socket }

// Root is the directory that survives a reboot.
func (c *Containerd) Root() string { return c.place.Root }

// State is the directory that does not.
func (c *Containerd) State() string { return c.place.State }

// Log is the file to which containerd writes, over all its runs.
func (c *Containerd) Log() string { return c.place.log() }

// CNIConfDir is the directory with the configuration of the pods' network; empty without CNI.
func (c *Containerd) CNIConfDir() string { return c.place.cniDir() }

// CgroupParent is the cgroup for this node's pods, e.g. /name: whoever creates pods makes and uses it, and
// Reboot and Stop remove it with all that is in it. Pods elsewhere are found too, but shared parents, such
// as containerd's own default /k8s.io, stay.
func (c *Containerd) CgroupParent() string { return c.place.CgroupParent }

// Netns is as in Options.
func (c *Containerd) Netns() *Netns { return c.opts.Netns }

// PID is containerd's process, 0 while it does not run.
func (c *Containerd) PID() int {
	if !c.running() {
		return 0
	}
	return c.daemon.process.Pid
}

// SetMirror makes pulls of images of the given registry host go to url, from the next pull on.
func (c *Containerd) SetMirror(host, url string) error { return c.place.writeMirror(host, url) }

// Import loads an image and returns when CRI knows it.
func (c *Containerd) Import(ctx context.Context, img *image.Image) error {
	f, err := os.CreateTemp(c.claim.dir, "import-*.tar")
	if err != nil {
		return fmt.Errorf("import image %s: %w", img.Name, err)
	}
	defer os.Remove(f.Name())
	if err := errors.Join(img.WriteArchive(f), f.Close()); err != nil {
		return fmt.Errorf("import image %s: %w", img.Name, err)
	}
	ctr := filepath.Join(filepath.Dir(c.binary), "ctr")
	if err := finish(exec.CommandContext(ctx, ctr, "-a", c.place.Socket, "-n", "k8s.io", "images", "import", f.Name())); err != nil {
		return fmt.Errorf("import image %s: %w", img.Name, err)
	}
	// The CRI plugin learns of it by an event.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = c.imageID(ctx, img.Name); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("import image %s: %w: %w", img.Name, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (c *Containerd) imageID(ctx context.Context, name string) (string, error) {
	st, err := c.CRI().ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return "", err
	}
	if st.Image == nil {
		return "", fmt.Errorf("image %s is not there", name)
	}
	return st.Image.Id, nil
}

// Kill9 kills containerd alone: shims and containers live on, and Start finds them again.
func (c *Containerd) Kill9() error {
	if !c.running() {
		return nil
	}
	if err := c.daemon.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill containerd: %w", err)
	}
	<-c.daemon.done
	return nil
}

// Reboot does what a power cut does to a node: containerd, every shim and every container die at once;
// mounts, pods' networks, cgroups, the state directory and the directories of Options.Wipe are gone. Root,
// images, containerd's database and CNI's address leases stay. Start brings the node back.
func (c *Containerd) Reboot() error {
	if err := c.place.powerOff(); err != nil {
		return fmt.Errorf("reboot node of containerd %s: %w", c.place.Socket, err)
	}
	return c.Kill9() // dead already; this waits until it is reaped
}

// Stop ends pods and containerd in good order, then removes everything that is left: processes, mounts,
// networks, cgroups and files. Errors of the orderly part are not reported: what counts is that all is gone.
// It may be called again.
func (c *Containerd) Stop(ctx context.Context) error {
	if c.erased {
		return nil
	}
	if c.running() {
		orderly, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		c.removePods(orderly)
		// An error means that it has just ended by itself; erase below sees to the rest either way.
		if c.daemon.process.Signal(syscall.SIGTERM) == nil {
			select {
			case <-c.daemon.done:
			case <-orderly.Done():
			}
		}
	}
	return c.erase()
}

// removePods removes all pods over CRI as far as it can.
func (c *Containerd) removePods(ctx context.Context) {
	cri := c.CRI()
	list, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	for _, s := range list.Items {
		if c.removePod(ctx, s.Id) != nil {
			return
		}
	}
}

func (c *Containerd) erase() error {
	if err := c.place.erase(); err != nil {
		// The record stays, so that the next run tries again.
		return fmt.Errorf("remove containerd %s: %w", c.place.Socket, err)
	}
	c.erased = true
	errs := []error{c.Kill9(), c.claim.release()}
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	return errors.Join(errs...)
}

// cleanDir makes the directory and gives the name by which the kernel lists mounts in it.
func cleanDir(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// majorVersion asks the binary: "containerd <module> <version> <commit>".
func majorVersion(binary string) (int, error) {
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", binary, err)
	}
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return 0, fmt.Errorf("%s --version printed %q", binary, out)
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(fields[2], "v"), ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, fmt.Errorf("%s --version printed %q: %w", binary, out, err)
	}
	return major, nil
}

// tail reads the last lines of a file for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 3000
	return string(b[max(0, len(b)-most):])
}
