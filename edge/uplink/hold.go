package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How long the line may be held down.
const (
	MinHold = 10 * time.Second
	MaxHold = time.Hour
)

// ErrHeld is why a session ended, or none is opened: the line is held down.
var ErrHeld = errors.New("the line is held down on purpose")

// Hold closes the line and keeps it closed for d, from MinHold to MaxHold, as if it
// had been cut: `holdfast drill` proves so that the node can do without. It comes
// back by itself, whatever becomes of who asked. A later Hold replaces the end of an
// earlier one. It is kept in memory alone: an edgecore that starts dials.
func (u *Uplink) Hold(d time.Duration) (until time.Time, err error) {
	if d < MinHold || d > MaxHold {
		return time.Time{}, fmt.Errorf("the line cannot be held down for %s: choose %s to %s", d, MinHold, MaxHold)
	}
	until = time.Now().Add(d)
	u.hold(until)
	u.log.Warn("the line to the hub is held down on purpose; it comes back by itself", "for", d)
	return until, nil
}

// Release ends a Hold. It does nothing where there is none.
func (u *Uplink) Release() {
	if u.State().HeldUntil.IsZero() {
		return
	}
	u.log.Info("the line to the hub is held down no longer")
	u.hold(time.Time{})
}

func (u *Uplink) hold(until time.Time) {
	u.update(func(s *State) {
		s.HeldUntil = until
		if !until.IsZero() {
			s.LastError = heldError(until).Error()
		}
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	if !until.IsZero() && u.cut != nil {
		u.cut(ErrHeld)
	}
}

func heldError(until time.Time) error {
	return fmt.Errorf("%w until %s", ErrHeld, until.Format(time.TimeOnly))
}

// awaitRelease returns when the line is not held down; held says that it was.
func (u *Uplink) awaitRelease(ctx context.Context) (held bool) {
	for ctx.Err() == nil {
		changed := u.Changed() // taken before State, so that nothing falls between
		until := u.State().HeldUntil
		if until.IsZero() {
			return held
		}
		held = true
		timer := time.NewTimer(time.Until(until))
		select {
		case <-timer.C:
			u.Release()
		case <-changed: // released, or held for longer
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return held
}

// free is a context that ends with ErrHeld as its cause when the line is held down.
func (u *Uplink) free(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cut := context.WithCancelCause(ctx)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cut = cut
	if !u.state.HeldUntil.IsZero() {
		cut(ErrHeld)
	}
	return ctx, func() {
		u.mu.Lock()
		u.cut = nil
		u.mu.Unlock()
		cut(nil)
	}
}

// down notes that a hold ended the session, which is no failure of the line.
func (u *Uplink) down() {
	u.update(func(s *State) {
		s.Connected, s.Synced = false, false
		if !s.HeldUntil.IsZero() {
			s.LastError = heldError(s.HeldUntil).Error()
		}
	})
}
