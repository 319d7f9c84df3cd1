package enroll

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
)

const (
	firstRead = 10 * time.Second
	// repeatEvery is how often OnRevoked hears of every revocation again: a node that
	// was let in at the moment of its revocation does not stay.
	repeatEvery = 10 * time.Second
)

// RevocationsOptions are what Revocations needs.
type RevocationsOptions struct {
	Client kubernetes.Interface
	// OnRevoked hears of each revocation, at once and again from time to time: the
	// node's certificates that were signed at or before that time are void. It must
	// return soon.
	OnRevoked func(node string, before time.Time)
	// FirstRead is how long a node waits at the door of a hub that has just started
	// and does not know yet who is revoked; 0: 10 s.
	FirstRead time.Duration
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// Revocations follows the cluster's list of revoked nodes. Before it was read
// once, nobody is admitted; while the apiserver is away, what was read last
// counts.
type Revocations struct {
	client    kubernetes.Interface
	onRevoked func(string, time.Time)
	firstRead time.Duration
	log       *slog.Logger
	now       func() time.Time

	current atomic.Pointer[cluster.Revoked] // never changed once stored
	read    chan struct{}                   // closed when it was read once
}

// NewRevocations returns one that Run keeps.
func NewRevocations(o RevocationsOptions) *Revocations {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OnRevoked == nil {
		o.OnRevoked = func(string, time.Time) {}
	}
	return &Revocations{client: o.Client, onRevoked: o.OnRevoked, firstRead: cmp.Or(o.FirstRead, firstRead), log: o.Log, now: o.Now, read: make(chan struct{})}
}

// Run follows the list until ctx ends.
func (r *Revocations) Run(ctx context.Context) error {
	maps := r.client.CoreV1().ConfigMaps(cluster.Namespace)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, cluster.RevokedConfigMap).String()
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return maps.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return maps.Watch(ctx, o)
			},
		},
		ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { r.take(o) },
			UpdateFunc: func(_, o any) { r.take(o) },
			DeleteFunc: func(any) { r.take(nil) },
		},
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		controller.RunWithContext(ctx)
	}()
	defer func() { <-done }()
	if cache.WaitForCacheSync(ctx.Done(), controller.HasSynced) && r.current.CompareAndSwap(nil, new(cluster.Revoked)) {
		close(r.read) // there is none, or its event comes now
	}
	tick := time.NewTicker(repeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if now := r.current.Load(); now != nil {
				r.tell(*now)
			}
		}
	}
}

// take replaces the list; anything but a ConfigMap is none.
func (r *Revocations) take(o any) {
	m, _ := o.(*corev1.ConfigMap)
	next, err := cluster.ReadRevoked(m)
	if err != nil {
		r.log.Error("the list of revoked nodes cannot be read whole", "err", err)
	}
	var was cluster.Revoked
	if p := r.current.Swap(&next); p != nil {
		was = *p
	} else {
		close(r.read)
	}
	for node, before := range next {
		if old, known := was[node]; !known || !old.Equal(before) {
			r.log.Info("the node's certificates are revoked", "node", node, "before", before)
		}
	}
	for node := range was {
		if _, still := next[node]; !still {
			r.log.Info("the node's certificates are no longer revoked", "node", node)
		}
	}
	r.tell(next)
}

func (r *Revocations) tell(all cluster.Revoked) {
	for node, before := range all {
		r.onRevoked(node, before)
	}
}

// Admit says whether a certificate of that node, signed then, still counts; for
// link.AcceptOptions. Right after the start it waits for the list.
func (r *Revocations) Admit(node string, issued time.Time) error {
	late := time.NewTimer(r.firstRead)
	defer late.Stop()
	select {
	case <-r.read:
	case <-late.C:
		return fmt.Errorf("this hub has not read yet who is revoked (it cannot reach the cluster's apiserver): node %s may not connect before", node)
	}
	return admit(*r.current.Load(), node, issued, r.now())
}

func admit(all cluster.Revoked, node string, issued, now time.Time) error {
	if before, void := all.Void(node, issued, now); void {
		return fmt.Errorf("the certificate of node %s is revoked (those issued until %s are): if this machine shall be that node again, run \"holdfast token create\" where the cluster is administered and the join command that it prints here",
			node, before.UTC().Format(time.RFC3339))
	}
	return nil
}

// forget removes entries that void nothing any more.
func (r *Revocations) forget(ctx context.Context) {
	now := r.current.Load()
	if now == nil || len(now.Old(r.now())) == 0 {
		return
	}
	forgotten, err := cluster.ForgetRevoked(ctx, r.client, r.now())
	if err != nil && ctx.Err() == nil {
		r.log.Warn("old revocations stay for now", "err", err)
	}
	if len(forgotten) > 0 {
		r.log.Info("forgot revocations of certificates that have ended long ago", "nodes", forgotten)
	}
}
