package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// StatusOptions say which edge to ask, and how to show the answer.
type StatusOptions struct {
	Config string // edgecore's; its runDir counts unless RunDir is given
	RunDir string
	Output string // table or json
}

// Status prints how the edge node on this machine is, asked of edgecore itself:
// it works without a line to the hub.
func (a *App) Status(ctx context.Context, o StatusOptions) error {
	if o.Output != "table" && o.Output != "json" {
		return usage("--output %q: use table or json", o.Output)
	}
	runDir, err := o.runDir()
	if err != nil {
		return err
	}
	s, err := localstatus.Get(ctx, runDir)
	if err != nil {
		return asRoot(err)
	}
	if o.Output == "json" {
		return a.json(s)
	}
	return a.table(s)
}

// runDir is where the edgecore to ask has its socket.
func (o StatusOptions) runDir() (string, error) {
	if o.RunDir != "" {
		return o.RunDir, nil
	}
	path := o.Config
	if path == "" {
		path = config.EdgePath
	}
	if o.Config == "" && !exists(path) {
		return config.DefaultEdge().RunDir, nil
	}
	c, err := config.LoadEdge(path)
	return c.RunDir, err
}

func asRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run it with sudo", err)
	}
	return err
}

func (a *App) json(document any) error {
	b, err := json.MarshalIndent(document, "", "  ")
	if err == nil {
		a.printf("%s\n", b)
	}
	return err
}

func (a *App) table(s localstatus.Status) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "node\t%s\n", s.Node)
	fmt.Fprintf(w, "ready\t%s\n", yes(s.Ready, s.ReadyReason))
	fmt.Fprintf(w, "line\t%s\n", line(s.Line))
	fmt.Fprintf(w, "database\t%s, %d objects, %.1f MiB\n", s.Store.Path, s.Store.Objects, float64(s.Store.Bytes)/(1<<20))
	if s.Store.Recovery != "" {
		fmt.Fprintf(w, "recovered\t%s\n", s.Store.Recovery)
	}
	if s.Store.EventsDropped > 0 {
		fmt.Fprintf(w, "dropped\t%d events, the oldest first, while the hub was away\n", s.Store.EventsDropped)
	}
	fmt.Fprintf(w, "outbox\t%d reports that the hub has not taken yet\n", s.Outbox)
	fmt.Fprintf(w, "edgecore\t%s, up %s\n", s.Version, since(s.Started))
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Pods) == 0 {
		a.printf("\nno pods\n")
		return nil
	}
	w = tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\nNAMESPACE\tPOD\tPHASE\tRESTARTS\tREASON")
	for _, p := range s.Pods {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", p.Namespace, p.Name, p.Phase, p.Restarts, p.Reason)
	}
	return w.Flush()
}

func yes(ok bool, why string) string {
	switch {
	case ok:
		return "yes"
	case why == "":
		return "no"
	}
	return "no: " + why
}

func line(l localstatus.Line) string {
	switch {
	case l.Connected && l.Synced:
		return fmt.Sprintf("connected to %s over %s for %s, all received", l.Hub, l.Transport, since(l.Since))
	case l.Connected:
		return fmt.Sprintf("connected to %s over %s for %s, still receiving", l.Hub, l.Transport, since(l.Since))
	case l.Since.IsZero():
		return "cut; pods run as last known" + because(l.LastError)
	}
	return fmt.Sprintf("cut for %s; pods run as last known%s", since(l.Since), because(l.LastError))
}

func because(err string) string {
	if err == "" {
		return ""
	}
	return " (" + err + ")"
}

func since(t time.Time) string { return time.Since(t).Round(time.Second).String() }
