package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnitsAreSound: systemd itself reads them, where it is installed.
func TestUnitsAreSound(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for _, name := range []string{Edgecore, Cloudcore, ControlPlane} {
		text, err := Unit(name, "/bin/sh", "--config", "/etc/hold fast/50%/$x.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if want := `ExecStart=/bin/sh --config "/etc/hold fast/50%%/$$x.yaml"` + "\n"; !strings.Contains(text, want) {
			t.Errorf("%s does not say %q:\n%s", name, want, text)
		}
		for _, line := range []string{"Restart=always", "StartLimitIntervalSec=0", "WantedBy=multi-user.target"} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("%s does not say %s", name, line)
			}
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // the texts were checked
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) {
			t.Errorf("systemd-analyze verify: %s", strings.TrimSpace(line))
		}
	}
	if err != nil {
		t.Logf("systemd-analyze verify: %v: %s", err, out)
	}
}

// TestEdgecoreLeavesContainersAlone: a restart of the unit must not end a pod.
func TestEdgecoreLeavesContainersAlone(t *testing.T) {
	text, err := Unit(Edgecore, "/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"KillMode=process", "Delegate=yes", "TimeoutStartSec=infinity", "Type=notify"} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s does not say %s", Edgecore, line)
		}
	}
	for line := range strings.Lines(text) {
		if key, value, _ := strings.Cut(line, "="); strings.HasPrefix(key, "After") || strings.HasPrefix(key, "Wants") || strings.HasPrefix(key, "Requires") {
			if strings.Contains(value, "network-online") {
				t.Errorf("%s: %s: a node must start its pods without a network", Edgecore, strings.TrimSpace(line))
			}
		}
	}
}
