// Package linktest is a test kit for rooms that talk over a link: a CA, a hub
// port and dialers that are real, a TCP proxy that behaves as badly as a line
// does, and the contract that every transport must hold. Only tests import it;
// it never fakes a connection.
package linktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// Patience is how long tests wait for what must come: it bounds a hang, it
// measures nothing.
const Patience = 2 * time.Minute

// NewCA makes a CA.
func NewCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("linktest")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// NodeCert makes a client certificate for the node of that name.
func NodeCert(t testing.TB, ca *pki.CA, node string) tls.Certificate {
	t.Helper()
	keyPEM, csrPEM, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.SignNode(csrPEM, node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// clientCert makes a client certificate with any name and group.
func clientCert(t testing.TB, ca *pki.CA, name, group string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{SignClient(t, ca, &key.PublicKey, name, group)}, PrivateKey: key}
}

// SignClient signs a client certificate (DER) with any name and group, also such
// as pki.CA would not.
func SignClient(t testing.TB, ca *pki.CA, key any, name, group string) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: name, Organization: []string{group}},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Cert, key, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ServerTLS is the TLS configuration of a hub for 127.0.0.1, localhost and
// hub.example.test.
func ServerTLS(t testing.TB, ca *pki.CA) *tls.Config {
	t.Helper()
	pair, err := ca.SignServer([]string{"127.0.0.1", "localhost", "hub.example.test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"http/1.1"},
		Certificates:           []tls.Certificate{pair},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              ca.Pool(),
		SessionTicketsDisabled: true,
	}
}

// Hub is a hub's port on loopback.
type Hub struct {
	link.Acceptor
	CA     *pki.CA
	Addr   string // HOST:PORT
	Timing link.Timing
}

// StartHub opens a websocket hub's port; the test's end closes it, with the
// connections that are still open.
func StartHub(t testing.TB, ca *pki.CA, timing link.Timing) *Hub {
	t.Helper()
	return StartGuardedHub(t, ca, timing, nil)
}

// StartGuardedHub is StartHub with a bound on strangers; nil: the usual one, and
// none at the port.
func StartGuardedHub(t testing.TB, ca *pki.CA, timing link.Timing, strangers *link.Strangers) *Hub {
	t.Helper()
	acceptor, handler := link.AcceptWebsocket(link.AcceptOptions{Timing: timing, Log: slog.New(slog.DiscardHandler), Strangers: strangers, Streams: true})
	addr := serveHTTP(t, ca, handler, strangers)
	t.Cleanup(func() { _ = acceptor.Close() })
	return &Hub{Acceptor: acceptor, CA: ca, Addr: addr, Timing: timing}
}

// ServeHTTP serves a handler over TLS as a hub does, and returns its address.
func ServeHTTP(t testing.TB, ca *pki.CA, handler http.Handler) string {
	t.Helper()
	return serveHTTP(t, ca, handler, nil)
}

func serveHTTP(t testing.TB, ca *pki.CA, handler http.Handler, strangers *link.Strangers) string {
	t.Helper()
	l, err := link.Listen(t.Context(), "127.0.0.1:0", strangers)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: handler, TLSConfig: ServerTLS(t, ca), ReadHeaderTimeout: Patience,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(l, "", "") // ends with the Close below
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String()
}

// DialOptions are those of an edge of that name that dials this hub.
func (h *Hub) DialOptions(t testing.TB, node string) link.DialOptions {
	t.Helper()
	pair := NodeCert(t, h.CA, node)
	return link.DialOptions{
		Hubs:        []string{h.Addr},
		RootCAs:     h.CA.Pool(),
		Certificate: func() (tls.Certificate, error) { return pair, nil },
		Timing:      h.Timing,
	}
}

// Dialer dials this hub as that node.
func (h *Hub) Dialer(t testing.TB, node string) link.Dialer {
	t.Helper()
	return link.DialWebsocket(h.DialOptions(t, node))
}

// DialerVia is Dialer by way of the proxy.
func (h *Hub) DialerVia(t testing.TB, node string, p *Proxy) link.Dialer {
	t.Helper()
	o := h.DialOptions(t, node)
	o.Hubs = []string{p.Addr()}
	return link.DialWebsocket(o)
}
