package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
)

// command is the tree of commands. Everything that cobra itself finds wrong is a
// usage error.
func command(app *adm.App, stdin io.Reader) *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Keeps Kubernetes workloads on edge nodes running when the line drops",
		Long: `Holdfast keeps Kubernetes workloads on edge nodes running when the line to the
cloud drops, when the node reboots without it, and when the cloud comes back.

On a server:      holdfast init
On an edge node:  holdfast join HOST:PORT --token T --ca-hash sha256:H   (init prints it)`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// Not cobra's own: with a template of it the linker would keep all that nobody calls.
	showVersion := root.Flags().Bool("version", false, "print the version")
	printVersion := func() { fmt.Fprintf(app.Out, "holdfast %s\n", version) }
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return wrong(fmt.Errorf("%w; see `%s --help`", err, c.CommandPath()))
	})
	root.PersistentFlags().StringVar(&app.Bin, "bin-dir", "", "folder with edgecore, cloudcore and controlplane (default: that of holdfast, then PATH)")
	root.PersistentFlags().StringVar(&app.Machine.Root, "root", "", "folder that stands for / in the places of the operating system, for tests")
	root.PersistentFlags().Lookup("root").Hidden = true
	root.AddCommand(initCommand(app), tokenCommand(app), nodeCommand(app), fleetCommand(app), joinCommand(app), resetCommand(app, stdin), statusCommand(app), psCommand(app), logsCommand(app), execCommand(app, stdin), devicesCommand(app), doctorCommand(app), drillCommand(app), convertCommand(app, stdin), &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArguments,
		Run: func(*cobra.Command, []string) { printVersion() },
	})
	// Without a command, or with one that there is not.
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return wrong(fmt.Errorf("there is no command %q; see `holdfast --help`", args[0]))
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, _ []string) error {
		if *showVersion {
			printVersion()
			return nil
		}
		return c.Help()
	}
	return root
}

func wrong(err error) error { return &adm.UsageError{Err: err} }

func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return wrong(fmt.Errorf("%s takes no argument, and %q was given; see `%s --help`", c.CommandPath(), args[0], c.CommandPath()))
	}
	return nil
}

func initCommand(app *adm.App) *cobra.Command {
	var o adm.InitOptions
	c := &cobra.Command{
		Use: "init", Short: "Make this machine the cloud that edge nodes join", Args: noArguments,
		Long: `init makes this machine the cloud that edge nodes join: it starts a Kubernetes
control plane (or uses the cluster of --kubeconfig, of Kubernetes 1.30 or later),
puts Holdfast's namespace, definitions of devices, rights and CA into it, starts
cloudcore, waits until that is ready, and prints the command that makes a machine an
edge node.

Run it again whenever you like: it keeps the CA and all data, brings the rest up
to date, and prints a new join command. What is not said again stays as it was.`,
		RunE: func(c *cobra.Command, _ []string) error { return app.Init(c.Context(), o) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "use the cluster of this file, with an administrator's rights, and start no control plane")
	f.StringSliceVar(&o.Advertise, "advertise-address", nil, "names or IP addresses by which edge nodes reach this machine, the first for the join command (default: its own addresses)")
	f.StringVar(&o.Listen, "listen", "", "HOST:PORT at which edge nodes are served (default 0.0.0.0:10350)")
	f.StringVar(&o.HealthListen, "health-listen", "", "HOST:PORT of cloudcore's health check (default 127.0.0.1:10351)")
	f.StringVar(&o.DataDir, "data-dir", "", "folder for cloudcore's data and the journal (default /var/lib/holdfast/cloud)")
	f.StringVar(&o.Config, "config", "", "cloudcore's config file (default /etc/holdfast/cloudcore.yaml)")
	f.StringVar(&o.ControlPlaneDir, "control-plane-dir", "", "folder for the control plane's data (default "+adm.DefaultControlPlaneDir+")")
	f.StringVar(&o.ControlPlaneListen, "control-plane-listen", "", "HOST:PORT of the apiserver (default "+adm.DefaultControlPlaneListen+")")
	f.DurationVar(&o.TokenTTL, "token-ttl", adm.DefaultTokenTTL, "how long the token of the join command is valid")
	f.BoolVar(&o.Foreground, "foreground", false, "run the daemons as children and stay, for machines without systemd")
	ignoreFlag(c, &o.Ignore)
	return c
}

func ignoreFlag(c *cobra.Command, into *[]string) {
	c.Flags().StringSliceVar(into, "ignore-preflight-errors", nil, "checks whose failure shall not stop the command, or all")
}

func tokenCommand(app *adm.App) *cobra.Command {
	var o adm.CloudOptions
	token := &cobra.Command{Use: "token", Short: "Make, list and delete join tokens", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	token.PersistentFlags().StringVar(&o.Kubeconfig, "kubeconfig", "", "of the cluster, with an administrator's rights (default: that of `holdfast init` on this machine, then kubectl's)")
	token.PersistentFlags().StringVar(&o.Config, "config", "", "cloudcore's config file (default /etc/holdfast/cloudcore.yaml)")

	var t cluster.NewTokenOptions
	var quiet bool
	create := &cobra.Command{
		Use: "create", Short: "Make a token and print the join command with it", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if t.TTL <= 0 || t.TTL > cluster.MaxTokenTTL {
				return wrong(fmt.Errorf("--ttl %s: choose more than 0 and at most %s", t.TTL, cluster.MaxTokenTTL))
			}
			if t.Uses < 0 {
				return wrong(fmt.Errorf("--uses %d: choose 1 or more, or 0 for no limit", t.Uses))
			}
			return app.TokenCreate(c.Context(), o, t, quiet)
		},
	}
	create.Flags().DurationVar(&t.TTL, "ttl", cluster.DefaultTokenTTL, "how long it is valid")
	create.Flags().IntVar(&t.Uses, "uses", 0, "how many machines may join with it; 0: any number")
	create.Flags().StringVar(&t.Description, "description", "", "what it is for, for `token list`")
	create.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token alone")

	list := &cobra.Command{Use: "list", Short: "List the tokens, without their secrets", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return app.TokenList(c.Context(), o) }}
	remove := &cobra.Command{
		Use: "delete ID...", Short: "Delete tokens: nobody can join with them any more",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return wrong(fmt.Errorf("name at least one token; `holdfast token list` shows them"))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return app.TokenDelete(c.Context(), o, args) },
	}
	token.AddCommand(create, list, remove)
	return token
}

func joinCommand(app *adm.App) *cobra.Command {
	var o adm.JoinOptions
	var labels []string
	c := &cobra.Command{
		Use: "join HOST:PORT... --token TOKEN --ca-hash sha256:HASH", Short: "Make this machine an edge node",
		Long: `join makes this machine an edge node of the cloud at HOST:PORT: it looks whether the
machine is ready and says what to do where it is not, gets the node a certificate
with the token (from no other hub than the one whose CA has the hash), gives pods a
bridge network where there is none, starts edgecore, and waits until the Node is
Ready. ` + "`holdfast init`" + ` and ` + "`holdfast token create`" + ` print the whole command.

Of a cluster with several hubs, give the addresses of all: the node tries them in
turn, and goes to another within seconds when its hub is gone.

Run it again whenever you like: a node that has joined keeps its certificate and
its pods. One whose certificate is void (revoked, or ended too long ago) gets a new
one with a new token, and keeps its pods and data. For several edges on one machine give each its own --node-name,
--data-dir, --config, --run-dir and --container-runtime-endpoint.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return wrong(errors.New("join needs the hub's HOST:PORT, as `holdfast token create` prints it"))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.Hubs = args
			for _, l := range labels {
				key, value, ok := strings.Cut(l, "=")
				if !ok || key == "" {
					return wrong(fmt.Errorf("--label %q is not KEY=VALUE", l))
				}
				if o.Labels == nil {
					o.Labels = map[string]string{}
				}
				o.Labels[key] = value
			}
			return app.Join(c.Context(), o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.Token, "token", "", "the join token; not needed by a machine that has joined before")
	f.StringVar(&o.CAHash, "ca-hash", "", "hash of the CA that the hub must show, sha256:...")
	f.StringVar(&o.NodeName, "node-name", "", "name of the Node (default: the host name)")
	f.StringVar(&o.NodeIP, "node-ip", "", "address that the Node reports (default: that on the way to the hub)")
	f.StringVar(&o.Transport, "transport", "", "how the hub is reached: websocket, quic, or auto, which is QUIC and websocket where UDP is blocked (default websocket)")
	f.StringSliceVar(&labels, "label", nil, "KEY=VALUE, a label of the Node")
	f.StringSliceVar(&o.Taints, "taint", nil, "KEY=VALUE:EFFECT, a taint of the Node")
	f.BoolVar(&o.InstallRuntime, "install-runtime", false, "install containerd, runc and the CNI plugins by this distribution's package manager where they are missing")
	f.StringVar(&o.RuntimeEndpoint, "container-runtime-endpoint", "", "containerd's socket (default unix:///run/containerd/containerd.sock)")
	f.StringVar(&o.CNIConfDir, "cni-conf-dir", "", "where containerd reads its CNI configuration (default: what containerd says)")
	f.StringVar(&o.DataDir, "data-dir", "", "folder for edgecore's database, certificates and volumes (default /var/lib/holdfast/edge)")
	f.StringVar(&o.Config, "config", "", "edgecore's config file (default /etc/holdfast/edgecore.yaml)")
	f.StringVar(&o.RunDir, "run-dir", "", "folder for edgecore's socket, emptied by a reboot (default /run/holdfast)")
	f.StringVar(&o.PodLogsDir, "pod-logs-dir", "", "folder for the containers' logs (default /var/log/pods)")
	f.StringVar(&o.CgroupRoot, "cgroup-root", "", "cgroup below which pods get theirs (default /)")
	f.BoolVar(&o.Foreground, "foreground", false, "run edgecore as a child and stay, for machines without systemd")
	ignoreFlag(c, &o.Ignore)
	return c
}

func resetCommand(app *adm.App, stdin io.Reader) *cobra.Command {
	o := adm.ResetOptions{In: stdin}
	c := &cobra.Command{
		Use: "reset", Short: "Undo what join or init did on this machine", Args: noArguments,
		Long: `reset undoes what join or init did on this machine, by the journal that they keep in
their data directory: on an edge node it stops edgecore and this node's pods and
removes its certificate, data, unit and config; on the server it stops cloudcore and
the control plane that init started, and removes them with all data. From a cluster
that init was pointed at with --kubeconfig it takes what init put there, and with the
definitions go all Devices, DeviceModels and Routes: save them first with
"kubectl get devices,devicemodels,routes -A -o yaml". It says what it leaves. Nothing
that was there before join or init is touched.`,
		RunE: func(c *cobra.Command, _ []string) error { return app.Reset(c.Context(), o) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.DataDir, "data-dir", "", "that of the join or init (default: both of /var/lib/holdfast/edge and /var/lib/holdfast/cloud)")
	f.BoolVar(&o.Force, "force", false, "do not ask")
	const known = " (default: as the journal has it)"
	f.StringVar(&o.Config, "config", "", "edgecore's config file"+known)
	f.StringVar(&o.RunDir, "run-dir", "", "edgecore's run folder"+known)
	f.StringVar(&o.PodLogsDir, "pod-logs-dir", "", "folder of the containers' logs"+known)
	f.StringVar(&o.RuntimeEndpoint, "container-runtime-endpoint", "", "containerd's socket"+known)
	f.StringVar(&o.CNIConfDir, "cni-conf-dir", "", "containerd's CNI configuration"+known)
	return c
}

func devicesCommand(app *adm.App) *cobra.Command {
	var o adm.StatusOptions
	c := &cobra.Command{
		Use: "devices [NAMESPACE/NAME]", Short: "Show the devices of this edge node; works without a line to the hub",
		Long: `devices shows the devices that are connected to this edge node, asked of edgecore
itself: what each reported last, what it shall be and who said so, and what the
cloud has yet to hear. It works without a line to the hub.

In the cloud, kubectl get devices shows the devices of all nodes.`,
		Example: "  holdfast devices\n  holdfast devices shop/thermometer\n  holdfast devices -o json",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrong(fmt.Errorf("devices takes one NAMESPACE/NAME or none, and %d were given", len(args)))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return app.Devices(c.Context(), o, strings.Join(args, ""))
		},
	}
	edgeFlags(c, &o)
	outputFlag(c, &o)
	return c
}
