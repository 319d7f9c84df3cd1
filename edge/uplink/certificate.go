package uplink

import (
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Credential owns the node's certificate, edge/credential.
type Credential interface {
	// Ask returns a CSR when, by the hub's clock, the certificate is due to be
	// renewed; nil: not yet. It is called at the Welcome and every hour of a session.
	Ask(hubTime time.Time) (csrPEM []byte, err error)
	// Take checks and keeps the hub's answer (key, certificate, CA: durable before
	// it returns). The next connection uses it.
	Take(certPEM, caPEM []byte) error
}

// renewal is where a session stands with the node's certificate. Whatever goes
// wrong with it, the session goes on: it is tried again, and in the next one.
type renewal struct {
	due   *time.Timer // fires when to ask; stopped before the Welcome
	asked uint64      // number of the request under way; 0: none
}

// renew asks for a new certificate if it is time.
func (c *conversation) renew() {
	credential := c.u.opts.Credential
	if credential == nil {
		return
	}
	c.renewal.due.Reset(c.u.opts.Timing.Certificate)
	now, known := c.u.HubTime()
	if !known || c.renewal.asked != 0 { // an answer is not lost without the session
		return
	}
	csr, err := credential.Ask(now)
	if err == nil && csr != nil {
		c.lastAsk++
		c.renewal.asked = c.lastAsk
		err = c.send(&wire.EdgeMessage{Body: &wire.EdgeMessage_CertificateAsk{CertificateAsk: &wire.CertificateAsk{Id: c.lastAsk, Csr: csr}}})
	}
	if err != nil {
		c.u.log.Warn("the node's certificate cannot be renewed now; it is tried again", "session", c.session.ID(), "err", err)
	}
}

// renewed takes the answer.
func (c *conversation) renewed(a *wire.CertificateAnswer) {
	if c.renewal.asked == 0 || a.GetId() != c.renewal.asked {
		return
	}
	c.renewal.asked = 0
	switch a.GetCode() {
	case wire.ResultCode_RESULT_ACCEPTED:
		if err := c.u.opts.Credential.Take(a.GetCertificate(), a.GetCa()); err != nil {
			c.u.log.Warn("the node's new certificate cannot be used; the old one stays", "session", c.session.ID(), "err", err)
			return
		}
		c.u.log.Info("the node's certificate is renewed", "session", c.session.ID())
	case wire.ResultCode_RESULT_REJECTED:
		c.u.log.Warn("the hub refuses to renew the node's certificate; when it ends, join the node again with \"holdfast join\"",
			"session", c.session.ID(), "reason", a.GetMessage())
	default:
		c.renewal.due.Reset(c.u.opts.Timing.CertificateRetry)
		c.u.log.Debug("the hub cannot renew the node's certificate now", "session", c.session.ID(), "reason", a.GetMessage())
	}
}
