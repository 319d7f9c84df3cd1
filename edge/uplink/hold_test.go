package uplink

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// awaitState waits until the line's state fulfils cond.
func awaitState(t *testing.T, u *Uplink, what string, cond func(State) bool) State {
	t.Helper()
	late := time.After(patience)
	for {
		changed := u.Changed()
		s := u.State()
		if cond(s) {
			return s
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("the line is not %s: %+v", what, s)
		}
	}
}

func TestAHeldLineEndsItsSessionSaysWhyAndComesBack(t *testing.T) {
	r := newRig(t)
	r.start(t)
	p := r.accept(t)
	p.recv()
	p.send(welcome(true))
	awaitState(t, r.uplink, "up", func(s State) bool { return s.Connected })

	until, err := r.uplink.Hold(time.Minute)
	if err != nil || time.Until(until) > time.Minute {
		t.Fatalf("held until %s, %v", until, err)
	}
	p.closed()
	s := awaitState(t, r.uplink, "down", func(s State) bool { return !s.Connected })
	if !s.HeldUntil.Equal(until) || !strings.Contains(s.LastError, "on purpose until "+until.Format(time.TimeOnly)) {
		t.Errorf("the state of a held line: %+v", s)
	}
	if _, err := r.uplink.AskToken(context.Background(), &wire.TokenAsk{Namespace: "ns", ServiceAccount: "sa"}); !errors.Is(err, ErrOffline) {
		t.Errorf("a token over a held line: %v", err)
	}
	if n := r.uplink.count.ended[endingLost].Load(); n != 0 {
		t.Errorf("a hold counts as %d lost lines", n)
	}

	r.uplink.Release()
	p = r.accept(t)
	p.recv()
	p.send(welcome(true))
	if s := awaitState(t, r.uplink, "up again", func(s State) bool { return s.Connected }); !s.HeldUntil.IsZero() || s.LastError != "" {
		t.Errorf("after the hold: %+v", s)
	}
}

// waiting is a dialer that tells of every attempt and never succeeds.
type waiting struct{ attempts chan struct{} }

func (w waiting) Dial(ctx context.Context) (link.Conn, error) {
	w.attempts <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAHoldEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialer := waiting{make(chan struct{}, 10)}
		ctx, cancel := context.WithCancel(context.Background())
		u := New(Options{Dialer: dialer, Store: deaf{}})
		done := make(chan error)
		go func() { done <- u.Run(ctx) }()
		synctest.Wait()
		began := time.Now()
		if _, err := u.Hold(time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if n := len(dialer.attempts); n != 1 {
			t.Errorf("%d attempts with the line held, want the one from before", n)
		}
		if _, err := u.Hold(45 * time.Second); err != nil { // 15 s longer than the first
			t.Fatal(err)
		}
		<-dialer.attempts
		<-dialer.attempts
		if took := time.Since(began); took != 75*time.Second {
			t.Errorf("dialled %s after the hold began, want 75 s", took)
		}
		if s := u.State(); !s.HeldUntil.IsZero() {
			t.Errorf("the state after the hold: %+v", s)
		}
		u.Hold(MaxHold) // and edgecore can stop meanwhile
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestHoldsAreBounded(t *testing.T) {
	u := New(Options{})
	for _, d := range []time.Duration{0, -time.Minute, MinHold - 1, MaxHold + 1} {
		if _, err := u.Hold(d); err == nil || !strings.Contains(err.Error(), "10s to 1h") {
			t.Errorf("a hold of %s: %v", d, err)
		}
	}
	u.Release()
	if s := u.State(); !s.HeldUntil.IsZero() {
		t.Errorf("state %+v", s)
	}
}

// deaf is a store without a memory.
type deaf struct{ Store }

func (deaf) Meta(context.Context, string) ([]byte, error) { return nil, errors.New("nothing") }
