package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// TimeInside answers a failed TLS handshake whose only fault may be this
// machine's clock: a Raspberry Pi without a battery boots in 1970, and cannot
// set its clock before it has a line. Where the server's chain leads to roots,
// names serverName, and only its dates speak against it, TimeInside returns the
// time nearest to now at which it is valid. A second handshake with that time
// (tls.Config.Time) then verifies all there is to verify but the dates. In every
// other case it returns an error: what else is wrong with the certificate, or
// the handshake's own (after one that did not fail, now). keps/0007-a-wrong-clock.md says what this gives up.
func TimeInside(handshake error, roots *x509.CertPool, serverName string, now time.Time) (time.Time, error) {
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
	return at, nil
}
