package node

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"
)

// addresses finds the node's own address.
type addresses struct {
	fixed string   // configured
	hubs  []string // HOST:PORT
	// route is the local address of a packet to a hub, interfaces those of the
	// machine; fields so that tests may have other machines.
	route      func(hub netip.AddrPort) (netip.Addr, bool)
	interfaces func() []netip.Addr

	resolved   []netip.AddrPort
	resolvedAt time.Time
	last       netip.Addr
}

func newAddresses(fixed string, hubs []string, last string) *addresses {
	a := &addresses{fixed: fixed, hubs: hubs, route: routeTo, interfaces: ownAddresses}
	a.last, _ = netip.ParseAddr(last)
	return a
}

// resolve looks up the hubs' names, at most every five minutes: a lookup may cost
// traffic, and offline it takes long.
func (a *addresses) resolve(ctx context.Context) {
	if a.fixed != "" || len(a.resolved) > 0 && time.Since(a.resolvedAt) < 5*time.Minute {
		return
	}
	var found []netip.AddrPort
	for _, hub := range a.hubs {
		if ap, ok := literal(hub); ok {
			found = append(found, ap)
			continue
		}
		host, _, err := net.SplitHostPort(hub)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		cancel()
		if err != nil {
			continue
		}
		for _, ip := range ips {
			found = append(found, netip.AddrPortFrom(ip.Unmap(), 9))
		}
	}
	if len(found) > 0 {
		a.resolved, a.resolvedAt = found, time.Now()
	}
}

func literal(hub string) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(hub)
	return ap, err == nil
}

// find is the address by which the hub is reached; without a route the last one
// if it is still the machine's, else any that could be meant.
func (a *addresses) find() string {
	if a.fixed != "" {
		return a.fixed
	}
	hubs := a.resolved
	if len(hubs) == 0 {
		for _, hub := range a.hubs {
			if ap, ok := literal(hub); ok {
				hubs = append(hubs, ap)
			}
		}
	}
	for _, hub := range hubs {
		if ip, ok := a.route(hub); ok {
			a.last = ip
			return ip.String()
		}
	}
	own := a.interfaces()
	for _, ip := range own {
		if ip == a.last {
			return ip.String()
		}
	}
	if len(own) > 0 && !a.last.IsValid() {
		return own[0].String()
	}
	if a.last.IsValid() { // the interface is down; it will hardly come back with another
		return a.last.String()
	}
	return ""
}

// routeTo asks the kernel which address a packet would leave with. A UDP socket
// that is connected sends nothing.
func routeTo(hub netip.AddrPort) (netip.Addr, bool) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(hub))
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close()
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
	return local, local.IsValid()
}

// ownAddresses are the machine's addresses that others may reach, without those
// of the bridges that containers hang on.
func ownAddresses() []netip.Addr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || ofContainers(i.Name) {
			continue
		}
		nets, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, n := range nets {
			prefix, err := netip.ParsePrefix(n.String())
			if ip := prefix.Addr(); err == nil && ip.IsGlobalUnicast() {
				out = append(out, ip)
			}
		}
	}
	return out
}

func ofContainers(name string) bool {
	for _, prefix := range []string{"cni", "docker", "veth", "br-", "cali", "flannel", "nerdctl", "holdfast"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
