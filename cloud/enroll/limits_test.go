package enroll

import (
	"fmt"
	"testing"
	"time"
)

// TestRenewalsAreLimitedByNodeAndForgotten: what is remembered is what came
// within a minute or two, however many nodes there are.
func TestRenewalsAreLimitedByNodeAndForgotten(t *testing.T) {
	now := time.Now()
	r := newRenewals(func() time.Time { return now }, renewEvery)
	for n := range 5000 {
		if !r.allow(fmt.Sprint("pi-", n)) || r.allow(fmt.Sprint("pi-", n)) {
			t.Fatalf("pi-%d is limited wrongly", n)
		}
	}
	now = now.Add(renewEvery)
	if !r.allow("pi-1") || r.allow("pi-1") {
		t.Error("a minute later it is limited wrongly")
	}
	if len(r.last) != 1 {
		t.Errorf("%d nodes are remembered", len(r.last))
	}
	// A clock that was set back locks nobody out.
	now = now.Add(-24 * time.Hour)
	if !r.allow("pi-1") {
		t.Error("a day earlier it may not")
	}
}
