package enrollment

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// RenewPath is where the hub renews a certificate that has ended, for who proves
// to have its key. (One that has not is renewed in the session.)
const RenewPath = "/v1/renew"

// RenewAsk is what such a node posts, as JSON. It shows no certificate in the TLS
// handshake: the hub would refuse one that has ended.
type RenewAsk struct {
	Certificate string `json:"certificate"` // PEM; the one that has ended
	CSR         string `json:"csr"`         // PEM; for the same name
	// Proof is an ECDSA signature (ASN.1) by the old certificate's key over what
	// Prove says.
	Proof []byte `json:"proof"`
}

// Renewal is a RenewAsk that was read.
type Renewal struct {
	Old   *x509.Certificate
	Node  string // that the request asks for
	CSR   []byte
	Proof []byte
}

// maxProof is more than any signature by a P-256 key takes.
const maxProof = 80

// DecodeRenew reads what a node posted, and checks it as far as that needs
// neither the CA nor the connection. It reads at most MaxBody bytes.
func DecodeRenew(r io.Reader) (*Renewal, error) {
	var ask RenewAsk
	if err := decode(r, &ask); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	old, err := pki.ParseCert([]byte(ask.Certificate))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	csr, err := pki.ParseCSR([]byte(ask.CSR))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	node, err := pki.RequestedNode(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(ask.Proof) == 0 || len(ask.Proof) > maxProof {
		return nil, fmt.Errorf("%w: a proof of %d bytes", ErrMalformed, len(ask.Proof))
	}
	return &Renewal{Old: old, Node: node, CSR: []byte(ask.CSR), Proof: ask.Proof}, nil
}

// Check says whether the proof is the old key's for this request on this
// connection.
func (r *Renewal) Check(connection *tls.ConnectionState) error {
	key, ok := r.Old.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("the old certificate's key is of type %T, want ECDSA", r.Old.PublicKey)
	}
	digest, err := proven(connection, r.CSR)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(key, digest, r.Proof) {
		return errors.New("the proof is not the old key's for this request on this connection")
	}
	return nil
}

// Prove signs a request with the old key. What is signed holds a secret that only
// the two ends of this TLS connection share (RFC 9266's idea, RFC 8446 section
// 7.5), so that nobody can use the proof on another connection.
func Prove(key *ecdsa.PrivateKey, connection *tls.ConnectionState, csrPEM []byte) ([]byte, error) {
	digest, err := proven(connection, csrPEM)
	if err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, key, digest)
}

func proven(connection *tls.ConnectionState, csrPEM []byte) ([]byte, error) {
	if connection == nil || connection.Version < tls.VersionTLS13 {
		return nil, errors.New("the proof of a key needs a connection of TLS 1.3")
	}
	bound, err := connection.ExportKeyingMaterial("EXPORTER-holdfast-renew", nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("bind the proof to the connection: %w", err)
	}
	digest := sha256.New()
	digest.Write([]byte("holdfast: renew a node's certificate\x00"))
	digest.Write(bound)
	digest.Write(csrPEM)
	return digest.Sum(nil), nil
}

// RenewRequest is what a node knows whose certificate has ended.
type RenewRequest struct {
	Hub     string // HOST:PORT
	Present Credentials
	// Since is what the time is for certain not before; see pki.TimeInsideSince.
	Since time.Time
	// Proxy chooses an HTTP proxy; nil: that of the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
}

// Renew gets the node a new certificate by proof of the key of the present one.
// ErrRefused is in the error where the hub says no: then only a new token helps.
func Renew(ctx context.Context, r RenewRequest) (Credentials, error) {
	present, err := r.Present.KeyPair()
	if err != nil {
		return Credentials{}, err
	}
	old, ok := present.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return Credentials{}, fmt.Errorf("the key of node %s is of type %T, want ECDSA", r.Present.NodeName, present.PrivateKey)
	}
	ca, err := pki.ParseCert(r.Present.CA)
	if err != nil {
		return Credentials{}, err
	}
	keyPEM, csrPEM, err := pki.NewKeyAndCSR(r.Present.NodeName)
	if err != nil {
		return Credentials{}, err
	}
	c := call{hub: r.Hub, path: RenewPath, proxy: r.Proxy, now: r.Now, since: r.Since, ca: ca}
	answer, err := c.post(ctx, func(connection *tls.ConnectionState) ([]byte, error) {
		proof, err := Prove(old, connection, csrPEM)
		if err != nil {
			return nil, err
		}
		return json.Marshal(RenewAsk{Certificate: string(r.Present.Cert), CSR: string(csrPEM), Proof: proof})
	})
	if err != nil {
		return Credentials{}, fmt.Errorf("renew the certificate of node %s by the hub at %s: %w", r.Present.NodeName, r.Hub, err)
	}
	renewed := Credentials{NodeName: r.Present.NodeName, CA: []byte(answer.CA), Cert: []byte(answer.Certificate), Key: keyPEM}
	if err := renewed.Check(pki.CAHash(ca)); err != nil {
		return Credentials{}, fmt.Errorf("the hub at %s answered with a certificate that is of no use: %w", r.Hub, err)
	}
	return renewed, nil
}
