package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ceilings, in lines. Aim for 600 and 80.
const (
	maxFile     = 700
	maxFunction = 120
)

// exceptions may be longer, each for its reason: files, and functions as
// FILE:FUNCTION.
func exceptions() map[string]string {
	return map[string]string{
		"common/wire/wire.pb.go":                             "generated from wire.proto",
		"common/dmi/dmi.pb.go":                               "generated from dmi.proto",
		"tests/e2e/pods_test.go:TestPodsUseWhatTheAPIOffers": "one short subtest a feature of the pod API, on one node",
	}
}

// unverified may make TLS connections without a check of the other's certificate.
func unverified() map[string]string {
	return map[string]string{
		"edge/probe/handlers.go": "an https probe asks whether a container answers, as a kubelet's does; what trusts nothing needs no proof",
	}
}

// sources visits every Go file of the repository, the control plane's included.
func sources(t *testing.T, visit func(path, name string)) {
	t.Helper()
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "_output" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".go" {
			name, err := filepath.Rel(top, path)
			if err != nil {
				return err
			}
			visit(path, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesAndFunctionsCanBeRead(t *testing.T) {
	used := map[string]bool{}
	sources(t, func(path, name string) {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		_, excepted := exceptions()[name]
		used[name] = true
		if lines := set.File(file.Pos()).LineCount(); lines > maxFile && !excepted {
			t.Errorf("%s has %d lines: split it at a noun (ceiling %d)", name, lines, maxFile)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || excepted {
				continue
			}
			used[name+":"+f.Name.Name] = true
			_, listed := exceptions()[name+":"+f.Name.Name]
			if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line; lines > maxFunction && !listed {
				t.Errorf("%s: function %s has %d lines: let it name its steps (ceiling %d)", name, f.Name.Name, lines, maxFunction)
			}
		}
	})
	for name := range exceptions() {
		if !used[name] {
			t.Errorf("%s is an exception and does not exist: take it off the list", name)
		}
	}
}

// TestNoSurprises: things that style forbids everywhere.
func TestNoSurprises(t *testing.T) {
	sources(t, func(path, name string) {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return // told by the other test
		}
		generated := strings.HasSuffix(name, ".pb.go")
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil && !generated {
					t.Errorf("%s: init(): make it a constructor that somebody calls", set.Position(n.Pos()))
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "InsecureSkipVerify" && unverified()[name] == "" {
					t.Errorf("%s: InsecureSkipVerify: a certificate is always checked", set.Position(n.Pos()))
				}
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok || !strings.HasSuffix(name, "_test.go") {
					return true
				}
				skip := x.Name == "t" && strings.HasPrefix(n.Sel.Name, "Skip")
				if skip {
					t.Errorf("%s: %s.%s: a test that does not run tests nothing", set.Position(n.Pos()), x.Name, n.Sel.Name)
				}
			}
			return true
		})
	})
}

// maxEdgecore is the ceiling of edgecore's binary in bytes.
const maxEdgecore = 30e6

// TestEdgecoreStaysSmall: a node downloads it over a metered line and reads it from an SD card.
func TestEdgecoreStaysSmall(t *testing.T) {
	info, err := os.Stat(filepath.Join(root(t), "_output/edgecore"))
	if err != nil {
		t.Fatalf("%v: run `make build` first, as `make test` does", err)
	}
	if info.Size() > maxEdgecore {
		t.Errorf("edgecore has %d bytes, %.0f are the ceiling. Look first for what calls methods by names that the linker cannot know, "+
			"for then it keeps every method of every type (some 5 MB): link with -ldflags=-dumpdep and look for ReflectMethod", info.Size(), maxEdgecore)
	}
}

func TestEveryProgramIsAFrontDoor(t *testing.T) {
	for _, name := range []string{"cloud/cmd/cloudcore", "edge/cmd/edgecore", "common/cmd/holdfast"} {
		if info, err := os.Stat(filepath.Join(root(t), name)); err != nil || !info.IsDir() {
			t.Errorf("there is no %s", name)
		}
	}
}
