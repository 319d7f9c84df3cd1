// Package access says who asks something of this hub, and whether the cluster lets
// him: by a bearer token, which the apiserver reviews, or by a client certificate of
// the cluster's own CA; and by a SubjectAccessReview. cloud/tunnel, cloud/route and
// cloud/fleet ask it. It knows no rule of its own, and never takes an unreviewed
// word: where the apiserver does not answer, nobody may.
package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Limits of the reviews.
const (
	reviewTimeout = 10 * time.Second
	maxReviews    = 16 // of tokens at a time, since anybody may show one, and as many of rights
	maxToken      = 16 << 10
	maxUsers      = 8192 // tokens remembered; beyond, all are forgotten
	// maxDecisions is how many decisions are remembered: those of three who scrape
	// 20,000 nodes, in some 10 MiB. Beyond, what has ended is forgotten, or else all.
	maxDecisions = 1 << 16
	// knownFor is how long a token that was found good is not reviewed again.
	knownFor = 10 * time.Second
	// deniedFor is how long what was denied is not asked again.
	deniedFor = time.Second
)

// Options are what an Access needs.
type Options struct {
	Client kubernetes.Interface
	// AllowedFor is how long what the apiserver has allowed is not asked again (10 s).
	AllowedFor time.Duration
	Log        *slog.Logger
	Now        func() time.Time // nil: time.Now
}

// Access answers for one cluster. Its methods may be called from many goroutines.
type Access struct {
	client     kubernetes.Interface
	allowedFor time.Duration
	log        *slog.Logger
	now        func() time.Time
	tokens     chan struct{} // reviews that run
	rights     chan struct{} // apart, so that strangers' tokens keep nobody who is known waiting
	authority  authority

	mu        sync.Mutex
	users     map[[sha256.Size]byte]knownUser // by token
	decisions map[[sha256.Size]byte]decision  // by user and what he asked for
}

type knownUser struct {
	user  *authenticationv1.UserInfo
	until time.Time
}

type decision struct {
	err   error // nil: allowed
	until time.Time
}

// New returns an Access.
func New(o Options) *Access {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.AllowedFor == 0 {
		o.AllowedFor = 10 * time.Second
	}
	return &Access{
		client: o.Client, allowedFor: o.AllowedFor, log: o.Log, now: o.Now,
		tokens: make(chan struct{}, maxReviews), rights: make(chan struct{}, maxReviews),
		users: make(map[[sha256.Size]byte]knownUser), decisions: make(map[[sha256.Size]byte]decision),
	}
}

// Refusal is why somebody is turned away: an HTTP status (401 or 403) and words for
// him. Any other error says that it cannot be known now (503).
type Refusal struct {
	Code    int
	Message string
}

func (r *Refusal) Error() string { return r.Message }

func refuse(code int, format string, args ...any) error {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// Answer writes an error of Authenticate or Authorize as the answer to a request.
func Answer(w http.ResponseWriter, err error) {
	var no *Refusal
	if !errors.As(err, &no) {
		w.Header().Set("Retry-After", "5")
		no = &Refusal{http.StatusServiceUnavailable, err.Error()}
	}
	if no.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	http.Error(w, no.Message, no.Code)
}

// Authenticate says who sent a request.
func (a *Access) Authenticate(ctx context.Context, r *http.Request) (*authenticationv1.UserInfo, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		token, ok := strings.CutPrefix(header, "Bearer ")
		if !ok || token == "" || len(token) > maxToken {
			return nil, refuse(http.StatusUnauthorized, "a Kubernetes bearer token is needed: Authorization: Bearer TOKEN")
		}
		return a.byToken(ctx, token)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return a.byCertificate(ctx, r.TLS.PeerCertificates)
	}
	return nil, refuse(http.StatusUnauthorized, "say who you are: by a Kubernetes bearer token (Authorization: Bearer TOKEN), or by a client certificate of the cluster's CA")
}

func (a *Access) byToken(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
	key := sha256.Sum256([]byte(token))
	a.mu.Lock()
	known, ok := a.users[key]
	a.mu.Unlock()
	if ok && a.now().Before(known.until) {
		return known.user, nil
	}
	var who *authenticationv1.TokenReview
	err := a.review(ctx, a.tokens, func(ctx context.Context) (err error) {
		who, err = a.client.AuthenticationV1().TokenReviews().Create(ctx,
			&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the token cannot be checked now: %w", err)
	}
	if !who.Status.Authenticated {
		return nil, refuse(http.StatusUnauthorized, "the cluster does not know this token, or it has ended")
	}
	user := &who.Status.User
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.users) >= maxUsers {
		clear(a.users)
	}
	a.users[key] = knownUser{user, a.now().Add(knownFor)}
	return user, nil
}

// Authorize says whether the user may do any of these; nil: he may.
func (a *Access) Authorize(ctx context.Context, user *authenticationv1.UserInfo, anyOf ...authorizationv1.ResourceAttributes) error {
	var refused error
	for i := range anyOf {
		err := a.authorize(ctx, user, &anyOf[i])
		var no *Refusal
		if err == nil || !errors.As(err, &no) {
			return err
		}
		if refused == nil {
			refused = err
		}
	}
	return refused
}

func (a *Access) authorize(ctx context.Context, user *authenticationv1.UserInfo, want *authorizationv1.ResourceAttributes) error {
	key := decisionKey(user, want)
	a.mu.Lock()
	d, ok := a.decisions[key]
	a.mu.Unlock()
	if ok && a.now().Before(d.until) {
		return d.err
	}
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	var may *authorizationv1.SubjectAccessReview
	err := a.review(ctx, a.rights, func(ctx context.Context) (err error) {
		may, err = a.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra, ResourceAttributes: want},
		}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("the rights of %s cannot be checked now: %w", user.Username, err)
	}
	d = decision{until: a.now().Add(a.allowedFor)}
	if !may.Status.Allowed {
		d = decision{err: refuse(http.StatusForbidden, "%s may not %s%s", user.Username, asked(want), because(may.Status.Reason)), until: a.now().Add(deniedFor)}
	}
	a.remember(key, d)
	return d.err
}

func (a *Access) remember(key [sha256.Size]byte, d decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.decisions) >= maxDecisions {
		now := a.now()
		maps.DeleteFunc(a.decisions, func(_ [sha256.Size]byte, d decision) bool { return !now.Before(d.until) })
		if len(a.decisions) > maxDecisions/2 { // else every further one would go through them all
			clear(a.decisions)
		}
	}
	a.decisions[key] = d
}

// asked is what was asked for, as "kubectl auth can-i" takes it.
func asked(want *authorizationv1.ResourceAttributes) string {
	what := want.Resource
	if want.Group != "" {
		what += "." + want.Group
	}
	if want.Subresource != "" {
		what += "/" + want.Subresource
	}
	text := want.Verb + " " + what
	if want.Name != "" {
		text += " of " + want.Name
	}
	if want.Namespace != "" {
		text += " in namespace " + want.Namespace
	}
	return text
}

func because(reason string) string {
	if reason = strings.TrimSpace(reason); reason == "" {
		return ""
	}
	return ": " + reason
}

// review runs one question to the apiserver, of a bounded number at a time.
func (a *Access) review(ctx context.Context, slots chan struct{}, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return errors.New("too many requests at a time")
	}
	return f(ctx)
}

// decisionKey takes in all that a decision may depend on. Each part is written with
// its length, so that no two questions have one key.
func decisionKey(user *authenticationv1.UserInfo, want *authorizationv1.ResourceAttributes) (key [sha256.Size]byte) {
	h := sha256.New()
	add := func(parts ...string) {
		fmt.Fprintf(h, "%d ", len(parts))
		for _, p := range parts {
			fmt.Fprintf(h, "%d:", len(p))
			_, _ = io.WriteString(h, p) // a hash never fails
		}
	}
	add(user.Username, user.UID)
	add(user.Groups...)
	for _, k := range sortedKeys(user.Extra) {
		add(k)
		add(user.Extra[k]...)
	}
	add(want.Namespace, want.Verb, want.Group, want.Version, want.Resource, want.Subresource, want.Name)
	h.Sum(key[:0])
	return key
}
