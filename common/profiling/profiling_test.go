package profiling

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestAProfileMayTakeLongerThanTheServersPatience, and is what pprof reads.
func TestAProfileMayTakeLongerThanTheServersPatience(t *testing.T) {
	server := httptest.NewUnstartedServer(Handler())
	server.Config.ReadTimeout, server.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	server.Start()
	defer server.Close()
	for _, path := range []string{"profile?seconds=1", "trace?seconds=1", "heap", "goroutine?debug=1", "cmdline", ""} {
		answer, err := http.Get(server.URL + Path + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || len(b) == 0 {
			t.Errorf("%s: %s, %d bytes, %v", path, answer.Status, len(b), err)
		}
	}
}
