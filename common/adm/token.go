package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/common/adm/journal"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// CloudOptions say which cloud a token command is about.
type CloudOptions struct {
	Kubeconfig string // empty: that of `holdfast init` on this machine, or else kubectl's
	Config     string // cloudcore's
}

// TokenCreate makes a token and prints the join command with it, or with quiet
// the token alone.
func (a *App) TokenCreate(ctx context.Context, o CloudOptions, t cluster.NewTokenOptions, quiet bool) error {
	client, c, err := o.enter()
	if err != nil {
		return err
	}
	if quiet {
		token, _, err := cluster.CreateToken(ctx, client, t)
		if err == nil {
			a.printf("%s\n", token)
		}
		return err
	}
	join, err := makeJoinCommand(ctx, client, c, t)
	if err == nil {
		a.printf("%s\n", join)
	}
	return err
}

// makeJoinCommand makes a token and writes what to type on an edge node.
func makeJoinCommand(ctx context.Context, client kubernetes.Interface, c config.Cloud, t cluster.NewTokenOptions) (string, error) {
	ca, err := cluster.GetCA(ctx, client)
	if err != nil {
		return "", fmt.Errorf("%w; has `holdfast init` been run for this cluster?", err)
	}
	token, _, err := cluster.CreateToken(ctx, client, t)
	if err != nil {
		return "", err
	}
	hub := "HUB:" + config.HubPort
	if len(c.AdvertiseAddresses) > 0 {
		hub = advertised(c)
	}
	return fmt.Sprintf("    holdfast join %s --token %s \\\n        --ca-hash %s", hub, token, ca.Hash()), nil
}

// TokenList prints the tokens; their secrets are known to nobody any more.
func (a *App) TokenList(ctx context.Context, o CloudOptions) error {
	client, _, err := o.enter()
	if err != nil {
		return err
	}
	tokens, err := cluster.ListTokens(ctx, client)
	if len(tokens) == 0 && err == nil {
		a.printf("There are no tokens; `holdfast token create` makes one.\n")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tEXPIRES\tLEFT\tUSES\tDESCRIPTION")
	for _, t := range tokens {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Expires.Format(time.RFC3339), left(t.Expires), uses(t.Uses), t.Description)
	}
	return errors.Join(w.Flush(), err)
}

func left(expires time.Time) string {
	d := time.Until(expires)
	if d <= 0 {
		return "expired"
	}
	return d.Round(time.Second).String()
}

func uses(n int) string {
	switch {
	case n == 0:
		return "any"
	case n < 0:
		return "none left"
	}
	return fmt.Sprint(n)
}

// TokenDelete deletes tokens. A whole token serves as well as its id.
func (a *App) TokenDelete(ctx context.Context, o CloudOptions, ids []string) error {
	for i, id := range ids {
		ids[i], _, _ = strings.Cut(id, ".")
		if err := pki.CheckTokenID(ids[i]); err != nil {
			return usage("%w", err)
		}
	}
	client, _, err := o.enter()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := cluster.DeleteToken(ctx, client, id); err != nil {
			errs = append(errs, err)
			continue
		}
		a.printf("token %s deleted: nobody can join with it any more\n", id)
	}
	return errors.Join(errs...)
}

// enter finds the cluster and, where it is on this machine, cloudcore's config.
func (o CloudOptions) enter() (kubernetes.Interface, config.Cloud, error) {
	path := o.Config
	if path == "" {
		path = config.CloudPath
	}
	c, err := config.LoadCloud(path)
	switch {
	case err != nil && o.Config == "" && !exists(path):
		c = config.DefaultCloud()
		c.AdvertiseAddresses = nil
	case err != nil:
		return nil, c, err
	}
	kubeconfig := o.Kubeconfig
	if kubeconfig == "" {
		j, err := journal.Load(c.DataDir)
		switch {
		case err == nil:
			kubeconfig = j.Kubeconfig
		case !errors.Is(err, fs.ErrNotExist):
			return nil, c, err
		}
	}
	if kubeconfig == "" {
		kubeconfig = defaultKubeconfig()
	}
	if kubeconfig == "" {
		return nil, c, usage("no kubeconfig: `holdfast init` was not run on this machine, so name one with --kubeconfig")
	}
	admin, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, c, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	admin.Timeout = 30 * time.Second
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return nil, c, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return client, c, nil
}

// defaultKubeconfig is the one that kubectl would use, if there is one.
func defaultKubeconfig() string {
	candidates := filepath.SplitList(os.Getenv("KUBECONFIG"))
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, filepath.Join(home, ".kube", "config"))
	}
	for _, path := range candidates {
		if path != "" && exists(path) {
			return path
		}
	}
	return ""
}
