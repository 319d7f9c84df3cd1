// Package pki makes and keeps the certificates and keys of an embedded control plane.
//
// It owns the folder pki/ of the data directory: the cluster's certificate authority, the front
// proxy's authority, the serving and client certificates that the two sign, and the key that
// signs service-account tokens. The control plane's front door calls Ensure at every start,
// before anything listens. An authority and the service-account key are made once and never
// again, because nodes, kubeconfigs and running pods hold what they signed; a leaf is reissued
// when it nears its end, when its names have changed, or when its files do not match.
//
// The package never listens, never talks to an apiserver, and never sends a private key anywhere.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	authorityLife = 20 * 365 * 24 * time.Hour
	leafLife      = 2 * 365 * 24 * time.Hour
	// renewBefore is what a leaf must still have at a start: a control plane that is started at
	// least once in thirteen months never serves with an expired certificate.
	renewBefore = 396 * 24 * time.Hour
	// backdate lets a node whose clock runs somewhat behind accept what was issued just now.
	backdate = time.Hour
)

// Request says for whom and for which addresses the leaves are made.
type Request struct {
	Dir        string   // the folder that holds the files; made with mode 0700
	ServerIPs  []net.IP // addresses at which the apiserver is reached
	ServerDNS  []string // names at which it is reached
	CommonName string   // of the cluster's authority; "holdfast" when empty
}

// Pair names a certificate's file and its private key's.
type Pair struct{ Cert, Key string }

// Files tells where everything lies. Every path is absolute when Request.Dir is.
type Files struct {
	CA                Pair // signs every certificate of the cluster
	FrontProxyCA      Pair // signs FrontProxyClient alone
	Serving           Pair // of the apiserver
	FrontProxyClient  Pair // with which the aggregator calls extension apiservers
	KubeletClient     Pair // with which the apiserver calls a node's kubelet API
	Admin             Pair // group system:masters
	ControllerManager Pair
	Scheduler         Pair
	ServiceAccount    Pair // Cert holds the public key
}

// authority is a certificate that signs others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// leafSpec is what a leaf must say.
type leafSpec struct {
	pair   Pair
	signer *authority
	name   pkix.Name
	server bool
	ips    []net.IP
	dns    []string
}

// Ensure makes what is missing, reissues the leaves that need it as of now, and returns the paths.
// An authority or the service-account key that is unreadable or half there is an error, never
// replaced: doing so would cut off every node that was joined.
func Ensure(r Request, now time.Time) (Files, error) {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return Files{}, fmt.Errorf("create certificate folder %s: %w", r.Dir, err)
	}
	f := filesIn(r.Dir)
	name := r.CommonName
	if name == "" {
		name = "holdfast"
	}
	ca, err := ensureAuthority(f.CA, name, now)
	if err != nil {
		return Files{}, err
	}
	front, err := ensureAuthority(f.FrontProxyCA, name+"-front-proxy", now)
	if err != nil {
		return Files{}, err
	}
	if err := ensureServiceAccountKey(f.ServiceAccount); err != nil {
		return Files{}, err
	}
	for _, leaf := range []leafSpec{
		{pair: f.Serving, signer: ca, name: pkix.Name{CommonName: "kube-apiserver"}, server: true, ips: r.ServerIPs, dns: r.ServerDNS},
		{pair: f.KubeletClient, signer: ca, name: pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}},
		{pair: f.Admin, signer: ca, name: pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}},
		{pair: f.ControllerManager, signer: ca, name: pkix.Name{CommonName: "system:kube-controller-manager"}},
		{pair: f.Scheduler, signer: ca, name: pkix.Name{CommonName: "system:kube-scheduler"}},
		{pair: f.FrontProxyClient, signer: front, name: pkix.Name{CommonName: "front-proxy-client"}},
	} {
		if err := ensureLeaf(leaf, now); err != nil {
			return Files{}, err
		}
	}
	return f, nil
}

func filesIn(dir string) Files {
	pair := func(name string) Pair {
		return Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	}
	return Files{
		CA:                pair("ca"),
		FrontProxyCA:      pair("front-proxy-ca"),
		Serving:           pair("apiserver"),
		FrontProxyClient:  pair("front-proxy-client"),
		KubeletClient:     pair("apiserver-kubelet-client"),
		Admin:             pair("admin"),
		ControllerManager: pair("controller-manager"),
		Scheduler:         pair("scheduler"),
		ServiceAccount:    Pair{Cert: filepath.Join(dir, "service-account.pub"), Key: filepath.Join(dir, "service-account.key")},
	}
}

func ensureAuthority(p Pair, name string, now time.Time) (*authority, error) {
	cert, key, err := load(p)
	switch {
	case err == nil:
		if !cert.IsCA {
			return nil, fmt.Errorf("certificate authority %s: the file holds an ordinary certificate; restore it and %s from a backup of the data directory", p.Cert, p.Key)
		}
		if now.After(cert.NotAfter) {
			return nil, fmt.Errorf("certificate authority %s: expired on %s; set the machine's clock right, or start with a new data directory and join the nodes again", p.Cert, cert.NotAfter.Format(time.DateOnly))
		}
		return &authority{cert: cert, key: key}, nil
	case !absent(p.Cert):
		return nil, fmt.Errorf("certificate authority %s: %w; restore it and %s from a backup of the data directory", p.Cert, err, p.Key)
	case absent(p.Key):
		if key, err = newKey(); err != nil {
			return nil, err
		}
	default:
		// The key alone: a first start that was cut off, or a lost certificate. The same key and
		// the same name make an authority which vouches for all that the old one signed.
		if key, err = loadKey(p.Key); err != nil {
			return nil, fmt.Errorf("certificate authority %s: %w; restore it from a backup of the data directory", p.Key, err)
		}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %s: %w", name, err)
	}
	cert, err = x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %s: %w", name, err)
	}
	if err := save(p, der, key); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

func ensureServiceAccountKey(p Pair) error {
	key, err := loadKey(p.Key)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		if key, err = newKey(); err != nil {
			return err
		}
		if err := saveKey(p.Key, key); err != nil {
			return err
		}
	default:
		return fmt.Errorf("service-account key: %w; restore it from a backup of the data directory, for every token of the cluster was signed with it", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode the public half of %s: %w", p.Key, err)
	}
	return WriteFile(p.Cert, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func ensureLeaf(s leafSpec, now time.Time) error {
	if cert, _, err := load(s.pair); err == nil && s.satisfiedBy(cert, now) {
		return nil
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	usage := x509.ExtKeyUsageClientAuth
	if s.server {
		usage = x509.ExtKeyUsageServerAuth
	}
	end := now.Add(leafLife)
	if end.After(s.signer.cert.NotAfter) {
		end = s.signer.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               s.name,
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
		IPAddresses:           s.ips,
		DNSNames:              s.dns,
	}, s.signer.cert, key.Public(), s.signer.key)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", s.pair.Cert, err)
	}
	return save(s.pair, der, key)
}

// satisfiedBy reports whether an existing certificate will do: the right signer, subject and
// names, and enough of its life left. More names than asked for are welcome: an address that
// was once given stays reachable.
func (s leafSpec) satisfiedBy(c *x509.Certificate, now time.Time) bool {
	if c.CheckSignatureFrom(s.signer.cert) != nil || c.Subject.String() != s.name.String() {
		return false
	}
	if now.Before(c.NotBefore) {
		// A clock that runs behind must not throw away certificates which peers already hold.
		now = c.NotBefore
	}
	if now.Add(renewBefore).After(c.NotAfter) && c.NotAfter.Before(s.signer.cert.NotAfter) {
		return false
	}
	for _, ip := range s.ips {
		if !slices.ContainsFunc(c.IPAddresses, ip.Equal) {
			return false
		}
	}
	for _, name := range s.dns {
		if !slices.Contains(c.DNSNames, name) {
			return false
		}
	}
	return true
}

func newKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	return key, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
