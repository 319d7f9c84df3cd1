// Package profiling serves Go's profiles of a daemon, where its config wants them: they
// tell much of what it does, and taking one costs CPU time. The front doors (cloudcore,
// edgecore) mount it on what is local anyhow. It serves nothing by itself: what net/http/pprof puts on
// Go's default mux as it is linked in, nobody serves.
package profiling

import (
	"context"
	"net/http"
	"net/http/pprof"
	"time"
)

// Path is where profiles are served; with the slash they are all below it.
const Path = "/debug/pprof/"

// Handler serves everything below Path. A profile takes as long as it is asked to,
// whatever the server's own patience.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(Path, pprof.Index)
	mux.HandleFunc(Path+"cmdline", pprof.Cmdline)
	mux.HandleFunc(Path+"profile", pprof.Profile)
	mux.HandleFunc(Path+"symbol", pprof.Symbol)
	mux.HandleFunc(Path+"trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_, _ = control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{}) // where they cannot be set there are none
		// net/http/pprof would hold itself to the server's timeouts.
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, nil)))
	})
}
