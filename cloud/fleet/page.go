package fleet

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"time"
)

// files are the web page, written by hand: what is in the browser is what is here.
//
//go:embed page
var files embed.FS

// servePage serves the files, which tell nothing of the fleet, to whoever asks.
func servePage(mux *http.ServeMux) {
	types := map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	entries, err := fs.ReadDir(files, "page")
	if err != nil {
		return // of what was compiled in
	}
	for _, e := range entries {
		content, err := fs.ReadFile(files, "page/"+e.Name())
		if err != nil {
			continue
		}
		where := "/" + e.Name()
		if e.Name() == "index.html" {
			where = "/{$}"
		}
		sum := sha256.Sum256(content)
		tag := `"` + hex.EncodeToString(sum[:12]) + `"`
		mux.HandleFunc("GET "+where, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", types[path.Ext(e.Name())])
			h.Set("Cache-Control", "no-cache")
			h.Set("ETag", tag)
			http.ServeContent(w, r, e.Name(), time.Time{}, bytes.NewReader(content))
		})
	}
}
