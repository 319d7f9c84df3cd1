package device

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// Cluster is what the Keeper asks of cloud/watch.
type Cluster interface {
	// OnDevices calls f for every device that passes by, and anew when there may be
	// devices that have not.
	OnDevices(f func(*v1beta1.Device), anew func())
	OnNode(func(n *corev1.Node, gone bool))
}

// KeeperOptions are what a Keeper needs.
type KeeperOptions struct {
	Client  *crd.Client          // cloudcore's own identity
	Nodes   kubernetes.Interface // the same
	Cluster Cluster
	Log     *slog.Logger
	// Now is the hub's clock; nil means time.Now.
	Now func() time.Time
}

// Keeper says, for the whole cluster and while this hub leads, what no node can say
// of a device: to which node it is bound, and that its node is silent.
type Keeper struct {
	client  *crd.Client
	cluster kubernetes.Interface
	log     *slog.Logger
	now     func() time.Time
	slowly  flowcontrol.RateLimiter // writes of statuses

	bound, silenced, restored, refused atomic.Uint64
	changes                            atomic.Uint64 // of nodes, as far as they matter

	mu      sync.Mutex
	queue   queue                         // nil: another hub leads
	slow    queue                         // what waits to be written slowly, so that no binding waits behind it
	nodes   map[string]nodeState          // edge nodes
	learned bool                          // nodes holds all
	unbound map[types.NamespacedName]bool // devices for which there is no node

	picking    sync.Mutex
	candidates map[string]candidates // by selector
}

// task is one thing to do: look at one device, at all of a node, or, with neither,
// at everything.
type task struct {
	device types.NamespacedName
	node   string
}

type queue = workqueue.TypedRateLimitingInterface[task]

func newQueue() queue {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[task](100*time.Millisecond, time.Minute))
}

// nodeState is what matters of an edge node. One that says itself that it is not
// ready is not silent: its devices may be well.
type nodeState struct {
	ready, silent bool
	labels        uint64 // a hash
}

const (
	// statusesPerSecond bounds what is written about silent nodes: it is not urgent,
	// and a fleet may fall silent at once.
	statusesPerSecond = 20
	// heardLately is how long a device's last report speaks for its node.
	heardLately = time.Minute
	callTimeout = 20 * time.Second
	pageSize    = 500
)

// NewKeeper returns a Keeper. It is for use before cloud/watch runs.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	k := &Keeper{client: o.Client, cluster: o.Nodes, log: o.Log, now: o.Now,
		slowly: flowcontrol.NewTokenBucketRateLimiter(statusesPerSecond, statusesPerSecond)}
	o.Cluster.OnDevices(k.look, func() { k.add(task{}) })
	o.Cluster.OnNode(k.lookAtNode)
	return k
}

// Lead does what there is to do until ctx ends. Two that lead for a moment do no
// harm: the apiserver refuses the second write.
func (k *Keeper) Lead(ctx context.Context) {
	quick, slow := newQueue(), newQueue()
	k.mu.Lock()
	k.queue, k.slow, k.learned = quick, slow, false
	k.nodes, k.unbound = make(map[string]nodeState), make(map[types.NamespacedName]bool)
	k.mu.Unlock()
	quick.Add(task{})
	var all sync.WaitGroup
	for _, from := range []queue{quick, quick, slow} {
		all.Go(func() {
			for k.step(ctx, from, slow) {
			}
		})
	}
	<-ctx.Done()
	quick.ShutDown()
	slow.ShutDown()
	all.Wait()
	k.mu.Lock()
	k.queue, k.slow, k.nodes, k.unbound = nil, nil, nil, nil
	k.mu.Unlock()
}

func (k *Keeper) add(t task) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue != nil {
		k.queue.Add(t)
	}
}

// look queues a device about which something is to be done.
func (k *Keeper) look(d *v1beta1.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue == nil || !k.learned {
		return // everything will be looked at
	}
	switch k.needs(d) {
	case bind:
		k.queue.Add(task{device: nameOf(d)})
		return
	case silence, restore:
		k.slow.Add(task{device: nameOf(d)})
	}
	delete(k.unbound, nameOf(d))
}

func nameOf(d *v1beta1.Device) types.NamespacedName {
	return types.NamespacedName{Namespace: d.Namespace, Name: d.Name}
}

// need is what is to be done about a device.
type need int

const (
	nothing need = iota
	bind
	silence
	restore
)

// needs says what is to be done about a device; the caller holds mu, and all nodes
// are known.
func (k *Keeper) needs(d *v1beta1.Device) need {
	node, known := k.nodes[d.Spec.NodeName]
	switch {
	case d.DeletionTimestamp != nil:
		return nothing
	case len(d.Spec.NodeSelector) > 0 && (d.Spec.NodeName == "" || !known):
		return bind
	case d.Spec.NodeName == "":
		return nothing
	case (!known || node.silent) != silenced(d):
		if silenced(d) {
			return restore
		}
		return silence
	}
	return nothing
}

// silenced says that a device's status tells that its node is silent.
func silenced(d *v1beta1.Device) bool { return d.Status.Reason == v1beta1.ReasonNodeUnreachable }

// stateOf is what matters of a node.
func stateOf(n *corev1.Node) (s nodeState) {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			s.ready, s.silent = c.Status == corev1.ConditionTrue, c.Status == corev1.ConditionUnknown
		}
	}
	h := fnv.New64a()
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		_, _ = h.Write([]byte(key + "=" + n.Labels[key] + ","))
	}
	s.labels = h.Sum64()
	return s
}

func (k *Keeper) lookAtNode(n *corev1.Node, gone bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue == nil {
		return
	}
	was, known := k.nodes[n.Name]
	if _, edge := n.Labels[roster.LabelEdge]; gone || !edge {
		if known {
			k.changes.Add(1)
			delete(k.nodes, n.Name)
			k.queue.Add(task{node: n.Name})
		}
		return
	}
	now := stateOf(n)
	if k.nodes[n.Name] = now; now != was || !known {
		k.changes.Add(1)
	}
	if !known || was.silent != now.silent {
		k.queue.Add(task{node: n.Name})
	}
	if now.ready && (!was.ready || was.labels != now.labels) {
		for d := range k.unbound {
			k.queue.Add(task{device: d}) // its labels may fit now
		}
	}
}

// step does the next task; false when the queue has ended.
func (k *Keeper) step(ctx context.Context, queue, slow queue) bool {
	t, stop := queue.Get()
	if stop {
		return false
	}
	defer queue.Done(t)
	if ctx.Err() != nil {
		return true
	}
	var err error
	switch {
	case t.device.Name != "":
		err = k.settle(ctx, queue, slow, t)
	case t.node != "":
		err = k.lookAtDevices(ctx, fields.OneTermEqualSelector("spec.nodeName", t.node).String())
	default:
		err = k.lookAtEverything(ctx)
	}
	if err == nil || ctx.Err() != nil {
		queue.Forget(t)
		return true
	}
	switch {
	case apierrors.IsConflict(err): // another's word is newer; the next attempt reads it
	case queue.NumRequeues(t) == 0:
		k.refused.Add(1)
		k.log.Warn("what the cloud has to say of devices cannot be said; trying again", "err", err)
	default:
		k.refused.Add(1)
	}
	queue.AddRateLimited(t)
	return true
}

// lookAtEverything learns all edge nodes, then looks at all devices.
func (k *Keeper) lookAtEverything(ctx context.Context) error {
	o := metav1.ListOptions{Limit: pageSize, LabelSelector: roster.LabelEdge}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*corev1.NodeList, error) { return k.cluster.CoreV1().Nodes().List(ctx, o) })
		if err != nil {
			return fmt.Errorf("list the edge nodes: %w", err)
		}
		k.learn(page.Items)
		o.Continue = page.Continue
	}
	k.mu.Lock()
	k.learned = true
	k.mu.Unlock()
	return k.lookAtDevices(ctx, "")
}

// learn takes nodes from a list; what has passed by meanwhile is newer.
func (k *Keeper) learn(nodes []corev1.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range nodes {
		if _, known := k.nodes[nodes[i].Name]; !known && k.queue != nil {
			k.nodes[nodes[i].Name] = stateOf(&nodes[i])
		}
	}
}

// lookAtDevices looks at those that a field selector chooses. A cluster without
// devices has none.
func (k *Keeper) lookAtDevices(ctx context.Context, which string) error {
	o := metav1.ListOptions{Limit: pageSize, FieldSelector: which}
	for more := true; more; more = o.Continue != "" {
		page, err := call(ctx, func(ctx context.Context) (*v1beta1.DeviceList, error) { return k.client.ListDevices(ctx, o) })
		if apierrors.IsBadRequest(err) && o.FieldSelector != "" {
			o.FieldSelector = "" // a server that cannot select by it
			page, err = call(ctx, func(ctx context.Context) (*v1beta1.DeviceList, error) { return k.client.ListDevices(ctx, o) })
		}
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
			return nil // cloud/watch says what to do about the latter
		}
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for i := range page.Items {
			k.look(&page.Items[i])
		}
		o.Continue = page.Continue
	}
	return nil
}

// settle does what one device needs. A status is written by who works off slow.
func (k *Keeper) settle(ctx context.Context, from, slow queue, t task) error {
	d, err := call(ctx, func(ctx context.Context) (*v1beta1.Device, error) {
		return k.client.Device(ctx, t.device.Namespace, t.device.Name)
	})
	if apierrors.IsNotFound(err) {
		k.wait(t.device, false)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read device %s: %w", t.device, err)
	}
	k.mu.Lock()
	need := nothing
	if k.queue != nil {
		need = k.needs(d)
	}
	k.mu.Unlock()
	if from != slow && (need == silence || need == restore) {
		slow.Add(t)
		return nil
	}
	switch need {
	case bind:
		if err = k.bind(ctx, d); !errors.Is(err, errNoNode) {
			break
		}
		k.wait(t.device, true)
		if from != slow {
			slow.Add(t)
			return nil
		}
		err = k.unboundable(ctx, d)
	case silence:
		if at := d.Status.LastReportTime; at != nil {
			if rest := heardLately - k.now().Sub(at.Time); rest > 0 && rest <= heardLately {
				slow.AddAfter(t, rest)
				return nil
			}
		}
		if err = k.write(ctx, d, Silenced(&d.Status)); err == nil {
			k.silenced.Add(1)
		}
	case restore:
		if err = k.write(ctx, d, Restored(&d.Status)); err == nil {
			k.restored.Add(1)
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Silenced is a status that says that the node cannot be heard, and Restored what
// it was before.
func Silenced(was *v1beta1.DeviceStatus) *v1beta1.DeviceStatus {
	s := *was
	s.ReportedState, s.ReportedReason = was.State, was.Reason
	s.State, s.Reason = v1beta1.StateUnknown, v1beta1.ReasonNodeUnreachable
	return &s
}

// Restored undoes Silenced.
func Restored(was *v1beta1.DeviceStatus) *v1beta1.DeviceStatus {
	s := *was
	s.State, s.Reason = was.ReportedState, was.ReportedReason
	s.ReportedState, s.ReportedReason = "", ""
	return &s
}

// write writes a status as cloudcore, slowly. A conflict is another's newer word;
// the next attempt reads it.
func (k *Keeper) write(ctx context.Context, d *v1beta1.Device, s *v1beta1.DeviceStatus) error {
	if err := k.slowly.Wait(ctx); err != nil {
		return fmt.Errorf("wait to write the status of device %s/%s: %w", d.Namespace, d.Name, err)
	}
	d.Status = *s
	_, err := call(ctx, func(ctx context.Context) (*v1beta1.Device, error) { return k.client.UpdateDeviceStatus(ctx, d) })
	if err != nil {
		return fmt.Errorf("write the status of device %s/%s: %w", d.Namespace, d.Name, err)
	}
	return nil
}

// wait notes whether a device waits for a node that it can be bound to.
func (k *Keeper) wait(device types.NamespacedName, does bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if does && k.unbound != nil {
		k.unbound[device] = true
	} else {
		delete(k.unbound, device)
	}
}

func call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// errNoNode says that a device can be bound nowhere for now.
var errNoNode = errors.New("no edge node that is Ready matches its nodeSelector")
