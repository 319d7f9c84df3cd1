// Package identity is who the hub is towards the edges: Holdfast's CA, from its
// Secret in the cluster, and the hub's serving certificate, made for the
// addresses by which edges reach it and made anew before it ends. cmd/cloudcore
// opens it and serves with its TLS configuration; cloud/enroll signs with its
// CA. It never decides who may connect.
package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// renewBefore is how long before its end the serving certificate is made anew.
const renewBefore = 30 * 24 * time.Hour

// lookEvery is how often Run looks at the certificate's end, unless Options say
// otherwise.
const lookEvery = time.Hour

// Files of the serving certificate in the data folder.
const (
	certFile = "pki/hub.crt"
	keyFile  = "pki/hub.key"
)

// Options say where the hub's identity comes from.
type Options struct {
	Client kubernetes.Interface
	// DataDir keeps the serving certificate; empty: in memory only.
	DataDir string
	// Hosts are the names and IP addresses by which edges reach the hub. This
	// machine's host name and the loopback addresses are added.
	Hosts []string
	// LookEvery is how often Run looks whether the certificate ends soon; 0: an hour.
	LookEvery time.Duration
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// Identity is the hub's CA and serving certificate.
type Identity struct {
	ca      *pki.CA
	hosts   []string
	dataDir string
	every   time.Duration
	log     *slog.Logger
	now     func() time.Time
	serving atomic.Pointer[tls.Certificate]
	peer    atomic.Pointer[tls.Certificate]
}

// Open reads the CA from the cluster, or makes it there, and reads or makes the
// serving certificate.
func Open(ctx context.Context, o Options) (*Identity, error) {
	ca, err := cluster.EnsureCA(ctx, o.Client)
	if err != nil {
		return nil, fmt.Errorf("the hub's CA: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	i := &Identity{ca: ca, hosts: allHosts(o.Hosts), dataDir: o.DataDir, every: cmp.Or(o.LookEvery, lookEvery), log: o.Log, now: o.Now}
	kept, err := i.read()
	if err != nil {
		i.log.Warn("the hub's kept certificate is of no use: making another", "err", err)
	}
	if kept != nil {
		i.serving.Store(kept)
	}
	if err := i.renew(); err != nil {
		return nil, err
	}
	return i, nil
}

// CA signs for nodes.
func (i *Identity) CA() *pki.CA { return i.ca }

// Serving is the certificate in use.
func (i *Identity) Serving() *tls.Certificate { return i.serving.Load() }

// TLSConfig is the configuration of the hub's port: TLS 1.3, and client
// certificates verified where they are given, on every connection anew (a
// session ticket would carry an old verdict over).
func (i *Identity) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"http/1.1"},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              i.ca.Pool(),
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return i.serving.Load(), nil
		},
	}
}

// Run keeps the serving certificate valid until ctx ends. Connections that are
// open keep the one that they began with.
func (i *Identity) Run(ctx context.Context) error {
	tick := time.NewTicker(i.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := i.renew(); err != nil {
			i.log.Error("the hub's certificate cannot be renewed; it is tried again", "in", i.every, "ends", i.Serving().Leaf.NotAfter, "err", err)
		}
	}
}

// renew makes a serving certificate where there is none, or where it ends soon.
// One that cannot be kept on disk serves all the same.
func (i *Identity) renew() error {
	old := i.serving.Load()
	if old != nil && i.now().Before(old.Leaf.NotAfter.Add(-renewBefore)) {
		return nil
	}
	pair, err := i.ca.SignServerAt(i.hosts, i.now(), pki.ServerTTL)
	if err != nil {
		return err
	}
	i.serving.Store(&pair)
	i.log.Info("made a certificate for the hub", "hosts", strings.Join(i.hosts, ","), "ends", pair.Leaf.NotAfter)
	if err := i.write(pair); err != nil {
		i.log.Warn("the hub's certificate is in memory only: the next start makes another", "err", err)
	}
	return nil
}

func (i *Identity) write(pair tls.Certificate) error {
	if i.dataDir == "" {
		return nil
	}
	certPEM, keyPEM, err := pki.EncodePair(pair)
	if err != nil {
		return err
	}
	return errors.Join(
		atomicfile.WriteIn(filepath.Join(i.dataDir, keyFile), keyPEM, 0o600),
		atomicfile.WriteIn(filepath.Join(i.dataDir, certFile), certPEM, 0o644))
}

// read returns the kept certificate if it is of this CA and for these hosts, nil
// if there is none or it is for others.
func (i *Identity) read() (*tls.Certificate, error) {
	if i.dataDir == "" {
		return nil, nil
	}
	certPEM, err := os.ReadFile(filepath.Join(i.dataDir, certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(i.dataDir, keyFile))
	if err != nil {
		return nil, err
	}
	pair, err := pki.KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if err := pair.Leaf.CheckSignatureFrom(i.ca.Cert); err != nil {
		return nil, fmt.Errorf("it is not of this cluster's CA: %w", err)
	}
	if !slices.Equal(certHosts(pair.Leaf), i.hosts) {
		return nil, nil
	}
	return &pair, nil
}

// allHosts is every host of the certificate, in order and once.
func allHosts(hosts []string) []string {
	all := []string{PeerName, "localhost", "127.0.0.1", "::1"}
	for _, host := range hosts {
		all = append(all, canonical(host))
	}
	if name, err := os.Hostname(); err == nil {
		all = append(all, canonical(name))
	}
	all = slices.DeleteFunc(all, func(h string) bool { return h == "" })
	slices.Sort(all)
	return slices.Compact(all)
}

func canonical(host string) string {
	if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil {
		return ip.String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

func certHosts(cert *x509.Certificate) []string {
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
