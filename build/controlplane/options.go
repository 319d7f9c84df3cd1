package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/mattn/go-sqlite3"
	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	kubeversion "k8s.io/component-base/version"
	"k8s.io/klog/v2"
)

const help = `controlplane is a whole Kubernetes control plane in one process: kube-apiserver,
kube-controller-manager and kube-scheduler, with their objects in a SQLite file.

  controlplane --data-dir DIR --advertise-address ADDRESS

The first start makes a certificate authority, keys and certificates below DIR/pki and an empty
cluster; later starts find it as it was left, also after a power cut. When it serves, one line
beginning with "ready:" appears on the standard output, and DIR/admin.kubeconfig opens the
cluster:

  kubectl --kubeconfig DIR/admin.kubeconfig get namespaces

To stop it send SIGTERM (or press Ctrl-C). To back it up, stop it and copy DIR. To forget the
cluster, stop it and delete DIR. Restart it at least once a year: certificates that near their
end are renewed at a start, and admin.kubeconfig is then written anew.

It is meant for one machine. For a control plane that survives the loss of a machine, run
Kubernetes on etcd and point Holdfast at it.

Flags:
`

// options are the flags.
type options struct {
	dataDir       string
	listen        string
	advertise     []string
	serviceCIDR   string
	gracePeriod   time.Duration
	monitorPeriod time.Duration
	kubeletCA     string
	logLevel      string
	version       bool
}

func parseFlags(args []string, stdout io.Writer) (options, error) {
	var o options
	flags := pflag.NewFlagSet("controlplane", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.dataDir, "data-dir", "/var/lib/holdfast/controlplane", "folder for the database, the certificates and admin.kubeconfig")
	flags.StringVar(&o.listen, "listen", "0.0.0.0:6443", "HOST:PORT at which the apiserver listens, the only port there is; port 0 takes a free one, which the ready line names")
	flags.StringSliceVar(&o.advertise, "advertise-address", nil, "name or IP at which nodes and people reach the apiserver; may be given several times: all are written into its certificate, the first into kubeconfigs (default: the address of --listen, or of the interface with the default route)")
	flags.StringVar(&o.serviceCIDR, "service-cidr", "10.96.0.0/12", "range from which Services get their addresses; it cannot be changed later")
	flags.DurationVar(&o.gracePeriod, "node-monitor-grace-period", 40*time.Second, "how long a node may be silent before it is marked NotReady")
	flags.DurationVar(&o.monitorPeriod, "node-monitor-period", 5*time.Second, "how often nodes are checked for that")
	flags.StringVar(&o.kubeletCA, "kubelet-certificate-authority", "", "PEM file of the authorities that may sign what serves nodes' kubelet API, for kubectl logs and exec (default: the cluster's own)")
	flags.StringVar(&o.logLevel, "log-level", "warn", "debug, info, warn or error; logs go to the standard error output")
	flags.BoolVar(&o.version, "version", false, "print the versions of all parts and exit")
	flags.Usage = func() { fmt.Fprint(stdout, help+flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: everything is given by flags, see --help", flags.Arg(0))
	}
	return o, o.complete()
}

// complete checks what the flags say, before anything is touched.
func (o *options) complete() error {
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fmt.Errorf("--listen %q is not HOST:PORT: %w", o.listen, err)
	}
	if net.ParseIP(host) == nil && host != "" {
		return fmt.Errorf("--listen %q: %q is not an IP address; give names with --advertise-address", o.listen, host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("--listen %q: port %q is not a number from 0 to %d", o.listen, port, 1<<16-1)
	} else if host == "" {
		o.listen = net.JoinHostPort("0.0.0.0", strconv.FormatUint(n, 10))
	}
	if _, _, err := net.ParseCIDR(o.serviceCIDR); err != nil {
		return fmt.Errorf("--service-cidr %q is not an address range such as 10.96.0.0/12", o.serviceCIDR)
	}
	if o.monitorPeriod <= 0 || o.gracePeriod < 2*o.monitorPeriod {
		return fmt.Errorf("--node-monitor-grace-period %s must be at least twice --node-monitor-period %s, else healthy nodes would turn NotReady", o.gracePeriod, o.monitorPeriod)
	}
	for _, file := range []*string{&o.dataDir, &o.kubeletCA} {
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return fmt.Errorf("resolve path %s: %w", *file, err)
		}
	}
	if o.dataDir == "" {
		return fmt.Errorf("--data-dir is empty: name the folder that shall hold the cluster")
	}
	return nil
}

// setupLogging sends everybody's log lines through slog to w. Kubernetes writes by klog, kine by
// logrus; both would otherwise choose their own format and volume.
func setupLogging(w io.Writer, level string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return fmt.Errorf("--log-level %q is not one of debug, info, warn and error", level)
	}
	logger := slog.New(mute{slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})})
	slog.SetDefault(logger)
	klog.SetSlogLogger(logger)
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(slogHook{logger})
	return nil
}

// mute drops lines which Kubernetes calls errors and which here, at every start, are none: no
// manifest of metrics is given, and on loopback there are no endpoints to be stale.
type mute struct{ slog.Handler }

// Handle passes the others on.
func (m mute) Handle(ctx context.Context, r slog.Record) error {
	switch r.Message {
	case "The manifest file is empty, ignoring.",
		"Found stale data, removed previous endpoints on kubernetes service, apiserver didn't exit successfully previously":
		return nil
	}
	return m.Handler.Handle(ctx, r)
}

// WithAttrs keeps dropping in derived loggers.
func (m mute) WithAttrs(attrs []slog.Attr) slog.Handler { return mute{m.Handler.WithAttrs(attrs)} }

// WithGroup keeps dropping in derived loggers.
func (m mute) WithGroup(name string) slog.Handler { return mute{m.Handler.WithGroup(name)} }

// slogHook forwards kine's lines.
type slogHook struct{ to *slog.Logger }

// Levels says that every line is forwarded; slog's handler filters.
func (h slogHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire forwards one line.
func (h slogHook) Fire(e *logrus.Entry) error {
	level := slog.LevelInfo
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	case e.Level >= logrus.DebugLevel:
		level = slog.LevelDebug
	}
	h.to.Log(e.Context, level, e.Message, "part", "kine")
	return nil
}

func printVersion(w io.Writer) error {
	kine := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/k3s-io/kine" {
				kine = m.Version
			}
		}
	}
	lite, _, _ := sqlite3.Version()
	_, err := fmt.Fprintf(w, "controlplane %s (Kubernetes %s, kine %s, SQLite %s)\n", version, kubeversion.Get().GitVersion, kine, lite)
	return err
}
