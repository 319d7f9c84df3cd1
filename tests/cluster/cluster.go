package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// startLimit and stopLimit are for a loaded machine with two cores; a start takes some 5 s.
	startLimit   = 5 * time.Minute
	stopLimit    = 2 * time.Minute
	pollInterval = 100 * time.Millisecond
	// attempts bounds how often a start is tried when the process ends at once, as it does when
	// another program has the port.
	attempts = 5
	// Ports are chosen below the range from which the kernel takes those of outgoing connections:
	// such a connection would keep a restarted control plane from its port.
	firstPort, lastPort = 12000, 29999
)

// Options say what to start. Dir alone is needed.
type Options struct {
	// Dir is the data directory. It may hold an earlier cluster, which then continues.
	Dir string
	// Binary is the control plane's; when empty, Find's.
	Binary string
	// Listen is HOST:PORT; port 0 chooses a free one, which later restarts keep. When empty,
	// 127.0.0.1:0.
	Listen string
	// AdvertiseAddresses are further names and IPs in the serving certificate. The first is the
	// host of the kubeconfig.
	AdvertiseAddresses []string
	// GracePeriod is how long a node may be silent before it is NotReady; when 0, 40 s.
	GracePeriod time.Duration
	// Log, which may be nil, gets what the process writes. It must bear concurrent use with
	// whatever else writes there.
	Log io.Writer
	// Enter, which may be nil, may change the command before it starts, for example so that it
	// runs in a network namespace. It must end in an exec of the control plane, not in a child.
	Enter func(*exec.Cmd)
}

// Cluster is a running embedded control plane. Its methods are for one goroutine at a time,
// except Client and what that returns.
type Cluster struct {
	options Options
	host    string // of Options.Listen
	port    int    // 0 until chosen
	process *process
	client  kubernetes.Interface
}

// Start starts a control plane and returns when it answers through its kubeconfig and pods can be
// created in namespace default. ctx bounds the wait, and the build if there must be one, not the
// life of the cluster.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Dir == "" {
		return nil, errors.New("start control plane: Options.Dir is empty")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	o.Dir = dir
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Binary == "" {
		if o.Binary, err = Find(ctx, o.Log); err != nil {
			return nil, err
		}
	}
	c := &Cluster{options: o}
	var port string
	if c.host, port, err = net.SplitHostPort(o.Listen); err != nil {
		return nil, fmt.Errorf("start control plane: listen address %q: %w", o.Listen, err)
	}
	if c.port, err = strconv.Atoi(port); err != nil {
		return nil, fmt.Errorf("start control plane: listen address %q: %w", o.Listen, err)
	}
	if err := c.up(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.options.Dir, "admin.kubeconfig") }

// RestConfig is the administrator's, with room for a burst of requests.
func (c *Cluster) RestConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("kubeconfig of control plane %s: %w", c.options.Dir, err)
	}
	config.QPS, config.Burst = 500, 1000
	return config, nil
}

// Client is the administrator's.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// URL is where the apiserver is reached from this machine, or from where AdvertiseAddresses say.
func (c *Cluster) URL() string {
	host := c.host
	switch {
	case len(c.options.AdvertiseAddresses) > 0:
		host = c.options.AdvertiseAddresses[0]
	case net.ParseIP(host).IsUnspecified():
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(c.port))
}

// PID is the process's id, for those who measure it.
func (c *Cluster) PID() int { return c.process.cmd.Process.Pid }

// Stop ends the control plane as a service manager does. After Stop or Kill it does nothing.
func (c *Cluster) Stop() error {
	if c.process == nil {
		return nil
	}
	p := c.process
	c.process = nil
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stop control plane %s: %w", c.options.Dir, err), p.kill())
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.ended:
	case <-limit.C:
		return errors.Join(fmt.Errorf("control plane %s did not stop within %s of SIGTERM and was killed; it said: %s", c.options.Dir, stopLimit, p.said()), p.kill())
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("control plane %s ended with %v; it said: %s", c.options.Dir, p.cmd.ProcessState, p.said())
	}
	return nil
}

// Kill ends it as a power cut does. After Stop or Kill it does nothing.
func (c *Cluster) Kill() error {
	if c.process == nil {
		return nil
	}
	p := c.process
	c.process = nil
	return p.kill()
}

// Restart stops the control plane if it runs, starts it on the same data and the same address,
// and returns when Start would.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := c.Stop(); err != nil {
		return err
	}
	return c.up(ctx)
}

// up starts the process and waits for it; a port that must be chosen is chosen anew when the
// process does not stay.
func (c *Cluster) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	choose := c.port == 0
	var failures error
	for range attempts {
		if choose {
			c.port = firstPort + rand.IntN(lastPort-firstPort+1)
		}
		p, err := c.launch()
		if err != nil {
			return err
		}
		if err = c.answers(ctx, p); err == nil {
			c.process = p
			return nil
		}
		failures = errors.Join(failures, err, p.kill())
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("start control plane %s: %w", c.options.Dir, failures)
}

func (c *Cluster) launch() (*process, error) {
	o := c.options
	args := []string{"--data-dir", o.Dir, "--listen", net.JoinHostPort(c.host, strconv.Itoa(c.port))}
	if len(o.AdvertiseAddresses) > 0 {
		args = append(args, "--advertise-address", strings.Join(o.AdvertiseAddresses, ","))
	}
	if o.GracePeriod > 0 {
		period := min(5*time.Second, o.GracePeriod/4)
		args = append(args, "--node-monitor-grace-period", o.GracePeriod.String(), "--node-monitor-period", period.String())
	}
	cmd := exec.Command(o.Binary, args...)
	if o.Enter != nil {
		o.Enter(cmd)
	}
	return launch(cmd, o.Log)
}

// answers waits until the process says that it is ready and the apiserver answers from here.
func (c *Cluster) answers(ctx context.Context, p *process) error {
	select {
	case <-p.ready:
	case <-p.ended:
		return fmt.Errorf("%s ended with %v before it was ready; it said: %s", c.options.Binary, p.cmd.ProcessState, p.said())
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w; it said: %s", c.options.Binary, ctx.Err(), p.said())
	}
	config, err := c.RestConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("client of control plane %s: %w", c.options.Dir, err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if _, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			_, err = client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		}
		if err == nil {
			c.client = client
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("%s ended with %v; it said: %s", c.options.Binary, p.cmd.ProcessState, p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer at %s: %w", c.options.Binary, config.Host, err)
		}
	}
}
