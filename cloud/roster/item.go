package roster

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Annotations of Holdfast that no edge needs to know: they would only cost
// bytes on the line each time they change.
const (
	// AnnotationTolerations is on pods; see cloud/autonomy.
	AnnotationTolerations = "holdfast.io/tolerations"
	// AnnotationConditions is on nodes; see cloud/report.
	AnnotationConditions = "holdfast.io/conditions"
	// AnnotationHub is on nodes: which hub last wrote them.
	AnnotationHub = "holdfast.io/hub"
	// AnnotationEpoch is on pods and nodes: under which claim of the node their
	// status was written (keps/0011-several-hubs.md).
	AnnotationEpoch = "holdfast.io/epoch"
	// LabelEdge is on every edge node.
	LabelEdge = "holdfast.io/edge"
)

// Item is one object in one version. Items are shared between nodes and never
// changed. An item holds its object encoded and nothing else: decoded, a pod
// takes several times as much, and a hub holds the pods of thousands of nodes.
type Item struct {
	Ref     *wire.ObjectRef
	payload []byte
}

// Object returns the item as it travels.
func (i *Item) Object() (*wire.Object, error) {
	return &wire.Object{Ref: i.Ref, Payload: i.payload}, nil
}

// ID identifies an object at an edge: a kind and a uid, as in the edge's store.
type ID struct {
	Kind wire.Kind
	UID  string
}

// IDOf is the identity of a reference.
func IDOf(r *wire.ObjectRef) ID { return ID{r.GetKind(), r.GetUid()} }

// Key names an object, whatever its uid.
type Key struct {
	Kind            wire.Kind
	Namespace, Name string
}

// KeyOf is the name of a reference.
func KeyOf(r *wire.ObjectRef) Key { return Key{r.GetKind(), r.GetNamespace(), r.GetName()} }

func (k Key) String() string {
	kind := "secret"
	switch k.Kind {
	case wire.Kind_KIND_CONFIG_MAP:
		kind = "configmap"
	case wire.Kind_KIND_POD:
		kind = "pod"
	case wire.Kind_KIND_NODE:
		kind = "node"
	case wire.Kind_KIND_DEVICE_MODEL:
		kind = "devicemodel"
	case wire.Kind_KIND_DEVICE:
		kind = "device"
	case wire.Kind_KIND_ROUTE:
		kind = "route"
	}
	return kind + " " + k.Namespace + "/" + k.Name
}

func newItem(kind wire.Kind, m metav1.ObjectMeta, source interface{ Marshal() ([]byte, error) }) (*Item, error) {
	ref := &wire.ObjectRef{Kind: kind, Namespace: m.Namespace, Name: m.Name, Uid: string(m.UID)}
	payload, err := source.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", wire.Describe(ref), err)
	}
	ref.Version = wire.Version(payload)
	return &Item{Ref: ref, payload: payload}, nil
}

// Pod is the item of a pod: all that a node needs in order to run it, and
// nothing that changes while it runs. It keeps nothing of p.
func Pod(p *corev1.Pod) (*Item, error) {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID,
			GenerateName:               p.GenerateName,
			Generation:                 p.Generation,
			CreationTimestamp:          p.CreationTimestamp,
			DeletionTimestamp:          p.DeletionTimestamp,
			DeletionGracePeriodSeconds: p.DeletionGracePeriodSeconds,
			Labels:                     p.Labels,
			Annotations:                podAnnotations(p),
			OwnerReferences:            p.OwnerReferences,
		},
		Spec: p.Spec,
	}
	// What only a scheduler reads, which has chosen already.
	out.Spec.Affinity, out.Spec.TopologySpreadConstraints = nil, nil
	// cloud/autonomy changes these two in the cloud; a node does nothing by them.
	out.Spec.Tolerations = nil
	for _, t := range p.Spec.Tolerations {
		if t.Key != corev1.TaintNodeNotReady && t.Key != corev1.TaintNodeUnreachable {
			t.TolerationSeconds = nil
			out.Spec.Tolerations = append(out.Spec.Tolerations, t)
		}
	}
	return newItem(wire.Kind_KIND_POD, out.ObjectMeta, out)
}

// podAnnotations are those that containers may see. What kubectl last applied is
// as large as the pod itself, and goes only with a pod that reads annotations.
func podAnnotations(p *corev1.Pod) map[string]string {
	reads := readsAnnotations(&p.Spec)
	return without(p.Annotations, func(k string) bool {
		return k == AnnotationTolerations || k == AnnotationEpoch || k == corev1.LastAppliedConfigAnnotation && !reads
	})
}

// readsAnnotations says that a container sees its pod's annotations, by a
// variable or a file.
func readsAnnotations(s *corev1.PodSpec) bool {
	reads := func(f *corev1.ObjectFieldSelector) bool {
		return f != nil && strings.HasPrefix(f.FieldPath, "metadata.annotations")
	}
	files := func(items []corev1.DownwardAPIVolumeFile) bool {
		return slices.ContainsFunc(items, func(f corev1.DownwardAPIVolumeFile) bool { return reads(f.FieldRef) })
	}
	env := func(env []corev1.EnvVar) bool {
		return slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.ValueFrom != nil && reads(e.ValueFrom.FieldRef) })
	}
	container := func(c corev1.Container) bool { return env(c.Env) }
	return slices.ContainsFunc(s.InitContainers, container) || slices.ContainsFunc(s.Containers, container) ||
		slices.ContainsFunc(s.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return env(c.Env) }) ||
		slices.ContainsFunc(s.Volumes, func(v corev1.Volume) bool {
			return v.DownwardAPI != nil && files(v.DownwardAPI.Items) ||
				v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
					return s.DownwardAPI != nil && files(s.DownwardAPI.Items)
				})
		})
}

// ConfigMap is the item of a ConfigMap: its data; labels and annotations are
// not visible to pods.
func ConfigMap(c *corev1.ConfigMap) (*Item, error) {
	m := bare(c.ObjectMeta)
	return newItem(wire.Kind_KIND_CONFIG_MAP, m, &corev1.ConfigMap{ObjectMeta: m, Data: c.Data, BinaryData: c.BinaryData, Immutable: c.Immutable})
}

// Secret is the item of a Secret.
func Secret(s *corev1.Secret) (*Item, error) {
	m := bare(s.ObjectMeta)
	return newItem(wire.Kind_KIND_SECRET, m, &corev1.Secret{ObjectMeta: m, Data: s.Data, Type: s.Type, Immutable: s.Immutable})
}

// Node is the item of a node's own Node object: labels, annotations and spec.
// Taints and annotations which controllers set on their own account are left
// out, for the edge would only hear of its own silence.
func Node(n *corev1.Node) (*Item, error) {
	m := bare(n.ObjectMeta)
	m.Labels = n.Labels
	m.Annotations = without(n.Annotations, func(k string) bool {
		return k == AnnotationConditions || k == AnnotationHub || k == AnnotationEpoch || k == corev1.LastAppliedConfigAnnotation ||
			strings.HasPrefix(k, "node.alpha.kubernetes.io/") || strings.HasPrefix(k, "volumes.kubernetes.io/")
	})
	out := &corev1.Node{ObjectMeta: m, Spec: n.Spec}
	out.Spec.Taints = nil
	for _, t := range n.Spec.Taints {
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			t.TimeAdded = nil
			out.Spec.Taints = append(out.Spec.Taints, t)
		}
	}
	return newItem(wire.Kind_KIND_NODE, m, out)
}

func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, CreationTimestamp: m.CreationTimestamp}
}

func without(m map[string]string, drop func(string) bool) map[string]string {
	var out map[string]string
	for k, v := range m {
		if drop(k) {
			continue
		}
		if out == nil {
			out = make(map[string]string, len(m))
		}
		out[k] = v
	}
	return out
}

// Terminal says that a pod has run to its end and is not being deleted: a node
// that does not hold it must not be given it, for it would run it again.
func Terminal(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed)
}

// UIDOf is a uid in Kubernetes' type.
func UIDOf(r *wire.ObjectRef) types.UID { return types.UID(r.GetUid()) }
