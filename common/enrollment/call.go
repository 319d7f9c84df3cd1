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
	"net/http/httptrace"
	"net/url"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// patience bounds each exchange with the hub.
const patience = 30 * time.Second

// ErrRefused is in the error of an Enroll or a Renew that the hub answered with
// no: a bad token, a name that is taken, a certificate that is revoked.
var ErrRefused = errors.New("refused")

// ErrVoid is in the error of a Renew whose hub says that the certificate is worth
// nothing any more: it is revoked, ended too long ago, or of another CA.
// ErrRefused is there, too.
var ErrVoid = errors.New("the node's certificate is void")

// call is one question to a hub that must prove to be of that CA.
type call struct {
	hub, path string
	proxy     func(*http.Request) (*url.URL, error)
	now       func() time.Time
	since     time.Time
	ca        *x509.Certificate
}

// post asks, and once more where only this machine's clock speaks against the
// hub's certificate. The body may depend on the connection.
func (c call) post(ctx context.Context, body func(*tls.ConnectionState) ([]byte, error)) (Answer, error) {
	host, _, err := net.SplitHostPort(c.hub)
	if err != nil {
		return Answer{}, fmt.Errorf("the hub's address %q is not HOST:PORT", c.hub)
	}
	if c.now == nil {
		c.now = time.Now
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca)
	at := pki.Later(c.now(), c.since)
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Time: func() time.Time { return at }}
	answer, err := c.postOnce(ctx, config, body)
	if err != nil {
		if at, err = pki.TimeInsideSince(err, roots, host, at, c.since); err == nil {
			answer, err = c.postOnce(ctx, config.Clone(), body)
		}
	}
	var wrongName x509.HostnameError
	if errors.As(err, &wrongName) {
		err = fmt.Errorf("its certificate is not for %s: add it to advertiseAddresses in the hub's cloudcore.yaml and restart cloudcore: %w", host, err)
	}
	return answer, err
}

func (c call) postOnce(ctx context.Context, config *tls.Config, body func(*tls.ConnectionState) ([]byte, error)) (Answer, error) {
	client, done := httpClient(c.proxy, config)
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	late := &lateBody{make: body}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*tls.Conn); ok {
			state := conn.ConnectionState()
			late.connection = &state
		}
	}})
	ask, err := http.NewRequestWithContext(ctx, http.MethodPost, (&url.URL{Scheme: "https", Host: c.hub, Path: c.path}).String(), late)
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

// lateBody is a body that is made when the connection is there.
type lateBody struct {
	make       func(*tls.ConnectionState) ([]byte, error)
	connection *tls.ConnectionState
	made       *bytes.Reader
}

func (b *lateBody) Read(p []byte) (int, error) {
	if b.made == nil {
		content, err := b.make(b.connection)
		if err != nil {
			return 0, err
		}
		b.made = bytes.NewReader(content)
	}
	return b.made.Read(p)
}

// httpClient makes an HTTP client for one exchange, and what to call after it.
func httpClient(proxy func(*http.Request) (*url.URL, error), config *tls.Config) (*http.Client, func()) {
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	transport := &http.Transport{
		Proxy:               proxy,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: patience,
		DisableKeepAlives:   true,
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}, transport.CloseIdleConnections
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
		err = fmt.Errorf("%w: %s", ErrRefused, no.Error)
		if response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden {
			err = &refusal{err, ErrVoid}
		}
		return Answer{}, err
	}
	var answer Answer
	err := decode(response.Body, &answer)
	return answer, err
}

// refusal is an error that reads as the first of two.
type refusal [2]error

func (r *refusal) Error() string   { return r[0].Error() }
func (r *refusal) Unwrap() []error { return r[:] }
