package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/holdfast-edge/holdfast/common/fleet"
)

// Bounds of what is read for one node's page.
const (
	maxReads      = 8 // nodes at a time
	readTimeout   = 20 * time.Second
	goodFor       = 2 * time.Second
	maxKept       = 64 // readings
	maxEvents     = 100
	maxNamespaces = 8
	// maxScanned is how many Events of pods are gone through in one namespace: they
	// can be asked for by pod, but an apiserver would go through all for each.
	maxScanned = 2000
)

// reading is what the apiserver said of a node.
type reading struct {
	at      time.Time
	node    *corev1.Node
	pods    []fleet.Pod
	events  []event
	remarks []string
}

// event is an Event with the namespace whose reader may see it.
type event struct {
	fleet.Event
	namespace string
}

// details keeps readings for moments: who looks at one page asks again and again.
type details struct {
	slots chan struct{}

	mu   sync.Mutex
	kept map[string]*pending
}

// pending is a reading under way, for all who want it.
type pending struct {
	done    chan struct{}
	reading *reading // once done is closed
}

func newDetails() details {
	return details{slots: make(chan struct{}, maxReads), kept: make(map[string]*pending)}
}

// forget drops the readings that are old.
func (d *details) forget(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.kept, func(_ string, p *pending) bool { return p.stale(now) })
}

// errUnknown says that there is no such node.
type errUnknown struct{ node string }

func (e *errUnknown) Error() string {
	return fmt.Sprintf("there is no edge node %s: `kubectl get nodes -l holdfast.io/edge` lists them", e.node)
}

// Rights say what a viewer may see beyond nodes.
type Rights struct {
	Pods   bool
	Events func(namespace string) bool
}

// Detail is one node as the viewer may see it.
func (f *Fleet) Detail(ctx context.Context, node string, may Rights) (fleet.Detail, error) {
	f.mu.Lock()
	known := f.records[node] != nil
	f.mu.Unlock()
	if !known {
		return fleet.Detail{}, &errUnknown{node}
	}
	got, err := f.read(ctx, node)
	if err != nil {
		return fleet.Detail{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.records[node]
	if r == nil {
		return fleet.Detail{}, &errUnknown{node}
	}
	f.turn()
	one := row{name: node, r: r, state: f.presently(r)}
	d := fleet.Detail{Node: f.describe(&one, nil), Line: r.spans(), PodList: []fleet.Pod{}, Events: []fleet.Event{}, Conditions: []fleet.Condition{}, Remarks: slices.Clone(got.remarks)}
	if got.node != nil {
		d.Conditions = conditionsOf(got.node)
	}
	if may.Pods {
		d.PodList = got.pods
	} else {
		d.Remarks = append(d.Remarks, "you may not list pods")
	}
	hidden := false
	for _, e := range got.events {
		if may.Events(e.namespace) {
			d.Events = append(d.Events, e.Event)
		} else {
			hidden = true
		}
	}
	if hidden {
		d.Remarks = append(d.Remarks, "you may not list all of the events")
	}
	return d, nil
}

// read reads what the apiserver knows of a node, or takes what another has just read.
func (f *Fleet) read(ctx context.Context, node string) (*reading, error) {
	d := &f.details
	d.mu.Lock()
	p := d.kept[node]
	if p != nil && !p.stale(f.now()) {
		d.mu.Unlock()
		select {
		case <-p.done:
			return p.reading, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if len(d.kept) >= maxKept {
		maps.DeleteFunc(d.kept, func(_ string, p *pending) bool { return p.stale(f.now()) })
	}
	if len(d.kept) >= maxKept {
		d.mu.Unlock()
		return nil, fmt.Errorf("the pages of %d nodes are being read now: try again in a moment", maxKept)
	}
	p = &pending{done: make(chan struct{})}
	d.kept[node] = p
	d.mu.Unlock()
	// For all who wait, so that it does not end with the one who came first.
	go func() {
		defer close(p.done)
		d.slots <- struct{}{}
		defer func() { <-d.slots }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		p.reading = f.readNow(ctx, node)
	}()
	select {
	case <-p.done:
		return p.reading, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// stale says that the reading is over, and long ago.
func (p *pending) stale(now time.Time) bool {
	select {
	case <-p.done:
		age := now.Sub(p.reading.at)
		return age < 0 || age > goodFor
	default:
		return false
	}
}

// readNow asks the apiserver; what it does not say is told from what the hub has,
// with a remark.
func (f *Fleet) readNow(ctx context.Context, node string) *reading {
	var got reading
	var errs [3]error
	var pods []corev1.Pod
	var lease *coordinationv1.Lease
	var all sync.WaitGroup
	all.Go(func() {
		got.node, errs[0] = call(ctx, func(ctx context.Context) (*corev1.Node, error) {
			return f.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		})
	})
	all.Go(func() {
		if pods, errs[1] = f.listPods(ctx, node); errs[1] != nil {
			pods = f.heldPods(node)
		}
	})
	all.Go(func() { lease, errs[2] = f.readLease(ctx, node) })
	all.Wait()
	if errs[0] != nil {
		got.node = f.cluster.Node(node)
	}
	if apierrors.IsNotFound(errs[0]) {
		got.remarks = append(got.remarks, "the node has no Node in the cluster (any more): it writes one when it has connected")
	} else if errs[0] != nil {
		got.remarks = append(got.remarks, "the apiserver does not answer, and what is here may be old: "+errs[0].Error())
	} else if errs[1] != nil {
		got.remarks = append(got.remarks, errs[1].Error())
	}
	if len(pods) >= maxPods {
		got.remarks = append(got.remarks, fmt.Sprintf("the first %d pods are shown", maxPods))
	}
	got.pods = make([]fleet.Pod, len(pods))
	for i := range pods {
		got.pods[i] = podOf(&pods[i])
	}
	slices.SortFunc(got.pods, func(a, b fleet.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	if errs[0] == nil {
		f.readEvents(ctx, node, pods, &got)
	}
	got.at = f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[node]; r != nil && errs[2] == nil && r.session == "" {
		f.takeLease(r, lease)
	}
	return &got
}

// heldPods are those that the hub holds, without most of their status.
func (f *Fleet) heldPods(node string) []corev1.Pod {
	held, err := f.cluster.Pods(node)
	if err != nil {
		return nil
	}
	pods := make([]corev1.Pod, len(held))
	for i, p := range held {
		pods[i] = *p
	}
	return pods
}

// readEvents reads the Events of the node, which are in namespace default, and of its
// pods.
func (f *Fleet) readEvents(ctx context.Context, node string, pods []corev1.Pod, got *reading) {
	own := fields.Set{"involvedObject.kind": "Node", "involvedObject.name": node}
	f.scanEvents(ctx, metav1.NamespaceDefault, own, func(*corev1.Event) bool { return true }, got)
	byNamespace := make(map[string]map[string]bool)
	for i := range pods {
		p := &pods[i]
		if byNamespace[p.Namespace] == nil {
			byNamespace[p.Namespace] = make(map[string]bool)
		}
		byNamespace[p.Namespace][p.Name] = true
	}
	for i, namespace := range slices.Sorted(maps.Keys(byNamespace)) {
		if i == maxNamespaces {
			got.remarks = append(got.remarks, fmt.Sprintf("the events of pods of the first %d namespaces are shown", maxNamespaces))
			break
		}
		names := byNamespace[namespace]
		f.scanEvents(ctx, namespace, fields.Set{"involvedObject.kind": "Pod"}, func(e *corev1.Event) bool { return names[e.InvolvedObject.Name] }, got)
	}
	slices.SortStableFunc(got.events, func(a, b event) int { return b.At.Compare(a.At) })
	got.events = got.events[:min(len(got.events), maxEvents)]
}

func (f *Fleet) scanEvents(ctx context.Context, namespace string, which fields.Set, ours func(*corev1.Event) bool, got *reading) {
	o := metav1.ListOptions{FieldSelector: which.String(), Limit: pageSize}
	for scanned := 0; ; {
		page, err := call(ctx, func(ctx context.Context) (*corev1.EventList, error) {
			return f.client.CoreV1().Events(namespace).List(ctx, o)
		})
		if err != nil {
			got.remarks = append(got.remarks, fmt.Sprintf("the events of namespace %s cannot be read: %v", namespace, err))
			return
		}
		for i := range page.Items {
			if e := &page.Items[i]; ours(e) {
				got.events = append(got.events, event{eventOf(e), namespace})
			}
		}
		scanned += len(page.Items)
		if o.Continue = page.Continue; o.Continue == "" {
			return
		}
		if scanned >= maxScanned {
			got.remarks = append(got.remarks, fmt.Sprintf("namespace %s has more than %d events of pods, and not all were gone through", namespace, maxScanned))
			return
		}
	}
}

func eventOf(e *corev1.Event) fleet.Event {
	out := fleet.Event{
		At: e.LastTimestamp.Time, Type: e.Type, Reason: e.Reason, Message: e.Message, Count: max(e.Count, 1),
		Object: e.InvolvedObject.Kind + "/" + e.InvolvedObject.Name,
	}
	if e.InvolvedObject.Namespace != "" {
		out.Object = e.InvolvedObject.Kind + "/" + e.InvolvedObject.Namespace + "/" + e.InvolvedObject.Name
	}
	if e.Series != nil {
		out.At, out.Count = e.Series.LastObservedTime.Time, e.Series.Count
	}
	if out.At.IsZero() {
		out.At = cmp.Or(e.EventTime.Time, e.CreationTimestamp.Time)
	}
	out.At = telling(out.At)
	return out
}

// telling is a time that a document can carry: it comes from a node, which may say
// any.
func telling(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

func conditionsOf(n *corev1.Node) []fleet.Condition {
	all := make([]fleet.Condition, len(n.Status.Conditions))
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		all[i] = fleet.Condition{Type: string(c.Type), Status: string(c.Status), Reason: c.Reason, Message: c.Message, Since: telling(c.LastTransitionTime.Time)}
	}
	return all
}

// podOf is a pod in a line; its reason is the first trouble of its containers.
func podOf(p *corev1.Pod) fleet.Pod {
	out := fleet.Pod{Namespace: p.Namespace, Name: p.Name, Phase: string(p.Status.Phase), Ready: podReady(p), Reason: p.Status.Reason}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		out.Restarts += s.RestartCount
		if out.Reason == "" {
			out.Reason = troubleIn(&s)
		}
	}
	if p.DeletionTimestamp != nil && out.Reason == "" {
		out.Reason = "Terminating"
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		out.Containers = append(out.Containers, c.Name)
	}
	for i := range p.Spec.EphemeralContainers {
		out.Containers = append(out.Containers, p.Spec.EphemeralContainers[i].Name)
	}
	return out
}

func troubleIn(s *corev1.ContainerStatus) string {
	switch {
	case s.State.Waiting != nil && s.State.Waiting.Reason != "PodInitializing":
		return s.State.Waiting.Reason
	case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
		return fmt.Sprintf("%s (exit code %d)", s.State.Terminated.Reason, s.State.Terminated.ExitCode)
	case s.LastTerminationState.Terminated != nil && !s.Ready:
		return "last: " + s.LastTerminationState.Terminated.Reason
	}
	return ""
}
