package main

import (
	"context"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/profiling"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// TestProfilesAreOffUnlessTheConfigWantsThem on the local socket.
func TestProfilesAreOffUnlessTheConfigWantsThem(t *testing.T) {
	if config.DefaultEdge().Profiling || config.DefaultCloud().Profiling {
		t.Error("profiles are on by default")
	}
	for wanted, code := range map[bool]int{false: http.StatusNotFound, true: http.StatusOK} {
		dir := t.TempDir()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- localstatus.Serve(ctx, dir, func(context.Context) localstatus.Status { return localstatus.Status{} }, nil, nil, profiles(config.Edge{Profiling: wanted})...)
		}()
		client := http.Client{Transport: unixsocket.Transport(filepath.Join(dir, localstatus.SocketName))}
		answer, err := client.Get("http://edgecore" + profiling.Path + "heap")
		for late := time.Now().Add(time.Minute); err != nil && time.Now().Before(late); { // until it serves
			answer, err = client.Get("http://edgecore" + profiling.Path + "heap")
		}
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != code {
			t.Errorf("profiling %v: %s", wanted, answer.Status)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
