// Package tool builds the programs of others that tests and benches run beside
// Holdfast: kubectl and metrics-server, with which an operator comes, and the
// kubelet, to compare with. They are compiled from the Go modules that
// build/tools names, so a fresh machine needs nothing but the module proxy.
//
// Build belongs outside a world (see world.Main), where the proxy can be reached;
// Path is for anywhere. The package runs no tool: its callers do.
package tool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Name is what a tool is called, as a file too.
type Name string

// The tools.
const (
	Kubectl       Name = "kubectl"
	Kubelet       Name = "kubelet"
	MetricsServer Name = "metrics-server"
)

// pkg is the main package of a tool.
func (n Name) pkg() string {
	if n == MetricsServer {
		return "sigs.k8s.io/metrics-server/cmd/metrics-server"
	}
	return "k8s.io/kubernetes/cmd/" + string(n)
}

// Path is where Build puts a tool.
func Path(n Name) (string, error) {
	root, err := root()
	if err != nil {
		return "", err
	}
	return filepath.Join(folder(root), string(n)), nil
}

// Ready is Build for later: what world.Main and its like call outside.
func Ready(names ...Name) func() error { return func() error { return Build(names...) } }

// Build brings tools up to date. Without a change it costs a few milliseconds; the first time,
// after the control plane was built, a minute or two on two cores. Several programs may ask at
// once: one builds, the others wait and find all done.
func Build(names ...Name) (err error) {
	root, err := root()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder(root), 0o755); err != nil {
		return fmt.Errorf("build tools: %w", err)
	}
	lock, err := os.Create(filepath.Join(folder(root), ".lock"))
	if err != nil {
		return fmt.Errorf("build tools: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // which gives the lock back
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("build tools: wait for another build: %w", err)
	}
	want, version, err := recipe(root)
	if err != nil {
		return fmt.Errorf("build tools: %w", err)
	}
	for _, n := range names {
		if err := build(root, n, want, version); err != nil {
			return fmt.Errorf("build %s: %w", n, err)
		}
	}
	return nil
}

// build compiles one tool unless it was made by the same recipe.
func build(root string, n Name, want, version string) error {
	target := filepath.Join(folder(root), string(n))
	made, err := os.ReadFile(target + ".made")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(target); err == nil && string(made) == want {
		return nil
	}
	const stamp = "k8s.io/component-base/version"
	minor := strings.Split(version, ".")[1]
	flags := fmt.Sprintf("-s -w -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s", stamp, version, minor)
	cmd := exec.Command("go", "build", "-ldflags", flags, "-o", target, n.pkg())
	cmd.Dir = filepath.Join(root, "build", "tools")
	// The flags of build/controlplane, or Kubernetes is compiled anew.
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath -buildvcs=false", "CGO_ENABLED=1", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.WriteFile(target+".made", []byte(want), 0o644)
}

// recipe is a digest of what the tools are made by, and Kubernetes' version in it.
func recipe(root string) (digest, version string, err error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, "build", "tools", name))
		if err != nil {
			return "", "", err
		}
		h.Write(text)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); name == "go.mod" && len(f) > 1 && f[0] == "k8s.io/kubernetes" {
				version = f[1]
			}
		}
	}
	if strings.Count(version, ".") != 2 {
		return "", "", fmt.Errorf("build/tools/go.mod requires k8s.io/kubernetes %q, which is no version", version)
	}
	return hex.EncodeToString(h.Sum(nil)), version, nil
}

func folder(root string) string { return filepath.Join(root, "_output", "tools") }

// root is the top of the repository that holds the working directory.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "build", "tools", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no repository of Holdfast holds the working directory")
		}
		dir = parent
	}
}
