package runtime

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// DNS is what a pod's /etc/resolv.conf says.
type DNS struct {
	Servers, Searches, Options []string
}

// ClusterDNS is what the node knows of name service.
type ClusterDNS struct {
	Servers    []string // the cluster's name servers; none on most edges
	Domain     string   // cluster.local
	ResolvConf string   // the node's own file; "" is /etc/resolv.conf, or systemd-resolved's full one behind its stub
}

// The limits of the kubelet, which are newer resolvers' own.
const (
	maxServers      = 3
	maxSearches     = 32
	maxSearchLength = 2048
	maxResolvConf   = 1 << 20
)

// PodDNS works out a pod's name service from its dnsPolicy and dnsConfig. ClusterFirst falls back to the node's own
// resolvers where no cluster name servers are configured, which a name outside the cluster can still be resolved with.
func PodDNS(pod *corev1.Pod, c ClusterDNS) (*DNS, error) {
	d := &DNS{}
	policy := pod.Spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	// With host networking ClusterFirst means the node's resolvers; the pod has to ask for the cluster's by name.
	cluster := policy == corev1.DNSClusterFirstWithHostNet || policy == corev1.DNSClusterFirst && !pod.Spec.HostNetwork
	switch {
	case policy == corev1.DNSNone:
		if cfg := pod.Spec.DNSConfig; cfg == nil || len(cfg.Nameservers) == 0 {
			return nil, fmt.Errorf("pod %s: dnsPolicy None needs dnsConfig.nameservers: %w", podName(pod), ErrInvalidSpec)
		}
	case policy != corev1.DNSDefault && !cluster && policy != corev1.DNSClusterFirst:
		return nil, fmt.Errorf("pod %s: dnsPolicy %q: %w", podName(pod), policy, ErrInvalidSpec)
	default:
		host, err := hostDNS(c.ResolvConf)
		if err != nil {
			return nil, fmt.Errorf("pod %s: name service of this node: %w", podName(pod), err)
		}
		d = host
		if cluster && len(c.Servers) > 0 {
			d = &DNS{Servers: append([]string(nil), c.Servers...), Options: []string{"ndots:5"}}
			if c.Domain != "" {
				d.Searches = []string{pod.Namespace + ".svc." + c.Domain, "svc." + c.Domain, c.Domain}
			}
			d.Searches = append(d.Searches, host.Searches...)
		}
	}
	if cfg := pod.Spec.DNSConfig; cfg != nil {
		d.Servers = unique(append(d.Servers, cfg.Nameservers...))
		d.Searches = append(d.Searches, cfg.Searches...)
		d.Options = mergeOptions(d.Options, cfg.Options)
	}
	d.Searches = boundSearches(unique(d.Searches))
	if len(d.Servers) > maxServers {
		d.Servers = d.Servers[:maxServers]
	}
	return d, nil
}

// hostDNS reads the node's own resolv.conf. systemd-resolved's stub at 127.0.0.53 is of no use inside a pod's network;
// it keeps a file with the servers that it asks itself.
func hostDNS(file string) (*DNS, error) {
	explicit := file != ""
	if !explicit {
		file = "/etc/resolv.conf"
	}
	d, err := readResolvConf(file)
	if errors.Is(err, os.ErrNotExist) && !explicit {
		return &DNS{}, nil
	} else if err != nil {
		return nil, err
	}
	if !explicit && len(d.Servers) > 0 && onlyLoopback(d.Servers) {
		if full, err := readResolvConf("/run/systemd/resolve/resolv.conf"); err == nil && len(full.Servers) > 0 {
			return full, nil
		}
	}
	return d, nil
}

func onlyLoopback(servers []string) bool {
	for _, s := range servers {
		if ip := net.ParseIP(s); ip == nil || !ip.IsLoopback() {
			return false
		}
	}
	return true
}

func readResolvConf(file string) (*DNS, error) {
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return parseResolvConf(string(b)), nil
}

// parseResolvConf reads resolv.conf(5): the last search or domain line holds, options add up. A line that says nothing
// known is passed over, as every resolver does.
func parseResolvConf(text string) *DNS {
	d := &DNS{}
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			address, _, _ := strings.Cut(f[1], "%")
			if net.ParseIP(address) != nil {
				d.Servers = append(d.Servers, f[1])
			}
		case "search", "domain":
			d.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				if s != "" {
					d.Searches = append(d.Searches, s)
				}
			}
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	d.Servers, d.Searches, d.Options = unique(d.Servers), unique(d.Searches), unique(d.Options)
	return d
}

// mergeOptions lets the pod's options replace those of the same name.
func mergeOptions(have []string, more []corev1.PodDNSConfigOption) []string {
	var out []string
	replaced := map[string]bool{}
	for _, o := range more {
		replaced[o.Name] = true
	}
	for _, o := range have {
		if name, _, _ := strings.Cut(o, ":"); !replaced[name] {
			out = append(out, o)
		}
	}
	for _, o := range more {
		s := o.Name
		if o.Value != nil && *o.Value != "" {
			s += ":" + *o.Value
		}
		out = append(out, s)
	}
	return unique(out)
}

func boundSearches(s []string) []string {
	length := 0
	for i, d := range s {
		length += len(d) + 1
		if i >= maxSearches || length-1 > maxSearchLength {
			return s[:i]
		}
	}
	return s
}

func unique(list []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// EtcHosts is the content of a pod's managed /etc/hosts, byte for byte as the kubelet writes it. With host networking it
// is the node's own file (hostFile; "" is /etc/hosts) followed by the pod's aliases; otherwise it names the pod by
// its addresses.
func EtcHosts(pod *corev1.Pod, podIPs []string, hostname, domain, hostFile string) ([]byte, error) {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		if hostFile == "" {
			hostFile = "/etc/hosts"
		}
		own, err := os.ReadFile(hostFile)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("hosts file of pod %s: %w", podName(pod), err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(own)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range podIPs {
			b.WriteString(ip + "\t")
			if domain != "" {
				full := hostname + "." + domain
				if strings.HasSuffix(hostname, "."+domain) {
					full = hostname
				}
				b.WriteString(full + "\t")
			}
			b.WriteString(hostname + "\n")
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
		}
	}
	return []byte(b.String()), nil
}

// WriteEtcHosts writes EtcHosts to a file on the node (<data-dir>/pods/<uid>/etc-hosts), for ContainerSpec.EtcHosts. It
// is written in place and only when it differs: containers that run have this very file mounted.
func WriteEtcHosts(file string, pod *corev1.Pod, podIPs []string, hostname, domain string) error {
	want, err := EtcHosts(pod, podIPs, hostname, domain, "")
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(file); err == nil && string(have) == string(want) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return fmt.Errorf("hosts file of pod %s: %w", podName(pod), err)
	}
	if err := os.WriteFile(file, want, 0o644); err != nil {
		return fmt.Errorf("hosts file of pod %s: %w", podName(pod), err)
	}
	return nil
}

// TerminationLogPath is where a container attempt's termination message lies below a pod's directory on the node.
func TerminationLogPath(podDir, container string, attempt uint32) string {
	return filepath.Join(podDir, "containers", container, "termination-"+strconv.FormatUint(uint64(attempt), 10))
}
