package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/build/systemd"
	"github.com/holdfast-edge/holdfast/common/adm/checklist"
	"github.com/holdfast-edge/holdfast/common/adm/cri"
	"github.com/holdfast-edge/holdfast/common/adm/journal"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// nodeWithin bounds the wait for the Node to be Ready.
const nodeWithin = 4 * time.Minute

// networkWithin is how long containerd may take to notice a network
// configuration that join wrote.
const networkWithin = 30 * time.Second

// defaultCNIConfDir counts where the runtime does not tell its own.
const defaultCNIConfDir = "/etc/cni/net.d"

// JoinOptions say how a machine joins. An empty value means: as an earlier join
// had it, or else the default.
type JoinOptions struct {
	Hubs            []string // HOST:PORT each; hubs of one cluster, tried in turn
	Token           string
	CAHash          string
	NodeName        string
	NodeIP          string
	Transport       string // auto, quic or websocket; empty: the config file's
	Labels          map[string]string
	Taints          []string
	DataDir         string
	Config          string
	RunDir          string
	PodLogsDir      string
	RuntimeEndpoint string
	CNIConfDir      string
	CgroupRoot      string
	InstallRuntime  bool
	Foreground      bool
	Ignore          []string
}

// joining is one run of join.
type joining struct {
	*App
	o       JoinOptions
	config  config.Edge
	journal *journal.Journal
	earlier *enrollment.Credentials // of an earlier join; nil: there was none
	before  time.Time               // when an edgecore started that is being restarted
	anew    bool                    // the certificate is another than before
	runtime cri.Facts               // what the checks found
}

// Join makes this machine an edge node, or completes and restarts one that
// joined before.
func (a *App) Join(ctx context.Context, o JoinOptions) error {
	j := &joining{App: a, o: o}
	if err := j.resolve(); err != nil {
		return err
	}
	if o.InstallRuntime {
		if err := j.installRuntime(ctx); err != nil {
			return err
		}
	}
	a.step("looking at this machine")
	if err := checklist.Run(ctx, a.Out, j.checks(), o.Ignore); err != nil {
		return err
	}
	if err := j.enroll(ctx); err != nil {
		return err
	}
	if err := j.network(ctx); err != nil {
		return err
	}
	return j.run(ctx)
}

// resolve completes the options from the config file and the journal.
func (j *joining) resolve() error {
	o := &j.o
	if o.Config == "" {
		o.Config = config.EdgePath
	}
	for _, path := range []*string{&o.Config, &o.DataDir, &o.RunDir, &o.PodLogsDir, &o.CNIConfDir} {
		if err := absolute(path); err != nil {
			return err
		}
	}
	if exists(o.Config) {
		var err error
		if j.config, err = config.LoadEdge(o.Config); err != nil {
			return err
		}
	} else {
		j.config = config.DefaultEdge()
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("this machine's host name: %w; give one with --node-name", err)
		}
		j.config.NodeName = strings.ToLower(host)
	}
	c := &j.config
	for where, value := range map[*string]string{
		&c.NodeName: o.NodeName, &c.NodeIP: o.NodeIP, &c.Transport: o.Transport, &c.DataDir: o.DataDir, &c.RunDir: o.RunDir,
		&c.PodLogsDir: o.PodLogsDir, &c.CgroupRoot: o.CgroupRoot,
	} {
		set(where, value)
	}
	if o.RuntimeEndpoint != "" {
		c.ContainerRuntimeEndpoint = "unix://" + strings.TrimPrefix(o.RuntimeEndpoint, "unix://")
	}
	if o.Labels != nil {
		c.Labels = o.Labels
	}
	if o.Taints != nil {
		c.Taints = o.Taints
	}
	c.Hub = nil
	for _, hub := range o.Hubs {
		if hub = config.HubAddress(hub); !slices.Contains(c.Hub, hub) {
			c.Hub = append(c.Hub, hub)
		}
	}
	o.Hubs = c.Hub
	if err := c.Validate(); err != nil {
		return usage("%w", err)
	}
	if err := pki.CheckCAHash(o.CAHash); err != nil {
		return usage("--ca-hash: %w", err)
	}
	var err error
	if j.journal, err = journal.Open(c.DataDir, journal.Join); err != nil {
		return err
	}
	earlier, err := enrollment.Load(c.DataDir)
	switch {
	case err == nil:
		j.earlier = &earlier
	case !errors.Is(err, enrollment.ErrNotJoined):
		return fmt.Errorf("an earlier join: %w; `holdfast reset` clears it", err)
	}
	if j.earlier == nil {
		if _, err := pki.ParseToken(o.Token); err != nil {
			return usage("--token: %w", err)
		}
	}
	return nil
}

func (j *joining) installRuntime(ctx context.Context) error {
	dirs := []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}
	for i := range dirs {
		dirs[i] = j.Machine.Path(dirs[i])
	}
	if len(missingPlugins(dirs)) == 0 && exists(strings.TrimPrefix(j.config.ContainerRuntimeEndpoint, "unix://")) {
		j.step("the container runtime and the CNI plugins are installed already")
		return nil
	}
	manager, ok := j.Machine.PackageManager()
	if !ok {
		return fmt.Errorf("--install-runtime: no package manager known to holdfast is here: install containerd 1.6 or newer, runc and the CNI plugins by hand")
	}
	j.step("installing %s with %s", manager.Packages(), manager.Name)
	if err := j.Machine.InstallRuntime(ctx, manager); err != nil {
		return err
	}
	return j.await(ctx, "containerd", time.Minute, nil, func(ctx context.Context) (bool, string) {
		r, err := cri.Dial(j.config.ContainerRuntimeEndpoint)
		if err != nil {
			return false, err.Error()
		}
		defer r.Close()
		if _, err := r.Look(ctx); err != nil && !errors.Is(err, cri.ErrNoCRI) {
			return false, err.Error()
		}
		return true, ""
	})
}

// enroll gets the node its certificate, unless it has one that is good.
func (j *joining) enroll(ctx context.Context) error {
	if j.earlier != nil {
		void := j.void(ctx)
		if void == nil {
			j.step("node %s has joined before: its certificate is kept", j.earlier.NodeName)
			return nil
		}
		j.step("node %s has joined before, but its certificate is void: joining anew; its pods and data stay", j.earlier.NodeName)
		j.printf("  (%v)\n", void)
		j.anew = true
	}
	credentials, err := j.certificate(ctx)
	if err != nil {
		return err
	}
	jr := j.journal
	if err := jr.NoteFolder(j.config.DataDir); err != nil {
		return err
	}
	jr.Node, jr.Hub, jr.CAHash = j.config.NodeName, strings.Join(j.o.Hubs, ","), j.o.CAHash
	if err := jr.Save(); err != nil {
		return err
	}
	return credentials.Save(j.config.DataDir)
}

// probeWithin bounds the look whether a hub still takes the node.
const probeWithin = 15 * time.Second

// void says why the certificate of an earlier join is worth nothing any more; nil
// where it is good, where its key could renew it, where no hub can be asked, and
// where there is no token to join anew with.
func (j *joining) void(ctx context.Context) error {
	if j.o.Token == "" {
		return nil
	}
	pool, err := j.earlier.Pool()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	conn, err := link.DialWebsocket(link.DialOptions{Hubs: j.o.Hubs, RootCAs: pool, Certificate: j.earlier.KeyPair}).Dial(ctx)
	if err == nil {
		_ = conn.Close() // it says what was asked by being there
		return nil
	}
	if !errors.Is(err, link.ErrRefused) {
		return nil // edgecore tries on
	}
	for _, hub := range j.o.Hubs {
		renewed, err := enrollment.Renew(ctx, enrollment.RenewRequest{Hub: hub, Present: *j.earlier})
		if err == nil {
			err = renewed.Save(j.config.DataDir)
		}
		if err == nil {
			j.step("the certificate of node %s had ended: it is renewed by its key", j.earlier.NodeName)
			j.anew = true
			return nil
		}
		if errors.Is(err, enrollment.ErrVoid) {
			return err
		}
	}
	return nil
}

// certificate asks one hub after the other, until one has decided.
func (j *joining) certificate(ctx context.Context) (enrollment.Credentials, error) {
	var failed error
	for _, hub := range j.o.Hubs {
		j.step("asking the hub at %s for a certificate for node %s", hub, j.config.NodeName)
		credentials, err := enrollment.Enroll(ctx, enrollment.Request{Hub: hub, Token: j.o.Token, CAHash: j.o.CAHash, NodeName: j.config.NodeName})
		if err == nil {
			return credentials, nil
		}
		failed = errors.Join(failed, err)
		if errors.Is(err, enrollment.ErrRefused) || ctx.Err() != nil {
			break // the hubs share their tokens and names
		}
	}
	return enrollment.Credentials{}, failed
}

// network gives pods a network where there is none.
func (j *joining) network(ctx context.Context) error {
	dir := j.cniConfDir()
	if cniConfigured(dir) != "" {
		return nil
	}
	pods, err := writeCNI(j.journal, dir, j.config.RunDir)
	if err != nil {
		return err
	}
	j.step("wrote a bridge network for pods, %s, into %s", pods, filepath.Join(dir, cniFile))
	ctx, cancel := context.WithTimeout(ctx, networkWithin)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		why := "the container runtime does not answer"
		if r, err := cri.Dial(j.config.ContainerRuntimeEndpoint); err == nil {
			f, err := r.Look(ctx)
			if err = errors.Join(err, r.Close()); err == nil && f.NetworkReady {
				return nil
			}
			why = f.NetworkReason
		}
		select {
		case <-ctx.Done():
			// edgecore waits for it, too, and reports it as the Node's condition.
			j.printf("  [warn] the runtime has not taken the network up within %s: %s\n         -> restart it: systemctl restart containerd\n", networkWithin, why)
			return nil
		case <-tick.C:
		}
	}
}

func (j *joining) cniConfDir() string {
	switch {
	case j.o.CNIConfDir != "":
		return j.o.CNIConfDir
	case j.runtime.CNIConfDir != "":
		return j.runtime.CNIConfDir
	}
	return defaultCNIConfDir
}

// run writes the config, starts edgecore and waits for the node.
func (j *joining) run(ctx context.Context) error {
	binary, err := j.binary("edgecore")
	if err != nil {
		return err
	}
	if j.config.CgroupDriver == "" && !j.runtime.CgroupTold {
		// edgecore could not ask for it.
		j.config.CgroupDriver = j.runtime.CgroupDriver
	}
	jr := j.journal
	jr.Config, jr.RunDir, jr.RuntimeEndpoint = j.o.Config, j.config.RunDir, j.config.ContainerRuntimeEndpoint
	jr.PodLogsDir, jr.CgroupRoot = j.config.PodLogsDir, j.config.CgroupRoot
	for _, note := range []error{jr.NoteFile(j.o.Config), jr.NoteFolder(j.config.RunDir), jr.NoteFolder(j.config.PodLogsDir), jr.Save()} {
		if note != nil {
			return note
		}
	}
	changed, err := writeConfig(j.o.Config, j.config)
	if err != nil {
		return err
	}
	d, err := j.start(ctx, binary, changed || j.anew)
	if err != nil {
		return err
	}
	err = j.await(ctx, "node "+j.config.NodeName+" to be Ready", nodeWithin, d, j.ready)
	if errors.Is(err, errTooLate) && d != nil && j.earlier != nil {
		// Its pods run, line or no line, and must go on running.
		j.printf("  [warn] %v\n         -> edgecore keeps running and keeps trying\n", err)
		return stay(ctx, d)
	}
	if err != nil && d != nil {
		return errors.Join(err, stopAll([]*daemon{d}))
	}
	if err != nil {
		return fmt.Errorf("%w; edgecore keeps trying: `holdfast status` and `journalctl -u %s` tell more", err, j.unit())
	}
	j.printf("\nNode %s is Ready. It keeps its pods running with or without the line to the hub.\n", j.config.NodeName)
	j.printf("See it here with `holdfast status%s`, and from the cloud with `kubectl get nodes`.\n", j.statusFlags())
	if d == nil {
		return nil
	}
	j.printf("This command keeps running; Ctrl-C stops edgecore and leaves the pods running. Its log is %s.\n", d.log)
	return stay(ctx, d)
}

func (j *joining) start(ctx context.Context, binary string, changed bool) (*daemon, error) {
	status, err := localstatus.Get(ctx, j.config.RunDir)
	if err == nil && j.o.Foreground {
		return nil, fmt.Errorf("edgecore of node %s runs already: stop it (Ctrl-C in the other `holdfast join --foreground`, or `systemctl stop %s`) and run this again", j.config.NodeName, j.unit())
	}
	j.step("starting edgecore")
	if j.o.Foreground {
		return spawn("edgecore", filepath.Join(j.config.DataDir, "edgecore.log"), binary, "--config", j.o.Config)
	}
	if err := j.journal.NoteUnit(j.unit()); err != nil {
		return nil, err
	}
	text, err := systemd.Unit(systemd.Edgecore, binary, "--config", j.o.Config)
	if err != nil {
		return nil, err
	}
	restarted, err := j.Machine.InstallUnit(ctx, j.unit(), text, changed, false)
	if restarted {
		j.before = status.Started
	}
	return nil, err
}

// unit is the name of edgecore's unit: its own for a further edge on a machine.
func (j *joining) unit() string {
	if j.o.Config == config.EdgePath {
		return systemd.Edgecore
	}
	return "edgecore-" + j.config.NodeName + ".service"
}

func (j *joining) statusFlags() string {
	if j.config.RunDir == config.DefaultEdge().RunDir {
		return ""
	}
	return " --run-dir " + j.config.RunDir
}

// ready asks edgecore itself.
func (j *joining) ready(ctx context.Context) (bool, string) {
	s, err := localstatus.Get(ctx, j.config.RunDir)
	switch {
	case errors.Is(err, localstatus.ErrNotRunning), errors.Is(err, fs.ErrNotExist):
		return false, "edgecore does not answer yet"
	case err != nil:
		return false, err.Error()
	case !j.before.IsZero() && s.Started.Equal(j.before):
		return false, "edgecore has not restarted yet"
	case !s.Line.Connected && s.Line.LastError != "":
		return false, "no line to the hub: " + s.Line.LastError
	case !s.Line.Connected:
		return false, "no line to the hub yet"
	case !s.Ready:
		return false, "the node is not ready: " + s.ReadyReason
	case !s.NodeReported:
		return false, "the hub has not taken the node's status yet"
	}
	return true, ""
}
