package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Bounds of the keepalive: shorter would cost traffic that edges pay for,
// longer would hide a dead line from the scheduler.
const (
	minKeepAlive = time.Second
	maxKeepAlive = 10 * time.Minute
)

// Bounds of the line's patience: a mobile line may lose packets for seconds.
const (
	minLineTimeout = time.Second
	maxLineTimeout = 5 * time.Minute
)

// minNodeTTL is for trials; a node that is away for longer than a life and the
// grace must join again.
const minNodeTTL = 10 * time.Second

// complete fills in what depends on the machine.
func (c *Edge) complete() error {
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("nodeName is empty and the host name cannot be read: %w", err)
		}
		c.NodeName = strings.ToLower(strings.TrimSpace(host))
	}
	for i, hub := range c.Hub {
		c.Hub[i] = HubAddress(hub)
	}
	return nil
}

// HubAddress adds the hub's usual port to an address that names none.
func HubAddress(hub string) string {
	if _, _, err := net.SplitHostPort(hub); err == nil || hub == "" {
		return hub
	}
	return net.JoinHostPort(strings.Trim(hub, "[]"), HubPort)
}

// Validate checks every value; the error lists all that is wrong, each with its
// key.
func (c Edge) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if err := pki.CheckNodeName(c.NodeName); err != nil {
		bad("nodeName", "%v", err)
	}
	if len(c.Hub) == 0 {
		bad("hub", "no address of the hub: write at least one HOST:PORT")
	}
	for _, hub := range c.Hub {
		if err := checkHostPort(hub, true); err != nil {
			bad("hub", "%v", err)
		}
	}
	if !slices.Contains([]string{"auto", "quic", "websocket"}, c.Transport) {
		bad("transport", "%q is unknown: use auto, quic or websocket", c.Transport)
	}
	for key, path := range map[string]string{"dataDir": c.DataDir, "runDir": c.RunDir, "podLogsDir": c.PodLogsDir, "cgroupRoot": c.CgroupRoot} {
		if !filepath.IsAbs(path) {
			bad(key, "%q is not an absolute path", path)
		}
	}
	if path, ok := strings.CutPrefix(c.ContainerRuntimeEndpoint, "unix://"); !ok || !filepath.IsAbs(path) {
		bad("containerRuntimeEndpoint", "%q is not of the form unix:///path/to/containerd.sock", c.ContainerRuntimeEndpoint)
	}
	if !slices.Contains([]string{"", "cgroupfs", "systemd"}, c.CgroupDriver) {
		bad("cgroupDriver", "%q is unknown: use cgroupfs or systemd, or leave it out", c.CgroupDriver)
	}
	if c.NodeIP != "" && net.ParseIP(c.NodeIP) == nil {
		bad("nodeIP", "%q is not an IP address", c.NodeIP)
	}
	for _, dns := range c.ClusterDNS {
		if net.ParseIP(dns) == nil {
			bad("clusterDNS", "%q is not an IP address", dns)
		}
	}
	if c.MaxPods < 1 || c.MaxPods > 1000 {
		bad("maxPods", "%d is not between 1 and 1000", c.MaxPods)
	}
	for key := range c.Labels {
		if key == "" || strings.ContainsAny(key, " \t\n") {
			bad("labels", "%q is not a label key", key)
		}
	}
	for _, taint := range c.Taints {
		if err := checkTaint(taint); err != nil {
			bad("taints", "%v", err)
		}
	}
	if c.MetricsListen != "" {
		if err := checkHostPort(c.MetricsListen, false); err != nil {
			bad("metricsListen", "%v", err)
		}
	}
	if c.DevicesListen != "" {
		if err := checkHostPort(c.DevicesListen, false); err != nil {
			bad("devicesListen", "%v", err)
		}
	}
	if c.DMISocket != "" && !filepath.IsAbs(c.DMISocket) {
		bad("dmiSocket", "%q is not an absolute path", c.DMISocket)
	}
	if !slices.Contains([]string{"", "auto", "embedded", "external", "off"}, c.MQTT.Mode) {
		bad("mqtt", "mode %q is unknown: use auto, embedded, external or off", c.MQTT.Mode)
	}
	if d := c.StatusInterval.Duration; d < time.Second || d > time.Hour {
		bad("statusInterval", "%s is not between 1s and 1h", d)
	}
	errs = append(errs, checkTiming(c.KeepAlive, c.LineTimeout), checkLogLevel(c.LogLevel), checkLogFormat(c.LogFormat))
	slices.SortFunc(errs, byText)
	return errors.Join(errs...)
}

// Validate checks every value; the error lists all that is wrong.
func (c Cloud) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.Kubeconfig != "" && !filepath.IsAbs(c.Kubeconfig) {
		bad("kubeconfig", "%q is not an absolute path", c.Kubeconfig)
	}
	if err := checkHostPort(c.Listen, false); err != nil {
		bad("listen", "%v", err)
	}
	if err := checkHostPort(c.HealthListen, false); err != nil {
		bad("healthListen", "%v", err)
	}
	if c.RunDir != "" && !filepath.IsAbs(c.RunDir) {
		bad("runDir", "%q is not an absolute path", c.RunDir)
	}
	if c.FleetListen != "" {
		if err := checkHostPort(c.FleetListen, false); err != nil {
			bad("fleetListen", "%v", err)
		}
	}
	if _, _, err := c.Tunnel.Range(); err != nil {
		bad("tunnel.ports", "%v", err)
	}
	if a := c.Tunnel.Address; a != "" && net.ParseIP(a) == nil {
		bad("tunnel.address", "%q is not an IP address", a)
	}
	for _, address := range c.AdvertiseAddresses {
		if net.ParseIP(address) == nil && pki.CheckNodeName(strings.ToLower(address)) != nil {
			bad("advertiseAddresses", "%q is neither an IP address nor a host name (leave the port out)", address)
		}
	}
	if !filepath.IsAbs(c.DataDir) {
		bad("dataDir", "%q is not an absolute path", c.DataDir)
	}
	if d := c.NodeCertificateTTL.Duration; d < minNodeTTL || d > pki.MaxNodeTTL {
		bad("nodeCertificateTTL", "%s is not between %s and %s", d, minNodeTTL, pki.MaxNodeTTL)
	}
	if d := c.RenewGrace.Duration; d < time.Second || d > pki.MaxRenewGrace {
		bad("renewGrace", "%s is not between 1s and %s", d, pki.MaxRenewGrace)
	}
	errs = append(errs, checkTiming(c.KeepAlive, c.LineTimeout), checkLogLevel(c.LogLevel), checkLogFormat(c.LogFormat))
	slices.SortFunc(errs, byText)
	return errors.Join(errs...)
}

// byText orders errors, those that are nil first, so that a file with several
// mistakes always reads the same.
func byText(a, b error) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return strings.Compare(a.Error(), b.Error())
}

func checkTiming(keepAlive, line Duration) error {
	var errs []error
	if d := keepAlive.Duration; d < minKeepAlive || d > maxKeepAlive {
		errs = append(errs, fmt.Errorf("keepAlive: %s is not between %s and %s", keepAlive, minKeepAlive, maxKeepAlive))
	}
	if d := line.Duration; d < minLineTimeout || d > maxLineTimeout {
		errs = append(errs, fmt.Errorf("lineTimeout: %s is not between %s and %s", line, minLineTimeout, maxLineTimeout))
	}
	return errors.Join(errs...)
}

func checkLogLevel(level string) error {
	if _, err := ParseLogLevel(level); err != nil {
		return fmt.Errorf("logLevel: %w", err)
	}
	return nil
}

// ParseLogLevel reads debug, info, warn or error.
func ParseLogLevel(level string) (slog.Level, error) {
	switch level {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is unknown: use debug, info, warn or error", level)
}

// checkHostPort checks HOST:PORT. Port 0 and an empty host make sense for a
// listener only.
func checkHostPort(address string, dialled bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", address)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || dialled && n == 0 {
		return fmt.Errorf("%q: %q is not a port", address, port)
	}
	if dialled && host == "" {
		return fmt.Errorf("%q names no host", address)
	}
	return nil
}

func checkTaint(taint string) error {
	key, effect, ok := strings.Cut(taint, ":")
	key, _, _ = strings.Cut(key, "=")
	if !ok || key == "" || !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
		return fmt.Errorf("%q is not of the form key=value:Effect with the effect NoSchedule, PreferNoSchedule or NoExecute", taint)
	}
	return nil
}
