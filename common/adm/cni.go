package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-edge/holdfast/common/adm/journal"
	"github.com/holdfast-edge/holdfast/common/atomicfile"
)

// The network that join makes for pods where there is none: one bridge, and
// addresses that never leave the node, so that every node may use the same.
const (
	cniFile   = "10-holdfast.conflist"
	cniBridge = "holdfast0"
)

// podRanges are tried in order; the first that the machine's own networks do not
// overlap is taken.
func podRanges() []string {
	return []string{"10.88.0.0/16", "10.89.0.0/16", "10.124.0.0/16", "172.29.0.0/16", "192.168.224.0/20"}
}

// cniNeeds are the plugins that the configuration calls.
func cniNeeds() []string { return []string{"bridge", "host-local", "portmap", "loopback"} }

// cniConfigured names a network configuration in dir, or returns "".
func cniConfigured(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
			return filepath.Join(dir, e.Name())
		}
	}
	return ""
}

// missingPlugins are those of cniNeeds that are in none of dirs.
func missingPlugins(dirs []string) []string {
	var missing []string
	for _, name := range cniNeeds() {
		found := false
		for _, dir := range dirs {
			found = found || exists(filepath.Join(dir, name))
		}
		if !found {
			missing = append(missing, name)
		}
	}
	return missing
}

// writeCNI writes the bridge network and returns the range of its pods. Leases
// live in the run directory: a reboot ends every pod's network and must end its
// lease, too.
func writeCNI(j *journal.Journal, dir, runDir string) (string, error) {
	pods, err := freeRange(podRanges())
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       "holdfast",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": cniBridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type": "host-local", "dataDir": filepath.Join(runDir, "cni"),
					"ranges": []any{[]any{map[string]any{"subnet": pods}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, cniFile)
	if err := j.NoteFile(path); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write the pods' network: %w", err)
	}
	return pods, atomicfile.Write(path, append(text, '\n'), 0o644)
}

// freeRange is the first range that no interface of this machine overlaps.
func freeRange(ranges []string) (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list this machine's networks: %w", err)
	}
	for _, text := range ranges {
		candidate, err := netip.ParsePrefix(text)
		if err != nil {
			return "", err
		}
		free := true
		for _, address := range addresses {
			used, err := netip.ParsePrefix(address.String())
			free = free && (err != nil || !candidate.Overlaps(used.Masked()))
		}
		if free {
			return text, nil
		}
	}
	return "", fmt.Errorf("every range for pods (%s) overlaps a network of this machine: write a CNI configuration of your own", strings.Join(ranges, ", "))
}

// removeCNI takes the bridge away; its file went with the journal's others.
func (a *App) removeCNI(ctx context.Context) error {
	if _, err := net.InterfaceByName(cniBridge); err != nil {
		return nil
	}
	return a.Machine.DeleteLink(ctx, cniBridge)
}

// disabledCRI finds the line in containerd's config that turns the CRI plugin
// off, as the containerd.io package of Docker has it.
func disabledCRI(path string) (line int, text string, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read containerd's config: %w", err)
	}
	inList := false
	for i, l := range strings.Split(string(b), "\n") {
		code, _, _ := strings.Cut(l, "#")
		if strings.HasPrefix(strings.TrimSpace(code), "disabled_plugins") {
			inList = true
		}
		if inList && (strings.Contains(code, `"cri"`) || strings.Contains(code, "'cri'") || strings.Contains(code, "io.containerd.grpc.v1.cri")) {
			return i + 1, strings.TrimSpace(l), nil
		}
		if strings.Contains(code, "]") {
			inList = false
		}
	}
	return 0, "", nil
}
