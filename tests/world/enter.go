package world

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stageVariable tells a re-executed program how far inside it is.
const stageVariable = "HOLDFAST_WORLD"

// Enter moves the calling program into a world of its own and returns there: new
// namespaces for network, mounts and processes, with loopback up, an empty /run
// and a /sys that shows this network. Call it first in main or TestMain, as root.
//
// The program is executed again below a small init, so everything before Enter
// runs several times. When the program ends, however it ends, the kernel ends
// every process that it left in there, and no mount and no interface remains.
// TMPDIR is a folder of the world, removed with it, and so are the cgroups below
// CgroupRoot.
func Enter() error {
	switch os.Getenv(stageVariable) {
	case "":
		if os.Geteuid() != 0 {
			return fmt.Errorf("network and process namespaces need root: run this as root")
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			return fmt.Errorf("unshare is missing: install the package util-linux: %w", err)
		}
		args := append([]string{"unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", self}, os.Args[1:]...)
		return fmt.Errorf("run %s: %w", unshare, syscall.Exec(unshare, args, environ(stageVariable+"=init")))
	case "init":
		if os.Getpid() != 1 {
			return fmt.Errorf("%s=init is for process 1 of a new world, and this is process %d", stageVariable, os.Getpid())
		}
		if err := furnish(); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "hfw")
		if err != nil {
			return fmt.Errorf("make the world's folder: %w", err)
		}
		code, err := runAsInit(dir)
		if err := errors.Join(err, vacate(dir)); err != nil {
			return err
		}
		os.Exit(code)
	}
	return os.Unsetenv(stageVariable)
}

// furnish makes the mounts and the loopback interface of the new world.
func furnish() error {
	sys, err := os.MkdirTemp("", "holdfast-sys-")
	if err != nil {
		return fmt.Errorf("furnish the world: %w", err)
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"mount sysfs", func() error { return syscall.Mount("sysfs", sys, "sysfs", 0, "") }},
		{"bind the cgroups", func() error {
			return syscall.Mount("/sys/fs/cgroup", filepath.Join(sys, "fs/cgroup"), "", syscall.MS_BIND|syscall.MS_REC, "")
		}},
		{"move sysfs to /sys", func() error { return syscall.Mount(sys, "/sys", "", syscall.MS_MOVE, "") }},
		{"remove the mount point", func() error { return os.Remove(sys) }},
		{"mount an empty /run", func() error { return syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755") }},
		{"make /run/netns", func() error { return os.MkdirAll("/run/netns", 0o755) }},
		{"make /run/lock", func() error { return os.MkdirAll("/run/lock", 0o755) }},
		{"raise loopback", func() error { return run("ip", "link", "set", "lo", "up") }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("furnish the world: %s: %w", step.what, err)
		}
	}
	return nil
}

// environ is this program's environment with some variables set anew. Of two
// equal names the first counts, so the old one must go.
func environ(set ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(have string) bool {
		name, _, _ := strings.Cut(have, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(env, set...)
}

// CgroupRoot is the cgroup below which a world's nodes keep their pods.
func CgroupRoot() string { return cgroupRoot(os.TempDir()) }

func cgroupRoot(dir string) string { return "/holdfast-" + filepath.Base(dir) }

// runAsInit runs this program once more as a child and reaps whatever is left to
// process 1, until that child ends; it returns the child's exit code. Shims and
// containers leave their parents by design, and a zombie would look alive.
func runAsInit(dir string) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	// Nothing outside is in reach, a proxy neither: an empty value means none.
	env := environ(stageVariable+"=inside", "TMPDIR="+dir, "HTTP_PROXY=", "HTTPS_PROXY=", "http_proxy=", "https_proxy=")
	child, err := os.StartProcess(self, os.Args, &os.ProcAttr{Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 0, fmt.Errorf("run %s inside the world: %w", self, err)
	}
	go func() {
		for s := range signals {
			// An error means that it has ended, which Wait4 tells as well.
			_ = child.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for the program inside the world: %w", err)
		case pid == child.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == child.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

// vacate ends what still runs in the world and removes its folder and cgroups.
// It runs as process 1: kill(-1) reaches this world and nothing else.
func vacate(dir string) error {
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("vacate the world: end its processes: %w", err)
	}
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
			break
		}
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return fmt.Errorf("vacate the world: %w", err)
	}
	for _, m := range mounts {
		// One that lay on another may have gone with it.
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && err != syscall.EINVAL && err != syscall.ENOENT {
			return fmt.Errorf("vacate the world: unmount %s: %w", m, err)
		}
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + cgroupRoot(dir))
	if err != nil {
		return fmt.Errorf("vacate the world: %w", err)
	}
	var errs []error
	for _, root := range append(roots, "/sys/fs/cgroup"+cgroupRoot(dir)) {
		errs = append(errs, removeCgroup(root))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// mountsBelow lists the mount points below dir, the last mounted first.
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	slices.Reverse(points)
	return points, nil
}

// UnmountBelow unmounts what is mounted below dir.
func UnmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(root string) error {
	var groups []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", root, err)
	}
	slices.Reverse(groups)
	deadline := time.Now().Add(burial)
	for _, group := range groups {
		for {
			err := os.Remove(group)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", group, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// burial bounds the wait for the kernel to take dead processes out of their
// cgroup, which stays busy for a moment after they have been reaped.
const burial = 60 * time.Second

// run executes a short command and puts its output into the error.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
