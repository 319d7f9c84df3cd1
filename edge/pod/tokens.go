package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// AskToken asks the hub for a token; edge/uplink has it. It fails at once when there is no line.
type AskToken func(ctx context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error)

// Tokens gives pods their service account tokens: the stored one first, also when it has expired and the
// hub cannot be reached, because an old token is better than a pod that does not start. A new one is asked
// for when there is none or when 80 % of its life is over by the time that is known.
type Tokens struct {
	store *store.Store
	ask   AskToken
	clock Clock
	asks  *semaphore.Weighted
}

// parallelAsks is how many requests of one node the hub takes at a time; what is more it sends back.
const parallelAsks = 4

// NewTokens is called before edge/volume is made, which needs it.
func NewTokens(s *store.Store, ask AskToken, c Clock) *Tokens {
	return &Tokens{store: s, ask: ask, clock: c, asks: semaphore.NewWeighted(parallelAsks)}
}

const defaultTokenLife = 3600 // seconds, as Kubernetes has it

// ErrNoToken is wrapped when a pod's first token cannot be had: the node has no line yet.
var ErrNoToken = errors.New("no token is stored and the hub cannot be asked")

// tokenPatience bounds how long a pod's start waits for the hub's answer; renewPatience does when there is a
// token already: a hub that is slow to answer must not hold up a node full of pods.
const (
	tokenPatience = 20 * time.Second
	renewPatience = 3 * time.Second
)

// Token returns the pod's token for that audience.
func (t *Tokens) Token(ctx context.Context, p *corev1.Pod, want *corev1.ServiceAccountTokenProjection) (string, error) {
	account, life := wished(p, want)
	have, err := t.stored(ctx, p, account, want.Audience, life)
	if err != nil {
		return "", err
	}
	now := t.clock.Wall()
	if have != nil && left(have, now) > 0 {
		return have.Token, nil
	}
	fetch := func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, tokenPatience)
		defer cancel()
		return t.fetch(ctx, p, account, want.Audience, life)
	}
	if have != nil {
		return renewed(ctx, have.Token, fetch), nil
	}
	got, err := fetch(ctx)
	if err != nil {
		return "", fmt.Errorf("token of service account %s/%s for pod %s: %w", p.Namespace, account, p.Name, err)
	}
	return got, nil
}

// renewed is the new token if it comes soon, else the old one. One that comes later is stored all the same, and found
// when the pod's tokens are looked at again in a minute.
func renewed(ctx context.Context, old string, fetch func(context.Context) (string, error)) string {
	got := make(chan string, 1)
	go func() {
		token, err := fetch(context.WithoutCancel(ctx))
		if err != nil {
			token = old
		}
		got <- token
	}()
	patience := time.NewTimer(renewPatience)
	defer patience.Stop()
	select {
	case token := <-got:
		return token
	case <-patience.C:
	case <-ctx.Done():
	}
	return old
}

// left is how long until a token is asked for anew. A token of the future was stored by a clock that was
// wrong then, or this one is wrong now.
func left(t *store.Token, now time.Time) time.Duration {
	if now.Before(t.Issued.Add(-tokenSlack)) {
		return 0
	}
	return t.Issued.Add(t.Expires.Sub(t.Issued) * 8 / 10).Sub(now)
}

// tokenSlack is how far a clock that is set right may go back without a word.
const tokenSlack = 5 * time.Minute

// stored finds the pod's token for that purpose, nil when there is none.
func (t *Tokens) stored(ctx context.Context, p *corev1.Pod, account, audience string, life int64) (*store.Token, error) {
	list, err := t.store.Tokens(ctx, string(p.UID))
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ServiceAccount == account && list[i].Audience == audience && list[i].ExpirationSeconds == life {
			return &list[i], nil
		}
	}
	return nil, nil
}

// fetch asks the hub and stores what it says before anybody uses it.
func (t *Tokens) fetch(ctx context.Context, p *corev1.Pod, account, audience string, life int64) (string, error) {
	if t.ask == nil {
		return "", ErrNoToken
	}
	ask := &wire.TokenAsk{Namespace: p.Namespace, ServiceAccount: account, PodName: p.Name, PodUid: string(p.UID), ExpirationSeconds: life}
	if audience != "" {
		ask.Audiences = []string{audience}
	}
	if err := t.asks.Acquire(ctx, 1); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoToken, err)
	}
	answer, err := t.ask(ctx, ask)
	t.asks.Release(1)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoToken, err)
	}
	if answer.GetCode() != wire.ResultCode_RESULT_ACCEPTED {
		return "", fmt.Errorf("the hub gave none: %s", answer.GetMessage())
	}
	// Both times are this node's: by a clock that is years ahead of the hub's the token would be due for ever.
	issued, expires := t.clock.Wall(), time.Unix(answer.GetExpiresUnix(), 0)
	if ms := answer.GetHubTimeUnixMs(); ms > 0 {
		expires = issued.Add(expires.Sub(time.UnixMilli(ms)))
	}
	err = t.store.PutToken(ctx, store.Token{PodUID: string(p.UID), ServiceAccount: account, Audience: audience, ExpirationSeconds: life,
		Token: answer.GetToken(), Issued: issued, Expires: expires})
	if err != nil {
		return "", err
	}
	return answer.GetToken(), nil
}

// Due tells how long until a token of the pod wants renewal; 0 when it has none.
func (t *Tokens) Due(ctx context.Context, p *corev1.Pod) (time.Duration, error) {
	if !projectsTokens(p) {
		return 0, nil
	}
	list, err := t.store.Tokens(ctx, string(p.UID))
	if err != nil || len(list) == 0 {
		return 0, err
	}
	now := t.clock.Wall()
	due := time.Duration(0)
	for i := range list {
		// A token that should be new by now but is not (the line is cut) is tried again in a minute.
		if d := max(left(&list[i], now), time.Minute); due == 0 || d < due {
			due = d
		}
	}
	return due, nil
}

func projectsTokens(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if pr := p.Spec.Volumes[i].Projected; pr != nil {
			for _, s := range pr.Sources {
				if s.ServiceAccountToken != nil {
					return true
				}
			}
		}
	}
	return false
}
