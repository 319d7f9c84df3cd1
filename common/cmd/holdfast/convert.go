package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/common/adm"
)

func convertCommand(app *adm.App, stdin io.Reader) *cobra.Command {
	convert := &cobra.Command{Use: "convert", Short: "Turn KubeEdge's manifests into Holdfast's", Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	o := adm.ConvertOptions{In: stdin}
	devices := &cobra.Command{
		Use: "devices", Short: "Turn KubeEdge's Devices, DeviceModels and Rules into Holdfast's",
		Long: `devices reads KubeEdge's manifests and writes Holdfast's, as YAML that "kubectl apply"
takes. Nothing is changed in any cluster.

    Device, DeviceModel (devices.kubeedge.io v1beta1, v1alpha2)
        become those of devices.holdfast.io/v1beta1. Fields keep their names. A status
        is left out: nodes report it anew. reportToCloud is always written, since
        KubeEdge takes it for false where it is missing, and Holdfast for true.
    Rule, with its RuleEndpoints (rules.kubeedge.io v1)
        becomes a Route, up from eventbus to rest and down from rest to eventbus.

Whatever has no place is named in a warning. Where anything cannot be converted, the
command says what to do, and writes nothing.`,
		Example: `  # from a cluster with KubeEdge into one with Holdfast
  kubectl --context old get devicemodels,devices -A -o yaml > kubeedge.yaml
  holdfast convert devices -f kubeedge.yaml -o holdfast.yaml
  kubectl --context new apply -f holdfast.yaml

  # a folder of manifests, of which others are passed over
  holdfast convert devices -f manifests/ --skip-others | kubectl apply -f -`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return wrong(fmt.Errorf("%s takes files with -f, and %q was given without", c.CommandPath(), args[0]))
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			o.Warnings = c.ErrOrStderr()
			return app.ConvertDevices(o)
		},
	}
	f := devices.Flags()
	f.SortFlags = false
	f.StringSliceVarP(&o.Files, "filename", "f", []string{"-"}, "files, or folders with .yaml, .yml and .json files; - for the standard input")
	f.StringVarP(&o.Output, "output", "o", "", "file to write (default: the standard output)")
	f.BoolVar(&o.SkipOthers, "skip-others", false, "pass over objects of other kinds")
	convert.AddCommand(devices)
	return convert
}
