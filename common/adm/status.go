package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-edge/holdfast/common/adm/show"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// StatusOptions say whom to ask, and how to show the answer.
type StatusOptions struct {
	Config string // edgecore's or cloudcore's; its runDir counts unless RunDir is given
	RunDir string
	Output string // table, json or yaml

	Edge, Cloud bool   // only this side of a machine that may have both
	Node        string // of the cloud: this node alone
	Offline     bool   // of the cloud: the nodes that are not connected
}

// askPatience bounds a question to a daemon. Each answers within a few seconds, or
// hangs.
const askPatience = 30 * time.Second

// Status prints how the edge node on this machine is, asked of edgecore itself, which
// works without a line to the hub; or the nodes of the cloud on this machine, asked of
// cloudcore; or both.
func (a *App) Status(ctx context.Context, o StatusOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	sides, err := o.sides()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	switch {
	case sides.edge && sides.cloud:
		return a.bothStatus(ctx, o)
	case sides.cloud:
		return a.cloudStatus(ctx, o)
	}
	s, err := o.askEdge(ctx)
	if err != nil {
		return err
	}
	return a.show(o.Output, s, func() error { return show.Edge(a.Out, s) })
}

// bothStatus is that of a machine which is a node of its own cloud, or of another. What
// answers is shown though the other does not.
func (a *App) bothStatus(ctx context.Context, o StatusOptions) error {
	var both struct {
		Edge  *localstatus.Status `json:"edge,omitempty"`
		Cloud *fleet.Fleet        `json:"cloud,omitempty"`
	}
	s, edgeErr := o.askEdge(ctx)
	if edgeErr == nil {
		both.Edge = &s
	}
	f, cloudErr := o.askFleet(ctx)
	if cloudErr == nil {
		both.Cloud = &f
	}
	err := a.show(o.Output, both, func() error {
		var err error
		if both.Edge != nil {
			err = show.Edge(a.Out, s)
		}
		if both.Edge != nil && both.Cloud != nil {
			a.printf("\n")
		}
		if both.Cloud != nil {
			err = errors.Join(err, show.Fleet(a.Out, f))
		}
		return err
	})
	return errors.Join(err, edgeErr, cloudErr)
}

// sides says what of this machine is asked.
type sides struct{ edge, cloud bool }

func (o StatusOptions) sides() (sides, error) {
	ofCloud := o.Node != "" || o.Offline
	switch {
	case o.Edge && (o.Cloud || ofCloud):
		return sides{}, usage("--edge is this machine's own node: leave out --cloud, --offline and a node's name")
	case o.Edge:
		return sides{edge: true}, nil
	case ofCloud && !o.Cloud && o.Config == "" && o.RunDir == "" && !present().cloud:
		return sides{}, usage("a node's name and --offline are for a server, and there is no %s on this machine: ask there, or name a config file with --config", config.CloudPath)
	case o.Cloud || ofCloud:
		return sides{cloud: true}, nil
	case o.Config != "":
		cloud, err := config.IsCloud(o.Config)
		return sides{edge: !cloud, cloud: cloud}, err
	case o.RunDir != "":
		cloud := exists(filepath.Join(o.RunDir, fleet.SocketName))
		return sides{edge: !cloud || exists(filepath.Join(o.RunDir, localstatus.SocketName)), cloud: cloud}, nil
	}
	found := present()
	if !found.edge && !found.cloud {
		return found, fmt.Errorf("this machine is neither an edge node (there is no %s) nor a cloud (%s): name a config file with --config, or the folder of the socket with --run-dir", config.EdgePath, config.CloudPath)
	}
	return found, nil
}

// present says what this machine is, by the files and sockets where they are when
// nobody says otherwise.
func present() sides {
	return sides{
		edge:  exists(config.EdgePath) || exists(filepath.Join(config.DefaultEdge().RunDir, localstatus.SocketName)),
		cloud: exists(config.CloudPath) || exists(filepath.Join(config.DefaultCloud().RunDir, fleet.SocketName)),
	}
}

func (o StatusOptions) check() error {
	if o.Node != "" && o.Offline {
		return usage("--offline lists nodes: leave out the name of one")
	}
	if o.Node != "" {
		if err := pki.CheckNodeName(o.Node); err != nil {
			return usage("%v; `holdfast status --cloud` lists the nodes", err)
		}
	}
	return o.checkOutput()
}

func (o StatusOptions) checkOutput() error {
	switch o.Output {
	case "table", "json", "yaml":
		return nil
	}
	return usage("--output %q: use table, json or yaml", o.Output)
}

// askEdge asks the edgecore on this machine.
func (o StatusOptions) askEdge(ctx context.Context) (localstatus.Status, error) {
	runDir, err := o.runDir()
	if err != nil {
		return localstatus.Status{}, err
	}
	s, err := localstatus.Get(ctx, runDir)
	return s, asRoot(err)
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

// show prints a document for programs, or has it shown to people.
func (a *App) show(output string, document any, table func() error) error {
	switch output {
	case "json":
		return a.json(document)
	case "yaml":
		b, err := yaml.Marshal(document)
		if err == nil {
			a.printf("%s", b)
		}
		return err
	}
	return table()
}

func (a *App) json(document any) error {
	b, err := json.MarshalIndent(document, "", "  ")
	if err == nil {
		a.printf("%s\n", b)
	}
	return err
}

// list names a few of many, in one line.
func list(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
