package machine

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// PackageManager is a distribution's way to install the container runtime.
type PackageManager struct {
	Name     string
	packages []string
	update   []string // nil: the manager looks for news by itself
	install  []string
}

// Packages names what InstallRuntime installs.
func (p PackageManager) Packages() string { return strings.Join(p.packages, " ") }

// PackageManager finds the one of this distribution.
func (m Machine) PackageManager() (PackageManager, bool) {
	known := []PackageManager{
		{Name: "apt-get", packages: []string{"containerd", "runc", "containernetworking-plugins", "iptables"},
			update: []string{"apt-get", "-q", "update"}, install: []string{"apt-get", "-q", "-y", "--no-install-recommends", "install"}},
		{Name: "dnf", packages: []string{"containerd", "runc", "containernetworking-plugins", "iptables-nft"}, install: []string{"dnf", "-y", "install"}},
		{Name: "zypper", packages: []string{"containerd", "runc", "cni-plugins", "iptables"}, install: []string{"zypper", "--non-interactive", "install"}},
		{Name: "apk", packages: []string{"containerd", "runc", "cni-plugins", "iptables"}, install: []string{"apk", "add"}},
		{Name: "pacman", packages: []string{"containerd", "runc", "cni-plugins", "iptables-nft"}, install: []string{"pacman", "-S", "--noconfirm", "--needed"}},
	}
	for _, p := range known {
		if _, err := exec.LookPath(p.Name); err == nil {
			return p, true
		}
	}
	return PackageManager{}, false
}

// InstallRuntime installs containerd, runc, the CNI plugins and iptables, which
// the bridge plugin calls, and starts containerd where systemd runs.
func (m Machine) InstallRuntime(ctx context.Context, p PackageManager) error {
	if p.update != nil {
		if err := run(ctx, p.update[0], p.update[1:]...); err != nil {
			return fmt.Errorf("install the container runtime: %w", err)
		}
	}
	if err := run(ctx, p.install[0], append(p.install[1:], p.packages...)...); err != nil {
		return fmt.Errorf("install the container runtime: %w; or install containerd 1.6 or newer by hand and join again", err)
	}
	if !m.Systemd() {
		return nil
	}
	return m.EnableService(ctx, "containerd.service")
}
