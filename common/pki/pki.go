// Package pki makes and reads the certificates of Holdfast: one CA, the hub's
// serving certificate, and one client certificate a node, all ECDSA P-256. It
// also owns the form of a join token and of a CA hash. cloud/identity and
// cloud/enroll sign with it; common/enrollment and common/adm use it on a
// joining machine. It never opens a file and never talks to a cluster.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"
)

// How long certificates live. A CA outlives every node that it signed for; the
// others are renewed while they are in use.
const (
	CATTL     = 10 * 365 * 24 * time.Hour
	NodeTTL   = 365 * 24 * time.Hour
	ServerTTL = 365 * 24 * time.Hour
	// MaxNodeTTL and MaxRenewGrace bound what a hub may be configured to: the life
	// of a node's certificate, and how long after its end the old key may renew it.
	// Together they say how long a revocation must be remembered.
	MaxNodeTTL    = 2 * 365 * 24 * time.Hour
	MaxRenewGrace = 365 * 24 * time.Hour
	// Backdate is how far before the signer's clock a certificate begins, for
	// machines whose clock is behind a little.
	Backdate = time.Hour
)

// Names in a node's certificate: what Kubernetes' Node authorizer expects.
const (
	NodeUserPrefix = "system:node:"
	NodesGroup     = "system:nodes"
)

// CA signs for nodes and for the hub.
type CA struct {
	Cert    *x509.Certificate
	Key     *ecdsa.PrivateKey
	CertPEM []byte
	KeyPEM  []byte
}

// NewCA makes a CA of that common name.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of CA %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-Backdate),
		NotAfter:              time.Now().Add(CATTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign CA %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return ParseCA(encodeCert(der), keyPEM)
}

// ParseCA reads a CA and refuses a pair that cannot sign: no CA certificate, or
// a key of another certificate.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := ParseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("CA: the certificate of %q is not a CA's", cert.Subject.CommonName)
	}
	key, err := ParseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", cert.Subject.CommonName, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("CA %s: the key is not that of the certificate", cert.Subject.CommonName)
	}
	return &CA{Cert: cert, Key: key, CertPEM: certPEM, KeyPEM: keyPEM}, nil
}

// Pool holds this CA alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return pool
}

// Hash is the CA's hash as join commands carry it.
func (ca *CA) Hash() string { return CAHash(ca.Cert) }

// SignNode signs a client certificate for the node of that name with the
// request's public key. Of the request, the key and the proof that the sender
// has it count; every name in it is ignored but for its common name, which must
// not be another node's.
func (ca *CA) SignNode(csrPEM []byte, name string, ttl time.Duration) ([]byte, error) {
	return ca.SignNodeAt(csrPEM, name, time.Now(), ttl)
}

// SignNodeAt is SignNode at that time by the signer's clock, which the
// certificate tells (IssuedAt).
func (ca *CA) SignNodeAt(csrPEM []byte, name string, at time.Time, ttl time.Duration) ([]byte, error) {
	if err := CheckNodeName(name); err != nil {
		return nil, err
	}
	csr, err := ParseCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	if cn := csr.Subject.CommonName; cn != NodeUserPrefix+name {
		return nil, fmt.Errorf("node %s: the certificate request is for %q", name, cn)
	}
	return ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: NodeUserPrefix + name, Organization: []string{NodesGroup}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey, at, ttl)
}

// SignServer makes a key and a serving certificate for those host names and IP
// addresses. The chain ends with the CA, so that a joining node can compare its
// hash.
func (ca *CA) SignServer(hosts []string, ttl time.Duration) (tls.Certificate, error) {
	return ca.SignServerAt(hosts, time.Now(), ttl)
}

// SignServerAt is SignServer at that time by the signer's clock.
func (ca *CA) SignServerAt(hosts []string, at time.Time, ttl time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the hub's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "holdfast-hub"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if host != "" {
			template.DNSNames = append(template.DNSNames, strings.TrimSuffix(host, "."))
		}
	}
	certPEM, err := ca.sign(template, &key.PublicKey, at, ttl)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign the hub's certificate: %w", err)
	}
	leaf, err := ParseCert(certPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// HubName is the name in the certificate that a hub shows to another hub; no node can
// have it (NodeName).
const HubName = "holdfast:hub"

// SignHub makes a key and a certificate with which a hub is a client of other hubs.
func (ca *CA) SignHub(at time.Time, ttl time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a hub's key: %w", err)
	}
	certPEM, err := ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: HubName},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, &key.PublicKey, at, ttl)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign a hub's certificate: %w", err)
	}
	leaf, err := ParseCert(certPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func (ca *CA) sign(template *x509.Certificate, key any, at time.Time, ttl time.Duration) ([]byte, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("a certificate's life of %s", ttl)
	}
	var err error
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	template.NotBefore = at.Add(-Backdate)
	template.NotAfter = at.Add(ttl)
	if template.NotAfter.After(ca.Cert.NotAfter) {
		template.NotAfter = ca.Cert.NotAfter
	}
	if !template.NotBefore.Before(template.NotAfter) {
		return nil, fmt.Errorf("sign %q: the certificate would begin at %s and the CA ends at %s", template.Subject.CommonName, template.NotBefore.UTC().Format(time.RFC3339), ca.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("sign %q: %w", template.Subject.CommonName, err)
	}
	return encodeCert(der), nil
}

// NewKeyAndCSR makes a node's key and the request for its certificate.
func NewKeyAndCSR(nodeName string) (keyPEM, csrPEM []byte, err error) {
	if err := CheckNodeName(nodeName); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of node %s: %w", nodeName, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: NodeUserPrefix + nodeName, Organization: []string{NodesGroup}},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate request of node %s: %w", nodeName, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: csrBlock, Bytes: der}), nil
}

// NodeName is the name of the node that a client certificate belongs to. It
// says nothing about who signed it: give it verified certificates only.
func NodeName(cert *x509.Certificate) (string, error) {
	cn := cert.Subject.CommonName
	name, ok := strings.CutPrefix(cn, NodeUserPrefix)
	if !ok {
		return "", fmt.Errorf("the certificate of %q is not a node's: its name does not begin with %s", cn, NodeUserPrefix)
	}
	if !slices.Contains(cert.Subject.Organization, NodesGroup) {
		return "", fmt.Errorf("the certificate of %q is not in the group %s", cn, NodesGroup)
	}
	if err := CheckNodeName(name); err != nil {
		return "", fmt.Errorf("the certificate of %q: %w", cn, err)
	}
	return name, nil
}

// IssuedAt is when a certificate of Holdfast's CA was signed, by the signer's
// clock and to the second.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(Backdate) }

// CheckNodeName holds Kubernetes' rule for the names of nodes: a DNS-1123
// subdomain.
func CheckNodeName(name string) error {
	if name == "" {
		return errors.New("a node needs a name")
	}
	bad := len(name) > 253
	for label := range strings.SplitSeq(name, ".") {
		bad = bad || label == "" || label[0] == '-' || label[len(label)-1] == '-'
	}
	for _, c := range []byte(name) {
		bad = bad || (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.'
	}
	if bad {
		return fmt.Errorf("node name %q: use lower case letters, digits, '-' and '.', beginning and ending with a letter or digit, at most 253", name)
	}
	return nil
}

// CAHash is "sha256:" and the hexadecimal SHA-256 of the certificate's public
// key (its SubjectPublicKeyInfo), the form that kubeadm uses.
func CAHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// CheckCAHash says whether text is the form that CAHash returns.
func CheckCAHash(text string) error {
	digits, ok := strings.CutPrefix(text, "sha256:")
	if raw, err := hex.DecodeString(digits); !ok || err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("CA hash %q: want sha256: and 64 hexadecimal digits, as \"holdfast token create\" prints them", text)
	}
	return nil
}

// SameCAHash compares two hashes, whatever the case of their digits.
func SameCAHash(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(strings.ToLower(a)), []byte(strings.ToLower(b))) == 1
}

func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// RequestedNode is the node's name that a certificate request asks for.
func RequestedNode(csr *x509.CertificateRequest) (string, error) {
	name, ok := strings.CutPrefix(csr.Subject.CommonName, NodeUserPrefix)
	if !ok {
		return "", fmt.Errorf("the certificate request is for %q, want %s and the node's name", csr.Subject.CommonName, NodeUserPrefix)
	}
	if err := CheckNodeName(name); err != nil {
		return "", err
	}
	return name, nil
}
