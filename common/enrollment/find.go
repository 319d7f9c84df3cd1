package enrollment

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// FindCA returns the CA of the hub at r.Hub, provided that its hash is r.CAHash.
// It shows the hub nothing: no token, no name.
func FindCA(ctx context.Context, r Request) (*x509.Certificate, error) {
	if err := pki.CheckCAHash(r.CAHash); err != nil {
		return nil, err
	}
	if _, _, err := net.SplitHostPort(r.Hub); err != nil {
		return nil, fmt.Errorf("the hub's address %q is not HOST:PORT", r.Hub)
	}
	return r.findCA(ctx)
}
