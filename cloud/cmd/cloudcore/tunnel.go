package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/cloud/tunnel"
	"github.com/holdfast-edge/holdfast/cloud/watch"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// allowedFor is how long what somebody may do at a node is not asked again: as long
// as a kubelet waits. With 20,000 nodes that are scraped it is 70 reviews a second.
const allowedFor = 5 * time.Minute

// reach is how the cluster reaches the nodes; nil where the tunnel is off.
type reach struct {
	tunnel  *tunnel.Tunnel
	serving *tunnel.Serving
}

func newReach(cfg config.Cloud, c *clients, self *identity.Identity, nodes func() *hub.Hub, cluster *watch.Cluster, log *slog.Logger) (*reach, error) {
	first, last, err := cfg.Tunnel.Range()
	if err != nil || first == 0 {
		return nil, err
	}
	address, bind := tunnelAddress(cfg, c.server)
	if !address.IsValid() {
		log.Error("no address of this machine is known by which the apiserver reaches it: kubectl logs and exec will not reach nodes; set tunnel.address")
		return nil, nil
	}
	r := &reach{serving: tunnel.NewServing(tunnel.ServingOptions{
		Client: c.own, AsNode: c.asNode, Address: address, DataDir: cfg.DataDir, Else: self.Serving, Log: log,
	})}
	r.tunnel, err = tunnel.New(tunnel.Options{
		Begin: func(ctx context.Context, node string) (link.BegunStream, error) {
			return nodes().BeginStream(ctx, node)
		},
		Holds:   func(node string) bool { return nodes().Holds(node) },
		Address: address, Bind: bind, First: first, Last: last, Client: c.own, WaitSynced: cluster.WaitSynced, Serving: r.serving.Certificate, Log: log,
		Access: access.New(access.Options{Client: c.own, AllowedFor: allowedFor, Log: log}),
		Peers:  tunnel.Peers{CA: self.CA().Pool(), Name: identity.PeerName, Serving: self.Serving, Client: self.Peer, ClientName: pki.HubName},
	})
	if err != nil {
		return nil, err
	}
	cluster.OnNode(r.tunnel.OnNode)
	log.Info("the cluster reaches the nodes through this hub", "address", address.String(), "ports", fmt.Sprintf("%d-%d", first, last))
	return r, nil
}

func (r *reach) run(ctx context.Context) error {
	if r == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.tunnel.Run(ctx) })
	group.Go(func() error { return r.serving.Run(ctx) })
	return group.Wait()
}

func (r *reach) writeMetrics(w io.Writer) {
	if r != nil {
		r.tunnel.WriteMetrics(w)
	}
}

// endpoint is report.Options.Endpoint.
func (r *reach) endpoint() func(node string) (address string, port int32, ok bool) {
	if r == nil {
		return nil
	}
	return r.tunnel.Endpoint
}

// tunnelAddress is the address that Nodes name, and where the ports are opened: at
// that address alone, if it is this machine's. An apiserver reaches a machine as a
// rule by the address by which the machine reaches it; never by a loopback address,
// which an apiserver refuses for nodes.
func tunnelAddress(cfg config.Cloud, apiserver string) (address, bind netip.Addr) {
	own := ownAddresses()
	choose := func() netip.Addr {
		if a, err := netip.ParseAddr(cfg.Tunnel.Address); err == nil {
			return a
		}
		if a := addressTowards(apiserver); a.IsValid() && !a.IsLoopback() {
			return a
		}
		var advertised []netip.Addr
		for _, text := range cfg.AdvertiseAddresses {
			if a, err := netip.ParseAddr(text); err == nil {
				advertised = append(advertised, a.Unmap())
			}
		}
		for _, a := range advertised {
			if own[a] && !a.IsLoopback() {
				return a
			}
		}
		// The way to anywhere (RFC 5737 names this address for documentation alone).
		if a := addressTowards("udp://203.0.113.1"); a.IsValid() && !a.IsLoopback() {
			return a
		}
		if len(advertised) > 0 {
			return advertised[0]
		}
		return netip.Addr{}
	}
	switch address = choose(); {
	case !address.IsValid() || own[address]:
		bind = address
	case address.Is4():
		bind = netip.IPv4Unspecified()
	default:
		bind = netip.IPv6Unspecified()
	}
	return address, bind
}

// addressTowards is the machine's own address on the way to a server. A UDP socket
// that is connected sends nothing.
func addressTowards(server string) netip.Addr {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return netip.Addr{}
	}
	conn, err := net.DialTimeout("udp", net.JoinHostPort(u.Hostname(), "9"), 2*time.Second)
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return local.AddrPort().Addr().Unmap()
}

func ownAddresses() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool)
	all, err := net.InterfaceAddrs()
	if err != nil {
		return own
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own
}
