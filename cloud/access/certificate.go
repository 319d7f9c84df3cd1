package access

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Where every cluster keeps the CA of its clients, for those who must know them.
const (
	authorityNamespace = "kube-system"
	authorityName      = "extension-apiserver-authentication"
	authorityKey       = "client-ca-file"
)

// How often the CA is read again, at rest, and when a certificate is not of it.
const (
	authorityEvery = 10 * time.Minute
	authorityAgain = 10 * time.Second
)

// authority is the CA that signs the cluster's clients. A CA that is replaced is
// noticed with the first certificate of the new one.
type authority struct {
	mu   sync.Mutex
	pool *x509.CertPool
	read time.Time // when it was last tried
}

// byCertificate takes the user out of a client certificate, as Kubernetes does: the
// common name is the user, the organizations are his groups.
func (a *Access) byCertificate(ctx context.Context, chain []*x509.Certificate) (*authenticationv1.UserInfo, error) {
	pool, err := a.clientCA(ctx, authorityEvery)
	if err != nil {
		return nil, err
	}
	if err = a.verify(chain, pool); err != nil {
		again, readErr := a.clientCA(ctx, authorityAgain)
		if readErr == nil && again != pool {
			err = a.verify(chain, again)
		}
	}
	if err != nil {
		return nil, refuse(http.StatusUnauthorized, "the client certificate of %q is not taken: %v", chain[0].Subject.CommonName, err)
	}
	subject := chain[0].Subject
	if subject.CommonName == "" {
		return nil, refuse(http.StatusUnauthorized, "the client certificate names no user (common name)")
	}
	return &authenticationv1.UserInfo{Username: subject.CommonName, Groups: append(slices.Clone(subject.Organization), "system:authenticated")}, nil
}

func (a *Access) verify(chain []*x509.Certificate, pool *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: a.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// clientCA is the cluster's CA for clients, read again when it was last read longer
// ago than that. One that cannot be read again stays.
func (a *Access) clientCA(ctx context.Context, age time.Duration) (*x509.CertPool, error) {
	c := &a.authority
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pool != nil && a.now().Sub(c.read) < age {
		return c.pool, nil
	}
	c.read = a.now()
	pool, err := a.readAuthority(ctx)
	switch {
	case err == nil:
		c.pool = pool
	case c.pool == nil:
		return nil, fmt.Errorf("the cluster's CA for clients cannot be read now (ConfigMap %s/%s): %w", authorityNamespace, authorityName, err)
	default:
		a.log.Warn("the cluster's CA for clients cannot be read again; the one known is kept", "err", err)
	}
	return c.pool, nil
}

func (a *Access) readAuthority(ctx context.Context) (*x509.CertPool, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	m, err := a.client.CoreV1().ConfigMaps(authorityNamespace).Get(ctx, authorityName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	text := m.Data[authorityKey]
	if text == "" {
		return nil, errors.New("this cluster takes no client certificates: its apiserver needs --client-ca-file")
	}
	return pki.Pool([]byte(text))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
