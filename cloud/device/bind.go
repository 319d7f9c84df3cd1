package device

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// candidates are the nodes that a selector chose a moment ago: many devices are
// often created at once.
type candidates struct {
	nodes []string
	until time.Time
	as    uint64 // Keeper.changes
}

const (
	candidatesFor = 2 * time.Second
	maxSelectors  = 100
)

// bind writes the node of a device that has none, or whose node was deleted. It
// returns errNoNode when there is none for it.
func (k *Keeper) bind(ctx context.Context, d *v1beta1.Device) error {
	if d.Spec.NodeName != "" {
		_, err := call(ctx, func(ctx context.Context) (*corev1.Node, error) {
			return k.cluster.CoreV1().Nodes().Get(ctx, d.Spec.NodeName, metav1.GetOptions{})
		})
		if err == nil {
			return nil // no edge node any more, but it is there
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("look for node %s of device %s/%s: %w", d.Spec.NodeName, d.Namespace, d.Name, err)
		}
	}
	nodes, err := k.matching(ctx, d.Spec.NodeSelector)
	if err != nil {
		return err
	}
	node, err := choose(d, nodes)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": d.UID, "resourceVersion": d.ResourceVersion},
		"spec":     map[string]any{"nodeName": node},
	})
	if err != nil {
		return fmt.Errorf("encode the node of device %s/%s: %w", d.Namespace, d.Name, err)
	}
	if _, err := call(ctx, func(ctx context.Context) (*v1beta1.Device, error) {
		return k.client.PatchDevice(ctx, d.Namespace, d.Name, patch)
	}); err != nil {
		return fmt.Errorf("bind device %s/%s to node %s: %w", d.Namespace, d.Name, node, err)
	}
	k.bound.Add(1)
	k.wait(nameOf(d), false)
	k.log.Info("bound a device", "device", d.Namespace+"/"+d.Name, "uid", d.UID, "node", node, "before", d.Spec.NodeName)
	return nil
}

// unboundable says in a device's status that no node will have it.
func (k *Keeper) unboundable(ctx context.Context, d *v1beta1.Device) error {
	want := d.Status
	if d.Spec.NodeName == "" {
		want.State, want.Reason = v1beta1.StateUnknown, v1beta1.ReasonNoNode
	} else if !silenced(d) {
		want = *Silenced(&d.Status)
	}
	if want.State == d.Status.State && want.Reason == d.Status.Reason {
		return nil
	}
	return k.write(ctx, d, &want)
}

// matching lists the edge nodes that are Ready and that a selector chooses.
func (k *Keeper) matching(ctx context.Context, selector map[string]string) ([]string, error) {
	text := roster.LabelEdge + "," + labels.SelectorFromSet(selector).String()
	k.picking.Lock()
	defer k.picking.Unlock()
	as := k.changes.Load()
	if c, ok := k.candidates[text]; ok && c.as == as && k.now().Before(c.until) {
		return c.nodes, nil
	}
	var names []string
	o := metav1.ListOptions{Limit: pageSize, LabelSelector: text}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*corev1.NodeList, error) { return k.cluster.CoreV1().Nodes().List(ctx, o) })
		if err != nil {
			return nil, fmt.Errorf("list the edge nodes that match %q: %w", text, err)
		}
		for i := range page.Items {
			if n := &page.Items[i]; stateOf(n).ready && n.DeletionTimestamp == nil {
				names = append(names, n.Name)
			}
		}
		o.Continue = page.Continue
	}
	if k.candidates == nil || len(k.candidates) >= maxSelectors {
		k.candidates = make(map[string]candidates)
	}
	k.candidates[text] = candidates{names, k.now().Add(candidatesFor), as}
	return names, nil
}

// choose picks a node for a device by their names alone: the one with the highest
// hash of both. So devices spread, every hub picks the same, and one more node
// takes only its share.
func choose(d *v1beta1.Device, nodes []string) (string, error) {
	best, highest := "", uint64(0)
	for _, n := range nodes {
		sum := sha256.Sum256([]byte(n + "/" + d.Namespace + "/" + d.Name))
		if h := binary.BigEndian.Uint64(sum[:]); best == "" || h > highest || h == highest && n < best {
			best, highest = n, h
		}
	}
	if best == "" {
		return "", fmt.Errorf("device %s/%s: %w", d.Namespace, d.Name, errNoNode)
	}
	return best, nil
}
