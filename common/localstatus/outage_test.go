package localstatus

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestOutageIsCheckedAndTheLineHeldOverTheSocket(t *testing.T) {
	dir := t.TempDir()
	want := Outage{Node: "pi", Reason: "ImageMissing", Checks: []Check{{Group: "images", Level: CheckFailing, Subject: "pod shop/till", Message: "no", Remedy: "pull it"}}}
	until := time.Unix(1000, 0).UTC()
	var held time.Duration
	released := false
	routes := OutageRoutes(func(context.Context) Outage { return want }, func(d time.Duration) (time.Time, error) {
		if held = d; d > time.Hour {
			return time.Time{}, errors.New("too long by far")
		}
		return until, nil
	}, func() { released = true })

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, dir, func(context.Context) Status { return Status{} }, nil, nil, routes...) }()
	var got Outage
	for {
		var err error
		if got, err = GetOutage(ctx, dir); err == nil {
			break
		}
		if !errors.Is(err, ErrNotRunning) {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("outage %+v", got)
	}
	if h, err := HoldLine(ctx, dir, 90*time.Second); err != nil || held != 90*time.Second || !h.Until.Equal(until) {
		t.Errorf("hold: %+v, %v; held for %s", h, err, held)
	}
	if _, err := HoldLine(ctx, dir, 2*time.Hour); err == nil || !strings.Contains(err.Error(), "too long by far") {
		t.Errorf("a hold that is refused: %v", err)
	}
	if err := ReleaseLine(ctx, dir); err != nil || !released {
		t.Errorf("release: %v, %v", err, released)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
