// Package credential owns the node's certificate on disk: it gives it to
// common/link, has it renewed in a session of edge/uplink when a third of its
// life is left, and by proof of the old key once it has ended (Recover, called by
// cmd/edgecore). The key and its certificate change together, also where the
// power goes in between. It never goes by this machine's clock alone, and never
// believes another CA than the one that the node has joined.
package credential

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// Options are what a Credential needs.
type Options struct {
	// DataDir is where the node's certificate was put by joining. It is read when it
	// is needed: a node that has lost it still runs its pods.
	DataDir string
	// Hubs are asked in turn by Recover, HOST:PORT each.
	Hubs []string
	Log  *slog.Logger
	// Proxy chooses an HTTP proxy; nil: that of the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
}

// Credential is the node's certificate. Its methods may be called at any time.
type Credential struct {
	o Options

	mu      sync.Mutex // also held while files change
	nextKey []byte     // PEM; of the request that Ask returned last
}

// New returns the Credential in a data folder.
func New(o Options) *Credential {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Credential{o: o}
}

// Certificate is the node's certificate now, for link.DialOptions.
func (c *Credential) Certificate() (tls.Certificate, error) {
	now, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return tls.Certificate{}, err
	}
	return now.KeyPair()
}

// Roots holds the CA that the node has joined.
func (c *Credential) Roots() (*x509.CertPool, error) {
	now, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return nil, err
	}
	return now.Pool()
}

// Since is what the time is for certain not before: when the node's certificate
// was signed, which nobody without the CA's key can move. A hub's certificate that
// had ended by then is not believed, whatever this machine's clock says. Zero
// where there is no certificate.
func (c *Credential) Since() time.Time {
	now, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return time.Time{}
	}
	cert, err := pki.ParseCert(now.Cert)
	if err != nil {
		return time.Time{}
	}
	return pki.IssuedAt(cert)
}

// Ask returns a request for a new certificate, with a new key, when by the hub's
// clock the present one is due to be renewed; nil: not yet.
func (c *Credential) Ask(hubTime time.Time) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return nil, err
	}
	cert, err := pki.ParseCert(now.Cert)
	if err != nil {
		return nil, err
	}
	if !due(cert, now.NodeName, hubTime) {
		return nil, nil
	}
	key, csr, err := pki.NewKeyAndCSR(now.NodeName)
	if err != nil {
		return nil, err
	}
	c.nextKey = key
	return csr, nil
}

// due says whether a third of the certificate's life is left, or a little more:
// how much is the node's own, so that nodes which joined on one day do not come
// back on one day. A certificate from the hub's future is due at once.
func due(cert *x509.Certificate, node string, at time.Time) bool {
	return !at.Before(dueAt(cert, node)) || at.Before(pki.IssuedAt(cert).Add(-pki.Backdate))
}

func dueAt(cert *x509.Certificate, node string) time.Time {
	life := cert.NotAfter.Sub(pki.IssuedAt(cert))
	h := fnv.New32a()
	h.Write([]byte(node))
	early := life / 10 / 256 * time.Duration(h.Sum32()%256)
	return cert.NotAfter.Add(-life/3 - early)
}

// Dates are those of a node's certificate.
type Dates struct {
	Node       string // whom it is for
	Issued     time.Time
	RenewalDue time.Time
	Ends       time.Time
}

// Dates are those of the certificate now, for people. The error of a machine that has
// not joined wraps enrollment.ErrNotJoined.
func (c *Credential) Dates() (Dates, error) {
	now, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return Dates{}, err
	}
	cert, err := pki.ParseCert(now.Cert)
	if err != nil {
		return Dates{}, err
	}
	return Dates{Node: now.NodeName, Issued: pki.IssuedAt(cert), RenewalDue: dueAt(cert, now.NodeName), Ends: cert.NotAfter}, nil
}

// Take checks the hub's answer to the last Ask and keeps it. It is on disk when
// Take returns; where Take fails, the old certificate stays.
func (c *Credential) Take(certPEM, caPEM []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nextKey == nil {
		return errors.New("a certificate that was not asked for")
	}
	present, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return err
	}
	next := enrollment.Credentials{NodeName: present.NodeName, CA: caPEM, Cert: certPEM, Key: c.nextKey}
	if err := save(c.o.DataDir, present, next); err != nil {
		return err
	}
	c.nextKey = nil
	return nil
}

// save replaces the present certificate by the next, if that is this node's, of
// its key and of the CA that it has joined.
func save(dataDir string, present, next enrollment.Credentials) error {
	ca, err := pki.ParseCert(present.CA)
	if err != nil {
		return err
	}
	if err := next.Check(pki.CAHash(ca)); err != nil {
		return fmt.Errorf("the hub's new certificate for node %s is of no use: %w", present.NodeName, err)
	}
	if bytes.Equal(next.Cert, present.Cert) {
		return fmt.Errorf("the hub's new certificate for node %s is the old one", present.NodeName)
	}
	next.CA = present.CA
	return next.Save(dataDir)
}

// Recover renews a certificate that has ended, by proof of its key. It asks one
// hub after the other, until one has decided. enrollment.ErrVoid is in the error
// where that was no: then only joining anew helps.
func (c *Credential) Recover(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	present, err := enrollment.Load(c.o.DataDir)
	if err != nil {
		return err
	}
	since := c.Since()
	var failed error
	for _, hub := range c.o.Hubs {
		next, err := enrollment.Renew(ctx, enrollment.RenewRequest{Hub: hub, Present: present, Since: since, Proxy: c.o.Proxy, Now: c.o.Now})
		if err == nil {
			if err = save(c.o.DataDir, present, next); err == nil {
				c.o.Log.Info("the node's certificate had ended and is renewed", "node", present.NodeName, "hub", hub)
				return nil
			}
		}
		failed = errors.Join(failed, err)
		if errors.Is(err, enrollment.ErrVoid) || ctx.Err() != nil {
			break // the hubs share their CA and what is revoked
		}
	}
	return failed
}
