package enrollment

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// Credentials are what a node has joined with, in PEM form.
type Credentials struct {
	NodeName string
	CA       []byte
	Cert     []byte
	Key      []byte
}

// Files of the credentials in a data folder. The certificate and its key change
// together, although they are two files: a new key waits beside the old one
// until the certificate has taken its place, and where the certificate is that
// key's, it is the key.
const (
	caFile     = "pki/ca.crt"
	certFile   = "pki/node.crt"
	keyFile    = "pki/node.key"
	newKeyFile = "pki/node.key.next"
)

// ErrNotJoined is in the error of Load where a data folder holds no
// certificate.
var ErrNotJoined = errors.New("this machine has not joined a hub")

// Save keeps the credentials in the data folder. Whenever the power goes, Load
// finds the old certificate with its key or the new one with its own.
func (c Credentials) Save(dataDir string) error {
	for _, step := range c.saving(dataDir) {
		if err := step(); err != nil {
			return fmt.Errorf("save the certificates of node %s: %w", c.NodeName, err)
		}
	}
	return nil
}

// saving is what Save does, each step of it atomic and durable.
func (c Credentials) saving(dataDir string) []func() error {
	path := func(name string) string { return filepath.Join(dataDir, name) }
	return []func() error{
		func() error { return finish(dataDir) },
		func() error { return atomicfile.WriteIn(path(caFile), c.CA, 0o644) },
		func() error { return atomicfile.WriteIn(path(newKeyFile), c.Key, 0o600) },
		func() error { return atomicfile.WriteIn(path(certFile), c.Cert, 0o644) },
		// The new pair counts already; this makes it look like any other.
		func() error { return finish(dataDir) },
	}
}

// finish completes a Save that the power cut short after the certificate was
// replaced: the key beside it is the only one that there is.
func finish(dataDir string) error {
	next := filepath.Join(dataDir, newKeyFile)
	cert, err := os.ReadFile(filepath.Join(dataDir, certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	key, nerr := os.ReadFile(next)
	if errors.Is(nerr, fs.ErrNotExist) {
		return nil
	}
	if err := errors.Join(err, nerr); err != nil {
		return err
	}
	if _, err := pki.KeyPair(cert, key); err != nil {
		return nil // of a Save that ended before: it is written over
	}
	return os.Rename(next, filepath.Join(dataDir, keyFile))
}

// Load reads the credentials in a data folder, and checks that they belong
// together. It does not look at their dates: the hub does.
func Load(dataDir string) (Credentials, error) {
	// Somebody may be saving at this moment.
	c, err := load(dataDir)
	for tries := 0; errors.Is(err, errChanging) && tries < 100; tries++ {
		c, err = load(dataDir)
	}
	return c, err
}

var errChanging = errors.New("the certificate changes while it is read")

func load(dataDir string) (Credentials, error) {
	var c Credentials
	// The next key before the key: while the certificate stays the same, its key may
	// move from the first name to the second.
	var next, after []byte
	for _, file := range []struct {
		name     string
		into     *[]byte
		required bool
	}{{caFile, &c.CA, true}, {certFile, &c.Cert, true}, {newKeyFile, &next, false}, {keyFile, &c.Key, false}, {certFile, &after, true}} {
		b, err := os.ReadFile(filepath.Join(dataDir, file.name))
		missing := errors.Is(err, fs.ErrNotExist)
		if missing && (file.required || file.name == keyFile && next == nil) {
			return Credentials{}, fmt.Errorf("%w: there is no %s: run \"holdfast join\"", ErrNotJoined, filepath.Join(dataDir, file.name))
		}
		if err != nil && !missing {
			return Credentials{}, fmt.Errorf("read the node's certificates: %w", err)
		}
		*file.into = b
	}
	if !bytes.Equal(c.Cert, after) {
		return Credentials{}, errChanging
	}
	if _, err := c.KeyPair(); err != nil {
		if _, nerr := pki.KeyPair(c.Cert, next); nerr != nil {
			return Credentials{}, fmt.Errorf("%s and %s: %w", filepath.Join(dataDir, certFile), filepath.Join(dataDir, keyFile), err)
		}
		c.Key = next
	}
	if _, err := c.Pool(); err != nil {
		return Credentials{}, fmt.Errorf("%s: %w", filepath.Join(dataDir, caFile), err)
	}
	cert, err := pki.ParseCert(c.Cert)
	if err == nil {
		c.NodeName, err = pki.NodeName(cert)
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("%s: %w", filepath.Join(dataDir, certFile), err)
	}
	return c, nil
}

// KeyPair is the client certificate for TLS.
func (c Credentials) KeyPair() (tls.Certificate, error) { return pki.KeyPair(c.Cert, c.Key) }

// Pool holds the hub's CA.
func (c Credentials) Pool() (*x509.CertPool, error) { return pki.Pool(c.CA) }

// Check holds what the answer must be: a certificate for this node's name and
// key, by the CA of that hash.
func (c Credentials) Check(caHash string) error {
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
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}
