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

// TestClockThatIsAheadBurnsNoTraffic: a token lasts as long as it lasts, whatever year the node believes in.
func TestClockThatIsAheadBurnsNoTraffic(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(t, err)
	defer s.Close()
	hub := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := &wallClock{newLeapClock(), hub.AddDate(70, 0, 0)}
	asked := 0
	tokens := NewTokens(s, func(_ context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
		asked++
		return &wire.TokenAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Token: "token",
			ExpiresUnix: hub.Unix() + ask.ExpirationSeconds, HubTimeUnixMs: hub.UnixMilli()}, nil
	}, clock)
	p := busyboxPod("web", "")
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}}}}}}
	get := func(wantAsked int) {
		t.Helper()
		for range 3 {
			_, err := tokens.Token(t.Context(), p, &corev1.ServiceAccountTokenProjection{})
			must(t, err)
		}
		if asked != wantAsked {
			t.Errorf("asked %d times, want %d", asked, wantAsked)
		}
		if d, err := tokens.Due(t.Context(), p); err != nil || d != 48*time.Minute {
			t.Errorf("due in %s, %v; want 48 minutes", d, err)
		}
	}
	get(1)
	clock.now = hub // it has been set right
	get(2)
}

// TestRenewalThatIsSlowHoldsNothingUpAndIsNotLost: the hub answers after the pod has gone on with what there is.
func TestRenewalThatIsSlowHoldsNothingUpAndIsNotLost(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(t, err)
	defer s.Close()
	clock := &wallClock{newLeapClock(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	answers := make(chan string, 1)
	tokens := NewTokens(s, func(_ context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
		return &wire.TokenAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Token: <-answers,
			ExpiresUnix: clock.now.Unix() + ask.ExpirationSeconds, HubTimeUnixMs: clock.now.UnixMilli()}, nil
	}, clock)
	p := busyboxPod("web", "")
	get := func() string {
		t.Helper()
		got, err := tokens.Token(t.Context(), p, &corev1.ServiceAccountTokenProjection{})
		must(t, err)
		return got
	}
	answers <- "first"
	get()
	clock.now = clock.now.Add(time.Hour)
	if got := get(); got != "first" {
		t.Fatalf("token %q, want the one that there is while the hub is silent", got)
	}
	answers <- "second"
	for deadline := time.Now().Add(patience); ; {
		list, err := s.Tokens(t.Context(), string(p.UID))
		must(t, err)
		if len(list) == 1 && list[0].Token == "second" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("tokens: %+v, want the late one", list)
		}
	}
	if got := get(); got != "second" {
		t.Errorf("token %q, want the one that came late", got)
	}
}
