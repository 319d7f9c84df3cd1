package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/common/fleet"
)

// Access is what is asked of cloud/access.
type Access interface {
	Authenticate(ctx context.Context, r *http.Request) (*authenticationv1.UserInfo, error)
	Authorize(ctx context.Context, user *authenticationv1.UserInfo, anyOf ...authorizationv1.ResourceAttributes) error
}

// ServerOptions say to whom the documents are served.
type ServerOptions struct {
	Access Access
	// Token lets whoever has it see everything; empty: nobody but root, on the socket.
	Token string
	// Hosts are the names and addresses by which the page may be asked for, besides
	// those of the loopback; nil: any. A page on plain HTTP must not answer to a name
	// that somebody else's DNS leads here.
	Hosts []string
}

// Socket is the handler for the unix socket, where only root comes.
func (f *Fleet) Socket() http.Handler {
	mux := http.NewServeMux()
	root := func(http.ResponseWriter, *http.Request) (*viewer, bool) { return &viewer{all: true}, true }
	f.documents(mux, root)
	return mux
}

// Page is the handler for the web page and its documents.
func (f *Fleet) Page(o ServerOptions) http.Handler {
	s := &server{ServerOptions: o, token: sha256.Sum256([]byte(o.Token)), fleet: f}
	mux := http.NewServeMux()
	f.documents(mux, s.admit)
	f.logs(mux, s.admit)
	servePage(mux)
	return s.guard(mux)
}

// server admits viewers to the page.
type server struct {
	ServerOptions
	token [sha256.Size]byte
	fleet *Fleet
}

// viewer is who looks.
type viewer struct {
	all    bool // the local token, or root
	user   *authenticationv1.UserInfo
	access Access
}

// may says whether the apiserver lets the viewer; the error is for him.
func (v *viewer) may(ctx context.Context, want authorizationv1.ResourceAttributes) error {
	if v.all {
		return nil
	}
	return v.access.Authorize(ctx, v.user, want)
}

// admission says who looks. Where it says false it has answered.
type admission func(w http.ResponseWriter, r *http.Request) (*viewer, bool)

const remedy = "; \"holdfast fleet\", as root on this hub's machine, prints the page's address with a token, and \"kubectl create token\" makes one for a service account that may list nodes"

func (s *server) admit(w http.ResponseWriter, r *http.Request) (*viewer, bool) {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || given == "" {
		access.Answer(w, &access.Refusal{Code: http.StatusUnauthorized, Message: "a token is needed" + remedy})
		return nil, false
	}
	hash := sha256.Sum256([]byte(given))
	if s.Token != "" && subtle.ConstantTimeCompare(hash[:], s.token[:]) == 1 {
		return &viewer{all: true}, true
	}
	user, err := s.Access.Authenticate(r.Context(), r)
	if err != nil {
		var no *access.Refusal
		if errors.As(err, &no) {
			err = &access.Refusal{Code: no.Code, Message: no.Message + remedy}
		}
		access.Answer(w, err)
		return nil, false
	}
	return &viewer{user: user, access: s.Access}, true
}

// guard refuses requests to a name that is not this hub's, and tells browsers what
// the page does not do.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if s.Hosts != nil && !s.known(r.Host) {
			http.Error(w, fmt.Sprintf("the page is not served under the name %q: use 127.0.0.1, localhost, or one of the addresses in advertiseAddresses", r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) known(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return true
	}
	return host == "localhost" || slices.ContainsFunc(s.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// documents serves the fleet and the nodes as JSON.
func (f *Fleet) documents(mux *http.ServeMux, admit admission) {
	mux.HandleFunc("GET "+fleet.Path, func(w http.ResponseWriter, r *http.Request) {
		if v, ok := admit(w, r); ok && allowed(w, r, v, listNodes("nodes", "")) {
			f.serveList(w, r)
		}
	})
	mux.HandleFunc("GET "+fleet.NodePath+"{node}", func(w http.ResponseWriter, r *http.Request) {
		if v, ok := admit(w, r); ok && allowed(w, r, v, listNodes("nodes", "")) {
			f.serveDetail(w, r, v)
		}
	})
}

// listNodes is the right to list a resource of Kubernetes' core.
func listNodes(resource, namespace string) authorizationv1.ResourceAttributes {
	return authorizationv1.ResourceAttributes{Verb: "list", Version: "v1", Resource: resource, Namespace: namespace}
}

// allowed answers a viewer who may not.
func allowed(w http.ResponseWriter, r *http.Request, v *viewer, want authorizationv1.ResourceAttributes) bool {
	err := v.may(r.Context(), want)
	if err != nil {
		access.Answer(w, err)
	}
	return err == nil
}

func (f *Fleet) serveList(w http.ResponseWriter, r *http.Request) {
	q, err := QueryOf(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	doc := f.List(q)
	now := doc.Now
	doc.Now = time.Time{}
	answerJSON(w, r, doc, func() any {
		doc.Now = now
		return doc
	})
}

func (f *Fleet) serveDetail(w http.ResponseWriter, r *http.Request, v *viewer) {
	ctx := r.Context()
	doc, err := f.Detail(ctx, r.PathValue("node"), Rights{
		Pods:   v.may(ctx, listNodes("pods", "")) == nil,
		Events: func(namespace string) bool { return v.may(ctx, listNodes("events", namespace)) == nil },
	})
	var unknown *errUnknown
	switch {
	case errors.As(err, &unknown):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		access.Answer(w, err)
	default:
		answerJSON(w, r, doc, func() any { return doc })
	}
}

// slowDocument is how long a viewer may take to read a document, which may have
// megabytes.
const slowDocument = 2 * time.Minute

// answerJSON answers with a document, or with 304 where the reader has what is in
// tagged already. whole may say more than that, such as the time.
func answerJSON(w http.ResponseWriter, r *http.Request, tagged any, whole func() any) {
	b, err := json.Marshal(tagged)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256(b)
	tag := `"` + hex.EncodeToString(sum[:12]) + `"`
	h := w.Header()
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-store")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/json")
	if b, err = json.Marshal(whole()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// A writer that has no deadline waits for nobody.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(slowDocument))
	_, _ = w.Write(append(bytes.TrimSpace(b), '\n')) // a reader that went away needs no answer
}
