package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// defaultPodCIDR is the pods' range when Options name none. Every node may have the same: it is never
// routed out of the node.
const defaultPodCIDR = "10.88.0.0/24"

// configV2 is for containerd 1.6 and 1.7, configV3 for 2.x, which split the CRI plugin in two. Both name
// every path, because each default is a directory that all containerds of a machine would share.
const (
	configCommon = `
root = {{.Root | quote}}
state = {{.State | quote}}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri", "io.containerd.differ.v1.erofs",
]
[grpc]
  address = {{.Socket | quote}}
[ttrpc]
  address = {{.TTRPC | quote}}
`
	configV2 = `version = 2
` + configCommon + `
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {{.Pause | quote}}
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = {{.RuncRoot | quote}}
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {{.CNIBin | quote}}
  conf_dir = {{.CNIConf | quote}}
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = {{.Certs | quote}}
`
	configV3 = `version = 3
` + configCommon + `
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = {{.Pause | quote}}
[plugins."io.containerd.cri.v1.images".registry]
  config_path = {{.Certs | quote}}
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  Root = {{.RuncRoot | quote}}
  SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dir = {{.CNIBin | quote}}
  conf_dir = {{.CNIConf | quote}}
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
`
)

// writeConfig writes the configuration file of a containerd of the given major version.
func (p *place) writeConfig(major int) error {
	text := configV2
	if major >= 2 {
		text = configV3
	}
	t, err := template.New("config").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(text)
	if err != nil {
		return err
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]string{
		"Root": p.Root, "State": p.State, "Socket": p.Socket, "TTRPC": p.Socket + ".ttrpc",
		"Pause": image.PauseName, "RuncRoot": filepath.Join(p.State, "runc"),
		"CNIBin": cniBinDir(), "CNIConf": p.cniDir(), "Certs": p.certsDir(),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(p.Config, []byte(b.String()), 0o644)
}

// writeCNI writes the network of the pods: a bridge, address leases and host ports, and no masquerading,
// since a pod of a test has nowhere to go.
func (p *place) writeCNI(pods netip.Prefix) error {
	conf, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       p.CNIName,
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": p.CNIBridge, "isGateway": true, "ipMasq": false, "hairpinMode": true,
				"ipam": map[string]any{
					"type": "host-local", "dataDir": p.leases(),
					"ranges": []any{[]any{map[string]any{"subnet": pods.Masked().String()}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.cniDir(), "10-holdfast.conflist"), conf, 0o644)
}

// writeMirror tells containerd to fetch the images of host from url. It is read at every pull.
func (p *place) writeMirror(host, url string) error {
	dir := filepath.Join(p.certsDir(), host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644)
}

// cniBinDir is where distributions put the plugins: Debian, then everybody else.
func cniBinDir() string {
	const debian = "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(debian, "bridge")); err == nil {
		return debian
	}
	return "/opt/cni/bin"
}

// cacheDir keeps what is built once: in the work tree if the process runs inside one.
func cacheDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return filepath.Join(dir, "_output", "rig"), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return filepath.Join(os.TempDir(), "holdfast-rig-cache"), nil
}
