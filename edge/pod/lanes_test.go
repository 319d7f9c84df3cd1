package pod

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestContainersGoBeforeSandboxes: who asked first goes first, but a container before any sandbox.
func TestContainersGoBeforeSandboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLanes(1)
		if err := l.sandbox(t.Context()); err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 4)
		ask := func(name string, wait func(context.Context) error) {
			go func() {
				if err := wait(t.Context()); err != nil {
					t.Error(err)
					return
				}
				order <- name
				l.leave()
			}()
			synctest.Wait() // it stands in line now
		}
		ask("first sandbox", l.sandbox)
		ask("second sandbox", l.sandbox)
		ask("first container", l.container)
		ask("second container", l.container)
		l.leave()
		for _, want := range []string{"first container", "second container", "first sandbox", "second sandbox"} {
			if got := <-order; got != want {
				t.Errorf("%s went, want %s", got, want)
			}
		}
	})
}

// TestLaneIsNotLostToWhoGaveUp: neither one that waited in vain nor one whose turn came at that moment keeps it.
func TestLaneIsNotLostToWhoGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLanes(1)
		if err := l.container(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, late := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			gaveUp := make(chan error, 1)
			go func() { gaveUp <- l.sandbox(ctx) }()
			synctest.Wait()
			if late { // both at once: either may win
				l.leave()
				cancel()
			} else {
				cancel()
			}
			err := <-gaveUp
			switch {
			case err == nil:
				continue // it has the lane, as the loop's end expects
			case !errors.Is(err, context.Canceled):
				t.Fatalf("who gave up got %v", err)
			case late:
				if err := l.container(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		l.leave()
		if l.free != 1 || len(l.containers)+len(l.sandboxes) != 0 {
			t.Errorf("%d lanes are free and %d wait, want 1 and none", l.free, len(l.containers)+len(l.sandboxes))
		}
	})
}
