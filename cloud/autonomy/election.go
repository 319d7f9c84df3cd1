package autonomy

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseNamespace and LeaseName are where hubs agree on which of them patches pods.
const (
	LeaseNamespace = "holdfast-system"
	LeaseName      = "holdfast-autonomy"
)

// Timing holds the election's patience; zero values mean the defaults. A hub that
// dies is replaced after Lease and at most 2.2 times Retry.
type Timing struct {
	Lease time.Duration // how long a leader that is not heard is waited for (12 s; whole seconds)
	Renew time.Duration // how long a leader tries to say that it is there before it gives up (8 s)
	Retry time.Duration // how often a leader says so, and others look (2 s)
}

func (t Timing) withDefaults() Timing {
	if t == (Timing{}) {
		return Timing{Lease: 12 * time.Second, Renew: 8 * time.Second, Retry: 2 * time.Second}
	}
	return t
}

// Run patches whenever this hub leads, until ctx ends. A hub that is alone leads
// at once. Two that lead for a moment do no harm: both write the same.
func (k *Keeper) Run(ctx context.Context) error {
	if k.cluster.WaitSynced(ctx) != nil {
		return nil // ctx has ended
	}
	led := make(chan context.Context)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: LeaseNamespace, Name: LeaseName},
			Client:     k.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: k.hub},
		},
		LeaseDuration: k.timing.Lease, RenewDeadline: k.timing.Renew, RetryPeriod: k.timing.Retry,
		ReleaseOnCancel: true, Name: LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				select {
				case led <- ctx:
				case <-ctx.Done():
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("elect who keeps pods: %w", err)
	}
	k.checkRights(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		for ctx.Err() == nil {
			elector.Run(ctx) // until this hub leads no more
		}
	})
	for {
		select {
		case lead := <-led:
			k.lead(lead)
		case <-ctx.Done():
			return nil
		}
	}
}

// checkRights says what to do when this cloudcore was given its rights by an
// earlier version.
func (k *Keeper) checkRights(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := k.client.CoordinationV1().Leases(LeaseNamespace).Get(ctx, LeaseName, metav1.GetOptions{})
	if apierrors.IsForbidden(err) {
		k.log.Error("pods of silent nodes are not kept, because hubs may not agree on who does it: run \"holdfast init\" again, or apply build/manifests", "err", err)
	}
}
