package adm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/fleet"
)

// FleetOptions say whose page is meant.
type FleetOptions struct {
	Config string // cloudcore's; empty: its usual place
	Quiet  bool   // print the address alone
}

// Fleet prints the address of the fleet's web page with the token that opens it.
func (a *App) Fleet(o FleetOptions) error {
	path := o.Config
	if path == "" {
		path = config.CloudPath
	}
	c, err := config.LoadCloud(path)
	if err != nil {
		return asRoot(fmt.Errorf("%w; the fleet's page is served by cloudcore: run this on a hub's machine", err))
	}
	if c.FleetListen == "" {
		return fmt.Errorf("this hub serves no page of the fleet: set fleetListen in %s, for example to %s, and `systemctl restart cloudcore`", path, config.DefaultCloud().FleetListen)
	}
	file := filepath.Join(c.DataDir, fleet.TokenFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no token of the fleet's page (%s) yet: cloudcore makes it as it starts; see `systemctl status cloudcore`", file)
	}
	if err != nil {
		return asRoot(fmt.Errorf("read the token of the fleet's page: %w", err))
	}
	base, local := pageAddress(c)
	address := base + "#token=" + url.QueryEscape(strings.TrimSpace(string(b)))
	if o.Quiet {
		a.printf("%s\n", address)
		return nil
	}
	a.printf("The fleet's page:\n\n    %s\n\n", address)
	if local {
		_, port, _ := net.SplitHostPort(c.FleetListen) // Validate has checked it
		a.printf("It answers on this machine alone. From another, bring the port there, and open the same\naddress:\n\n    ssh -N -L %s:127.0.0.1:%s %s\n\n", port, port, sshTarget(c))
	} else {
		a.printf("Its certificate is of Holdfast's own CA, so that a browser asks before it goes there.\n\n")
	}
	a.printf("Whoever has the token sees all nodes and reads the logs of their pods. To make it void, remove\n%s and restart cloudcore.\n", file)
	return nil
}

// pageAddress is where browsers find the page, and whether that is this machine alone.
func pageAddress(c config.Cloud) (address string, local bool) {
	host, port, _ := net.SplitHostPort(c.FleetListen) // Validate has checked it
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "localhost", err == nil && ip.IsLoopback():
		return "http://" + net.JoinHostPort(host, port) + "/", true
	case (host == "" || err == nil && ip.IsUnspecified()) && len(c.AdvertiseAddresses) > 0:
		host = c.AdvertiseAddresses[0]
	}
	return "https://" + net.JoinHostPort(host, port) + "/", false
}

func sshTarget(c config.Cloud) string {
	if len(c.AdvertiseAddresses) > 0 {
		return c.AdvertiseAddresses[0]
	}
	return "SERVER"
}
