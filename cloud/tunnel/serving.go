package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/common/atomicfile"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// The files of the ports' certificate in the data folder.
const (
	servingCert = "pki/kubelet.crt"
	servingKey  = "pki/kubelet.key"
)

// servingNode is the node in whose name the certificate is asked for: the signer of
// kubelets' certificates signs for nodes alone. A machine that joined under it would
// gain nothing: the signer's CA is the cluster's, not Holdfast's.
const servingNode = "holdfast-hub"

const (
	signWithin  = 30 * time.Second
	signLook    = 500 * time.Millisecond
	servingLook = time.Hour
	firstRetry  = time.Minute
)

// ServingOptions are what a Serving needs.
type ServingOptions struct {
	Client  kubernetes.Interface // cloudcore's own, which approves
	AsNode  kubernetes.Interface // asks as servingNode (cloud/asnode)
	Address netip.Addr           // that Nodes name
	DataDir string
	// Else is the certificate that serves while the cluster has signed none.
	Else func() *tls.Certificate
	Log  *slog.Logger
}

// Serving is the certificate of the nodes' ports. It is signed as those of kubelets
// are, by the cluster's signer kubernetes.io/kubelet-serving, because an apiserver
// may be told to take no other (--kubelet-certificate-authority). A cluster that
// signs none has an apiserver that looks at none.
type Serving struct {
	o       ServingOptions
	current atomic.Pointer[tls.Certificate]
}

// NewServing takes the certificate that is kept, if there is one.
func NewServing(o ServingOptions) *Serving {
	s := &Serving{o: o}
	if kept, err := s.read(); err != nil {
		o.Log.Warn("the kept certificate of the nodes' ports is of no use: another is asked for", "err", err)
	} else if kept != nil {
		s.current.Store(kept)
	}
	return s
}

// Certificate is the one in use.
func (s *Serving) Certificate() *tls.Certificate {
	if c := s.current.Load(); c != nil && time.Now().Before(c.Leaf.NotAfter) {
		return c
	}
	return s.o.Else()
}

// Run has a certificate signed where there is none or the last third of its life has
// begun, until ctx ends.
func (s *Serving) Run(ctx context.Context) error {
	told := false
	for {
		wait := servingLook
		if s.due() {
			err := s.renew(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				told = false
				s.o.Log.Info("the cluster signed a certificate for the nodes' ports", "address", s.o.Address.String(), "ends", s.current.Load().Leaf.NotAfter)
			default:
				if wait = firstRetry; !told {
					s.o.Log.Warn("the cluster signs no certificate for the nodes' ports yet; the hub's own serves, which an apiserver with --kubelet-certificate-authority refuses", "err", err)
				}
				told = true
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Serving) due() bool {
	c := s.current.Load()
	if c == nil {
		return true
	}
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	return time.Until(c.Leaf.NotAfter) < life/3
}

// renew makes a key, has it signed, and keeps both.
func (s *Serving) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: asnode.User(servingNode), Organization: []string{asnode.Group}},
		IPAddresses: []net.IP{s.o.Address.AsSlice()},
	}, key)
	if err != nil {
		return fmt.Errorf("make a certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, signWithin)
	defer cancel()
	certPEM, err := s.sign(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	pair, err := pki.KeyPair(certPEM, keyPEM)
	if err != nil {
		return err
	}
	s.current.Store(&pair)
	if err := s.write(certPEM, keyPEM); err != nil {
		s.o.Log.Warn("the certificate of the nodes' ports is in memory only: the next start asks for another", "err", err)
	}
	return nil
}

// sign asks as a node, and approves as cloudcore: what is asked for is this hub's own.
func (s *Serving) sign(ctx context.Context, csr []byte) ([]byte, error) {
	asked, err := s.o.AsNode.CertificatesV1().CertificateSigningRequests().Create(asnode.With(ctx, servingNode), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: servingNode + "-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: csr, SignerName: certificatesv1.KubeletServingSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	requests := s.o.Client.CertificatesV1().CertificateSigningRequests()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signWithin)
		defer cancel()
		_ = requests.Delete(ctx, asked.Name, metav1.DeleteOptions{}) // else the cluster deletes it in an hour
	}()
	asked.Status.Conditions = append(asked.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "HoldfastHub",
		Message: "a hub of Holdfast's serves the kubelet API of its nodes", LastUpdateTime: metav1.Now(),
	})
	if _, err := requests.UpdateApproval(ctx, asked.Name, asked, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("approve certificate request %s: %w", asked.Name, err)
	}
	for {
		now, err := requests.Get(ctx, asked.Name, metav1.GetOptions{})
		if err == nil && len(now.Status.Certificate) > 0 {
			return now.Status.Certificate, nil
		}
		if err == nil {
			for _, c := range now.Status.Conditions {
				if c.Type == certificatesv1.CertificateFailed || c.Type == certificatesv1.CertificateDenied {
					return nil, fmt.Errorf("certificate request %s: %s: %s", asked.Name, c.Type, c.Message)
				}
			}
		}
		select {
		case <-time.After(signLook):
		case <-ctx.Done():
			return nil, fmt.Errorf("certificate request %s is approved, and nothing signed it within %s: does the cluster run the signer %s?", asked.Name, signWithin, certificatesv1.KubeletServingSignerName)
		}
	}
}

func (s *Serving) read() (*tls.Certificate, error) {
	if s.o.DataDir == "" {
		return nil, nil
	}
	certPEM, err := os.ReadFile(filepath.Join(s.o.DataDir, servingCert))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(s.o.DataDir, servingKey))
	if err != nil {
		return nil, err
	}
	pair, err := pki.KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	// Made for another address, it serves nobody.
	if err := pair.Leaf.VerifyHostname(strings.Trim(s.o.Address.String(), "[]")); err != nil {
		return nil, nil
	}
	return &pair, nil
}

func (s *Serving) write(certPEM, keyPEM []byte) error {
	if s.o.DataDir == "" {
		return nil
	}
	return errors.Join(
		atomicfile.WriteIn(filepath.Join(s.o.DataDir, servingKey), keyPEM, 0o600),
		atomicfile.WriteIn(filepath.Join(s.o.DataDir, servingCert), certPEM, 0o644))
}
