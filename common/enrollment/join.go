package enrollment

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// patience bounds each exchange with the hub.
const patience = 30 * time.Second

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

// ErrRefused is in the error of an Enroll that the hub answered with no: a bad
// token, or a name that is taken.
var ErrRefused = errors.New("refused")

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
	host, _, err := net.SplitHostPort(r.Hub)
	if err != nil {
		return Credentials{}, fmt.Errorf("the hub's address %q is not HOST:PORT", r.Hub)
	}
	if r.Proxy == nil {
		r.Proxy = http.ProxyFromEnvironment
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	keyPEM, csrPEM, err := pki.NewKeyAndCSR(r.NodeName)
	if err != nil {
		return Credentials{}, err
	}
	ca, err := r.findCA(ctx)
	if err != nil {
		return Credentials{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Time: r.Now}
	answer, err := r.post(ctx, config, csrPEM)
	if err != nil {
		var at time.Time
		if at, err = pki.TimeInside(err, roots, host, r.Now()); err == nil {
			config.Time = func() time.Time { return at }
			answer, err = r.post(ctx, config, csrPEM)
		}
	}
	var wrongName x509.HostnameError
	if errors.As(err, &wrongName) {
		err = fmt.Errorf("its certificate is not for %s: add it to advertiseAddresses in the hub's cloudcore.yaml and restart cloudcore: %w", host, err)
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("join by the hub at %s: %w", r.Hub, err)
	}
	c := Credentials{NodeName: r.NodeName, CA: []byte(answer.CA), Cert: []byte(answer.Certificate), Key: keyPEM}
	if err := c.check(r.CAHash); err != nil {
		return Credentials{}, fmt.Errorf("the hub at %s answered with a certificate that is of no use: %w", r.Hub, err)
	}
	return c, nil
}

// findCA shakes hands with the hub without trusting any CA, which fails and so
// shows the chain, and returns the CA in it that has the hash.
func (r Request) findCA(ctx context.Context) (*x509.Certificate, error) {
	client, done := r.client(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), Time: r.Now})
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url("/healthz"), nil)
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

func (r Request) url(path string) string {
	return (&url.URL{Scheme: "https", Host: r.Hub, Path: path}).String()
}

// client makes an HTTP client for one exchange, and what to call after it.
func (r Request) client(config *tls.Config) (*http.Client, func()) {
	transport := &http.Transport{
		Proxy:               r.Proxy,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: patience,
		DisableKeepAlives:   true,
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}, transport.CloseIdleConnections
}

func (r Request) post(ctx context.Context, config *tls.Config, csrPEM []byte) (Answer, error) {
	client, done := r.client(config)
	defer done()
	body, err := json.Marshal(Ask{Token: strings.TrimSpace(r.Token), CSR: string(csrPEM)})
	if err != nil {
		return Answer{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url(Path), bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	ask.Header.Set("Content-Type", "application/json")
	response, err := client.Do(ask)
	if err != nil {
		return Answer{}, err
	}
	answer, err := readAnswer(response)
	return answer, errors.Join(err, response.Body.Close())
}

func readAnswer(response *http.Response) (Answer, error) {
	if response.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(response.Body, 4096))
		if err != nil {
			return Answer{}, err
		}
		var no Refusal
		if json.Unmarshal(text, &no) != nil || no.Error == "" {
			no.Error = fmt.Sprintf("%s %s", response.Status, bytes.TrimSpace(text))
		}
		return Answer{}, fmt.Errorf("%w: %s", ErrRefused, no.Error)
	}
	var answer Answer
	err := decode(response.Body, &answer)
	return answer, err
}

// check holds what the answer must be: a certificate for this node's name and
// key, by the CA of that hash.
func (c Credentials) check(caHash string) error {
	ca, err := pki.ParseCert(c.CA)
	if err != nil {
		return err
	}
	if hash := pki.CAHash(ca); !pki.SameCAHash(hash, caHash) {
		return fmt.Errorf("its CA has the hash %s", hash)
	}
	if _, err := c.KeyPair(); err != nil {
		return err
	}
	cert, err := pki.ParseCert(c.Cert)
	if err != nil {
		return err
	}
	if name, err := pki.NodeName(cert); err != nil || name != c.NodeName {
		return errors.Join(fmt.Errorf("it is for node %q, not %q", name, c.NodeName), err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}
