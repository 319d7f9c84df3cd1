package pod

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TokenKept is a service account token that a pod's volumes show, and whether the node keeps one to show after a reboot.
type TokenKept struct {
	Volume, Account string
	Audience        string // empty: the apiserver's own
	Kept            bool
	Expires         time.Time // zero: not kept
	Ended           bool      // by the time that is known; it is shown all the same until a new one comes
}

// Kept lists the tokens that a pod needs.
func (t *Tokens) Kept(ctx context.Context, p *corev1.Pod) ([]TokenKept, error) {
	var out []TokenKept
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken == nil {
				continue
			}
			account, life := wished(p, s.ServiceAccountToken)
			k := TokenKept{Volume: v.Name, Account: account, Audience: s.ServiceAccountToken.Audience}
			have, err := t.stored(ctx, p, account, k.Audience, life)
			if err != nil {
				return nil, err
			}
			if have != nil {
				k.Kept, k.Expires, k.Ended = true, have.Expires, !t.clock.Wall().Before(have.Expires)
			}
			out = append(out, k)
		}
	}
	return out, nil
}

// wished is whose token is wanted, and for how many seconds.
func wished(p *corev1.Pod, want *corev1.ServiceAccountTokenProjection) (account string, life int64) {
	account, life = p.Spec.ServiceAccountName, defaultTokenLife
	if account == "" {
		account = "default"
	}
	if want.ExpirationSeconds != nil {
		life = *want.ExpirationSeconds
	}
	return account, life
}
