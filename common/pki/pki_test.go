package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestCASurvivesWritingAndReading(t *testing.T) {
	ca := newCA(t)
	again, err := ParseCA(ca.CertPEM, ca.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Cert.Equal(ca.Cert) || !again.Key.Equal(ca.Key) {
		t.Error("another CA was read than written")
	}
	if life := ca.Cert.NotAfter.Sub(ca.Cert.NotBefore); life < CATTL || !ca.Cert.NotBefore.Before(time.Now().Add(-Backdate+time.Minute)) {
		t.Errorf("the CA lives %s from %s", life, ca.Cert.NotBefore)
	}
}

func TestParseCARefusesWhatCannotSign(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	keyPEM, csrPEM, err := NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	nodePEM, err := ca.SignNode(csrPEM, "pi-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cert, key []byte
		text      string
	}{
		"nothing":          {nil, nil, "no certificate"},
		"no key":           {ca.CertPEM, ca.CertPEM, "no private key"},
		"another's key":    {ca.CertPEM, other.KeyPEM, "not that of the certificate"},
		"a node's":         {nodePEM, keyPEM, "is not a CA's"},
		"a broken one":     {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), ca.KeyPEM, "read a certificate"},
		"a broken key":     {ca.CertPEM, []byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"), "read a private key"},
		"a broken PKCS #8": {ca.CertPEM, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "read a private key"},
	} {
		if _, err := ParseCA(c.cert, c.key); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.text)
		}
	}
}

func TestParseKeyReadsPKCS8(t *testing.T) {
	ca := newCA(t)
	der, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil || !key.Equal(ca.Key) {
		t.Fatalf("read %v, %v", key, err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if der, err = x509.MarshalPKCS8PrivateKey(rsaKey); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err == nil || !strings.Contains(err.Error(), "want ECDSA") {
		t.Fatalf("an RSA key: %v", err)
	}
}

func TestNodeCertificateIsWhatTheNodeAuthorizerExpects(t *testing.T) {
	ca := newCA(t)
	keyPEM, csrPEM, err := NewKeyAndCSR("pi-1.shop")
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.SignNode(csrPEM, "pi-1.shop", NodeTTL)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	cert := pair.Leaf
	if cert.Subject.CommonName != "system:node:pi-1.shop" || !slices.Equal(cert.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("the subject is %v", cert.Subject)
	}
	if name, err := NodeName(cert); err != nil || name != "pi-1.shop" {
		t.Errorf("the name is %q, %v", name, err)
	}
	for usage, good := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageClientAuth: true, x509.ExtKeyUsageServerAuth: false} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{usage}})
		if (err == nil) != good {
			t.Errorf("verified for usage %d: %v", usage, err)
		}
	}
	if cert.NotAfter.After(time.Now().Add(NodeTTL)) || cert.NotAfter.Before(time.Now().Add(NodeTTL-time.Minute)) {
		t.Errorf("it ends at %s", cert.NotAfter)
	}
}

func TestSignNodeRefuses(t *testing.T) {
	ca := newCA(t)
	_, good, err := NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	request := func(key any, cn string) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := pem.Decode(good)
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	for name, c := range map[string]struct {
		csr  []byte
		node string
		ttl  time.Duration
		text string
	}{
		"another node's name":   {good, "pi-2", time.Hour, `is for "system:node:pi-1"`},
		"an admin's name":       {request(p256, "kubernetes-admin"), "pi-1", time.Hour, `is for "kubernetes-admin"`},
		"no name":               {good, "", time.Hour, "needs a name"},
		"a path as a name":      {request(p256, "system:node:../x"), "../x", time.Hour, "node name"},
		"a weak curve":          {request(p384, "system:node:pi-1"), "pi-1", time.Hour, "not ECDSA P-256"},
		"an RSA key":            {request(rsaKey, "system:node:pi-1"), "pi-1", time.Hour, "not ECDSA P-256"},
		"a forged signature":    {pem.EncodeToMemory(forged), "pi-1", time.Hour, "not signed with its own key"},
		"no request":            {[]byte("hello"), "pi-1", time.Hour, "no certificate request"},
		"a certificate instead": {ca.CertPEM, "pi-1", time.Hour, "no certificate request"},
		"no life":               {good, "pi-1", 0, "life"},
	} {
		if _, err := ca.SignNode(c.csr, c.node, c.ttl); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.text)
		}
	}
}

func TestNoCertificateOutlivesItsCA(t *testing.T) {
	ca := newCA(t)
	pair, err := ca.SignServer([]string{"hub.example.test"}, 2*CATTL)
	if err != nil {
		t.Fatal(err)
	}
	if pair.Leaf.NotAfter.After(ca.Cert.NotAfter) {
		t.Errorf("it ends at %s, the CA at %s", pair.Leaf.NotAfter, ca.Cert.NotAfter)
	}
}

func TestACertificateTellsWhenItWasSigned(t *testing.T) {
	ca := newCA(t)
	_, csrPEM, err := NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(20 * time.Minute).Truncate(time.Second)
	certPEM, err := ca.SignNodeAt(csrPEM, "pi-1", at, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCert(certPEM)
	if err != nil || !IssuedAt(cert).Equal(at) || !cert.NotAfter.Equal(at.Add(time.Hour)) {
		t.Errorf("signed at %s, says %s to %s, %v", at, IssuedAt(cert), cert.NotAfter, err)
	}
	for _, at := range []time.Time{ca.Cert.NotAfter.Add(2 * Backdate), time.Unix(1<<40, 0)} {
		if _, err := ca.SignNodeAt(csrPEM, "pi-1", at, time.Hour); err == nil || !strings.Contains(err.Error(), "would begin at") {
			t.Errorf("at %s: %v", at, err)
		}
	}
}

func TestTimeInsideKnowsWhatHasTrulyEnded(t *testing.T) {
	ca := newCA(t)
	pair, err := ca.SignServer([]string{"192.0.2.1"}, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	broken := handshakeError(errors.New("dates"), leaf, ca.Cert)
	in1970, ahead := time.Unix(0, 0), leaf.NotAfter.AddDate(3, 0, 0)
	for name, c := range map[string]struct {
		now, floor, want time.Time // want zero: ErrEnded
	}{
		"ahead, nothing known":         {ahead, time.Time{}, leaf.NotAfter},
		"ahead, known before its end":  {ahead, leaf.NotAfter.Add(-time.Hour), leaf.NotAfter},
		"ahead, known after its end":   {ahead, leaf.NotAfter.Add(time.Hour), time.Time{}},
		"1970, known after its end":    {in1970, leaf.NotAfter.Add(time.Hour), time.Time{}},
		"1970, known before its start": {in1970, leaf.NotBefore.AddDate(-1, 0, 0), leaf.NotBefore},
	} {
		at, err := TimeInsideSince(broken, ca.Pool(), "192.0.2.1", c.now, c.floor)
		if !at.Equal(c.want) || c.want.IsZero() != errors.Is(err, ErrEnded) {
			t.Errorf("%s: %s, %v; want %s", name, at, err, c.want)
		}
	}
}

func TestServerCertificateIsForItsHostsAndShowsTheCA(t *testing.T) {
	ca := newCA(t)
	pair, err := ca.SignServer([]string{"hub.example.test.", "192.0.2.1", "2001:db8::1", ""}, ServerTTL)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"hub.example.test", "192.0.2.1", "2001:db8::1"} {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if err := pair.Leaf.VerifyHostname("192.0.2.2"); err == nil {
		t.Error("it is for a host that was not named")
	}
	last, err := x509.ParseCertificate(pair.Certificate[len(pair.Certificate)-1])
	if err != nil || CAHash(last) != ca.Hash() {
		t.Errorf("the chain ends with %v, %v", last, err)
	}
	certPEM, keyPEM, err := EncodePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	again, err := KeyPair(certPEM, keyPEM)
	if err != nil || len(again.Certificate) != 2 || !again.Leaf.Equal(pair.Leaf) {
		t.Errorf("read again: %v, %v", again.Leaf, err)
	}
}

func TestNodeNames(t *testing.T) {
	for name, good := range map[string]bool{
		"pi": true, "pi-1": true, "pi-1.shop.example": true, "1": true, strings.Repeat("a", 253): true,
		"": false, "Pi": false, "-pi": false, "pi-": false, "pi..x": false, ".pi": false, "pi.": false, "pi_1": false,
		"pi/1": false, "pi 1": false, "../x": false, "pi\x00": false, "pé": false, strings.Repeat("a", 254): false, "a.-b": false,
	} {
		if err := CheckNodeName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestNodeNameOfOtherCertificates(t *testing.T) {
	for name, subject := range map[string]pkix.Name{
		"no node":  {CommonName: "kubernetes-admin", Organization: []string{NodesGroup}},
		"no group": {CommonName: "system:node:pi-1", Organization: []string{"system:masters"}},
		"bad name": {CommonName: "system:node:../x", Organization: []string{NodesGroup}},
	} {
		if got, err := NodeName(&x509.Certificate{Subject: subject}); err == nil {
			t.Errorf("%s: read as node %q", name, got)
		}
	}
}

func TestCAHashIsOfThePublicKey(t *testing.T) {
	ca := newCA(t)
	der, err := x509.MarshalPKIXPublicKey(&ca.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	want := "sha256:" + hex.EncodeToString(sum[:])
	if ca.Hash() != want {
		t.Errorf("the hash is %s, want %s", ca.Hash(), want)
	}
	if err := CheckCAHash(want); err != nil {
		t.Error(err)
	}
	if !SameCAHash(want, strings.ToUpper(want)) || SameCAHash(want, newCA(t).Hash()) {
		t.Error("hashes are compared wrongly")
	}
	for _, bad := range []string{"", "sha256:", "sha256:abcd", want[7:], "md5:" + want[7:], want + "00", "sha256:" + strings.Repeat("g", 64)} {
		if CheckCAHash(bad) == nil {
			t.Errorf("%q passes for a hash", bad)
		}
	}
}

// handshakeError is what a TLS client gets that cannot verify this chain.
func handshakeError(cause error, chain ...*x509.Certificate) error {
	return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: cause}
}

func TestTimeInside(t *testing.T) {
	ca := newCA(t)
	pair, err := ca.SignServer([]string{"192.0.2.1"}, ServerTTL)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	broken := handshakeError(errors.New("dates"), leaf, ca.Cert)
	for name, c := range map[string]struct {
		now, want time.Time
	}{
		"before": {time.Unix(0, 0), leaf.NotBefore},
		"after":  {leaf.NotAfter.AddDate(3, 0, 0), leaf.NotAfter},
	} {
		at, err := TimeInside(broken, ca.Pool(), "192.0.2.1", c.now)
		if err != nil || !at.Equal(c.want) {
			t.Errorf("%s: %s, %v; want %s", name, at, err, c.want)
		}
		if _, err := TimeInside(broken, ca.Pool(), "192.0.2.2", c.now); !errors.As(err, new(x509.HostnameError)) {
			t.Errorf("%s, another host: %v", name, err)
		}
		if _, err := TimeInside(broken, newCA(t).Pool(), "192.0.2.1", c.now); !errors.As(err, new(x509.UnknownAuthorityError)) {
			t.Errorf("%s, another CA: %v", name, err)
		}
	}
	other := errors.New("connection refused")
	if _, err := TimeInside(other, ca.Pool(), "192.0.2.1", time.Now()); !errors.Is(err, other) {
		t.Errorf("an error of another kind became %v", err)
	}
	if _, err := TimeInside(broken, ca.Pool(), "192.0.2.1", time.Now()); !errors.Is(err, broken) {
		t.Errorf("with a right clock the error became %v", err)
	}
	if _, err := TimeInside(handshakeError(other), ca.Pool(), "192.0.2.1", time.Unix(0, 0)); err == nil {
		t.Error("no chain at all was found good")
	}
	_, csrPEM, err := NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	nodePEM, err := ca.SignNode(csrPEM, "pi-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	node, err := ParseCert(nodePEM)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TimeInside(handshakeError(other, node, ca.Cert), ca.Pool(), "pi-1", time.Unix(0, 0)); err == nil {
		t.Error("a node's certificate was found good for a hub")
	}
}
