package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
)

func doctorCommand(app *adm.App) *cobra.Command {
	var o adm.StatusOptions
	c := &cobra.Command{
		Use: "doctor", Short: "Say whether this edge node would survive a reboot without the cloud", Args: noArguments,
		Long: `doctor looks whether this edge node, with every pod that it runs now, would come back
from a reboot without the cloud: images, ConfigMaps, Secrets, tokens, volumes, the
database, the clock, the certificate, and what starts edgecore at boot. It names what
is amiss with the remedy. It works without a line to the hub; where edgecore does not
run, it tells what can be seen from outside.

The exit code is 0 when the node is ready, and 1 when it is not. The Node condition
OfflineReady says the same in the cloud.`,
		RunE: func(c *cobra.Command, _ []string) error { return app.Doctor(c.Context(), o) },
	}
	outageFlags(c, &o)
	return c
}

func drillCommand(app *adm.App) *cobra.Command {
	var o adm.DrillOptions
	c := &cobra.Command{
		Use: "drill", Short: "Rehearse an outage on this edge node: cut its own line, restart the runtime, report", Args: noArguments,
		Long: `drill proves what doctor says: it holds this node's own line to the hub down for a
stated time, restarts the container runtime meanwhile, watches that every pod that was
ready is ready again without the cloud, lets the line go, waits until the hub has heard
everything, and reports. The exit code is 0 when all of that went well.

The line comes back by itself at the end of the time, whatever becomes of this command;
Ctrl-C lets it go at once. Only the line to the hub is cut: what pods themselves say
over the network goes on.`,
		Example: "  holdfast drill\n  holdfast drill --for 10m\n  holdfast drill --restart-runtime=false -o json",
		RunE:    func(c *cobra.Command, _ []string) error { return app.Drill(c.Context(), o) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.DurationVar(&o.For, "for", 2*time.Minute, "how long the line is held down, 10s to 1h")
	f.BoolVar(&o.RestartRuntime, "restart-runtime", true, "restart the container runtime meanwhile")
	f.StringVar(&o.RuntimeCommand, "runtime-command", adm.DefaultRuntimeCommand, "the `command` that restarts it, run by sh")
	f.BoolVar(&o.Force, "force", false, "drill also when doctor finds the node not ready, or the line down")
	outageFlags(c, &o.StatusOptions)
	return c
}

func outageFlags(c *cobra.Command, o *adm.StatusOptions) {
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.RunDir, "run-dir", "", "edgecore's run folder (default: that of its config file)")
	f.StringVar(&o.Config, "config", "", "edgecore's config file (default /etc/holdfast/edgecore.yaml)")
	f.StringVarP(&o.Output, "output", "o", "table", "table, json or yaml")
}
