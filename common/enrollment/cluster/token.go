package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// The Secret of a token.
const (
	tokenPrefix = "holdfast-token-"
	TokenLabel  = "holdfast.io/token"

	keyHash        = "hash"
	keyExpires     = "expires" // RFC 3339
	keyDescription = "description"
	keyUses        = "uses" // how often it may still be used; absent: without limit
)

// Limits of a token's life.
const (
	DefaultTokenTTL = 24 * time.Hour
	MaxTokenTTL     = 365 * 24 * time.Hour
	// keepExpired is how long an expired token stays, so that whoever uses it is
	// told so.
	keepExpired = 7 * 24 * time.Hour
)

// Errors of a token that does not let anybody join.
var (
	ErrTokenUnknown = errors.New("token unknown")
	ErrTokenExpired = errors.New("token expired")
	ErrTokenUsed    = errors.New("token used up")
)

// usedUp is in JoinToken.Uses when no use is left.
const usedUp = -1

// makeNew is the remedy for all of them.
const makeNew = `make a new one with "holdfast token create"`

// JoinToken is what is known of a token: all but its secret.
type JoinToken struct {
	ID          string
	Description string
	Expires     time.Time
	Uses        int // how often it may still be used; 0: without limit; negative: not again
	hash        string
}

// NewTokenOptions say what token to make.
type NewTokenOptions struct {
	TTL         time.Duration // 0: DefaultTokenTTL
	Description string
	Uses        int // 0: without limit
}

// CreateToken makes a token. Its secret is in the return value and nowhere else.
func CreateToken(ctx context.Context, client kubernetes.Interface, o NewTokenOptions) (pki.Token, JoinToken, error) {
	o.TTL = cmp.Or(o.TTL, DefaultTokenTTL)
	if o.TTL < 0 || o.TTL > MaxTokenTTL {
		return pki.Token{}, JoinToken{}, fmt.Errorf("a token's life of %s: at most %s", o.TTL, MaxTokenTTL)
	}
	if o.Uses < 0 {
		return pki.Token{}, JoinToken{}, fmt.Errorf("a token with %d uses: 1 or more, or 0 for no limit", o.Uses)
	}
	if err := EnsureNamespace(ctx, client); err != nil {
		return pki.Token{}, JoinToken{}, err
	}
	token, err := pki.NewToken()
	if err != nil {
		return pki.Token{}, JoinToken{}, err
	}
	known := JoinToken{
		ID: token.ID, Description: o.Description, Uses: o.Uses, hash: token.Hash(),
		Expires: time.Now().Add(o.TTL).UTC().Truncate(time.Second),
	}
	data := map[string][]byte{
		keyHash:        []byte(known.hash),
		keyExpires:     []byte(known.Expires.Format(time.RFC3339)),
		keyDescription: []byte(known.Description),
	}
	if known.Uses > 0 {
		data[keyUses] = []byte(strconv.Itoa(known.Uses))
	}
	_, err = client.CoreV1().Secrets(Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: tokenPrefix + token.ID, Namespace: Namespace, Labels: map[string]string{TokenLabel: "true"}},
		Type:       corev1.SecretTypeOpaque,
		Data:       data,
	}, metav1.CreateOptions{})
	if err != nil {
		return pki.Token{}, JoinToken{}, fmt.Errorf("keep token %s: %w", token.ID, err)
	}
	return token, known, nil
}

// ListTokens returns all tokens, those that end first first. One that cannot be
// read is left out and named in the error, beside those that can.
func ListTokens(ctx context.Context, client kubernetes.Interface) ([]JoinToken, error) {
	secrets, err := client.CoreV1().Secrets(Namespace).List(ctx, metav1.ListOptions{LabelSelector: TokenLabel + "=true"})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var tokens []JoinToken
	var bad error
	for i := range secrets.Items {
		t, err := readToken(&secrets.Items[i])
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b JoinToken) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.ID, b.ID))
	})
	return tokens, bad
}

// DeleteToken deletes a token by its id.
func DeleteToken(ctx context.Context, client kubernetes.Interface, id string) error {
	if err := pki.CheckTokenID(id); err != nil {
		return err
	}
	err := client.CoreV1().Secrets(Namespace).Delete(ctx, tokenPrefix+id, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("token %s: %w: \"holdfast token list\" shows those that there are", id, ErrTokenUnknown)
	}
	if err != nil {
		return fmt.Errorf("delete token %s: %w", id, err)
	}
	return nil
}

// CheckToken says whether the token lets a machine join at that time. Its errors
// wrap ErrTokenUnknown, ErrTokenExpired or ErrTokenUsed, or come from the
// apiserver; none shows the secret.
func CheckToken(ctx context.Context, client kubernetes.Interface, token pki.Token, now time.Time) (JoinToken, error) {
	secret, err := client.CoreV1().Secrets(Namespace).Get(ctx, tokenPrefix+token.ID, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return JoinToken{}, refuse(ErrTokenUnknown, "token %s is not known here: %s", token.ID, makeNew)
	}
	if err != nil {
		return JoinToken{}, fmt.Errorf("read token %s: %w", token.ID, err)
	}
	known, err := readToken(secret)
	if err != nil {
		return JoinToken{}, err
	}
	return known, known.check(token, now)
}

// UseToken is CheckToken, and takes one use where uses are counted. Two machines
// never share the last one.
func UseToken(ctx context.Context, client kubernetes.Interface, token pki.Token, now time.Time) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		secret, err := client.CoreV1().Secrets(Namespace).Get(ctx, tokenPrefix+token.ID, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return refuse(ErrTokenUnknown, "token %s is not known here: %s", token.ID, makeNew)
		}
		if err != nil {
			return fmt.Errorf("read token %s: %w", token.ID, err)
		}
		known, err := readToken(secret)
		if err != nil {
			return err
		}
		if err := known.check(token, now); err != nil || known.Uses == 0 {
			return err
		}
		secret.Data[keyUses] = []byte(strconv.Itoa(known.Uses - 1))
		_, err = client.CoreV1().Secrets(Namespace).Update(ctx, secret, metav1.UpdateOptions{})
		return err
	})
}

// DeleteExpiredTokens removes tokens that ended a week before now or earlier.
func DeleteExpiredTokens(ctx context.Context, client kubernetes.Interface, now time.Time) (deleted []string, err error) {
	tokens, err := ListTokens(ctx, client)
	for _, t := range tokens {
		if now.Before(t.Expires.Add(keepExpired)) {
			continue
		}
		if derr := DeleteToken(ctx, client, t.ID); derr != nil && !errors.Is(derr, ErrTokenUnknown) {
			err = errors.Join(err, derr)
			continue
		}
		deleted = append(deleted, t.ID)
	}
	return deleted, err
}

func (t JoinToken) check(token pki.Token, now time.Time) error {
	switch {
	case !token.Matches(t.hash):
		return refuse(ErrTokenUnknown, "the secret of token %s is wrong: copy the token whole, or %s", t.ID, makeNew)
	case !now.Before(t.Expires):
		return refuse(ErrTokenExpired, "token %s has expired at %s: %s", t.ID, t.Expires.Format(time.RFC3339), makeNew)
	case t.Uses < 0:
		return refuse(ErrTokenUsed, "token %s has been used as often as it may: %s", t.ID, makeNew)
	}
	return nil
}

func readToken(secret *corev1.Secret) (JoinToken, error) {
	id := secret.Name[min(len(secret.Name), len(tokenPrefix)):]
	if err := pki.CheckTokenID(id); err != nil {
		return JoinToken{}, fmt.Errorf("secret %s/%s is no token: %w", secret.Namespace, secret.Name, err)
	}
	expires, err := time.Parse(time.RFC3339, string(secret.Data[keyExpires]))
	if err != nil {
		return JoinToken{}, fmt.Errorf("token %s has no readable expiry (delete it with \"holdfast token delete %s\"): %w", id, id, err)
	}
	t := JoinToken{ID: id, Description: string(secret.Data[keyDescription]), Expires: expires, hash: string(secret.Data[keyHash])}
	if uses, ok := secret.Data[keyUses]; ok {
		if t.Uses, err = strconv.Atoi(string(uses)); err != nil {
			return JoinToken{}, fmt.Errorf("token %s has no readable number of uses (delete it with \"holdfast token delete %s\"): %w", id, id, err)
		}
		if t.Uses <= 0 {
			t.Uses = usedUp
		}
	}
	return t, nil
}

// refusal is an error with words for people and a sentinel for code.
type refusal struct {
	text string
	kind error
}

func refuse(kind error, format string, args ...any) error {
	return &refusal{text: fmt.Sprintf(format, args...), kind: kind}
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }
