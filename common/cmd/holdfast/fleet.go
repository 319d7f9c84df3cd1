package main

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
)

func fleetCommand(app *adm.App) *cobra.Command {
	var o adm.FleetOptions
	c := &cobra.Command{
		Use: "fleet", Short: "Print the address of the fleet's web page, with a token that opens it", Args: noArguments,
		Long: `fleet prints the address of the web page on which this hub shows all edge nodes, with
the token that opens it. It is for root on the hub's machine; others use a Kubernetes
token of an account that may list nodes, such as "kubectl create token" makes.`,
		RunE: func(*cobra.Command, []string) error { return app.Fleet(o) },
	}
	c.Flags().StringVar(&o.Config, "config", "", "cloudcore's config file (default /etc/holdfast/cloudcore.yaml)")
	c.Flags().BoolVarP(&o.Quiet, "quiet", "q", false, "print the address alone")
	return c
}
