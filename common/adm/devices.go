package adm

import (
	"context"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// Devices prints the devices of the edge node on this machine, or the one that is
// named NAMESPACE/NAME, asked of edgecore itself.
func (a *App) Devices(ctx context.Context, o StatusOptions, name string) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	runDir, err := o.runDir()
	if err != nil {
		return err
	}
	all, err := localstatus.GetDevices(ctx, runDir)
	if err != nil {
		return asRoot(err)
	}
	if name == "" {
		return a.show(o.Output, all, func() error { return a.devicesTable(all.Devices) })
	}
	at := slices.IndexFunc(all.Devices, func(d localstatus.Device) bool { return d.Namespace+"/"+d.Name == name })
	if at < 0 {
		return fmt.Errorf("this node has no device %s: `holdfast devices` lists those that it has", name)
	}
	return a.show(o.Output, all.Devices[at], func() error { return a.deviceTable(all.Devices[at]) })
}

func (a *App) devicesTable(devices []localstatus.Device) error {
	if len(devices) == 0 {
		a.printf("no devices\n")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tDEVICE\tMODEL\tSTATE\tHEARD\tNOT REPORTED\tPROBLEM")
	for _, d := range devices {
		unreported := 0
		for _, p := range d.Properties {
			unreported += p.Waiting
			if p.Unreported && p.Waiting == 0 {
				unreported++
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", d.Namespace, d.Name, d.Model, d.State, ago(d.Heard), unreported, d.Problem)
	}
	return w.Flush()
}

func (a *App) deviceTable(d localstatus.Device) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "device\t%s/%s\n", d.Namespace, d.Name)
	fmt.Fprintf(w, "model\t%s\n", d.Model)
	if d.Protocol != "" {
		fmt.Fprintf(w, "protocol\t%s\n", d.Protocol)
	}
	fmt.Fprintf(w, "state\t%s, heard %s\n", d.State, ago(d.Heard))
	if d.Problem != "" {
		fmt.Fprintf(w, "problem\t%s\n", d.Problem)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	w = tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\nPROPERTY\tREPORTED\tUNIT\tAGE\tDESIRED\tBY\tNOTE")
	for _, p := range d.Properties {
		note := p.Rejected
		switch {
		case note != "":
		case p.Overridden != "":
			note = "the cloud's newer word ended the local " + p.Overridden
		case p.Waiting > 0:
			note = fmt.Sprintf("%d values wait for the hub", p.Waiting)
		case p.Unreported:
			note = "not reported yet"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, or(p.Reported, "-"), p.Unit, ago(p.At), or(p.Desired, "-"), p.DesiredBy, note)
	}
	return w.Flush()
}

func or(s *string, instead string) string {
	if s == nil {
		return instead
	}
	return *s
}

// ago is how long ago something was by this node's clock.
func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return max(0, time.Since(*t)).Round(time.Second).String() + " ago"
}
