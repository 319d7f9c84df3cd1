package enroll_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/cloud/enroll"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// ended is how long ago the certificates of these tests were signed; they live
// for minutes.
const ended = 50 * time.Minute

// credentials are those of a node that joined some time ago.
func (p *place) credentials(t *testing.T, ca *pki.CA, node string, ago, ttl time.Duration) enrollment.Credentials {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNodeAt(csr, node, time.Now().Add(-ago), ttl)
	if err != nil {
		t.Fatal(err)
	}
	return enrollment.Credentials{NodeName: node, CA: p.self.CA().CertPEM, Cert: cert, Key: key}
}

func (p *place) renewEnded(t *testing.T) {
	old := p.credentials(t, p.self.CA(), "renew-1", ended, 5*time.Minute)
	if _, err := p.connect(t, old); !errors.Is(err, link.ErrExpired) {
		t.Fatalf("with a certificate that has ended: %v", err)
	}
	renewed, err := enrollment.Renew(patient(t), enrollment.RenewRequest{Hub: p.addr, Present: old})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(renewed.Key, old.Key) {
		t.Error("the old key serves on")
	}
	if node, err := p.connect(t, renewed); err != nil || node != "renew-1" {
		t.Fatalf("with the new certificate the hub accepted %q, %v", node, err)
	}
	if _, err := enrollment.Renew(patient(t), enrollment.RenewRequest{Hub: p.addr, Present: old}); !errors.Is(err, enrollment.ErrRefused) || !strings.Contains(err.Error(), "less than 1m0s ago") {
		t.Errorf("again at once: %v", err)
	}
	// A node whose clock is in 1970, or far ahead, gets through all the same.
	for _, now := range []time.Time{time.Unix(1000, 0), time.Now().AddDate(5, 0, 0)} {
		old := p.credentials(t, p.self.CA(), "renew-"+now.Format("2006"), ended, 5*time.Minute)
		if _, err := enrollment.Renew(patient(t), enrollment.RenewRequest{Hub: p.addr, Present: old, Now: func() time.Time { return now }}); err != nil {
			t.Errorf("with the clock at %s: %v", now, err)
		}
	}
}

// post sends what body makes of the connection, and returns the answer.
func (p *place) post(t *testing.T, addr string, body func(*tls.ConnectionState) any) (int, string) {
	t.Helper()
	conn, state := p.shake(t, addr)
	defer conn.Close()
	b, err := json.Marshal(body(state))
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(patient(t), http.MethodPost, "https://"+addr+enrollment.RenewPath, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func (p *place) shake(t *testing.T, addr string) (*tls.Conn, *tls.ConnectionState) {
	t.Helper()
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: p.self.CA().Pool(), MinVersion: tls.VersionTLS13}}
	conn, err := dialer.DialContext(patient(t), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	state := conn.(*tls.Conn).ConnectionState()
	return conn.(*tls.Conn), &state
}

// forge is a request that goes wrong by the edits that a test makes.
type forge struct {
	cert  []byte // PEM
	key   *ecdsa.PrivateKey
	csr   []byte
	on    *tls.ConnectionState // nil: the connection itself
	about []byte               // what the proof is of; nil: csr
	proof []byte               // nil: a right one
}

func (f forge) body(t *testing.T) func(*tls.ConnectionState) any {
	return func(state *tls.ConnectionState) any {
		if f.on != nil {
			state = f.on
		}
		about := f.csr
		if f.about != nil {
			about = f.about
		}
		proof, err := enrollment.Prove(f.key, state, about)
		if err != nil {
			t.Fatal(err)
		}
		if f.proof != nil {
			proof = f.proof
		}
		return enrollment.RenewAsk{Certificate: string(f.cert), CSR: string(f.csr), Proof: proof}
	}
}

func request(t *testing.T, key any, cn string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func (p *place) renewRefused(t *testing.T) {
	const node = "victim"
	key := func(c enrollment.Credentials) *ecdsa.PrivateKey {
		k, err := pki.ParseKey(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	other, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	good := p.credentials(t, p.self.CA(), node, ended, 5*time.Minute)
	foreign := p.credentials(t, other, node, ended, 5*time.Minute)
	elsewhere := p.credentials(t, p.self.CA(), "attacker", ended, 5*time.Minute)
	_, csr, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	_, csr2, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	admin := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: linktest.SignClient(t, p.self.CA(), &key(good).PublicKey, "kubernetes-admin", "system:masters")})
	hub, hubKey, err := pki.EncodePair(*p.self.Serving())
	if err != nil {
		t.Fatal(err)
	}
	ofHub, err := pki.ParseKey(hubKey)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: linktest.SignClient(t, p.self.CA(), &rsaKey.PublicKey, "system:node:"+node, "system:nodes")})
	// Both may have many failures from one address: each has a limit of its own.
	addr := p.port(t, enroll.New(enroll.Options{Client: p.client, CA: p.self.CA()}))
	past := p.port(t, enroll.New(enroll.Options{Client: p.client, CA: p.self.CA(), RenewGrace: time.Minute}))
	conn, another := p.shake(t, addr)
	defer conn.Close()
	for name, c := range map[string]struct {
		addr   string
		f      forge
		status int
		text   string
	}{
		"past the grace":                  {past, forge{cert: good.Cert, key: key(good), csr: csr}, http.StatusForbidden, "holdfast token create"},
		"another CA's certificate":        {addr, forge{cert: foreign.Cert, key: key(foreign), csr: csr}, http.StatusUnauthorized, "another CA"},
		"another key":                     {addr, forge{cert: good.Cert, key: key(elsewhere), csr: csr}, http.StatusUnauthorized, "the proof is not"},
		"another connection's proof":      {addr, forge{cert: good.Cert, key: key(good), csr: csr, on: another}, http.StatusUnauthorized, "the proof is not"},
		"a proof of another request":      {addr, forge{cert: good.Cert, key: key(good), csr: csr, about: csr2}, http.StatusUnauthorized, "the proof is not"},
		"an empty proof":                  {addr, forge{cert: good.Cert, key: key(good), csr: csr, proof: []byte{}}, http.StatusBadRequest, "a proof of 0 bytes"},
		"a proof that is too long":        {addr, forge{cert: good.Cert, key: key(good), csr: csr, proof: make([]byte, 4000)}, http.StatusBadRequest, "a proof of 4000 bytes"},
		"another node's name":             {addr, forge{cert: elsewhere.Cert, key: key(elsewhere), csr: csr}, http.StatusForbidden, "that of node attacker"},
		"the hub's own certificate":       {addr, forge{cert: hub, key: ofHub, csr: csr}, http.StatusUnauthorized, "not good"},
		"an admin's certificate":          {addr, forge{cert: admin, key: key(good), csr: csr}, http.StatusUnauthorized, "not a node's"},
		"the CA's certificate":            {addr, forge{cert: p.self.CA().CertPEM, key: key(good), csr: csr}, http.StatusUnauthorized, "not"},
		"an RSA key in the certificate":   {addr, forge{cert: rsaCert, key: key(good), csr: csr}, http.StatusUnauthorized, "want ECDSA"},
		"an RSA key in the request":       {addr, forge{cert: good.Cert, key: key(good), csr: request(t, rsaKey, "system:node:"+node)}, http.StatusBadRequest, "not ECDSA P-256"},
		"a P-384 key in the request":      {addr, forge{cert: good.Cert, key: key(good), csr: request(t, p384, "system:node:"+node)}, http.StatusBadRequest, "not ECDSA P-256"},
		"a request for an admin":          {addr, forge{cert: good.Cert, key: key(good), csr: request(t, key(good), "kubernetes-admin")}, http.StatusBadRequest, "kubernetes-admin"},
		"a request that is too long":      {addr, forge{cert: good.Cert, key: key(good), csr: append(bytes.Repeat([]byte("\n"), enrollment.MaxBody), csr...)}, http.StatusBadRequest, "more than"},
		"a certificate that is no such":   {addr, forge{cert: []byte("x"), key: key(good), csr: csr}, http.StatusBadRequest, "no certificate"},
		"a request that is no such (PEM)": {addr, forge{cert: good.Cert, key: key(good), csr: good.Cert}, http.StatusBadRequest, "no certificate request"},
	} {
		status, text := p.post(t, c.addr, c.f.body(t))
		if status != c.status || !strings.Contains(text, c.text) || strings.Contains(text, "BEGIN CERTIFICATE") {
			t.Errorf("%s: %d %s, want %d and %q", name, status, text, c.status, c.text)
		}
	}
	// After all of that the one with the key still gets it.
	if status, text := p.post(t, addr, (forge{cert: good.Cert, key: key(good), csr: csr}).body(t)); status != http.StatusOK {
		t.Errorf("the right one: %d %s", status, text)
	}
}

// renewGuessing has the limit that joining has.
func (p *place) renewGuessing(t *testing.T) {
	addr := p.port(t, enroll.New(enroll.Options{Client: p.client, CA: p.self.CA()}))
	good := p.credentials(t, p.self.CA(), "guessed", ended, 5*time.Minute)
	key, csr, err := pki.NewKeyAndCSR("guessed")
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := pki.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	for status := http.StatusUnauthorized; status == http.StatusUnauthorized; tries++ {
		status, _ = p.post(t, addr, (forge{cert: good.Cert, key: wrong, csr: csr}).body(t))
		if status != http.StatusUnauthorized && status != http.StatusTooManyRequests || tries > 1000 {
			t.Fatalf("try %d: %d", tries, status)
		}
	}
}

func (p *place) renewInSession(t *testing.T) {
	issued := time.Now().Add(-time.Hour)
	h := enroll.New(enroll.Options{Client: p.client, CA: p.self.CA(), TTL: time.Hour})
	_, csr, err := pki.NewKeyAndCSR("session-1")
	if err != nil {
		t.Fatal(err)
	}
	a := h.Renew(patient(t), "session-1", issued, csr)
	if a.GetCode() != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("%+v", a)
	}
	cert, err := pki.ParseCert(a.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	if name, err := pki.NodeName(cert); err != nil || name != "session-1" || cert.CheckSignatureFrom(p.self.CA().Cert) != nil || !bytes.Equal(a.GetCa(), p.self.CA().CertPEM) {
		t.Errorf("a certificate for %q, %v", name, err)
	}
	if life := cert.NotAfter.Sub(pki.IssuedAt(cert)); life != time.Hour {
		t.Errorf("it lives %s", life)
	}
	for name, c := range map[string]struct {
		node string
		csr  []byte
		code wire.ResultCode
		text string
	}{
		"again at once":    {"session-1", csr, wire.ResultCode_RESULT_RETRY, "less than"},
		"for another node": {"session-2", csr, wire.ResultCode_RESULT_REJECTED, `is for "system:node:session-1"`},
		"nothing":          {"session-3", nil, wire.ResultCode_RESULT_REJECTED, "no certificate request"},
		"too much":         {"session-4", make([]byte, enrollment.MaxBody+1), wire.ResultCode_RESULT_REJECTED, "at most"},
	} {
		if a := h.Renew(patient(t), c.node, issued, c.csr); a.GetCode() != c.code || !strings.Contains(a.GetMessage(), c.text) || len(a.GetCertificate()) > 0 {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
