package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-edge/holdfast"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Name         string
	Doc          string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
}

// room is the path inside the module: "edge/store".
func (p pkg) room() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// list asks for all packages of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list names %d packages: too few to be this repository", len(all))
	}
	return all
}

func wing(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

// mayImport says which wings of the house a wing may use. A wing's tests may also
// use tests.
func mayImport(wing string) []string {
	switch wing {
	case "cloud", "edge":
		return []string{wing, "common"}
	case "common":
		return []string{"common", "build"} // the manifests and units that it installs
	case "build":
		return []string{"build"}
	}
	return []string{"tests", "common", "cloud", "edge", "build"}
}

func TestArrowsBetweenTheWings(t *testing.T) {
	for _, p := range list(t) {
		own := wing(p.ImportPath)
		check := func(imports []string, allowed []string) {
			for _, i := range imports {
				if w := wing(i); w != "" && !slices.Contains(allowed, w) {
					t.Errorf("%s imports %s: %s may use only %s", p.room(), strings.TrimPrefix(i, module+"/"), own, strings.Join(allowed, ", "))
				}
			}
		}
		check(p.Imports, mayImport(own))
		check(append(p.TestImports, p.XTestImports...), append(mayImport(own), "tests", "build"))
	}
}

// TestEdgeLinksNoClientGo: it costs memory on every Pi, and the edge talks to no
// apiserver.
func TestEdgeLinksNoClientGo(t *testing.T) {
	found := false
	for _, p := range list(t) {
		if p.room() != "edge/cmd/edgecore" {
			continue
		}
		found = true
		for _, dep := range p.Deps {
			for _, forbidden := range []string{"k8s.io/client-go", "k8s.io/kubernetes", module + "/cloud", module + "/common/adm"} {
				if dep == forbidden || strings.HasPrefix(dep, forbidden+"/") {
					t.Errorf("edgecore links %s", dep)
				}
			}
		}
	}
	if !found {
		t.Error("there is no edge/cmd/edgecore")
	}
}

// TestPureRooms: what plans touches nothing.
func TestPureRooms(t *testing.T) {
	forbidden := []string{"os", "net", "net/http", "database/sql", "k8s.io/client-go", "k8s.io/cri-api", "gorm.io/gorm", "os/exec"}
	for _, p := range list(t) {
		if !slices.Contains([]string{"edge/plan", "edge/resume", "edge/twin", "cloud/roster", "cloud/delivery"}, p.room()) {
			continue
		}
		for _, i := range p.Imports {
			for _, f := range forbidden {
				if i == f || strings.HasPrefix(i, f+"/") && f != "net" && f != "os" {
					t.Errorf("%s is pure, and imports %s", p.room(), i)
				}
			}
		}
	}
}

// TestOnlyRuntimeSpeaksCRI: in the edge, the types of CRI stay in one room.
func TestOnlyRuntimeSpeaksCRI(t *testing.T) {
	for _, p := range list(t) {
		if wing(p.ImportPath) != "edge" || strings.HasPrefix(p.room(), "edge/runtime") {
			continue
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "k8s.io/cri-api") {
				t.Errorf("%s imports %s: only edge/runtime does", p.room(), i)
			}
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue // tests only
		}
		if len(strings.Fields(p.Doc)) < 8 {
			t.Errorf("%s has no package comment that says what it owns, who calls it, and what it never does", p.room())
		}
	}
}

func TestTopLevelIsAsTheHouseHasIt(t *testing.T) {
	want := []string{"LICENSE", "Makefile", "README.md", "build", "cloud", "common", "docs", "edge", "go.mod", "go.sum", "keps", "tests"}
	entries, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, ".") && name != "_output" && !foreign(t, name) {
			have = append(have, name)
		}
	}
	for _, name := range have {
		if !slices.Contains(want, name) {
			t.Errorf("%s does not belong at the top level, which has %s", name, strings.Join(want, ", "))
		}
	}
	for _, name := range want {
		if !slices.Contains(have, name) {
			t.Errorf("the top level has no %s", name)
		}
	}
}

// foreign tells of a file that lies in the checkout and is no part of it, such as
// the log of whoever runs the tests. Without a repository everything is a part.
func foreign(t *testing.T, name string) bool {
	t.Helper()
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", root(t)}, args...)...).Output()
		return string(out), err
	}
	if all, err := git("ls-files", "--", "go.mod"); err != nil || all == "" {
		return false
	}
	known, err := git("ls-files", "--", name)
	return err == nil && known == ""
}
