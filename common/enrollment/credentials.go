package enrollment

import (
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

// Files of the credentials in a data folder.
const (
	caFile   = "pki/ca.crt"
	certFile = "pki/node.crt"
	keyFile  = "pki/node.key"
)

// ErrNotJoined is in the error of Load where a data folder holds no
// certificate.
var ErrNotJoined = errors.New("this machine has not joined a hub")

// Save keeps the credentials in the data folder. The certificate is written
// last: where it is, the others are.
func (c Credentials) Save(dataDir string) error {
	for _, file := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
	}{{caFile, c.CA, 0o644}, {keyFile, c.Key, 0o600}, {certFile, c.Cert, 0o644}} {
		if err := atomicfile.WriteIn(filepath.Join(dataDir, file.name), file.content, file.mode); err != nil {
			return fmt.Errorf("save the certificates of node %s: %w", c.NodeName, err)
		}
	}
	return nil
}

// Load reads the credentials in a data folder, and checks that they belong
// together. It does not look at their dates: the hub does.
func Load(dataDir string) (Credentials, error) {
	var c Credentials
	for name, into := range map[string]*[]byte{caFile: &c.CA, certFile: &c.Cert, keyFile: &c.Key} {
		b, err := os.ReadFile(filepath.Join(dataDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return Credentials{}, fmt.Errorf("%w: there is no %s: run \"holdfast join\"", ErrNotJoined, filepath.Join(dataDir, name))
		}
		if err != nil {
			return Credentials{}, fmt.Errorf("read the node's certificates: %w", err)
		}
		*into = b
	}
	if _, err := c.KeyPair(); err != nil {
		return Credentials{}, fmt.Errorf("%s and %s: %w", filepath.Join(dataDir, certFile), filepath.Join(dataDir, keyFile), err)
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
