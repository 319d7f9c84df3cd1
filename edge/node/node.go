package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

const (
	// KubernetesVersion is the kubelet whose behaviour this build follows;
	// schedulers and kubectl read it off the node.
	KubernetesVersion = "v1.36.3"
	// EdgeLabel marks a node of Holdfast's.
	EdgeLabel = "holdfast.io/edge"
	// An apiserver gives a node up after 40 s; whoever was away for less need
	// not say again that it is there.
	givenUpAfter = 20 * time.Second

	metaConditions = "node-conditions"
	metaAddress    = "node-address"
)

// Options of New.
type Options struct {
	Name      string
	NodeIP    string   // configured address; empty: found
	Hubs      []string // HOST:PORT, to find the address by
	DataDir   string   // whose file system is the node's ephemeral storage
	MaxPods   int
	Labels    map[string]string
	Taints    []string // key[=value]:Effect, for the registration
	Interval  time.Duration
	Version   string // edgecore's
	Store     *store.Store
	Runtime   func(context.Context) (runtime.Info, error)
	Line      func() (connected bool, since time.Time) // nil: never connected
	LineEvent func() <-chan struct{}                   // closed when Line may say something else
	// Outage is what the condition OfflineReady says; known: it says something already.
	// nil: there is no such condition. Wake makes a change known at once.
	Outage func() (ready bool, reason, message string, known bool)
	Log    *slog.Logger
	Root   string // where /proc and /etc are; empty: /
}

// Node watches this machine.
type Node struct {
	o       Options
	files   files
	machine machine
	taints  []corev1.Taint

	// owned by Run
	conditions *conditions
	reported   *corev1.Node
	disk       disk

	everReported atomic.Bool
	wake         chan struct{}

	mu        sync.Mutex
	addresses *addresses
	hostIP    string
	capacity  corev1.ResourceList
	ready     corev1.NodeCondition
}

// New looks at the machine once. It does not wait for the runtime or a network.
func New(o Options) (*Node, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Interval <= 0 {
		o.Interval = 10 * time.Second
	}
	if o.Line == nil {
		o.Line = func() (bool, time.Time) { return false, time.Time{} }
	}
	if o.LineEvent == nil {
		o.LineEvent = func() <-chan struct{} { return nil }
	}
	n := &Node{o: o, files: files{o.Root}, wake: make(chan struct{}, 1)}
	var err error
	if n.machine, err = n.files.machine(); err != nil {
		return nil, err
	}
	if n.taints, err = parseTaints(o.Taints); err != nil {
		return nil, err
	}
	if n.disk, err = statDisk(o.DataDir); err != nil {
		return nil, err
	}
	n.capacity = n.machine.capacity(n.disk, o.MaxPods)
	ctx := context.Background()
	var before []corev1.NodeCondition
	if b, err := o.Store.Meta(ctx, metaConditions); err == nil {
		_ = json.Unmarshal(b, &before) // unreadable: the conditions begin anew
	}
	n.conditions = newConditions(n.machine, before)
	last, _ := o.Store.Meta(ctx, metaAddress) // absent at the first start
	n.addresses = newAddresses(o.NodeIP, o.Hubs, string(last))
	n.hostIP = n.addresses.find()
	return n, nil
}

func parseTaints(texts []string) ([]corev1.Taint, error) {
	var taints []corev1.Taint
	for _, text := range texts {
		rest, effect, ok := strings.Cut(text, ":")
		key, value, _ := strings.Cut(rest, "=")
		if !ok || key == "" || effect == "" {
			return nil, fmt.Errorf("taint %q: write key=value:Effect or key:Effect", text)
		}
		taints = append(taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return taints, nil
}

// HostIPs are the node's addresses, the main one first; empty when none is known.
func (n *Node) HostIPs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hostIP == "" {
		return nil
	}
	return []string{n.hostIP}
}

// Capacity is what the machine has.
func (n *Node) Capacity() corev1.ResourceList {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.capacity)
}

// Ready is the Ready condition as last judged.
func (n *Node) Ready() (bool, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready.Status == corev1.ConditionTrue, n.ready.Message
}

// Reported says whether this process has put the node's status into the outbox.
func (n *Node) Reported() bool { return n.everReported.Load() }

// Wake makes Run look now: the runtime has just answered, or gone.
func (n *Node) Wake() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// firstLook is how long Run waits for a Wake before it looks for the first time: a
// node whose edgecore was merely restarted must not be reported as not ready.
const firstLook = 5 * time.Second

// whileNotReady is how often a node that is not ready looks whether it is.
const whileNotReady = time.Second

// Run looks at the machine every interval until ctx ends, and reports changes.
func (n *Node) Run(ctx context.Context) error {
	changes, cancel := n.o.Store.Subscribe(16)
	defer cancel()
	select {
	case <-ctx.Done():
		return nil
	case <-n.wake:
	case <-time.After(firstLook):
	}
	timer := time.NewTimer(n.o.Interval)
	defer timer.Stop()
	connected, since := n.o.Line()
	force := false
	for {
		if err := n.look(ctx, force); err != nil && ctx.Err() == nil {
			n.o.Log.Error("the node's status could not be stored; it is tried again", "err", err)
			n.reported = nil
		}
		force = false
		next := n.o.Interval
		if ready, _ := n.Ready(); !ready {
			next = min(next, whileNotReady)
		}
		timer.Reset(next)
		event := n.o.LineEvent() // taken before Line, so that nothing falls between
		was, wasSince := connected, since
		connected, since = n.o.Line()
		if connected && !was && since.Sub(wasSince) >= givenUpAfter {
			// The apiserver may have given the node up. What waits in the outbox will tell it otherwise.
			pending, err := n.o.Store.Pending(ctx, wire.ReportKind_REPORT_NODE, n.o.Name)
			if force = err != nil || !pending; force {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-n.wake:
		case <-event:
		case c, ok := <-changes:
			if !ok {
				return fmt.Errorf("node %s: %w", n.o.Name, store.ErrClosed)
			}
			if c.Kind == wire.Kind_KIND_NODE && c.Deleted && c.Name == n.o.Name {
				n.o.Log.Warn("the Node object was deleted in the cluster; the node registers again")
				force = true
			}
		}
	}
}

// look judges the machine and reports it when something that others can see has
// changed, or when forced.
func (n *Node) look(ctx context.Context, force bool) error {
	now := time.Now()
	var s seen
	s.runtime, s.runtimeErr = n.o.Runtime(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, available, err := n.files.memory()
	if err != nil {
		return err
	}
	s.available = available
	s.threads, s.threadsMax = n.files.threads()
	s.disk, s.diskErr = statDisk(n.o.DataDir)
	n.addresses.resolve(ctx)

	before, hadBefore := n.conditions.current[corev1.NodeReady]
	if n.o.Outage != nil {
		s.outage.ready, s.outage.reason, s.outage.message, s.outage.known = n.o.Outage()
	}
	judged := n.conditions.judge(s, now)
	ready := judged[len(judged)-1]
	n.mu.Lock()
	previousIP := n.hostIP
	n.hostIP, n.ready = n.addresses.find(), ready
	if s.diskErr != nil {
		s.disk = n.disk
	}
	n.disk = s.disk
	n.capacity = n.machine.capacity(s.disk, n.o.MaxPods)
	hostIP := n.hostIP
	n.mu.Unlock()
	if n.reported == nil || !hadBefore || before.Status != ready.Status || before.Reason != ready.Reason {
		n.o.Log.Info("the node is "+map[bool]string{true: "ready", false: "not ready"}[ready.Status == corev1.ConditionTrue],
			"reason", ready.Reason, "message", ready.Message)
	}
	node := n.object(s, judged, hostIP)
	if !force && n.reported != nil && !visiblyChanged(n.reported, node) {
		return nil
	}
	payload, err := node.Marshal()
	if err != nil {
		return fmt.Errorf("encode the node's status: %w", err)
	}
	if err := n.o.Store.PutReport(ctx, store.Report{Kind: wire.ReportKind_REPORT_NODE, Key: n.o.Name, Payload: payload}); err != nil {
		return err
	}
	n.reported = node
	n.everReported.Store(true)
	return n.remember(ctx, judged, hostIP, previousIP)
}

// remember keeps what must outlive a restart: since when the conditions hold, and
// the address, which cannot be found while the line is cut.
func (n *Node) remember(ctx context.Context, judged []corev1.NodeCondition, ip, previousIP string) error {
	b, err := json.Marshal(judged)
	if err != nil {
		return fmt.Errorf("encode the node's conditions: %w", err)
	}
	if err := n.o.Store.SetMeta(ctx, metaConditions, b); err != nil {
		return err
	}
	if ip == "" || ip == previousIP && n.o.NodeIP != "" {
		return nil
	}
	return n.o.Store.SetMeta(ctx, metaAddress, []byte(ip))
}

// object is the Node that the hub is told of.
func (n *Node) object(s seen, conditions []corev1.NodeCondition, ip string) *corev1.Node {
	labels := maps.Clone(n.o.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelHostname] = n.o.Name
	labels[corev1.LabelOSStable] = goruntime.GOOS
	labels[corev1.LabelArchStable] = goruntime.GOARCH
	labels[EdgeLabel] = "true"
	addresses := []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.o.Name}}
	if ip != "" {
		addresses = append([]corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}, addresses...)
	}
	d := s.disk
	runtimeVersion := ""
	if s.runtimeErr == nil {
		runtimeVersion = s.runtime.Name + "://" + s.runtime.Version
	} else if n.reported != nil { // it is still installed
		runtimeVersion = n.reported.Status.NodeInfo.ContainerRuntimeVersion
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.o.Name, Labels: labels},
		Spec:       corev1.NodeSpec{Taints: n.taints},
		Status: corev1.NodeStatus{
			Capacity:    n.machine.capacity(d, n.o.MaxPods),
			Allocatable: n.machine.allocatable(d, n.o.MaxPods),
			Addresses:   addresses,
			Conditions:  conditions,
			NodeInfo: corev1.NodeSystemInfo{
				MachineID: n.machine.machineID, SystemUUID: n.machine.systemUUID, BootID: n.machine.bootID,
				KernelVersion: n.machine.kernel, OSImage: n.machine.osName,
				ContainerRuntimeVersion: runtimeVersion,
				KubeletVersion:          KubernetesVersion + "-holdfast-" + n.o.Version,
				OperatingSystem:         goruntime.GOOS, Architecture: goruntime.GOARCH,
			},
		},
	}
}

// visiblyChanged compares all but the heartbeats and the conditions' messages: a
// runtime that is down may say so in ever new words.
func visiblyChanged(a, b *corev1.Node) bool {
	var encoded [2][]byte
	for i, n := range []*corev1.Node{a, b} {
		n = n.DeepCopy()
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].LastHeartbeatTime = metav1.Time{}
			n.Status.Conditions[i].Message = ""
		}
		var err error
		if encoded[i], err = n.Marshal(); err != nil {
			return true
		}
	}
	return !bytes.Equal(encoded[0], encoded[1])
}
