package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
)

// edgeFlags say which edgecore of this machine is asked.
func edgeFlags(c *cobra.Command, o *adm.StatusOptions) {
	c.Flags().StringVar(&o.RunDir, "run-dir", "", "edgecore's run folder (default: that of its config file)")
	c.Flags().StringVar(&o.Config, "config", "", "edgecore's config file (default /etc/holdfast/edgecore.yaml)")
}

func outputFlag(c *cobra.Command, o *adm.StatusOptions) {
	c.Flags().StringVarP(&o.Output, "output", "o", "table", "table, json or yaml")
}

func statusCommand(app *adm.App) *cobra.Command {
	var o adm.StatusOptions
	c := &cobra.Command{
		Use: "status [NODE]", Short: "Show how this edge node is, or all nodes on a server",
		Long: `status on an edge node shows how it is, asked of edgecore itself: the line to the
hub and since when it is so, what waits for the hub, what is stored, the certificate,
the clock, the disk, the container runtime, each pod and the images. It works without
a line to the hub, and without a container runtime that answers.

On a server (a machine with cloudcore) it shows every node: its line, hub, transport
and round trip, what moved today, when it was last heard, whether it would survive an
outage, its pods and version; with a node's name, all there is to tell of that one.

What a machine is, its config files say (/etc/holdfast/edgecore.yaml and
cloudcore.yaml), or the one that --config names, or the sockets in --run-dir. A machine
that is both shows both; -o json and yaml are then one document with the keys edge and
cloud. --edge and --cloud choose.`,
		Example: "  holdfast status\n  holdfast status -o json\n  holdfast status --offline\n  holdfast status shop-42",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrong(fmt.Errorf("status takes the name of one node of the cloud, or none, and %d were given", len(args)))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.Node = strings.Join(args, "")
			return app.Status(c.Context(), o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	outputFlag(c, &o)
	f.BoolVar(&o.Offline, "offline", false, "on a server: the nodes that are not connected")
	f.BoolVar(&o.Edge, "edge", false, "this machine's edge node alone")
	f.BoolVar(&o.Cloud, "cloud", false, "the nodes of this machine's cloudcore alone")
	f.StringVar(&o.Config, "config", "", "edgecore's or cloudcore's config file (default: both of /etc/holdfast)")
	f.StringVar(&o.RunDir, "run-dir", "", "folder of the daemon's socket (default: that of its config file)")
	return c
}

func psCommand(app *adm.App) *cobra.Command {
	var o adm.PsOptions
	c := &cobra.Command{
		Use: "ps", Short: "List the containers of this edge node's pods; works without a line to the hub", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return app.Ps(c.Context(), o) },
	}
	c.Flags().SortFlags = false
	c.Flags().BoolVarP(&o.All, "all", "a", false, "those that have ended, too")
	c.Flags().StringVarP(&o.Namespace, "namespace", "n", "", "of this namespace (default: all)")
	outputFlag(c, &o.StatusOptions)
	edgeFlags(c, &o.StatusOptions)
	return c
}

// onePod is the argument of commands about a container.
func onePod(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return wrong(fmt.Errorf("%s needs the name of one pod, NAME or NAMESPACE/NAME; `holdfast ps` lists them", c.CommandPath()))
	}
	return nil
}

func targetFlags(c *cobra.Command, t *adm.Target) {
	c.Flags().SortFlags = false
	c.Flags().StringVarP(&t.Container, "container", "c", "", "the container (default: the one that the pod's annotation kubectl.kubernetes.io/default-container names, then the first)")
	c.Flags().StringVarP(&t.Namespace, "namespace", "n", "", "the pod's namespace (default: that in which there is one of the name)")
}

func logsCommand(app *adm.App) *cobra.Command {
	var o adm.LogsOptions
	c := &cobra.Command{
		Use: "logs POD", Short: "Print the log of a container on this edge node; works without a line to the hub",
		Example: "  holdfast logs till\n  holdfast logs shop/till -c main -f --tail 20",
		Args:    onePod,
		RunE: func(c *cobra.Command, args []string) error {
			o.Pod = args[0]
			return app.Logs(c.Context(), o)
		},
	}
	targetFlags(c, &o.Target)
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on, until the container ends")
	f.BoolVarP(&o.Previous, "previous", "p", false, "of the attempt before this one")
	f.Int64Var(&o.Tail, "tail", -1, "so many lines from the end; -1: all")
	f.DurationVar(&o.Since, "since", 0, "what is not older than this, like 5m")
	f.BoolVar(&o.Timestamps, "timestamps", false, "each line with its time")
	f.Int64Var(&o.LimitBytes, "limit-bytes", 0, "no more than so many bytes")
	edgeFlags(c, &o.StatusOptions)
	return c
}

func execCommand(app *adm.App, stdin io.Reader) *cobra.Command {
	o := adm.ExecOptions{Stdin: stdin}
	c := &cobra.Command{
		Use: "exec POD [-i] [-t] -- COMMAND [ARG...]", Short: "Run a command in a container on this edge node; works without a line to the hub",
		Long: `exec runs a command in a container on this edge node. With -i it gets the standard
input, with -t a terminal; -it is a shell. Where the command fails, its exit code is
that of holdfast; 130 says that holdfast was interrupted and left it.`,
		Example: "  holdfast exec till -- ls /data\n  holdfast exec shop/till -c main -it -- sh",
		Args: func(c *cobra.Command, args []string) error {
			dash := c.ArgsLenAtDash()
			if dash < 0 || dash == len(args) {
				return wrong(errors.New("exec needs a command after --: holdfast exec POD -- COMMAND [ARG...]"))
			}
			return onePod(c, args[:dash])
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.Pod, o.Command = args[0], args[1:]
			return app.Exec(c.Context(), o)
		},
	}
	targetFlags(c, &o.Target)
	c.Flags().BoolVarP(&o.Interactive, "stdin", "i", false, "pass the standard input on")
	c.Flags().BoolVarP(&o.TTY, "tty", "t", false, "give the command a terminal")
	edgeFlags(c, &o.StatusOptions)
	return c
}
