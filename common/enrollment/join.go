package enrollment

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Request is what a machine knows when it joins.
type Request struct {
	Hub      string // HOST:PORT
	Token    string // id.secret
	CAHash   string // sha256:...
	NodeName string
	// Proxy chooses an HTTP proxy; nil: that of the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
}

// Enroll gets the node its certificate. The hub is first asked for its
// certificate chain by a handshake that trusts nobody, and so fails; the CA in
// that chain must have the hash that the token came with. Only a hub that then
// proves, in a second handshake, to have a certificate of that CA sees the token.
func Enroll(ctx context.Context, r Request) (Credentials, error) {
	if _, err := pki.ParseToken(r.Token); err != nil {
		return Credentials{}, err
	}
	if err := pki.CheckCAHash(r.CAHash); err != nil {
		return Credentials{}, err
	}
	if _, _, err := net.SplitHostPort(r.Hub); err != nil {
		return Credentials{}, fmt.Errorf("the hub's address %q is not HOST:PORT", r.Hub)
	}
	keyPEM, csrPEM, err := pki.NewKeyAndCSR(r.NodeName)
	if err != nil {
		return Credentials{}, err
	}
	ca, err := r.findCA(ctx)
	if err != nil {
		return Credentials{}, err
	}
	hub := call{hub: r.Hub, path: Path, proxy: r.Proxy, now: r.Now, ca: ca}
	answer, err := hub.post(ctx, func(*tls.ConnectionState) ([]byte, error) {
		return json.Marshal(Ask{Token: strings.TrimSpace(r.Token), CSR: string(csrPEM)})
	})
	if err != nil {
		return Credentials{}, fmt.Errorf("join by the hub at %s: %w", r.Hub, err)
	}
	c := Credentials{NodeName: r.NodeName, CA: []byte(answer.CA), Cert: []byte(answer.Certificate), Key: keyPEM}
	if err := c.Check(r.CAHash); err != nil {
		return Credentials{}, fmt.Errorf("the hub at %s answered with a certificate that is of no use: %w", r.Hub, err)
	}
	return c, nil
}

// findCA shakes hands with the hub without trusting any CA, which fails and so
// shows the chain, and returns the CA in it that has the hash.
func (r Request) findCA(ctx context.Context) (*x509.Certificate, error) {
	client, done := httpClient(r.Proxy, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), Time: r.Now})
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: r.Hub, Path: "/healthz"}).String(), nil)
	if err != nil {
		return nil, fmt.Errorf("the hub's address %q: %w", r.Hub, err)
	}
	response, err := client.Do(ask)
	if err == nil {
		return nil, errors.Join(fmt.Errorf("the hub at %s was believed without a CA", r.Hub), response.Body.Close())
	}
	var failed *tls.CertificateVerificationError
	if !errors.As(err, &failed) {
		return nil, r.unreachable(ctx, err)
	}
	shown := "none"
	for _, cert := range failed.UnverifiedCertificates {
		if !cert.IsCA {
			continue
		}
		if shown = pki.CAHash(cert); pki.SameCAHash(shown, r.CAHash) {
			return cert, nil
		}
	}
	if shown == "none" {
		return nil, fmt.Errorf("%s shows a certificate without its CA: is it the port of a Holdfast hub?", r.Hub)
	}
	return nil, fmt.Errorf("the hub at %s shows a CA with hash %s, not %s: check --ca-hash, or somebody is in between", r.Hub, shown, strings.ToLower(r.CAHash))
}

// unreachable words the usual ways of not getting through.
func (r Request) unreachable(ctx context.Context, err error) error {
	var noTLS tls.RecordHeaderError
	var asked *url.Error
	switch {
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("what answers at %s does not speak TLS: is it the hub's port? %w", r.Hub, err)
	case ctx.Err() != nil:
		return fmt.Errorf("the hub at %s cannot be reached (a firewall on the way?): %w", r.Hub, context.Cause(ctx))
	case errors.As(err, &asked):
		err = asked.Err
	}
	return fmt.Errorf("the hub at %s cannot be reached: %w", r.Hub, err)
}
