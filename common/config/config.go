// Package config owns the daemons' config files: their keys, defaults and
// checks. edgecore and cloudcore load one each at start; holdfast writes them.
// It never reads the environment and never starts anything.
package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Where the config files are, unless --config says otherwise.
const (
	EdgePath  = "/etc/holdfast/edgecore.yaml"
	CloudPath = "/etc/holdfast/cloudcore.yaml"
)

// HubPort is the hub's port unless an address names another.
const HubPort = "10350"

// Duration is a time.Duration that reads and writes as "25s".
type Duration struct{ time.Duration }

// MarshalJSON writes the duration as text.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a text like "1m30s".
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("%s is not a duration: write a number with its unit, like 25s or 5m", b)
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration: write a number with its unit, like 25s or 5m", text)
	}
	d.Duration = v
	return nil
}

// Edge is the config of edgecore.
type Edge struct {
	// NodeName is the node's name in the cluster; the machine's host name where
	// it is empty. It must be the name in the node's certificate.
	NodeName string `json:"nodeName,omitempty"`
	// Hub lists addresses (HOST:PORT) of the hub, or of several hubs of one
	// cluster; they are tried in turn.
	Hub []string `json:"hub"`
	// Transport is how the hub is reached: websocket, quic, or auto (QUIC, and
	// websocket where UDP is blocked).
	Transport string `json:"transport,omitempty"`
	// DataDir holds the database, the certificates and the pods' volumes.
	DataDir string `json:"dataDir,omitempty"`
	// RunDir holds the socket for "holdfast status"; it may be lost at a reboot.
	RunDir string `json:"runDir,omitempty"`
	// PodLogsDir is where containerd writes the containers' logs.
	PodLogsDir string `json:"podLogsDir,omitempty"`
	// ContainerRuntimeEndpoint is containerd's socket.
	ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint,omitempty"`
	// CgroupRoot is the cgroup under which the pods' cgroups (kubepods) are made.
	CgroupRoot string `json:"cgroupRoot,omitempty"`
	// CgroupDriver is cgroupfs or systemd; empty: the runtime is asked.
	CgroupDriver string `json:"cgroupDriver,omitempty"`
	// PauseImage is the image of pod sandboxes; empty: the runtime's own.
	PauseImage string `json:"pauseImage,omitempty"`
	// NodeIP is the address that the node reports; empty: that of the interface
	// by which the hub is reached.
	NodeIP string `json:"nodeIP,omitempty"`
	// ClusterDomain and ClusterDNS go into the resolv.conf of pods with
	// dnsPolicy ClusterFirst. Without ClusterDNS they get the node's own.
	ClusterDomain string   `json:"clusterDomain,omitempty"`
	ClusterDNS    []string `json:"clusterDNS,omitempty"`
	// MaxPods is how many pods the node offers to hold.
	MaxPods int `json:"maxPods,omitempty"`
	// Labels are set on the Node when it registers.
	Labels map[string]string `json:"labels,omitempty"`
	// Taints are set on the Node when it registers: key=value:Effect or key:Effect.
	Taints []string `json:"taints,omitempty"`
	// KeepAlive is how long the edge says nothing before it shows the hub that
	// it is still there; both sides must have the same.
	KeepAlive Duration `json:"keepAlive,omitzero"`
	// LineTimeout is how long what was sent may stay without an answer before the
	// line counts as dead. A dead line is so found within KeepAlive+LineTimeout,
	// by either side; both must have the same.
	LineTimeout Duration `json:"lineTimeout,omitzero"`
	// StatusInterval is how often the node looks at its own condition. Only a
	// change is sent.
	StatusInterval Duration `json:"statusInterval,omitzero"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel,omitempty"`
	// LogFormat is text or json.
	LogFormat string `json:"logFormat,omitempty"`
	// Profiling serves net/http/pprof on the socket in RunDir.
	Profiling bool `json:"profiling,omitempty"`
	// MetricsListen is the address of /metrics, in plain HTTP, for whoever can reach
	// it; empty: they are to be had on the socket in RunDir alone.
	MetricsListen string `json:"metricsListen,omitempty"`
	// MQTT is how devices and programs on the node are served over MQTT.
	MQTT MQTT `json:"mqtt,omitzero"`
	// DMISocket is where mappers register; empty: dmi.sock in RunDir.
	DMISocket string `json:"dmiSocket,omitempty"`
	// DevicesListen is the address of the devices' HTTP API, for whoever can reach it;
	// empty: it is to be had on devices.sock in RunDir alone.
	DevicesListen string `json:"devicesListen,omitempty"`
}

// MQTT says which broker the node's devices use.
type MQTT struct {
	// Mode is auto, embedded, external or off. auto is external where Broker is set,
	// and else the embedded broker from the node's first Device or Route on.
	Mode string `json:"mode,omitempty"`
	// Listen lists addresses of the embedded broker; empty: 127.0.0.1:1883.
	Listen []string `json:"listen,omitempty"`
	// TLSCert and TLSKey make the embedded broker speak TLS; with ClientCA clients must
	// show a certificate of it.
	TLSCert  string `json:"tlsCert,omitempty"`
	TLSKey   string `json:"tlsKey,omitempty"`
	ClientCA string `json:"clientCA,omitempty"`
	// PasswordFile holds the embedded broker's users, as mosquitto_passwd writes it; a
	// user NAMESPACE/NAME is that device, any other a program.
	PasswordFile string `json:"passwordFile,omitempty"`
	// Broker is the external broker: tcp, ssl, ws or wss://HOST:PORT. The keys below
	// are for it alone.
	Broker   string `json:"broker,omitempty"`
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	// UserPasswordFile holds the password of User, instead of Password.
	UserPasswordFile string `json:"userPasswordFile,omitempty"`
	CAFile           string `json:"caFile,omitempty"`
	CertFile         string `json:"certFile,omitempty"`
	KeyFile          string `json:"keyFile,omitempty"`
}

// Cloud is the config of cloudcore.
type Cloud struct {
	// Kubeconfig is how the apiserver is reached; empty: from inside the cluster.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Listen is the address and port of the hub.
	Listen string `json:"listen,omitempty"`
	// QUIC says whether edges are served over QUIC too, at the UDP port of the
	// number that Listen has.
	QUIC bool `json:"quic"`
	// AdvertiseAddresses are the names and IP addresses by which edges reach the
	// hub; its certificate is made for them, and for this machine's host name.
	AdvertiseAddresses []string `json:"advertiseAddresses,omitempty"`
	// DataDir holds the hub's certificate.
	DataDir string `json:"dataDir,omitempty"`
	// KeepAlive and LineTimeout must be those of the edges. An edge that was not
	// heard for both together is taken for gone.
	KeepAlive   Duration `json:"keepAlive,omitzero"`
	LineTimeout Duration `json:"lineTimeout,omitzero"`
	// NodeCertificateTTL is the life of the certificates that nodes get. They are
	// renewed when a third of it is left.
	NodeCertificateTTL Duration `json:"nodeCertificateTTL,omitzero"`
	// RenewGrace is how long after its end a node's certificate may still be renewed
	// by proof of its key; then the node must join again.
	RenewGrace Duration `json:"renewGrace,omitzero"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel,omitempty"`
	// LogFormat is text or json.
	LogFormat string `json:"logFormat,omitempty"`
	// HealthListen is the address of /healthz and /metrics, in plain HTTP.
	HealthListen string `json:"healthListen,omitempty"`
	// Profiling serves net/http/pprof there, too.
	Profiling bool `json:"profiling,omitempty"`
	// RunDir holds the socket for "holdfast status"; it may be lost at a reboot.
	// Empty: there is none.
	RunDir string `json:"runDir"`
	// FleetListen is the address of the fleet's web page: in plain HTTP on a loopback
	// address, with the hub's certificate on others. Empty: there is none.
	FleetListen string `json:"fleetListen"`
	// Tunnel is where the cluster reaches the nodes' kubelet API.
	Tunnel Tunnel `json:"tunnel,omitzero"`
}

// Tunnel says where this hub serves the kubelet API of its nodes to the cluster.
type Tunnel struct {
	// Address is the IP address of this machine by which the apiserver reaches it;
	// empty: that by which this machine reaches the apiserver.
	Address string `json:"address,omitempty"`
	// Ports is the range (FIRST-LAST) of which each node gets one; empty: 10400-29999;
	// off: kubectl logs, exec and the like do not reach nodes.
	Ports string `json:"ports,omitempty"`
}

// NoPorts as Tunnel.Ports turns the tunnel off.
const NoPorts = "off"

// Range is the first and the last port; both are 0 where the tunnel is off.
func (t Tunnel) Range() (first, last int, err error) {
	switch t.Ports {
	case "":
		return 10400, 29999, nil
	case NoPorts:
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(t.Ports, "-")
	first, err1 := strconv.Atoi(strings.TrimSpace(a))
	last, err2 := strconv.Atoi(strings.TrimSpace(b))
	if !ok || err1 != nil || err2 != nil || first < 1 || last > 65535 || first > last {
		return 0, 0, fmt.Errorf("%q is no range of ports: write FIRST-LAST, like 10400-29999, or off", t.Ports)
	}
	return first, last, nil
}

// DefaultEdge is what an edge's config says where the file is silent.
func DefaultEdge() Edge {
	return Edge{
		Transport:                "websocket",
		DataDir:                  "/var/lib/holdfast/edge",
		RunDir:                   "/run/holdfast",
		PodLogsDir:               "/var/log/pods",
		ContainerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
		CgroupRoot:               "/",
		ClusterDomain:            "cluster.local",
		MaxPods:                  110,
		KeepAlive:                Duration{28 * time.Second},
		LineTimeout:              Duration{12 * time.Second},
		StatusInterval:           Duration{10 * time.Second},
		LogLevel:                 "info",
		LogFormat:                "text",
	}
}

// DefaultCloud is what cloudcore's config says where the file is silent.
func DefaultCloud() Cloud {
	return Cloud{
		Listen:             "0.0.0.0:" + HubPort,
		QUIC:               true,
		DataDir:            "/var/lib/holdfast/cloud",
		KeepAlive:          Duration{28 * time.Second},
		LineTimeout:        Duration{12 * time.Second},
		NodeCertificateTTL: Duration{pki.NodeTTL},
		RenewGrace:         Duration{90 * 24 * time.Hour},
		LogLevel:           "info",
		LogFormat:          "text",
		HealthListen:       "127.0.0.1:10351",
		RunDir:             "/run/holdfast",
		FleetListen:        "127.0.0.1:10353",
	}
}
