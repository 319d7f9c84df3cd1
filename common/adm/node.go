package adm

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// edgeLabel marks the Nodes that are edges.
const edgeLabel = "holdfast.io/edge"

// RevokeOptions say what to do with a node that is not trusted any more.
type RevokeOptions struct {
	Delete bool // delete the Node, so that its pods run elsewhere
	Force  bool // also where the cluster has no such edge node
}

// NodeRevoke voids every certificate that the node has, and says what its
// machine may have read. It may be run again, with Delete too.
func (a *App) NodeRevoke(ctx context.Context, o CloudOptions, name string, r RevokeOptions) error {
	if err := pki.CheckNodeName(name); err != nil {
		return usage("%w", err)
	}
	client, _, err := o.enter()
	if err != nil {
		return err
	}
	there, err := edgeThere(ctx, client, name, r.Force)
	if err != nil {
		return err
	}
	before, err := cluster.Revoke(ctx, client, name)
	if err != nil {
		return fmt.Errorf("revoke node %s: %w", name, err)
	}
	a.printf("Node %s is revoked: every certificate that it was given until %s is void.\n", name, before.Format(time.RFC3339))
	a.printf("The hubs end its session at once, and do not let it in again.\n")
	var exposed exposure
	if there {
		if exposed, err = exposedTo(ctx, client, name); err != nil {
			return fmt.Errorf("the node is revoked, but what it could read cannot be listed: %w", err)
		}
		a.tellExposure(name, exposed)
	}
	switch {
	case there && r.Delete:
		if err := client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("node %s is revoked, but its Node object cannot be deleted (run this again, or `kubectl delete node %s`): %w", name, name, err)
		}
		a.printf("\nThe Node is deleted: within a minute or so its pods are too, and controllers make new ones elsewhere.\nWhat runs on the machine itself goes on running there; only who has the machine can stop it.\n")
	case there:
		a.printf("\nIts %d pods stay bound to it, as those of any edge that is away. To have them run elsewhere,\nwhich also voids their tokens: `holdfast node revoke %s --delete`\n", exposed.pods, name)
	}
	a.printf("\nIf the machine is yours again: `holdfast token create`, and the join command that it prints there.\n")
	return nil
}

// edgeThere says whether the cluster has that edge node. Unless forced, it is an
// error that it has none: the name may be mistyped.
func edgeThere(ctx context.Context, client kubernetes.Interface, name string, force bool) (bool, error) {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && force:
		return false, nil
	case apierrors.IsNotFound(err):
		return false, fmt.Errorf("the cluster has no node %s: `holdfast node list` shows the edge nodes; if it was deleted, and its machine may still have a certificate, add --force", name)
	case err != nil:
		return false, fmt.Errorf("look for node %s: %w", name, err)
	case node.Labels[edgeLabel] != "true" && !force:
		return false, fmt.Errorf("node %s is no edge node of Holdfast, so that its kubelet's certificate is not ours to revoke; if an edge was given that name once, add --force", name)
	}
	return node.Labels[edgeLabel] == "true", nil
}

// exposure is what a node could read because pods that are bound to it refer to
// it.
type exposure struct {
	pods     int
	secrets  map[string]bool // namespace/name
	accounts map[string]bool
}

func exposedTo(ctx context.Context, client kubernetes.Interface, node string) (exposure, error) {
	e := exposure{secrets: map[string]bool{}, accounts: map[string]bool{}}
	options := metav1.ListOptions{FieldSelector: "spec.nodeName=" + node, Limit: 500}
	for {
		pods, err := client.CoreV1().Pods("").List(ctx, options)
		if err != nil {
			return e, fmt.Errorf("list the pods of node %s: %w", node, err)
		}
		e.pods += len(pods.Items)
		for i := range pods.Items {
			if err := e.add(&pods.Items[i]); err != nil {
				return e, err
			}
		}
		if options.Continue = pods.Continue; options.Continue == "" {
			return e, nil
		}
	}
}

// add notes what the pod refers to. A Secret's name stands in some twenty places
// of a pod's spec, and the next release of Kubernetes may add one; in its JSON they
// all look alike.
func (e *exposure) add(pod *corev1.Pod) error {
	if account := pod.Spec.ServiceAccountName; account != "" {
		e.accounts[pod.Namespace+"/"+account] = true
	}
	b, err := json.Marshal(pod.Spec)
	if err != nil {
		return fmt.Errorf("read pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	var spec any
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("read pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	for _, name := range secretsIn(spec, "") {
		e.secrets[pod.Namespace+"/"+name] = true
	}
	return nil
}

// secretsIn finds the names of Secrets in a part of a pod's spec that stands
// under that key.
func secretsIn(part any, key string) (names []string) {
	switch v := part.(type) {
	case []any:
		for _, one := range v {
			names = append(names, secretsIn(one, key)...)
		}
	case map[string]any:
		for k, one := range v {
			names = append(names, secretsIn(one, k)...)
		}
		for _, nameKey := range secretNameKeys(key) {
			if name, _ := v[nameKey].(string); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// secretNameKeys are the keys of a Secret's name in an object under that key.
func secretNameKeys(key string) []string {
	switch {
	case key == "secret": // of a volume, and of a part of a projected volume
		return []string{"secretName", "name"}
	case key == "azureFile":
		return []string{"secretName"}
	case strings.HasPrefix(strings.ToLower(key), "secret") && strings.HasSuffix(key, "Ref"), // env, envFrom, old volumes
		strings.HasSuffix(key, "SecretRef"), key == "imagePullSecrets":
		return []string{"name"}
	}
	return nil
}

func (a *App) tellExposure(node string, e exposure) {
	if len(e.secrets)+len(e.accounts) == 0 {
		a.printf("\nNo pod bound to %s refers to a Secret or a service account.\n", node)
		return
	}
	a.printf("\nWho has the machine may know what is in these Secrets: change their contents.\n")
	for _, s := range slices.Sorted(maps.Keys(e.secrets)) {
		a.printf("    secret %s\n", s)
	}
	if len(e.secrets) == 0 {
		a.printf("    (none)\n")
	}
	a.printf("and may have tokens of these service accounts, which end with their pods, or by themselves\nafter about an hour:\n")
	for _, s := range slices.Sorted(maps.Keys(e.accounts)) {
		a.printf("    serviceaccount %s\n", s)
	}
	a.printf("Pods that ran there earlier may have referred to more.\n")
}

// NodeList prints the edge nodes, and those that are revoked.
func (a *App) NodeList(ctx context.Context, o CloudOptions) error {
	client, _, err := o.enter()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: edgeLabel + "=true"})
	if err != nil {
		return fmt.Errorf("list the edge nodes: %w", err)
	}
	revoked, err := cluster.GetRevoked(ctx, client)
	if err != nil {
		return err
	}
	states := make(map[string]string, len(nodes.Items))
	for name := range revoked {
		states[name] = "no Node"
	}
	for i := range nodes.Items {
		states[nodes.Items[i].Name] = readiness(&nodes.Items[i])
	}
	if len(states) == 0 {
		a.printf("There are no edge nodes; `holdfast token create` prints the command that makes one.\n")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATUS\tREVOKED")
	for _, name := range slices.Sorted(maps.Keys(states)) {
		until := "-"
		if before, is := revoked[name]; is {
			until = "certificates until " + before.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, states[name], until)
	}
	return w.Flush()
}

func readiness(node *corev1.Node) string {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return "Ready"
		}
	}
	return "NotReady"
}
