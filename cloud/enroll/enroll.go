// Package enroll gives nodes their certificates: it answers POST /v1/enroll where
// the token is good and the name is free, renews certificates in a session
// (Renew, for cloud/hub) and after their end (POST /v1/renew), and knows which
// nodes are revoked (Revocations). cmd/cloudcore serves it on the hub's port;
// common/enrollment is the other half. It never touches a Node object, and never
// gives a certificate for the name of a node that something else serves.
package enroll

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// edgeLabel marks the Nodes that are edges.
const edgeLabel = "holdfast.io/edge"

// Limits of the handler.
const (
	// atOnce is how many requests are worked on together; more wait for their
	// turn, and those that wait too long are asked to come back.
	atOnce = 16
	turn   = 10 * time.Second
	// patience bounds the work on one request.
	patience = 20 * time.Second
	// renewEvery is how often one node may have its certificate renewed, unless the
	// certificates live for less than ten times that.
	renewEvery = time.Minute
	// DefaultRenewGrace is how long after its end a certificate's key may renew it.
	DefaultRenewGrace = 90 * 24 * time.Hour
	// cleanEvery is how often tokens that ended long ago are removed.
	cleanEvery = 10 * time.Minute
)

// Options are what a Handler needs.
type Options struct {
	Client kubernetes.Interface
	CA     *pki.CA
	// TTL is the life of the nodes' certificates; 0: pki.NodeTTL.
	TTL time.Duration
	// RenewGrace is how long after its end a certificate's key may renew it; 0:
	// DefaultRenewGrace.
	RenewGrace time.Duration
	// Revocations, where they are followed here, are cleaned up by Run.
	Revocations *Revocations
	Log         *slog.Logger
	Now         func() time.Time // nil: time.Now
}

// Handler answers requests for certificates.
type Handler struct {
	client      kubernetes.Interface
	ca          *pki.CA
	ttl, grace  time.Duration
	revocations *Revocations
	log         *slog.Logger
	now         func() time.Time
	failures    *failures
	renewals    *renewals
	working     chan struct{}
}

// New makes a Handler for enrollment.Path and enrollment.RenewPath.
func New(o Options) *Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Handler{
		client: o.Client, ca: o.CA, log: o.Log, now: o.Now,
		ttl: cmp.Or(o.TTL, pki.NodeTTL), grace: cmp.Or(o.RenewGrace, DefaultRenewGrace), revocations: o.Revocations,
		failures: newFailures(o.Now), renewals: newRenewals(o.Now, min(renewEvery, cmp.Or(o.TTL, pki.NodeTTL)/10)),
		working: make(chan struct{}, atOnce),
	}
}

// refusal is a no, and what to tell whom with which status.
type refusal struct {
	status int
	err    error
	// blame counts against the sender: it may be guessing.
	blame bool
}

// ServeHTTP answers one request. What it says is for people.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed, enrollment.Refusal{Error: "machines ask with POST: use \"holdfast join\""})
		return
	}
	if !h.failures.allow(r.RemoteAddr) {
		w.Header().Set("Retry-After", "60")
		answer(w, http.StatusTooManyRequests, enrollment.Refusal{Error: "too many failed attempts from this address: wait a minute"})
		return
	}
	// All of it before its turn: who sends slowly holds up nobody else. What is
	// cut off here is too long for the decoder.
	body, err := io.ReadAll(io.LimitReader(r.Body, enrollment.MaxBody+1))
	if err != nil {
		answer(w, http.StatusBadRequest, enrollment.Refusal{Error: "the request to join did not arrive whole: try again"})
		return
	}
	wait := time.NewTimer(turn)
	defer wait.Stop()
	select {
	case h.working <- struct{}{}:
		defer func() { <-h.working }()
	case <-r.Context().Done():
		return
	case <-wait.C:
		w.Header().Set("Retry-After", "5")
		answer(w, http.StatusServiceUnavailable, enrollment.Refusal{Error: "many machines are joining at this moment: try again in a few seconds"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	what := "join"
	decide := h.enroll
	if r.URL.Path == enrollment.RenewPath {
		what = "renew a certificate that has ended"
		decide = func(ctx context.Context, body io.Reader) (enrollment.Answer, string, *refusal) {
			return h.renewEnded(ctx, r.TLS, body)
		}
	}
	yes, node, no := decide(ctx, bytes.NewReader(body))
	if no != nil {
		if no.blame {
			h.failures.count(r.RemoteAddr)
		}
		h.log.Warn("refused a certificate", "node", node, "remote", r.RemoteAddr, "to", what, "err", no.err)
		answer(w, no.status, enrollment.Refusal{Error: no.err.Error()})
		return
	}
	h.log.Info("gave a certificate", "node", node, "remote", r.RemoteAddr, "to", what)
	answer(w, http.StatusOK, yes)
}

// enroll decides. The token is looked at before the name: who has none learns
// nothing about the cluster's nodes; a use of it is taken last.
func (h *Handler) enroll(ctx context.Context, body io.Reader) (enrollment.Answer, string, *refusal) {
	token, node, csrPEM, err := enrollment.DecodeAsk(body)
	if err != nil {
		return enrollment.Answer{}, "", &refusal{status: http.StatusBadRequest, err: err, blame: true}
	}
	if _, err := cluster.CheckToken(ctx, h.client, token, h.now()); err != nil {
		return enrollment.Answer{}, node, h.tokenRefusal(err)
	}
	if no := h.checkName(ctx, node); no != nil {
		return enrollment.Answer{}, node, no
	}
	// Read now: who joins again after a revocation gets a certificate that is later.
	revoked, err := cluster.GetRevoked(ctx, h.client)
	if err != nil {
		return enrollment.Answer{}, node, h.unavailable("read who is revoked", err)
	}
	certPEM, err := h.ca.SignNodeAt(csrPEM, node, revoked.IssueAt(node, h.now()), h.ttl)
	if err != nil {
		return enrollment.Answer{}, node, &refusal{status: http.StatusBadRequest, err: err}
	}
	if err := cluster.UseToken(ctx, h.client, token, h.now()); err != nil {
		return enrollment.Answer{}, node, h.tokenRefusal(err)
	}
	return enrollment.Answer{Certificate: string(certPEM), CA: string(h.ca.CertPEM)}, node, nil
}

func (h *Handler) tokenRefusal(err error) *refusal {
	for _, kind := range []error{cluster.ErrTokenUnknown, cluster.ErrTokenExpired, cluster.ErrTokenUsed} {
		if errors.Is(err, kind) {
			return &refusal{status: http.StatusUnauthorized, err: err, blame: true}
		}
	}
	return h.unavailable("check the token", err)
}

// checkName refuses a name that is in use. The certificate lets its holder read
// what the node of that name may read, so the name of a node that is no edge is
// never given out, and that of an edge only while nobody serves it.
func (h *Handler) checkName(ctx context.Context, name string) *refusal {
	node, err := h.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return h.unavailable("look for a node of that name", err)
	}
	if node.Labels[edgeLabel] != "true" {
		return &refusal{status: http.StatusConflict, err: fmt.Errorf(
			"the cluster has a node %s that is no edge node: join with another --node-name, or, to make it one, stop its kubelet and run \"kubectl label node %s %s=true\" first", name, name, edgeLabel)}
	}
	if ready(node) {
		return &refusal{status: http.StatusConflict, err: fmt.Errorf(
			"node %s is connected and Ready: join with another --node-name; if this is the same machine joining anew, stop edgecore there and wait until the node is NotReady (about a minute), or run \"kubectl delete node %s\"", name, name)}
	}
	return nil
}

// ready is what the Node says last. cloudcore's leases keep it true to within
// the time that the control plane allows.
func ready(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// unavailable hides the apiserver's words, which may hold names of the cluster.
func (h *Handler) unavailable(doing string, err error) *refusal {
	h.log.Error("the apiserver does not answer as it should", "doing", doing, "err", err)
	return &refusal{status: http.StatusServiceUnavailable, err: fmt.Errorf("the hub could not %s, because the cluster's apiserver does not answer it: try again; the log of cloudcore says more", doing)}
}

// Run removes tokens, and revocations, that ended long ago, until ctx ends.
func (h *Handler) Run(ctx context.Context) error {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	for {
		deleted, err := cluster.DeleteExpiredTokens(ctx, h.client, h.now())
		if len(deleted) > 0 {
			h.log.Info("deleted expired tokens", "ids", deleted)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("expired tokens", "err", err)
		}
		if h.revocations != nil {
			h.revocations.forget(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A machine that is gone already needs no answer.
	_ = json.NewEncoder(w).Encode(body)
}
