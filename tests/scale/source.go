package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

const namespace = "shops"

func nodeName(n int) string { return fmt.Sprintf("edge-%05d", n) }

// source is the cluster's objects in memory, in place of cloud/watch: for each
// node its Node, some pods, and the one ConfigMap that every pod refers to. It is
// complete before the first node connects, so that what a hub takes for each node
// does not contain it; a lazy one, of a hub that was started again, makes a node's
// objects when they are asked for.
type source struct {
	pods  int // of each node
	root  *roster.Item
	nodes map[string]*wanted
	names []string
	ready *corev1.Node // what caches would show of every node: nothing to mend
}

// wanted is what one node must hold.
type wanted struct {
	mu        sync.Mutex
	number    int
	items     []*roster.Item // of pods first
	followers []chan struct{}
}

func newSource(nodes, pods int, lazy bool) (*source, error) {
	s := &source{pods: pods, nodes: make(map[string]*wanted, nodes), ready: &corev1.Node{
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}}
	var err error
	s.root, err = roster.ConfigMap(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kube-root-ca.crt", UID: "0c000000-0000-4000-8000-000000000000"},
		Data:       map[string]string{"ca.crt": string(make([]byte, 1100))},
	})
	if err != nil {
		return nil, err
	}
	for n := range nodes {
		w := &wanted{number: n}
		if !lazy {
			if err := s.fill(w); err != nil {
				return nil, err
			}
		}
		s.nodes[nodeName(n)] = w
		s.names = append(s.names, nodeName(n))
	}
	return s, nil
}

// fill makes a node's objects, if they are not there; w.mu is held, or nobody
// else has w.
func (s *source) fill(w *wanted) error {
	if w.items != nil {
		return nil
	}
	items := make([]*roster.Item, 0, s.pods+2)
	for p := range s.pods {
		item, err := roster.Pod(podOf(w.number, p, time.Time{}))
		if err != nil {
			return err
		}
		items = append(items, item)
	}
	node, err := roster.Node(nodeOf(nodeName(w.number)))
	if err != nil {
		return err
	}
	w.items = append(items, node, s.root)
	return nil
}

// changedAt is an annotation with the time of a change, by which an edge knows
// how long the change was on its way.
const changedAt = "scale.example.test/at"

func podOf(node, number int, changed time.Time) *corev1.Pod {
	uid := types.UID(fmt.Sprintf("a%07d-0000-4000-8000-%012d", number, node))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprintf("till-%d-%05d", number, node), UID: uid, GenerateName: "till-",
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000, 0)),
			Labels:            map[string]string{"app": "till", "pod-template-hash": "7c5ddbdf54", "controller-revision-hash": "59b8d9f7c9"},
			OwnerReferences:   []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "till", UID: "d0000000-0000-4000-8000-000000000000"}},
		},
		Spec: corev1.PodSpec{
			NodeName: nodeName(node), ServiceAccountName: "till", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example.test/shop/till:1.4.2", Args: []string{"--listen", ":8080", "--site", "north"},
				Env:   []corev1.EnvVar{{Name: "NODE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "spec.nodeName"}}}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "trust", ReadOnly: true, MountPath: "/etc/trust"}},
			}},
			Volumes: []corev1.Volume{{Name: "trust", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}}}},
			Tolerations: []corev1.Toleration{{Key: "holdfast.io/edge", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
		},
	}
	if !changed.IsZero() {
		p.Annotations = map[string]string{changedAt: strconv.FormatInt(changed.UnixNano(), 10)}
	}
	return p
}

func nodeOf(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: types.UID("n-" + name),
		Labels: map[string]string{
			"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", roster.LabelEdge: "",
		},
	}}
}

// Follow is part of hub.Cluster.
func (s *source) Follow(node string) (<-chan struct{}, func()) {
	w := s.nodes[node]
	ch := make(chan struct{}, 1)
	if w == nil {
		return ch, func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followers = append(w.followers, ch)
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, f := range w.followers {
			if f == ch {
				w.followers = append(w.followers[:i], w.followers[i+1:]...)
				return
			}
		}
	}
}

// Resolver is part of hub.Cluster.
func (s *source) Resolver(node string) func(context.Context) (*roster.Wanted, error) {
	return func(context.Context) (*roster.Wanted, error) {
		w := s.nodes[node]
		if w == nil {
			return nil, fmt.Errorf("node %s is not in the source", node)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := s.fill(w); err != nil {
			return nil, err
		}
		items := make(map[roster.ID]*roster.Item, len(w.items))
		for _, i := range w.items {
			items[roster.IDOf(i.Ref)] = i
		}
		return &roster.Wanted{Items: items}, nil
	}
}

// Gone, Node and Pods are part of hub.Cluster.
func (s *source) Gone(context.Context, string, *wire.ObjectRef) (bool, error) { return true, nil }
func (s *source) Node(string) *corev1.Node                                    { return s.ready }
func (s *source) Pods(string) ([]*corev1.Pod, error)                          { return nil, nil }

// change gives one pod of a node a new version that bears the time.
func (s *source) change(node string, pod int, at time.Time) error {
	w := s.nodes[node]
	item, err := roster.Pod(podOf(w.number, pod, at))
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := s.fill(w); err != nil {
		return err
	}
	w.items[pod] = item
	for _, f := range w.followers {
		select {
		case f <- struct{}{}:
		default:
		}
	}
	return nil
}

// generate changes objects at a steady rate for a while, over all nodes in a
// random order. A change that is made late, because the machine is busy, still
// bears the time at which it was due.
func (s *source) generate(ctx context.Context, rate, pods int, during time.Duration) (made int, err error) {
	order := rand.Perm(len(s.names))
	every := time.Second / time.Duration(rate)
	total := int(during / every)
	began := time.Now()
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for made < total {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return made, ctx.Err()
		}
		for made < total && time.Since(began) >= time.Duration(made)*every {
			due := began.Add(time.Duration(made) * every)
			if err := s.change(s.names[order[made%len(order)]], made/len(order)%pods, due); err != nil {
				return made, err
			}
			made++
		}
	}
	return made, nil
}

// sink takes the place of cloud/report: every report is accepted at once.
type sink struct {
	accepted, claimed, renewed atomic.Uint64
}

// Write is part of hub.Reports.
func (k *sink) Write(_ context.Context, _ string, _ report.Epoch, r *wire.Report) (*wire.ReportResult, error) {
	k.accepted.Add(1)
	return &wire.ReportResult{Id: r.GetId(), Code: wire.ResultCode_RESULT_ACCEPTED}, nil
}

// Claim is part of hub.Reports.
func (k *sink) Claim(context.Context, string, string) (report.Epoch, error) {
	return report.Epoch(k.claimed.Add(1)), nil
}

// Token is part of hub.Reports.
func (k *sink) Token(_ context.Context, _ string, ask *wire.TokenAsk) *wire.TokenAnswer {
	return &wire.TokenAnswer{Id: ask.GetId(), Code: wire.ResultCode_RESULT_REJECTED, Message: "there is no apiserver"}
}

// Renew is part of hub.Reports.
func (k *sink) Renew(context.Context, string, report.Epoch) error {
	k.renewed.Add(1)
	return nil
}

// RestoreNode and RestoreReady are part of hub.Reports.
func (k *sink) RestoreNode(context.Context, string, report.Epoch) error { return nil }
func (k *sink) NeedsEndpoint(*corev1.Node) (needs, known bool)          { return false, true }

func (k *sink) RestoreReady(context.Context, string, report.Epoch, *corev1.Pod) error {
	return nil
}
