package tool

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// versions are the modules that a go.mod requires.
func versions(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	required := map[string]string{}
	inside := false
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "require ("):
			inside = true
		case strings.HasPrefix(line, ")"):
			inside = false
		case inside && len(f) > 1:
			required[f[0]] = f[1]
		}
	}
	if len(required) < 50 {
		t.Fatalf("%s requires %d modules: too few to be Kubernetes", file, len(required))
	}
	return required
}

// TestToolsShareTheControlPlanesVersions: one that differs compiles all of
// Kubernetes that depends on it once more, ten minutes on a small machine.
func TestToolsShareTheControlPlanesVersions(t *testing.T) {
	top, err := root()
	if err != nil {
		t.Fatal(err)
	}
	ours := versions(t, filepath.Join(top, "build", "tools", "go.mod"))
	for module, theirs := range versions(t, filepath.Join(top, "build", "controlplane", "go.mod")) {
		if version, ok := ours[module]; ok && version != theirs {
			t.Errorf("build/tools requires %s %s, and build/controlplane %s: give both the same, if need be by an exclude line", module, version, theirs)
		}
	}
}

func TestBuiltToolsRunAndAreBuiltOnce(t *testing.T) {
	if err := Build(Kubectl); err != nil {
		t.Fatal(err)
	}
	path, err := Path(Kubectl)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "version", "--client").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "v1.36.3") {
		t.Errorf("kubectl version: %v: %s", err, out)
	}
	if err := Build(Kubectl); err != nil {
		t.Fatal(err)
	}
	again, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(first, again) || !again.ModTime().Equal(first.ModTime()) {
		t.Error("kubectl was built twice")
	}
}
