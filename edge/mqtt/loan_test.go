package mqtt

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// TestDesiredValuesAreRetainedAndTheLibraryHoldsNothingAtRest: whoever subscribes is
// told, at any time and by any filter that matches.
func TestDesiredValuesAreRetainedAndTheLibraryHoldsNothingAtRest(t *testing.T) {
	n := newNode(t, Config{}, thermostats("plant"), thermostat("plant", "boiler", desires("target", "20")), thermostat("plant", "oven", desires("target", "25")))
	first := dial(t, n.address(), "first", nil)
	retained := func() *loans {
		n.server.mu.Lock()
		defer n.server.mu.Unlock()
		return n.server.broker.(*embedded).loans
	}
	loans := retained()
	for _, filter := range []string{boiler + "desired/target", boiler + "desired/+", "holdfast/+/boiler/desired/target", "holdfast/plant/boiler/#", "+/plant/boiler/desired/target", "#"} {
		c := dial(t, n.address(), "one of "+strings.NewReplacer("/", ".", "+", "p", "#", "h").Replace(filter), nil)
		c.sub(filter)
		if got := c.await(boiler + "desired/target"); got != "20" {
			t.Errorf("%s is told %q", filter, got)
		}
		c.Disconnect(0)
	}
	loans.end(time.Now().Add(2 * loanFor))
	for name := range loans.server.Topics.Retained.GetAll() {
		if !strings.HasPrefix(name, "$SYS/") {
			t.Errorf("%s is retained at rest", name)
		}
	}
	// A change is told to who listens, and to who comes later, whether or not it is
	// on loan to somebody.
	first.sub(boiler + "desired/target")
	if got := first.next(boiler + "desired/target"); got != "20" {
		t.Errorf("told %q", got)
	}
	for i := range 50 {
		want := fmt.Sprint(10 + i%10)
		_, _, err := n.devices.Do(t.Context(), device.Operation{Key: twin.Key{Namespace: "plant", Name: "boiler"}, Desired: []device.Update{{Property: "target", Value: twin.Value{Text: want}}}})
		must(t, err)
		late := dial(t, n.address(), fmt.Sprint("late-", i), nil)
		late.sub(boiler + "desired/target")
		for got := ""; got != want; { // what it was a moment before may come, too, but not last
			got = late.next(boiler + "desired/target")
		}
		if got := first.next(boiler + "desired/target"); got != want {
			t.Fatalf("who listened was told %q, want %q", got, want)
		}
		late.Disconnect(0)
		if i%7 == 0 {
			loans.end(time.Now().Add(2 * loanFor))
		}
	}
	// A device that goes is forgotten.
	n.remove(thermostat("plant", "boiler"))
	if got := first.next(boiler + "desired/target"); got != "" {
		t.Errorf("after the device has gone: %q", got)
	}
	last := dial(t, n.address(), "last", nil)
	last.sub("holdfast/plant/+/desired/target")
	if got := last.next("holdfast/plant/oven/desired/target"); got != "25" {
		t.Errorf("told %q", got)
	}
	last.sub("marker/#")
	last.silent()
}
