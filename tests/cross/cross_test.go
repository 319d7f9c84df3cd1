package cross

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/common/config"
)

func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// build runs `make cross`; a second run of the tests beside this one waits.
func build(t *testing.T) {
	t.Helper()
	output := filepath.Join(repository(t), "_output")
	if err := os.MkdirAll(output, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(output, ".cross.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("make", "--no-print-directory", "-C", repository(t), "cross")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make cross: %v\n%s", err, out)
	}
}

func TestBinariesForOtherMachinesRun(t *testing.T) {
	build(t)
	for _, target := range []struct {
		folder, qemu string
		machine      elf.Machine
	}{
		{"linux-arm64", "qemu-aarch64-static", elf.EM_AARCH64},
		{"linux-armv7", "qemu-arm-static", elf.EM_ARM},
	} {
		t.Run(target.folder, func(t *testing.T) {
			for _, name := range []string{"edgecore", "holdfast"} {
				path := filepath.Join(repository(t), "_output", target.folder, name)
				checkELF(t, path, target.machine)
				flag := "--version"
				if out := run(t, target.qemu, path, flag); !strings.HasPrefix(out, name+" ") {
					t.Errorf("%s %s printed %q", path, flag, out)
				}
			}
			opensItsDatabase(t, target.qemu, filepath.Join(repository(t), "_output", target.folder, "edgecore"))
		})
	}
}

// checkELF sees to it that the binary is for that machine and needs no library of
// the distribution.
func checkELF(t *testing.T, path string, machine elf.Machine) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != machine {
		t.Errorf("%s is for %v, want %v", path, f.Machine, machine)
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	if len(libraries) > 0 {
		t.Errorf("%s needs %v: want a static binary", path, libraries)
	}
}

// opensItsDatabase has edgecore, SQLite's C code in it, make a database and open
// it again.
func opensItsDatabase(t *testing.T, qemu, edgecore string) {
	t.Helper()
	dir := t.TempDir()
	c := config.DefaultEdge()
	c.NodeName, c.Hub = "pi", []string{"hub.example.test:10350"}
	c.DataDir, c.RunDir, c.PodLogsDir = filepath.Join(dir, "data"), filepath.Join(dir, "run"), filepath.Join(dir, "logs")
	text, err := config.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "edgecore.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, time := range []string{"made", "opened again"} {
		if out := run(t, qemu, edgecore, "--config", file, "--check"); !strings.Contains(out, "sound, 0 objects") {
			t.Errorf("database %s: edgecore --check printed %q", time, out)
		}
	}
	head, err := os.ReadFile(filepath.Join(c.DataDir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(head, []byte("SQLite format 3\x00")) {
		t.Error("store.db is not a database of SQLite")
	}
}

func run(t *testing.T, qemu, binary string, args ...string) string {
	t.Helper()
	out, err := exec.Command(qemu, append([]string{binary}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s %s: %v\n%s", qemu, binary, strings.Join(args, " "), err, out)
	}
	return string(out)
}
