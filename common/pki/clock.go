package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ErrEnded is in the error of TimeInsideSince about a certificate that truly has
// ended, whatever this machine's clock says.
var ErrEnded = errors.New("the hub's certificate ended before this node's began")

// TimeInside answers a failed TLS handshake whose only fault may be this
// machine's clock: a Raspberry Pi without a battery boots in 1970, and cannot
// set its clock before it has a line. Where the server's chain leads to roots,
// names serverName, and only its dates speak against it, TimeInside returns the
// time nearest to now at which it is valid. A second handshake with that time
// (tls.Config.Time) then verifies all there is to verify but the dates. In every
// other case it returns an error: what else is wrong with the certificate, or
// the handshake's own (after one that did not fail, now). keps/0007-a-wrong-clock.md says what this gives up.
func TimeInside(handshake error, roots *x509.CertPool, serverName string, now time.Time) (time.Time, error) {
	return TimeInsideSince(handshake, roots, serverName, now, time.Time{})
}

// TimeInsideSince is TimeInside for a machine that knows for certain that it is
// later than floor: a certificate that had ended by then is refused, with
// ErrEnded. The handshake that failed must have been made at Later(now, floor).
func TimeInsideSince(handshake error, roots *x509.CertPool, serverName string, now, floor time.Time) (time.Time, error) {
	now = Later(now, floor)
	if handshake == nil {
		return now, nil
	}
	var failed *tls.CertificateVerificationError
	if !errors.As(handshake, &failed) || len(failed.UnverifiedCertificates) == 0 {
		return time.Time{}, handshake
	}
	chain := failed.UnverifiedCertificates
	from, to := chain[0].NotBefore, chain[0].NotAfter
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
		if cert.NotBefore.After(from) {
			from = cert.NotBefore
		}
		if cert.NotAfter.Before(to) {
			to = cert.NotAfter
		}
	}
	var at time.Time
	switch {
	case now.Before(from):
		at = from
	case now.After(to):
		at = to
	default:
		return time.Time{}, handshake
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		DNSName:       serverName,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return time.Time{}, &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	if at.Before(floor) {
		return time.Time{}, fmt.Errorf("%w: %s, and this node's own was issued at %s (if the hub's clock once was ahead: delete pki/hub.crt in cloudcore's dataDir and restart cloudcore, or join this node again with \"holdfast join\"): %w",
			ErrEnded, to.UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339), handshake)
	}
	return at, nil
}

// Later is the later of two times.
func Later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
