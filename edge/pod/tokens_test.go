package pod

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// wallClock is a clock whose wall time a test sets.
type wallClock struct {
	*leapClock
	now time.Time
}

func (c *wallClock) Wall() time.Time { return c.now }

func TestTokenIsAskedOnceRenewedInTimeAndKeptWhenExpired(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(t, err)
	defer s.Close()
	clock := &wallClock{newLeapClock(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	online, asked := true, 0
	var last *wire.TokenAsk
	tokens := NewTokens(s, func(_ context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
		if !online {
			return nil, errors.New("offline")
		}
		asked++
		last = ask
		return &wire.TokenAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Token: string(rune('a' + asked - 1)),
			ExpiresUnix: clock.now.Unix() + ask.ExpirationSeconds, HubTimeUnixMs: clock.now.UnixMilli()}, nil
	}, clock)
	p := busyboxPod("web", "")
	p.Spec.ServiceAccountName = "till"
	get := func(audience, want string) {
		t.Helper()
		got, err := tokens.Token(t.Context(), p, &corev1.ServiceAccountTokenProjection{Audience: audience})
		if err != nil || got != want {
			t.Errorf("token for %q at %s: %q, %v; want %q", audience, clock.now, got, err, want)
		}
	}
	get("", "a")
	get("vault", "b")
	if last.ServiceAccount != "till" || last.PodUid != string(p.UID) || len(last.Audiences) != 1 || last.Audiences[0] != "vault" {
		t.Errorf("asked for %v", last)
	}
	clock.now = clock.now.Add(47 * time.Minute)
	get("", "a") // 80 % of an hour is 48 minutes
	clock.now = clock.now.Add(2 * time.Minute)
	get("", "c")
	online = false
	clock.now = clock.now.Add(48 * time.Hour)
	get("", "c") // expired, and the only one there is
	get("vault", "b")
	if _, err := tokens.Token(t.Context(), p, &corev1.ServiceAccountTokenProjection{Audience: "new"}); !errors.Is(err, ErrNoToken) {
		t.Errorf("a token that cannot be had: %v", err)
	}
	clock.now = time.Unix(0, 0) // a clock that has lost its battery
	get("", "c")
}
