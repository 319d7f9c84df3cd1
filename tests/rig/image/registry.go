package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// RegistryOptions say where a registry listens and whom it serves.
type RegistryOptions struct {
	Addr     string       // host:port; port 0 is a free one; ignored if Listener is set
	Listener net.Listener // e.g. of a node's own network namespace
	Username string       // empty: everybody may pull
	Password string
}

// Registry serves images read-only, as the OCI distribution specification has it, over plain HTTP.
type Registry struct {
	options  RegistryOptions
	listener net.Listener
	server   *http.Server
	done     chan error

	mu       sync.Mutex
	images   map[string]*Image // repository:tag -> image
	requests []Request
	down     bool
}

// Request is one that the registry received, whatever the answer.
type Request struct {
	Method string
	Path   string
	Status int // 0: cut off without an answer
}

// NewRegistry starts a registry without images.
func NewRegistry(o RegistryOptions) (*Registry, error) {
	r := &Registry{options: o, listener: o.Listener, images: map[string]*Image{}, done: make(chan error, 1)}
	if r.listener == nil {
		l, err := net.Listen("tcp", o.Addr)
		if err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		r.listener = l
	}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: time.Minute}
	go func() { r.done <- r.server.Serve(r.listener) }()
	return r, nil
}

// Addr is host:port.
func (r *Registry) Addr() string { return r.listener.Addr().String() }

// URL is what containerd's hosts.toml wants to hear.
func (r *Registry) URL() string { return "http://" + r.Addr() }

// Add makes the image available under its name; only repository and tag count, the host does not. An image
// of the same name is replaced, as by a push.
func (r *Registry) Add(i *Image) {
	repository, tag, _ := splitName(i.Name) // Build has checked the name
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[repository+":"+tag] = i
}

// SetDown makes the registry break off every connection without an answer, until it is set up again.
func (r *Registry) SetDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// Requests lists what was asked so far.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// ForgetRequests empties the list.
func (r *Registry) ForgetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Close ends the registry and its connections.
func (r *Registry) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		if err := r.server.Close(); err != nil {
			return fmt.Errorf("close registry %s: %w", r.Addr(), err)
		}
	}
	if err := <-r.done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("registry %s: %w", r.Addr(), err)
	}
	return nil
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	down := r.down
	r.mu.Unlock()
	status := 0
	if !down {
		status = r.answer(w, req)
	}
	r.mu.Lock()
	r.requests = append(r.requests, Request{Method: req.Method, Path: req.URL.Path, Status: status})
	r.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler) // the server's own way to break a connection off
	}
}

// answer writes the response and returns its status.
func (r *Registry) answer(w http.ResponseWriter, req *http.Request) int {
	if r.options.Username != "" {
		user, password, ok := req.BasicAuth()
		if !ok || user != r.options.Username || password != r.options.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="holdfast"`)
			return refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "user or password is wrong or missing")
		}
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		return refuse(w, http.StatusNotFound, "UNSUPPORTED", "not a registry path")
	}
	if rest == "" {
		return send(w, req, "application/json", "", []byte("{}"))
	}
	if repository, reference, ok := cutLast(rest, "/manifests/"); ok {
		if i := r.find(repository, reference); i != nil {
			return send(w, req, mediaManifest, i.Digest, i.Blobs[i.Digest])
		}
		return refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown to registry")
	}
	if repository, digest, ok := cutLast(rest, "/blobs/"); ok {
		if b, ok := r.blob(repository, digest); ok {
			return send(w, req, "application/octet-stream", digest, b)
		}
		return refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	}
	return refuse(w, http.StatusNotFound, "UNSUPPORTED", "not a registry path")
}

// find looks an image up by tag or by digest.
func (r *Registry) find(repository, reference string) *Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.images[repository+":"+reference]; ok {
		return i
	}
	for name, i := range r.images {
		if i.Digest == reference && strings.HasPrefix(name, repository+":") {
			return i
		}
	}
	return nil
}

func (r *Registry) blob(repository, digest string) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, i := range r.images {
		if b, ok := i.Blobs[digest]; ok && strings.HasPrefix(name, repository+":") {
			return b, true
		}
	}
	return nil, false
}

// send answers with the bytes, or only with their headers when asked for no more. The status it returns
// does not count a client that went away meanwhile.
func send(w http.ResponseWriter, req *http.Request, mediaType, digest string, b []byte) int {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if digest != "" {
		w.Header().Set("Docker-Content-Digest", digest)
	}
	w.WriteHeader(http.StatusOK)
	if req.Method != http.MethodHead {
		w.Write(b)
	}
	return http.StatusOK
}

func refuse(w http.ResponseWriter, status int, code, message string) int {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
	return status
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", "", false
}
