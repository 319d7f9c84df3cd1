package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
	controlplane "github.com/holdfast-edge/holdfast/tests/cluster"
)

// TestSecrets keeps the CA and tokens in a real apiserver.
func TestSecrets(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	c, err := controlplane.Start(ctx, controlplane.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	client := c.Client()
	t.Run("a token needs no namespace to be there", func(t *testing.T) { firstToken(t, client) })
	t.Run("of many who want a CA one makes it", func(t *testing.T) { oneCA(t, client) })
	t.Run("a CA that cannot be read stays", func(t *testing.T) { brokenCA(t, client) })
	t.Run("a token is what was asked for", func(t *testing.T) { tokens(t, client) })
	t.Run("a token that is no good says why", func(t *testing.T) { badTokens(t, client) })
	t.Run("uses are counted", func(t *testing.T) { uses(t, client) })
	t.Run("expired tokens go after a week", func(t *testing.T) { expired(t, client) })
	t.Run("many revoke at once", func(t *testing.T) { revoking(t, client) })
}

func firstToken(t *testing.T, client kubernetes.Interface) {
	if _, _, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.GetCA(t.Context(), client); !apierrors.IsNotFound(err) {
		t.Fatalf("the CA before it is made: %v", err)
	}
}

func oneCA(t *testing.T, client kubernetes.Interface) {
	var mu sync.Mutex
	var hashes []string
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			ca, err := cluster.EnsureCA(t.Context(), client)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			hashes = append(hashes, ca.Hash())
		})
	}
	all.Wait()
	if slices.Sort(hashes); len(slices.Compact(hashes)) != 1 {
		t.Fatalf("several CAs: %v", hashes)
	}
	secret, err := client.CoreV1().Secrets(cluster.Namespace).Get(t.Context(), cluster.CASecret, metav1.GetOptions{})
	if err != nil || secret.Type != corev1.SecretTypeTLS {
		t.Fatalf("the Secret is of type %s, %v", secret.Type, err)
	}
}

func brokenCA(t *testing.T, client kubernetes.Interface) {
	secrets := client.CoreV1().Secrets(cluster.Namespace)
	secret, err := secrets.Get(t.Context(), cluster.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(secret.Data[corev1.TLSPrivateKeyKey])
	other, err := pki.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	secret.Data[corev1.TLSPrivateKeyKey] = other.KeyPEM
	if secret, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = cluster.EnsureCA(t.Context(), client)
	if err == nil || !strings.Contains(err.Error(), "secret holdfast-system/holdfast-ca (restore it from a backup") {
		t.Fatalf("a CA with another's key: %v", err)
	}
	now, err := secrets.Get(t.Context(), cluster.CASecret, metav1.GetOptions{})
	if err != nil || now.ResourceVersion != secret.ResourceVersion {
		t.Fatalf("the Secret was changed: %v", err)
	}
	secret.Data[corev1.TLSPrivateKeyKey] = good
	if _, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func tokens(t *testing.T, client kubernetes.Interface) {
	before := time.Now()
	token, known, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{TTL: time.Hour, Description: "for the shop", Uses: 3})
	if err != nil {
		t.Fatal(err)
	}
	if known.Expires.Before(before.Add(time.Hour-2*time.Second)) || known.Expires.After(time.Now().Add(time.Hour)) {
		t.Errorf("it expires at %s", known.Expires)
	}
	all, err := cluster.ListTokens(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(k cluster.JoinToken) bool { return k.ID == token.ID })
	if i < 0 || all[i].Description != "for the shop" || all[i].Uses != 3 || !all[i].Expires.Equal(known.Expires) {
		t.Fatalf("listed as %+v of %+v", i, all)
	}
	if !slices.IsSortedFunc(all, func(a, b cluster.JoinToken) int { return a.Expires.Compare(b.Expires) }) {
		t.Errorf("not in the order of their ends: %+v", all)
	}
	secret, err := client.CoreV1().Secrets(cluster.Namespace).Get(t.Context(), "holdfast-token-"+token.ID, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range secret.Data {
		if strings.Contains(string(value), token.Secret) {
			t.Errorf("the Secret's %s holds the token's secret", key)
		}
	}
	if secret.Labels[cluster.TokenLabel] != "true" {
		t.Errorf("labels %v", secret.Labels)
	}
	if _, err := cluster.CheckToken(t.Context(), client, token, time.Now()); err != nil {
		t.Error(err)
	}
	if err := cluster.DeleteToken(t.Context(), client, token.ID); err != nil {
		t.Fatal(err)
	}
	if err := cluster.DeleteToken(t.Context(), client, token.ID); !errors.Is(err, cluster.ErrTokenUnknown) {
		t.Errorf("deleted again: %v", err)
	}
	if err := cluster.DeleteToken(t.Context(), client, "../ca"); err == nil {
		t.Error("something that is no token was deleted")
	}
	for name, o := range map[string]cluster.NewTokenOptions{"past": {TTL: -1}, "for ever": {TTL: 10 * cluster.MaxTokenTTL}, "uses": {Uses: -1}} {
		if _, _, err := cluster.CreateToken(t.Context(), client, o); err == nil {
			t.Errorf("%s: a token was made", name)
		}
	}
}

func badTokens(t *testing.T, client kubernetes.Interface) {
	token, known, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wrong := pki.Token{ID: token.ID, Secret: "0000000000000000"}
	unknown := pki.Token{ID: "nobody", Secret: token.Secret}
	broken, _, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"data":{"expires":null}}`)
	if _, err := client.CoreV1().Secrets(cluster.Namespace).Patch(t.Context(), "holdfast-token-"+broken.ID, "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token pki.Token
		now   time.Time
		kind  error
		text  string
	}{
		"expired": {token, known.Expires, cluster.ErrTokenExpired, "token " + token.ID + " has expired at " + known.Expires.Format(time.RFC3339) + `: make a new one with "holdfast token create"`},
		"wrong":   {wrong, time.Now(), cluster.ErrTokenUnknown, "the secret of token " + token.ID + " is wrong"},
		"unknown": {unknown, time.Now(), cluster.ErrTokenUnknown, `token nobody is not known here: make a new one with "holdfast token create"`},
		"broken":  {broken, time.Now(), nil, `holdfast token delete ` + broken.ID},
	} {
		_, err := cluster.CheckToken(t.Context(), client, c.token, c.now)
		used := cluster.UseToken(t.Context(), client, c.token, c.now)
		for _, err := range []error{err, used} {
			if err == nil || !strings.Contains(err.Error(), c.text) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("%s: %v, want %q", name, err, c.text)
			}
			if err != nil && strings.Contains(err.Error(), token.Secret) {
				t.Errorf("%s: the error shows the secret", name)
			}
		}
	}
	all, err := cluster.ListTokens(t.Context(), client)
	if err == nil || !strings.Contains(err.Error(), broken.ID) || len(all) == 0 {
		t.Errorf("with a broken token %d are listed, %v", len(all), err)
	}
	if err := cluster.DeleteToken(t.Context(), client, broken.ID); err != nil {
		t.Fatal(err)
	}
}

func uses(t *testing.T, client kubernetes.Interface) {
	const allowed = 3
	token, _, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{Uses: allowed})
	if err != nil {
		t.Fatal(err)
	}
	// One after the other, and then as many at once as might share the last.
	for range allowed - 1 {
		if err := cluster.UseToken(t.Context(), client, token, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	results := make(chan error, 4)
	for range cap(results) {
		go func() { results <- cluster.UseToken(t.Context(), client, token, time.Now()) }()
	}
	good := 0
	for range cap(results) {
		switch err := <-results; {
		case err == nil:
			good++
		case !errors.Is(err, cluster.ErrTokenUsed) && !apierrors.IsConflict(err):
			t.Error(err)
		}
	}
	if good != 1 {
		t.Errorf("the last use was taken %d times", good)
	}
	if _, err := cluster.CheckToken(t.Context(), client, token, time.Now()); !errors.Is(err, cluster.ErrTokenUsed) {
		t.Errorf("a token without uses: %v", err)
	}
	endless, _, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := cluster.UseToken(t.Context(), client, endless, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

func expired(t *testing.T, client kubernetes.Interface) {
	short, known, err := cluster.CreateToken(t.Context(), client, cluster.NewTokenOptions{TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	const week = 7 * 24 * time.Hour
	deleted, err := cluster.DeleteExpiredTokens(t.Context(), client, known.Expires.Add(week-time.Second))
	if err != nil || slices.Contains(deleted, short.ID) {
		t.Fatalf("within the week: deleted %v, %v", deleted, err)
	}
	deleted, err = cluster.DeleteExpiredTokens(t.Context(), client, known.Expires.Add(week))
	if err != nil || !slices.Equal(deleted, []string{short.ID}) {
		t.Fatalf("after the week: deleted %v, %v; want %s", deleted, err, short.ID)
	}
}
