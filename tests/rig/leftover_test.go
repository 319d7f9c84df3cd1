package rig_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/tests/rig"
)

// assertOff checks, by looking at the machine and not at the rig's own records, that nothing of the node
// runs or is mounted.
func assertOff(t *testing.T, c *rig.Containerd, pods ...*testPod) {
	t.Helper()
	assertOffAt(t, c.Socket(), c.CgroupParent())
	for _, p := range pods {
		for _, id := range []string{p.sandbox, p.container} {
			if dirs := cgroupsNamed(t, id); len(dirs) != 0 {
				t.Errorf("cgroups are left: %v", dirs)
			}
		}
	}
}

func assertOffAt(t *testing.T, socket, cgroupParent string) {
	t.Helper()
	if left := processesNaming(t, socket); len(left) != 0 {
		t.Errorf("processes are left: %v", left)
	}
	if dirs := cgroupsNamed(t, filepath.Base(cgroupParent)); len(dirs) != 0 {
		t.Errorf("cgroups are left: %v", dirs)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Dir(socket)+"/") {
			t.Errorf("a mount is left: %s", line)
		}
	}
}

func assertErased(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left (error %v)", p, err)
		}
	}
}

// processesNaming lists the processes that have word among their arguments.
func processesNaming(t *testing.T, word string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // ended meanwhile
		}
		if args := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(args, word) {
			out = append(out, filepath.Base(filepath.Dir(f))+" "+args)
		}
	}
	return out
}

// cgroupsNamed lists the cgroups of that name in all hierarchies.
func cgroupsNamed(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == name {
			out = append(out, path)
		}
		return nil // cgroups of others come and go meanwhile
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func fetchFromPod(t *testing.T, ctx context.Context, node *rig.Netns, p *testPod) {
	t.Helper()
	eventually(t, ctx, "fetch a file from the pod", func() error {
		out, err := node.Command("timeout", "10", "busybox", "wget", "-q", "-O", "-", "http://"+p.ip+"/passwd").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if !strings.HasPrefix(string(out), "root:") {
			return fmt.Errorf("pod served %q", out)
		}
		return nil
	})
}

func ping(t *testing.T, ctx context.Context, from *rig.Netns, to string) {
	t.Helper()
	eventually(t, ctx, "reach "+to, func() error {
		out, err := from.Command("busybox", "ping", "-c", "1", "-W", "2", to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
