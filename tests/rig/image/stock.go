package image

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
)

// Names of the two images that every test needs.
const (
	BusyboxName = "example.test/holdfast/busybox:1"
	PauseName   = "example.test/holdfast/pause:1"
)

// busyboxPath is where Debian's busybox-static puts it.
const busyboxPath = "/bin/busybox"

// Busybox makes an image with a shell and the common commands; name is usually BusyboxName. It runs as
// root, with `sh` when no command is given.
func Busybox(name string) (*Image, error) {
	s, err := BusyboxSpec(name)
	if err != nil {
		return nil, err
	}
	return Build(s)
}

// BusyboxSpec is what Busybox builds, for callers that add files to it.
func BusyboxSpec(name string) (Spec, error) {
	bin, err := os.ReadFile(busyboxPath)
	if err != nil {
		return Spec{}, fmt.Errorf("image %s: no static busybox (install the package busybox-static): %w", name, err)
	}
	out, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return Spec{}, fmt.Errorf("image %s: list applets of %s: %w", name, busyboxPath, err)
	}
	files := []File{
		{Path: "bin/busybox", Data: bin},
		{Path: "tmp/", Mode: 0o1777},
		{Path: "root/", Mode: 0o700},
		{Path: "home/nobody/"},
		{Path: "proc/"}, {Path: "sys/"}, {Path: "dev/"}, {Path: "var/run/"},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home/nobody:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			files = append(files, File{Path: "bin/" + applet, Link: "/bin/busybox"})
		}
	}
	return Spec{
		Name:  name,
		Files: files,
		Cmd:   []string{"sh"},
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}, nil
}

// pauseSource is the program that holds a pod's namespaces: as their first process it reaps orphans, and it
// ends when told to.
const pauseSource = `#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int sig) { (void)sig; _exit(0); }
static void reap(int sig) { (void)sig; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
	struct sigaction on_stop = {.sa_handler = stop};
	struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
	if (sigaction(SIGINT, &on_stop, 0) || sigaction(SIGTERM, &on_stop, 0) || sigaction(SIGCHLD, &on_child, 0))
		return 1;
	for (;;)
		pause();
}
`

// Pause makes the sandbox image. Its program is compiled once into cacheDir and taken from there later.
func Pause(name, cacheDir string) (*Image, error) {
	bin, err := pauseBinary(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return Build(Spec{Name: name, Files: []File{{Path: "pause", Data: bin}}, Entrypoint: []string{"/pause"}})
}

func pauseBinary(cacheDir string) ([]byte, error) {
	sum := sha256.Sum256([]byte(pauseSource))
	cached := filepath.Join(cacheDir, "pause-"+runtime.GOARCH+"-"+hex.EncodeToString(sum[:6]))
	if b, err := os.ReadFile(cached); !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return nil, err
	}
	// Compiled beside its place and renamed: another process may be doing the same.
	tmp, err := os.MkdirTemp(cacheDir, "pause-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	built := filepath.Join(tmp, "pause")
	cmd := exec.Command("gcc", "-static", "-Os", "-s", "-o", built, "-x", "c", "-")
	cmd.Stdin = strings.NewReader(pauseSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile pause (install gcc and libc6-dev): %w: %s", err, out)
	}
	b, err := os.ReadFile(built)
	if err != nil {
		return nil, err
	}
	return b, os.Rename(built, cached)
}
