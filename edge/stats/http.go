package stats

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Handler serves GET and POST /stats/summary (only_cpu_and_memory=true leaves disks and networks out), GET
// /metrics/resource and GET /metrics/cadvisor. While the runtime does not answer, the summary and cadvisor's metrics fail
// with 503 and the reason.
func (s *Stats) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, pattern := range []string{"GET /stats/summary", "GET /stats/summary/{$}", "POST /stats/summary", "POST /stats/summary/{$}"} {
		mux.HandleFunc(pattern, s.serveSummary)
	}
	mux.HandleFunc("GET /metrics/resource", s.serveResource)
	mux.HandleFunc("GET /metrics/cadvisor", s.serveCadvisor)
	return mux
}

func (s *Stats) serveSummary(w http.ResponseWriter, r *http.Request) {
	u, err := s.current(r.Context(), true)
	if err == nil {
		err = u.err
	}
	if err != nil {
		refuse(w, err)
		return
	}
	var more *wider
	if r.URL.Query().Get("only_cpu_and_memory") != "true" {
		if more, err = s.wider.get(r.Context()); err != nil {
			refuse(w, err)
			return
		}
	}
	b, err := json.Marshal(s.summary(u, more))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.reply(w, r, "application/json", b)
}

func (s *Stats) serveResource(w http.ResponseWriter, r *http.Request) {
	u, err := s.current(r.Context(), false)
	if err != nil {
		refuse(w, err)
		return
	}
	var t text
	u.resource(&t)
	s.reply(w, r, textFormat, t.Bytes())
}

func (s *Stats) serveCadvisor(w http.ResponseWriter, r *http.Request) {
	u, err := s.current(r.Context(), false)
	if err == nil {
		err = u.err
	}
	if err != nil {
		refuse(w, err)
		return
	}
	more, err := s.wider.get(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	var t text
	u.cadvisor(&t, more, entry(keyed(s.cgroups.file("proc/meminfo")), "MemTotal"))
	s.reply(w, r, textFormat, t.Bytes())
}

const textFormat = "text/plain; version=0.0.4; charset=utf-8"

// refuse answers that there are no figures now. It is not the asker's fault, and may be better soon.
func refuse(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

// worthPacking is the size from which an answer is compressed: names and labels repeat themselves, and the line may be
// dear.
const worthPacking = 2 << 10

func (s *Stats) reply(w http.ResponseWriter, r *http.Request, kind string, b []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	if len(b) < worthPacking || !takesGzip(r) {
		h.Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b) // the asker has gone, if this fails
		return
	}
	h.Set("Content-Encoding", "gzip")
	h.Add("Vary", "Accept-Encoding")
	z, ok := s.packers.Get().(*gzip.Writer) // 800 KB each: made anew for every scrape, they would be most of the garbage
	if !ok {
		z, _ = gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is a good one
	}
	defer s.packers.Put(z)
	z.Reset(w)
	_, err := z.Write(b)
	_ = errors.Join(err, z.Close()) // the asker has gone, if this fails
}

// takesGzip tells whether the asker said that it understands gzip, and did not take it back.
func takesGzip(r *http.Request) bool {
	for _, part := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(part), ";")
		if name == "gzip" {
			return strings.TrimRight(strings.TrimSpace(weight), "0.") != "q="
		}
	}
	return false
}
