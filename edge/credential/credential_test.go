package credential

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// joined makes the data folder of a node whose certificate was signed then.
func joined(t *testing.T, ca *pki.CA, node string, at time.Time, ttl time.Duration) string {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNodeAt(csr, node, at, ttl)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (enrollment.Credentials{NodeName: node, CA: ca.CertPEM, Cert: cert, Key: key}).Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), linktest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func TestACertificateIsDueWhenAThirdIsLeft(t *testing.T) {
	ca := linktest.NewCA(t)
	issued := time.Now().Truncate(time.Second)
	const life = 300 * 24 * time.Hour
	days := func(n float64) time.Time { return issued.Add(time.Duration(n * float64(24*time.Hour))) }
	spread := make(map[time.Time]bool)
	for n := range 20 {
		c := New(Options{DataDir: joined(t, ca, fmt.Sprint("pi-", n), issued, life)})
		for at, want := range map[time.Time]bool{days(0): false, days(169.9): false, days(200.1): true, days(299): true, days(400): true, days(-1): true, issued.Add(-pki.Backdate + time.Second): false} {
			csr, err := c.Ask(at)
			if err != nil || (csr != nil) != want {
				t.Errorf("pi-%d: asked %v at %s: %v", n, csr != nil, at, err)
			}
			if csr == nil {
				continue
			}
			if request, err := pki.ParseCSR(csr); err != nil || request.Subject.CommonName != fmt.Sprint("system:node:pi-", n) {
				t.Errorf("pi-%d: a request that is no good: %v", n, err)
			}
		}
		for at := days(170); ; at = at.Add(6 * time.Hour) {
			if csr, err := c.Ask(at); err != nil {
				t.Fatal(err)
			} else if csr != nil {
				spread[at] = true
				break
			}
		}
	}
	if len(spread) < 10 {
		t.Errorf("20 nodes that joined together are due at %d times", len(spread))
	}
}

// TestTheDatesArePeoplesToo: a node that is asked when it will renew says what it does.
func TestTheDatesArePeoplesToo(t *testing.T) {
	issued := time.Now().Truncate(time.Second)
	const life = 300 * 24 * time.Hour
	c := New(Options{DataDir: joined(t, linktest.NewCA(t), "pi", issued, life)})
	d, err := c.Dates()
	if err != nil || d.Node != "pi" || !d.Issued.Equal(issued) || !d.Ends.Equal(issued.Add(life)) {
		t.Fatalf("dates %+v, %v", d, err)
	}
	for at, want := range map[time.Time]bool{d.RenewalDue: true, d.RenewalDue.Add(-time.Second): false} {
		if csr, err := c.Ask(at); err != nil || (csr != nil) != want {
			t.Errorf("at %s it asks: %v, %v; renewal is due at %s", at, csr != nil, err, d.RenewalDue)
		}
	}
	if _, err := New(Options{DataDir: t.TempDir()}).Dates(); !errors.Is(err, enrollment.ErrNotJoined) {
		t.Errorf("of a machine that has not joined: %v", err)
	}
}

func TestWithoutCertificateEverythingSaysSo(t *testing.T) {
	c := New(Options{DataDir: t.TempDir(), Hubs: []string{"127.0.0.1:1"}})
	_, certificate := c.Certificate()
	_, roots := c.Roots()
	_, ask := c.Ask(time.Now())
	for name, err := range map[string]error{"certificate": certificate, "roots": roots, "ask": ask, "recover": c.Recover(patient(t))} {
		if !errors.Is(err, enrollment.ErrNotJoined) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if since := c.Since(); !since.IsZero() {
		t.Errorf("since %s", since)
	}
}

func TestTakeKeepsOnlyWhatWasAskedFor(t *testing.T) {
	ca, other := linktest.NewCA(t), linktest.NewCA(t)
	dir := joined(t, ca, "pi-1", time.Now().Add(-pki.NodeTTL), pki.NodeTTL+time.Hour)
	c := New(Options{DataDir: dir})
	before, err := c.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(ca *pki.CA, csr []byte, node string) []byte {
		cert, err := ca.SignNode(csr, node, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	_, stranger, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	_, elsewhere, err := pki.NewKeyAndCSR("pi-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Take(sign(ca, stranger, "pi-1"), ca.CertPEM); err == nil {
		t.Error("a certificate that nobody asked for is taken")
	}
	csr, err := c.Ask(time.Now())
	if err != nil || csr == nil {
		t.Fatalf("it is not due: %v", err)
	}
	for name, bad := range map[string]struct{ cert, ca []byte }{
		"another key":                {sign(ca, stranger, "pi-1"), ca.CertPEM},
		"another node":               {sign(ca, elsewhere, "pi-2"), ca.CertPEM},
		"another CA":                 {sign(other, csr, "pi-1"), other.CertPEM},
		"another CA beside":          {sign(ca, csr, "pi-1"), other.CertPEM},
		"another CA's under the CA":  {sign(other, csr, "pi-1"), ca.CertPEM},
		"nothing":                    {nil, nil},
		"no certificate":             {[]byte("x"), ca.CertPEM},
		"the CA for a certificate":   {ca.CertPEM, ca.CertPEM},
		"a certificate without a CA": {sign(ca, csr, "pi-1"), nil},
	} {
		if err := c.Take(bad.cert, bad.ca); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if now, err := c.Certificate(); err != nil || !bytes.Equal(now.Certificate[0], before.Certificate[0]) {
		t.Fatalf("the old certificate is not what it was: %v", err)
	}
	if err := c.Take(sign(ca, csr, "pi-1"), ca.CertPEM); err != nil {
		t.Fatal(err)
	}
	// Also for whoever reads the folder next.
	now, err := New(Options{DataDir: dir}).Certificate()
	if err != nil || bytes.Equal(now.Certificate[0], before.Certificate[0]) {
		t.Fatalf("the new certificate is not there: %v", err)
	}
	if csr, err := c.Ask(time.Now()); csr != nil || err != nil {
		t.Errorf("due again: %v", err)
	}
}

// hub serves links, and renews certificates or refuses to with those words.
type hub struct {
	link.Acceptor
	addr  string
	asked atomic.Int32
}

func newHub(t *testing.T, ca *pki.CA, serving *tls.Certificate, refuse string) *hub {
	t.Helper()
	h := new(hub)
	config := linktest.ServerTLS(t, ca)
	if serving != nil {
		config.Certificates = []tls.Certificate{*serving}
	}
	var links http.Handler
	h.Acceptor, links = link.AcceptWebsocket(link.AcceptOptions{})
	mux := http.NewServeMux()
	mux.Handle(link.Path, links)
	mux.HandleFunc(enrollment.RenewPath, func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if refuse != "" {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(enrollment.Refusal{Error: refuse})
			return
		}
		ask, err := enrollment.DecodeRenew(r.Body)
		if err == nil {
			err = ask.Check(r.TLS)
		}
		if err != nil {
			t.Errorf("the hub was asked: %v", err)
			return
		}
		cert, err := ca.SignNode(ask.CSR, ask.Node, time.Hour)
		if err != nil {
			t.Error(err)
			return
		}
		_ = json.NewEncoder(w).Encode(enrollment.Answer{Certificate: string(cert), CA: string(ca.CertPEM)})
	})
	server := httptest.NewUnstartedServer(mux)
	server.TLS, server.EnableHTTP2 = config, false
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(func() {
		_ = h.Close()
		server.CloseClientConnections()
		server.Close()
	})
	h.addr = server.Listener.Addr().String()
	return h
}

// dial connects as the node and returns the name that the hub sees.
func dial(t *testing.T, c *Credential, h *hub, now func() time.Time) (string, error) {
	t.Helper()
	roots, err := c.Roots()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	peer := make(chan string, 1)
	go func() {
		defer close(peer)
		if conn, err := h.Accept(ctx); err == nil {
			peer <- conn.Peer()
			_ = conn.Close()
		}
	}()
	conn, err := link.DialWebsocket(link.DialOptions{Hubs: []string{h.addr}, RootCAs: roots, Certificate: c.Certificate, Since: c.Since, Now: now}).Dial(ctx)
	if err != nil {
		cancel()
		<-peer
		return "", err
	}
	defer conn.Close()
	return <-peer, nil
}

func TestANodeThatWasAwayPastItsCertificatesEndComesBackByItsKey(t *testing.T) {
	ca := linktest.NewCA(t)
	h := newHub(t, ca, nil, "")
	for name, now := range map[string]func() time.Time{
		"a right clock":     nil,
		"a clock in 1970":   func() time.Time { return time.Unix(5000, 0) },
		"a clock far ahead": func() time.Time { return time.Now().AddDate(1, 6, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			c := New(Options{DataDir: joined(t, ca, "pi-1", time.Now().Add(-50*time.Minute), 5*time.Minute), Hubs: []string{"127.0.0.1:1", h.addr}, Now: now})
			if _, err := dial(t, c, h, now); !errors.Is(err, link.ErrExpired) {
				t.Fatalf("with a certificate that has ended: %v", err)
			}
			if err := c.Recover(patient(t)); err != nil {
				t.Fatal(err)
			}
			if name, err := dial(t, c, h, now); err != nil || name != "pi-1" {
				t.Fatalf("after it was renewed the hub sees %q, %v", name, err)
			}
		})
	}
}

func TestARefusalIsFinalAndTheOldCertificateStays(t *testing.T) {
	ca := linktest.NewCA(t)
	no, yes := newHub(t, ca, nil, "it is revoked"), newHub(t, ca, nil, "")
	c := New(Options{DataDir: joined(t, ca, "pi-1", time.Now().Add(-50*time.Minute), 5*time.Minute), Hubs: []string{no.addr, yes.addr}})
	before, err := c.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Recover(patient(t)); !errors.Is(err, enrollment.ErrVoid) || !strings.Contains(err.Error(), "it is revoked") {
		t.Errorf("%v", err)
	}
	if no.asked.Load() != 1 || yes.asked.Load() != 0 {
		t.Errorf("asked %d and %d times", no.asked.Load(), yes.asked.Load())
	}
	if now, err := c.Certificate(); err != nil || !bytes.Equal(now.Certificate[0], before.Certificate[0]) {
		t.Errorf("the certificate changed: %v", err)
	}
}

// TestAHubsCertificateThatEndedBeforeTheNodesBeganIsRefused bounds what a stolen
// key of a hub is good for, whatever the edge's clock says.
func TestAHubsCertificateThatEndedBeforeTheNodesBeganIsRefused(t *testing.T) {
	ca := linktest.NewCA(t)
	hour := time.Now().Truncate(time.Second)
	// Of a hub that once was: signed 50 minutes ago, for 5 minutes.
	old, err := ca.SignServerAt([]string{"127.0.0.1"}, hour.Add(-50*time.Minute), 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	h := newHub(t, ca, &old, "")
	clocks := map[string]func() time.Time{
		"a right clock":              nil,
		"a clock in 1970":            func() time.Time { return time.Unix(5000, 0) },
		"a clock in the stolen year": func() time.Time { return hour.Add(-48 * time.Minute) },
	}
	for name, now := range clocks {
		later := New(Options{DataDir: joined(t, ca, "pi-1", hour.Add(-time.Minute), time.Hour), Hubs: []string{h.addr}, Now: now})
		if _, err := dial(t, later, h, now); !errors.Is(err, pki.ErrEnded) {
			t.Errorf("%s, a node that joined later: %v", name, err)
		}
		if err := later.Recover(patient(t)); !errors.Is(err, pki.ErrEnded) || h.asked.Load() > 0 {
			t.Errorf("%s, a node that joined later renews: %v, asked %d times", name, err, h.asked.Load())
		}
	}
	for name, now := range clocks {
		// One that knows of no later time cannot tell a stolen key from a forgotten
		// renewal, and must not be locked out by its clock.
		earlier := New(Options{DataDir: joined(t, ca, "pi-1", hour.Add(-55*time.Minute), 2*time.Hour), Hubs: []string{h.addr}, Now: now})
		if node, err := dial(t, earlier, h, now); err != nil || node != "pi-1" {
			t.Errorf("%s, a node that joined earlier: %q, %v", name, node, err)
		}
	}
}

func FuzzTake(f *testing.F) {
	ca, err := pki.NewCA("fuzz")
	if err != nil {
		f.Fatal(err)
	}
	key, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.SignNode(csr, "pi-1", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	present := enrollment.Credentials{NodeName: "pi-1", CA: ca.CertPEM, Cert: cert, Key: key}
	if err := present.Save(dir); err != nil {
		f.Fatal(err)
	}
	f.Add(cert, ca.CertPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), ca.CertPEM)
	f.Add(cert, []byte(nil))
	f.Fuzz(func(t *testing.T, cert, ca []byte) {
		c := New(Options{DataDir: dir})
		if csr, err := c.Ask(time.Now().Add(time.Hour)); err != nil || csr == nil {
			t.Fatalf("it is not due: %v", err)
		}
		if c.Take(cert, ca) == nil {
			t.Error("something made up is taken for the answer to a fresh key")
		}
		if now, err := enrollment.Load(dir); err != nil || !bytes.Equal(now.Cert, present.Cert) {
			t.Errorf("the certificate changed: %v", err)
		}
	})
}
