package identity

import (
	"crypto/tls"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// PeerName is a name in every hub's serving certificate, by which one hub knows
// another whatever its address.
const PeerName = "hub.holdfast.internal"

// Peer is what this hub shows to another hub of the cluster. It is made when it is
// first needed, and anew before it ends.
func (i *Identity) Peer() *tls.Certificate {
	if c := i.peer.Load(); c != nil && i.now().Before(c.Leaf.NotAfter.Add(-renewBefore)) {
		return c
	}
	made, err := i.ca.SignHub(i.now(), pki.ServerTTL)
	if err != nil {
		i.log.Error("the hub cannot show other hubs who it is", "err", err)
		return new(tls.Certificate)
	}
	i.peer.Store(&made)
	return &made
}
