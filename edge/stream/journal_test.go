package stream

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestJournalThatTakesTooLong: its reader is told that this is not all, and one who does
// not read is let go.
func TestJournalThatTakesTooLong(t *testing.T) {
	script := filepath.Join(t.TempDir(), "journalctl")
	const text = "#!/bin/sh\necho begun\ncase \"$*\" in *endless*) exec cat /dev/zero;; esac\nexec sleep 1000\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Node: "edge-1", Journalctl: script})
	s.journalTimeout = time.Second
	handled := make(chan struct{}, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Handler().ServeHTTP(w, r)
		handled <- struct{}{}
	}))
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	response, err := client.Get(server.URL + "/logs/?query=slow")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if got := string(b); err != nil || !strings.HasPrefix(got, "begun\n") || !strings.Contains(got, "node edge-1 cannot be read to its end") || !strings.Contains(got, "ask for less") {
		t.Errorf("of a journal that was cut: %q, %v", got, err)
	}
	<-handled

	unread, err := client.Get(server.URL + "/logs/?query=endless")
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Body.Close()
	select {
	case <-handled:
	case <-time.After(time.Minute):
		t.Error("who does not read is waited for")
		server.CloseClientConnections()
	}
}
