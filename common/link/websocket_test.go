package link_test

import (
	"crypto/tls"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

func TestWebsocketHoldsTheContract(t *testing.T) {
	t.Parallel()
	linktest.Contract(t, linktest.Transport{
		Name: "websocket",
		Listen: func(t testing.TB, ca *pki.CA, timing link.Timing) (string, link.Acceptor) {
			hub := linktest.StartHub(t, ca, timing)
			return hub.Addr, hub.Acceptor
		},
		Dialer: link.DialWebsocket,
	})
}

// certificate is a DialOptions.Certificate that never changes.
func certificate(pair tls.Certificate) func() (tls.Certificate, error) {
	return func() (tls.Certificate, error) { return pair, nil }
}
