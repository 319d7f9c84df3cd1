package localstatus

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// serve runs Serve until stop is called and returns when it answers.
func serve(t *testing.T, dir string, s Status) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, dir, func(context.Context) Status { return s }, nil, nil) }()
	deadline := time.After(2 * time.Minute)
	for {
		if _, err := Get(ctx, dir); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("Serve ended: %v", err)
		case <-deadline:
			t.Fatal("no answer")
		case <-time.After(time.Millisecond):
		}
	}
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	return stop
}

func TestStatusIsServedToItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	want := Status{Node: "pi", Version: "v1", Ready: true, NodeReported: true, Outbox: 3,
		Line: Line{Connected: true, Since: time.Unix(100, 0).UTC(), Hub: "hub:1"},
		Pods: []PodSummary{{Namespace: "shop", Name: "till", UID: "u", Phase: "Running", Restarts: 2}},
	}
	stop := serve(t, dir, want)
	got, err := Get(context.Background(), dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if err := Serve(context.Background(), dir, nil, nil, nil); err == nil {
		t.Error("a second server took the socket from the first")
	}
	stop()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSocketLeftByACrashIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a killed process leaves it
	if _, err := Get(context.Background(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("with a dead socket: %v", err)
	}
	serve(t, dir, Status{})()
	if _, err := Get(context.Background(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a socket: %v", err)
	}
}
