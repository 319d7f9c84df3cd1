package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"weak"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// holdBack is how long a new pod waits for objects that it refers to and that
// cannot be read yet. The Node authorizer learns of a bound pod a little later
// than the binding, so that the first reads of what it refers to are refused.
// After that the pod is sent anyway: the edge waits for the objects.
const holdBack = 5 * time.Second

// resolver works out what one connected node must hold. It remembers what it has read, and reads again only what has
// changed.
type resolver struct {
	cluster *Cluster
	node    string
	read    map[roster.Key]*reading
	now     func() time.Time
}

// reading is what is known of one referenced object.
type reading struct {
	item    *roster.Item // nil: not there, or never read
	version string       // resource version of what was read; "" for absent
	seen    string       // what the watch had last said before it was read
	known   bool         // false: reading it fails, as err says
	err     error
	since   time.Time // of the first failure
}

// Resolver returns a function that works out what a node must hold now; one
// goroutine may call it at a time. Objects that cannot be read are in Unknown;
// the error then says why for one of them, and the function is to be called
// again after a while. A nil Wanted means that nothing at all is known. The node
// must be followed.
func (c *Cluster) Resolver(node string) func(context.Context) (*roster.Wanted, error) {
	r := &resolver{cluster: c, node: node, read: make(map[roster.Key]*reading), now: time.Now}
	return r.resolve
}

func (r *resolver) resolve(ctx context.Context) (*roster.Wanted, error) {
	c := r.cluster
	if !c.Synced() {
		return nil, errors.New("the cluster is not followed yet")
	}
	devices, err := c.load(ctx, r.node)
	if err != nil {
		return nil, err
	}
	pods, known := c.pods.get(r.node)
	nodes, also := c.nodes.get(r.node)
	if !known || !also {
		return nil, fmt.Errorf("objects of node %s: %w", r.node, errStale)
	}
	refs := make(map[roster.Key]bool)
	for _, p := range pods {
		if !p.terminal {
			for _, k := range p.refs {
				refs[k] = true
			}
		}
	}
	seen, err := c.refer(r.node, refs)
	if err != nil {
		return nil, err
	}
	err = r.readAll(ctx, refs, seen)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := &roster.Wanted{
		Items: make(map[roster.ID]*roster.Item), Terminal: make(map[roster.ID]bool),
		Unknown: make(map[roster.Key]bool), Held: make(map[roster.ID]bool),
	}
	for k := range refs {
		got := r.read[k]
		if got.item != nil {
			w.Items[roster.IDOf(got.item.Ref)] = got.item
		}
		if !got.known {
			w.Unknown[k] = true
		}
	}
	for _, n := range nodes {
		w.Items[roster.IDOf(n.item.Ref)] = n.item
	}
	r.addPods(w, pods)
	return w, errors.Join(err, devices, c.addDevices(w, r.node, nodes))
}

func (r *resolver) addPods(w *roster.Wanted, pods []*keptPod) {
	for _, p := range pods {
		id := roster.IDOf(p.item.Ref)
		w.Items[id] = p.item
		w.Terminal[id] = p.terminal
		for _, k := range p.refs {
			if got := r.read[k]; got != nil && !got.known && got.item == nil && r.now().Sub(got.since) < holdBack {
				w.Held[id] = true
			}
		}
	}
}

// current says that nothing has come by since the object was read: nothing at
// all, or only what is not newer than what was read.
func (g *reading) current(seen string) bool {
	if !g.known {
		return false
	}
	cmp, ok := order(seen, g.version)
	return seen == g.seen || ok && cmp <= 0
}

// parallelReads bounds the reads of one node.
const parallelReads = 4

// readAll reads what is new or has changed, and forgets what nobody refers to.
func (r *resolver) readAll(ctx context.Context, refs map[roster.Key]bool, seen map[roster.Key]string) error {
	for k := range r.read {
		if !refs[k] {
			delete(r.read, k)
		}
	}
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		first error
		slots = make(chan struct{}, parallelReads)
	)
	for k := range refs {
		was := r.read[k]
		if was == nil {
			was = &reading{}
			r.read[k] = was
		}
		if was.current(seen[k]) {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := r.readOne(ctx, k, was, seen[k]); err != nil {
				mu.Lock()
				defer mu.Unlock()
				first = err
			}
		})
	}
	all.Wait()
	return first
}

// readOne reads an object as the node. Not found is an answer; everything else
// that goes wrong is not, and what was known of the object stays.
func (r *resolver) readOne(ctx context.Context, k roster.Key, into *reading, seen string) error {
	item, version, err := r.cluster.fetch(ctx, r.node, k)
	switch {
	case err == nil:
		*into = reading{item: item, version: version, seen: seen, known: true}
	case apierrors.IsNotFound(err):
		*into = reading{seen: seen, known: true}
	default:
		if into.since.IsZero() || into.known {
			into.since = r.now()
		}
		into.known, into.err = false, err
		return fmt.Errorf("read %s as node %s: %w", k, r.node, err)
	}
	return nil
}

// fetch reads a ConfigMap or Secret from the apiserver in the node's name.
func (c *Cluster) fetch(ctx context.Context, node string, k roster.Key) (*roster.Item, string, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return nil, "", err
	}
	defer release()
	ctx, cancel := context.WithTimeout(asnode.With(ctx, node), readTimeout)
	defer cancel()
	var (
		item    *roster.Item
		version string
	)
	if k.Kind == wire.Kind_KIND_CONFIG_MAP {
		obj, err := c.asNode.CoreV1().ConfigMaps(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
		if err != nil {
			return nil, "", err
		}
		version = obj.ResourceVersion
		if item, err = roster.ConfigMap(obj); err != nil {
			return nil, "", err
		}
	} else {
		obj, err := c.asNode.CoreV1().Secrets(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
		if err != nil {
			return nil, "", err
		}
		version = obj.ResourceVersion
		if item, err = roster.Secret(obj); err != nil {
			return nil, "", err
		}
	}
	return c.share(k, item), version, nil
}

// share returns one item for all nodes that hold the same version of an object.
// A node comes here only with what it was allowed to read itself.
func (c *Cluster) share(k roster.Key, item *roster.Item) *roster.Item {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	if was := c.shared[k].Value(); was != nil && string(was.Ref.Version) == string(item.Ref.Version) && was.Ref.Uid == item.Ref.Uid {
		return was
	}
	c.shared[k] = weak.Make(item)
	return item
}

func (c *Cluster) forget(k roster.Key) {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	delete(c.shared, k)
}

// Gone asks the apiserver itself whether a pod that a node holds is no longer
// meant for it: there is none of that name, or it has another uid, or is bound
// to another node. An error means that nobody knows.
func (c *Cluster) Gone(ctx context.Context, node string, ref *wire.ObjectRef) (bool, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	p, err := c.client.CoreV1().Pods(ref.GetNamespace()).Get(ctx, ref.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("confirm that %s is gone: %w", wire.Describe(ref), err)
	}
	return p.UID != roster.UIDOf(ref) || p.Spec.NodeName != node, nil
}
