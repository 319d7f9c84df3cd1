package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// rejoin is the remedy where no key helps any more.
const rejoin = `run "holdfast token create" where the cluster is administered, and the join command that it prints on the node: the node keeps its pods and its data`

// Renew signs a further certificate for the node of a session, whose present one
// was issued then; for cloud/hub. It never gives one for another name, nor to a
// node that is revoked.
func (h *Handler) Renew(ctx context.Context, node string, issued time.Time, csrPEM []byte) *wire.CertificateAnswer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	certPEM, no := h.renew(ctx, node, issued, csrPEM)
	if no != nil {
		h.log.Warn("a certificate is not renewed", "node", node, "err", no.err)
		code := wire.ResultCode_RESULT_REJECTED
		if no.status == http.StatusTooManyRequests || no.status == http.StatusServiceUnavailable {
			code = wire.ResultCode_RESULT_RETRY
		}
		return &wire.CertificateAnswer{Code: code, Message: no.err.Error()}
	}
	h.log.Info("renewed a certificate", "node", node)
	return &wire.CertificateAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Certificate: certPEM, Ca: h.ca.CertPEM}
}

// renew is for who has proved to hold the key of that node's certificate.
func (h *Handler) renew(ctx context.Context, node string, issued time.Time, csrPEM []byte) ([]byte, *refusal) {
	if len(csrPEM) > enrollment.MaxBody {
		return nil, &refusal{status: http.StatusBadRequest, err: fmt.Errorf("a certificate request of %d bytes: at most %d", len(csrPEM), enrollment.MaxBody)}
	}
	if !h.renewals.allow(node) {
		return nil, &refusal{status: http.StatusTooManyRequests, err: fmt.Errorf("the certificate of node %s was renewed less than %s ago", node, h.renewals.every)}
	}
	revoked, err := cluster.GetRevoked(ctx, h.client)
	if err != nil {
		return nil, h.unavailable("read who is revoked", err)
	}
	if err := admit(revoked, node, issued, h.now()); err != nil {
		return nil, &refusal{status: http.StatusForbidden, err: err}
	}
	certPEM, err := h.ca.SignNodeAt(csrPEM, node, revoked.IssueAt(node, h.now()), h.ttl)
	if err != nil {
		return nil, &refusal{status: http.StatusBadRequest, err: err}
	}
	return certPEM, nil
}

// renewEnded is for a node whose certificate has ended. The proof is looked at
// before all that a stranger must not learn.
func (h *Handler) renewEnded(ctx context.Context, connection *tls.ConnectionState, body io.Reader) (enrollment.Answer, string, *refusal) {
	ask, err := enrollment.DecodeRenew(body)
	if err != nil {
		return enrollment.Answer{}, "", &refusal{status: http.StatusBadRequest, err: err, blame: true}
	}
	node, err := h.owner(ask.Old)
	if err == nil {
		err = ask.Check(connection)
	}
	if err != nil {
		return enrollment.Answer{}, node, &refusal{status: http.StatusUnauthorized, err: err, blame: true}
	}
	if ask.Node != node {
		return enrollment.Answer{}, node, &refusal{status: http.StatusForbidden, err: fmt.Errorf("the certificate is that of node %s, and the request for node %s", node, ask.Node), blame: true}
	}
	if last := ask.Old.NotAfter.Add(h.grace); h.now().After(last) {
		return enrollment.Answer{}, node, &refusal{status: http.StatusForbidden, err: fmt.Errorf(
			"the certificate of node %s ended at %s, and its key could renew it until %s: %s", node, ask.Old.NotAfter.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339), rejoin)}
	}
	certPEM, no := h.renew(ctx, node, pki.IssuedAt(ask.Old), ask.CSR)
	if no != nil {
		return enrollment.Answer{}, node, no
	}
	return enrollment.Answer{Certificate: string(certPEM), CA: string(h.ca.CertPEM)}, node, nil
}

// owner is the node whose certificate that is, or was: all but its dates is
// verified.
func (h *Handler) owner(cert *x509.Certificate) (string, error) {
	_, err := cert.Verify(x509.VerifyOptions{Roots: h.ca.Pool(), CurrentTime: cert.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	var stranger x509.UnknownAuthorityError
	if errors.As(err, &stranger) {
		return "", errors.New("the certificate comes from another CA than this hub's: if the hub was set up anew, run \"holdfast reset\" on the node and join it again")
	}
	if err != nil {
		return "", fmt.Errorf("the certificate is not good: %w", err)
	}
	return pki.NodeName(cert)
}

// renewals knows which nodes had a certificate a short time ago.
type renewals struct {
	every time.Duration
	now   func() time.Time
	mu    sync.Mutex
	last  map[string]time.Time
	swept time.Time
}

func newRenewals(now func() time.Time, every time.Duration) *renewals {
	return &renewals{now: now, every: every, last: make(map[string]time.Time)}
}

// allow takes a node's turn.
func (r *renewals) allow(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	recent := func(at time.Time) bool { return now.Sub(at).Abs() < r.every }
	if at, ok := r.last[node]; ok && recent(at) {
		return false
	}
	if !recent(r.swept) { // what is kept is what one or two of these times bring
		r.swept = now
		for node, at := range r.last {
			if !recent(at) {
				delete(r.last, node)
			}
		}
	}
	r.last[node] = now
	return true
}
