package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
)

func nodeCommand(app *adm.App) *cobra.Command {
	var o adm.CloudOptions
	node := &cobra.Command{Use: "node", Short: "List edge nodes, and revoke one that was stolen", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	node.PersistentFlags().StringVar(&o.Kubeconfig, "kubeconfig", "", "of the cluster, with an administrator's rights (default: that of `holdfast init` on this machine, then kubectl's)")
	node.PersistentFlags().StringVar(&o.Config, "config", "", "cloudcore's config file (default /etc/holdfast/cloudcore.yaml)")

	var r adm.RevokeOptions
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Lock out a node whose machine is stolen or lost",
		Long: `revoke voids every certificate that the node was given: its session ends at once on
every hub, and it is not let in again. It then lists the Secrets and service accounts
which the node could read, because pods bound to it refer to them: change those.

Nothing that is on the machine can be taken back, and what runs there goes on
running. Its pods stay bound to it, as those of any edge that is away, unless the Node
is deleted: --delete.

Run it again whenever you like. When the machine is yours again, "holdfast token
create" prints the join command that makes it that node again.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return wrong(errors.New("name the one node to revoke; `holdfast node list` shows them"))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return app.NodeRevoke(c.Context(), o, args[0], r) },
	}
	revoke.Flags().BoolVar(&r.Delete, "delete", false, "delete the Node too, so that its pods run elsewhere")
	revoke.Flags().BoolVar(&r.Force, "force", false, "also where the cluster has no edge node of that name (any more)")

	list := &cobra.Command{Use: "list", Short: "List the edge nodes, and what is revoked", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return app.NodeList(c.Context(), o) }}
	node.AddCommand(list, revoke)
	return node
}
