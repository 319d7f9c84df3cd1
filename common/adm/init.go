package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/build/systemd"
	"github.com/holdfast-edge/holdfast/common/adm/checklist"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/adm/journal"
	"github.com/holdfast-edge/holdfast/common/atomicfile"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
)

// Defaults of init.
const (
	DefaultControlPlaneDir    = "/var/lib/holdfast/controlplane"
	DefaultControlPlaneListen = "0.0.0.0:6443"
	DefaultTokenTTL           = 24 * time.Hour
)

// cloudWithin bounds each wait of init; a start takes seconds, on a loaded small
// machine a minute.
const cloudWithin = 5 * time.Minute

// InitOptions say what cloud to make. An empty value means: as an earlier init
// had it, or else the default.
type InitOptions struct {
	Kubeconfig         string // of an existing cluster, with an administrator's rights; empty: the embedded control plane
	DataDir            string
	Config             string
	Listen             string // HOST:PORT of the hub
	HealthListen       string
	Advertise          []string // names and addresses by which edges reach the hub; the first is in the join command
	ControlPlaneDir    string
	ControlPlaneListen string
	TokenTTL           time.Duration
	Foreground         bool
	Ignore             []string
}

// initialization is one run of init.
type initialization struct {
	*App
	o       InitOptions
	config  config.Cloud
	journal *journal.Journal
	daemons []*daemon // of --foreground
}

// Init makes a cloud, or completes and restarts the one that is there.
func (a *App) Init(ctx context.Context, o InitOptions) (err error) {
	in := &initialization{App: a, o: o}
	if err := in.resolve(); err != nil {
		return err
	}
	a.step("looking at this machine")
	if err := checklist.Run(ctx, a.Out, in.checks(), o.Ignore); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stopAll(in.daemons))
		}
	}()
	if err := in.note(); err != nil {
		return err
	}
	if in.journal.ControlPlaneDir != "" {
		if err := in.startControlPlane(ctx); err != nil {
			return in.seeJournal(err, systemd.ControlPlane)
		}
	}
	admin, err := clientcmd.BuildConfigFromFlags("", in.journal.Kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", in.journal.Kubeconfig, err)
	}
	if err := in.furnish(ctx, admin); err != nil {
		return err
	}
	if err := in.startCloudcore(ctx); err != nil {
		return in.seeJournal(err, systemd.Cloudcore)
	}
	if err := in.tell(ctx, admin); err != nil {
		return err
	}
	if !o.Foreground {
		return nil
	}
	daemons := in.daemons
	in.daemons = nil // stay stops them
	return stay(ctx, daemons...)
}

// seeJournal adds where a daemon that systemd runs says more.
func (in *initialization) seeJournal(err error, unit string) error {
	if in.o.Foreground || !errors.Is(err, errTooLate) {
		return err
	}
	return fmt.Errorf("%w; `journalctl -u %s` tells more", err, unit)
}

// resolve completes the options from the config file and the journal.
func (in *initialization) resolve() error {
	o := &in.o
	if o.Config == "" {
		o.Config = config.CloudPath
	}
	for _, path := range []*string{&o.Config, &o.DataDir, &o.ControlPlaneDir, &o.Kubeconfig} {
		if err := absolute(path); err != nil {
			return err
		}
	}
	var err error
	in.config, err = config.LoadCloud(o.Config)
	if errors.Is(err, fs.ErrNotExist) || !exists(o.Config) {
		in.config = config.DefaultCloud()
	} else if err != nil {
		return err
	}
	set(&in.config.DataDir, o.DataDir)
	set(&in.config.Listen, o.Listen)
	set(&in.config.HealthListen, o.HealthListen)
	if len(o.Advertise) > 0 {
		in.config.AdvertiseAddresses = o.Advertise
	}
	if len(in.config.AdvertiseAddresses) == 0 {
		in.config.AdvertiseAddresses = ownAddresses(in.config.Listen)
	}
	in.config.Kubeconfig = filepath.Join(in.config.DataDir, "cloudcore.kubeconfig")
	if err := in.config.Validate(); err != nil {
		return usage("%w", err)
	}
	if in.journal, err = journal.Open(in.config.DataDir, journal.Init); err != nil {
		return err
	}
	return in.chooseCluster()
}

// chooseCluster settles which cluster it is: once chosen, that stays.
func (in *initialization) chooseCluster() error {
	o, j := &in.o, in.journal
	switch {
	case o.Kubeconfig != "" && j.ControlPlaneDir != "":
		return usage("this cloud has its own control plane in %s: `holdfast reset` first, or leave --kubeconfig out", j.ControlPlaneDir)
	case o.Kubeconfig != "":
		if _, err := os.Stat(o.Kubeconfig); err != nil {
			return usage("--kubeconfig: %w", err)
		}
		j.Kubeconfig = o.Kubeconfig
	case j.Kubeconfig == "" || j.ControlPlaneDir != "":
		if j.ControlPlaneDir == "" {
			j.ControlPlaneDir, j.ControlPlaneListen = DefaultControlPlaneDir, DefaultControlPlaneListen
			set(&j.ControlPlaneDir, o.ControlPlaneDir)
		} else if o.ControlPlaneDir != "" && o.ControlPlaneDir != j.ControlPlaneDir {
			return usage("the control plane of this cloud is in %s, not in %s: leave --control-plane-dir out, or `holdfast reset` first", j.ControlPlaneDir, o.ControlPlaneDir)
		}
		set(&j.ControlPlaneListen, o.ControlPlaneListen)
		j.Kubeconfig = filepath.Join(j.ControlPlaneDir, "admin.kubeconfig")
		if _, _, err := net.SplitHostPort(j.ControlPlaneListen); err != nil {
			return usage("--control-plane-listen %q is not HOST:PORT", j.ControlPlaneListen)
		}
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = DefaultTokenTTL
	}
	return nil
}

// note writes into the journal what init is about to make.
func (in *initialization) note() error {
	j := in.journal
	if err := j.NoteFolder(in.config.DataDir); err != nil {
		return err
	}
	if err := j.NoteFile(in.o.Config); err != nil {
		return err
	}
	for _, dir := range []string{j.ControlPlaneDir, in.config.RunDir} {
		if dir == "" {
			continue
		}
		if err := j.NoteFolder(dir); err != nil {
			return err
		}
	}
	return j.Save()
}

func (in *initialization) startControlPlane(ctx context.Context) error {
	j := in.journal
	binary, err := in.binary("controlplane")
	if err != nil {
		return err
	}
	command := []string{binary, "--data-dir", j.ControlPlaneDir, "--listen", j.ControlPlaneListen}
	for _, address := range in.config.AdvertiseAddresses {
		command = append(command, "--advertise-address", address)
	}
	in.step("starting the control plane at %s, data in %s", j.ControlPlaneListen, j.ControlPlaneDir)
	d, err := in.start(ctx, systemd.ControlPlane, filepath.Join(in.config.DataDir, "controlplane.log"), command, false)
	if err != nil {
		return err
	}
	return in.await(ctx, "the control plane", cloudWithin, d, func(ctx context.Context) (bool, string) {
		admin, err := clientcmd.BuildConfigFromFlags("", j.Kubeconfig)
		if err != nil {
			return false, "no " + j.Kubeconfig + " yet"
		}
		admin.Timeout = 5 * time.Second
		client, err := kubernetes.NewForConfig(admin)
		if err != nil {
			return false, err.Error()
		}
		if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return false, "the apiserver is not ready: " + err.Error()
		}
		return true, ""
	})
}

// start starts a daemon: as a unit, or as a child with --foreground.
func (in *initialization) start(ctx context.Context, unit, log string, command []string, restart bool) (*daemon, error) {
	if in.o.Foreground {
		d, err := spawn(filepath.Base(command[0]), log, command[0], command[1:]...)
		if err == nil {
			in.daemons = append(in.daemons, d)
		}
		return d, err
	}
	if err := in.journal.NoteUnit(unit); err != nil {
		return nil, err
	}
	text, err := systemd.Unit(unit, command...)
	if err != nil {
		return nil, err
	}
	_, err = in.Machine.InstallUnit(ctx, unit, text, restart, true)
	return nil, err
}

// furnish puts into the cluster what Holdfast needs there, and takes out
// cloudcore's own kubeconfig.
func (in *initialization) furnish(ctx context.Context, admin *rest.Config) error {
	in.step("furnishing the cluster at %s", admin.Host)
	objects, err := install.Objects(manifests.Files)
	if err != nil {
		return err
	}
	c, err := install.New(admin)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, objects); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	ca, err := cluster.EnsureCA(ctx, client)
	if err != nil {
		return err
	}
	in.printf("  CA of the edge nodes: %s\n", ca.Hash())
	own, err := c.CloudKubeconfig(ctx)
	if err != nil {
		return err
	}
	return atomicfile.WriteIn(in.config.Kubeconfig, own, 0o600)
}

func (in *initialization) startCloudcore(ctx context.Context) error {
	binary, err := in.binary("cloudcore")
	if err != nil {
		return err
	}
	changed, err := writeConfig(in.o.Config, in.config)
	if err != nil {
		return err
	}
	in.step("starting cloudcore at %s", in.config.Listen)
	d, err := in.start(ctx, systemd.Cloudcore, filepath.Join(in.config.DataDir, "cloudcore.log"), []string{binary, "--config", in.o.Config}, changed)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second}
	return in.await(ctx, "cloudcore", cloudWithin, d, func(ctx context.Context) (bool, string) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+in.config.HealthListen+"/healthz", nil)
		if err != nil {
			return false, err.Error()
		}
		answer, err := client.Do(request)
		if err != nil {
			return false, err.Error()
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK, "its health check says " + answer.Status
	})
}

// tell prints the join command and what to do next.
func (in *initialization) tell(ctx context.Context, admin *rest.Config) error {
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	join, err := makeJoinCommand(ctx, client, in.config, cluster.NewTokenOptions{TTL: in.o.TokenTTL, Description: "made by holdfast init"})
	if err != nil {
		return err
	}
	in.printf("\nThe cloud is ready. On each edge node, as root:\n\n%s\n", join)
	in.printf("\nThe token is valid for %s; `holdfast token create` makes another.\n", in.o.TokenTTL)
	in.printf("Look at the cluster with:\n\n    export KUBECONFIG=%s\n    kubectl get nodes\n", in.journal.Kubeconfig)
	if in.config.FleetListen != "" {
		in.printf("\nand at its edge nodes in a browser: `holdfast fleet` prints the address.\n")
	}
	if in.o.Foreground {
		in.printf("\nThis command keeps running; Ctrl-C stops the cloud and loses nothing. Logs are in %s.\n", in.config.DataDir)
	}
	return nil
}

// advertised is the hub's address as the join command names it.
func advertised(c config.Cloud) string {
	_, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		port = config.HubPort // Validate has refused it before
	}
	return net.JoinHostPort(c.AdvertiseAddresses[0], port)
}

// ownAddresses are those at which this machine listens and others may reach it:
// the address on the way to the default route first.
func ownAddresses(listen string) []string {
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && ip != nil && !ip.IsUnspecified() {
		return []string{host}
	}
	var all []string
	// Connecting a UDP socket sends nothing; the kernel only chooses the route.
	if conn, err := net.Dial("udp", "192.0.2.1:9"); err == nil {
		all = append(all, conn.LocalAddr().(*net.UDPAddr).IP.String())
		conn.Close()
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return all
	}
	for _, address := range addresses {
		n, ok := address.(*net.IPNet)
		if ok && n.IP.IsGlobalUnicast() && !slices.Contains(all, n.IP.String()) {
			all = append(all, n.IP.String())
		}
	}
	return all
}

// writeConfig writes a config file and says whether it has changed.
func writeConfig[C config.Edge | config.Cloud](path string, c C) (changed bool, err error) {
	text, err := config.Encode(c)
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(text) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("write config: %w", err)
	}
	return true, atomicfile.Write(path, text, 0o600)
}

func set(where *string, value string) {
	if value != "" {
		*where = value
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func absolute(path *string) error {
	if *path == "" {
		return nil
	}
	full, err := filepath.Abs(*path)
	if err != nil {
		return fmt.Errorf("path %s: %w", *path, err)
	}
	*path = full
	return nil
}

func port(address string) int {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}
