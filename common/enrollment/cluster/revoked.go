package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// RevokedConfigMap holds, by node, until when certificates that were signed for
// it are void (RFC 3339).
const RevokedConfigMap = "holdfast-revoked"

const (
	// skew is how far a hub's clock may be ahead of the apiserver's: what such a hub
	// signed just before a revocation is void too.
	skew = 10 * time.Minute
	// keepRevoked is how long a revocation is remembered: until every certificate
	// that it voids has ended and is past the grace in which its key could renew it.
	keepRevoked = pki.MaxNodeTTL + pki.MaxRenewGrace
)

// Revoked says which certificates are void: those of a node that were signed at
// or before its time.
type Revoked map[string]time.Time

// ReadRevoked reads the ConfigMap; nil is an empty one. An entry that cannot be
// read voids every certificate of its node, and is named in the error.
func ReadRevoked(m *corev1.ConfigMap) (Revoked, error) {
	if m == nil {
		return Revoked{}, nil
	}
	r := make(Revoked, len(m.Data))
	var bad error
	for node, text := range m.Data {
		before, err := time.Parse(time.RFC3339, text)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("configmap %s/%s: the entry of node %s voids all its certificates, because it is no time (write it like 2006-01-02T15:04:05Z): %w", Namespace, RevokedConfigMap, node, err))
			before = time.Unix(1<<40, 0)
		}
		r[node] = before
	}
	return r, bad
}

// GetRevoked reads it from the cluster.
func GetRevoked(ctx context.Context, client kubernetes.Interface) (Revoked, error) {
	m, err := client.CoreV1().ConfigMaps(Namespace).Get(ctx, RevokedConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Revoked{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configmap %s/%s: %w", Namespace, RevokedConfigMap, err)
	}
	// Entries that cannot be read void everything; who follows the ConfigMap says so.
	r, _ := ReadRevoked(m)
	return r, nil
}

// Void says whether the certificate of that node, signed then, is void at now,
// and since when. A certificate from the future of a node that was ever revoked
// is void, too: nobody can say when it was really signed.
func (r Revoked) Void(node string, issued, now time.Time) (before time.Time, void bool) {
	before, known := r[node]
	return before, known && (!issued.After(before) || issued.After(pki.Later(now, before).Add(pki.Backdate)))
}

// IssueAt is the time to sign a certificate for that node with, so that it is
// not void: now, or just after the revocation, which may be a little ahead.
func (r Revoked) IssueAt(node string, now time.Time) time.Time {
	before, known := r[node]
	if !known {
		return now
	}
	return pki.Later(now, before.Truncate(time.Second).Add(time.Second))
}

// Old lists the nodes whose entries void nothing that could still be used.
func (r Revoked) Old(now time.Time) []string {
	var old []string
	for _, node := range slices.Sorted(maps.Keys(r)) {
		if r[node].Add(keepRevoked).Before(now) {
			old = append(old, node)
		}
	}
	return old
}

// Revoke voids every certificate that the node has, and returns since when. A
// node that was revoked before is revoked anew.
func Revoke(ctx context.Context, client kubernetes.Interface, node string) (before time.Time, err error) {
	if err := pki.CheckNodeName(node); err != nil {
		return before, err
	}
	if err := EnsureNamespace(ctx, client); err != nil {
		return before, err
	}
	api := client.CoreV1().ConfigMaps(Namespace)
	now, err := clock(ctx, client)
	if err != nil {
		return before, err
	}
	before = now.Add(skew)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		m, err := api.Get(ctx, RevokedConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			m = revokedConfigMap()
			m.Data = map[string]string{node: before.Format(time.RFC3339)}
			_, err = api.Create(ctx, m, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) { // by somebody else just now
				err = apierrors.NewConflict(corev1.Resource("configmaps"), RevokedConfigMap, err)
			}
			return err
		}
		if err != nil {
			return err
		}
		if was, err := time.Parse(time.RFC3339, m.Data[node]); err == nil && was.After(before) {
			before = was // never less than it was
			return nil
		}
		if m.Data == nil {
			m.Data = make(map[string]string)
		}
		m.Data[node] = before.Format(time.RFC3339)
		_, err = api.Update(ctx, m, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return before, fmt.Errorf("write configmap %s/%s: %w", Namespace, RevokedConfigMap, err)
	}
	return before, nil
}

// ForgetRevoked removes entries that void nothing any more.
func ForgetRevoked(ctx context.Context, client kubernetes.Interface, now time.Time) (forgotten []string, err error) {
	api := client.CoreV1().ConfigMaps(Namespace)
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		forgotten = nil
		m, err := api.Get(ctx, RevokedConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		r, _ := ReadRevoked(m) // what cannot be read is not old
		if forgotten = r.Old(now); len(forgotten) == 0 {
			return nil
		}
		for _, node := range forgotten {
			delete(m.Data, node)
		}
		_, err = api.Update(ctx, m, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forget old entries of configmap %s/%s: %w", Namespace, RevokedConfigMap, err)
	}
	return forgotten, nil
}

func revokedConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RevokedConfigMap, Namespace: Namespace}}
}

// clock is the apiserver's time, by what it would note on an object that it is
// only asked to check: an administrator's laptop may be wrong by hours.
func clock(ctx context.Context, client kubernetes.Interface) (time.Time, error) {
	m := revokedConfigMap()
	m.Name, m.GenerateName = "", "holdfast-clock-"
	m, err := client.CoreV1().ConfigMaps(Namespace).Create(ctx, m, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the apiserver for its time: %w", err)
	}
	if m.CreationTimestamp.IsZero() {
		return time.Time{}, errors.New("the apiserver does not tell its time")
	}
	return m.CreationTimestamp.UTC(), nil
}
