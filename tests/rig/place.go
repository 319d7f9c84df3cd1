package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// place is all that one containerd touches on the machine. It is written into the instance's record, so
// that powering off and erasing work the same for a living instance and for what a dead process left.
type place struct {
	Dir          string   // holds root, configuration and log
	OwnDir       bool     // Dir was made by the rig and goes with it
	Root         string   // containerd's disk: survives a power cut
	State        string   // containerd's /run: does not
	Socket       string   // also the mark by which shims are told from those of others
	Config       string   // also the mark of the containerd process itself
	CNIName      string   // name of the CNI network, unique
	CNIBridge    string   // interface of pods' bridge
	Netns        string   // path of the node's network namespace, empty for the caller's
	CgroupParent string   // cgroup that is this instance's alone
	Wipe         []string // further directories whose mounts and content a power cut takes
}

// killDeadline bounds the wait for killed processes to go: a process in uninterruptible sleep on a slow
// disk takes its time, one that is still there after this never goes.
const killDeadline = 60 * time.Second

// powerOff does to this instance what a power cut does to a machine: every process dies at once, with no
// chance to write anything; mounts, network interfaces, cgroups and runtime state are gone. The disk stays
// as it is: containerd's root, and CNI's address leases, which CNI keeps on disk too.
func (p *place) powerOff() error {
	if err := p.killAll(); err != nil {
		return err
	}
	bundles, err := p.bundles()
	if err != nil {
		return err
	}
	cgroups, err := p.cgroups(bundles)
	if err != nil {
		return err
	}
	errs := []error{
		unmountBelow(append([]string{p.Root, p.State}, p.Wipe...)),
		removeCgroups(cgroups),
		p.clearNetwork(),
	}
	for _, b := range bundles {
		for _, s := range b.sockets {
			errs = append(errs, removeFile(s))
		}
	}
	for _, f := range []string{p.Socket, p.Socket + ".ttrpc"} {
		errs = append(errs, removeFile(f))
	}
	if errors.Join(errs...) == nil {
		// Only now: what is still mounted below must not be deleted through the mount.
		errs = append(errs, os.RemoveAll(p.State))
		for _, w := range p.Wipe {
			errs = append(errs, emptyDir(w))
		}
	}
	return errors.Join(errs...)
}

// erase powers off and takes the disk away too.
func (p *place) erase() error {
	// libcni keeps what each pod was given in a directory that all its users on the machine share.
	results, err := filepath.Glob(filepath.Join("/var/lib/cni/results", p.CNIName+"-*"))
	if err != nil {
		return err
	}
	sandboxes, err := os.ReadDir(filepath.Join(p.Root, "io.containerd.grpc.v1.cri", "sandboxes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, s := range sandboxes {
		results = append(results, filepath.Join("/var/lib/cni/results", "cni-loopback-"+s.Name()+"-lo"))
	}
	if err := p.powerOff(); err != nil {
		return err
	}
	var errs []error
	for _, f := range results {
		errs = append(errs, removeFile(f))
	}
	if p.OwnDir {
		errs = append(errs, os.RemoveAll(p.Dir))
	} else {
		for _, f := range []string{p.Root, p.Config, p.cniDir(), p.certsDir(), p.log(), p.leases()} {
			errs = append(errs, os.RemoveAll(f))
		}
	}
	return errors.Join(errs...)
}

func (p *place) cniDir() string   { return filepath.Join(p.Dir, "cni") }
func (p *place) leases() string   { return filepath.Join(p.Dir, "leases") }
func (p *place) certsDir() string { return filepath.Join(p.Dir, "certs.d") }
func (p *place) log() string      { return filepath.Join(p.Dir, "containerd.log") }

// bundle is what containerd keeps about one container that has, or had, a task.
type bundle struct {
	id      string
	cgroup  string   // as in the OCI spec; empty when unknown
	sockets []string // of the shim, in a directory that all containerds of the machine share
}

func (p *place) bundles() ([]bundle, error) {
	dirs, err := filepath.Glob(filepath.Join(p.State, "io.containerd.runtime.v2.task", "*", "*"))
	if err != nil {
		return nil, err
	}
	var out []bundle
	for _, d := range dirs {
		b := bundle{id: filepath.Base(d)}
		var spec struct {
			Linux struct {
				CgroupsPath string `json:"cgroupsPath"`
			} `json:"linux"`
		}
		// A container that was just being made has no whole spec yet, and no cgroup either.
		if raw, err := os.ReadFile(filepath.Join(d, "config.json")); err == nil && json.Unmarshal(raw, &spec) == nil {
			b.cgroup = spec.Linux.CgroupsPath
		}
		for _, f := range []string{"address", "bootstrap.json"} {
			raw, err := os.ReadFile(filepath.Join(d, f))
			if err != nil {
				continue
			}
			address := strings.TrimSpace(string(raw))
			var boot struct {
				Address string `json:"address"`
			}
			if json.Unmarshal(raw, &boot) == nil {
				address = boot.Address
			}
			if path, ok := strings.CutPrefix(address, "unix://"); ok {
				b.sockets = append(b.sockets, path)
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// cgroups lists the directories of the instance's cgroups in every hierarchy, deepest first: those of the
// containers, the pods' directly above them, and all below CgroupParent.
func (p *place) cgroups(bundles []bundle) ([]string, error) {
	mounts, err := mountInfo()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mounts {
		if m.fstype != "cgroup" && m.fstype != "cgroup2" {
			continue
		}
		for _, b := range bundles {
			if b.cgroup == "" || !strings.HasPrefix(b.cgroup, "/") {
				continue
			}
			dir := filepath.Join(m.point, b.cgroup)
			out = append(out, dir)
			if parent := filepath.Dir(dir); strings.HasPrefix(filepath.Base(parent), "pod") {
				out = append(out, parent)
			}
		}
		out = append(out, filepath.Join(m.point, p.CgroupParent))
	}
	var all []string
	for _, dir := range out {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // removed meanwhile
			}
			if err != nil {
				return err
			}
			if d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
	}
	slices.Sort(all)
	slices.Reverse(all)
	return slices.Compact(all), nil
}

// killAll ends every process of the instance, and returns when all are gone. They are stopped first and
// killed then: else one might record the end of another, or start a third between the look and the kill.
func (p *place) killAll() error {
	deadline := time.Now().Add(killDeadline)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	known := map[int]uint64{} // pid -> start time, of all victims seen
	for {
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
			victims, err := p.victims(known)
			if err != nil {
				return err
			}
			if len(victims) == 0 {
				return nil
			}
			for _, v := range victims {
				if err := unix.Kill(v.pid, sig); err != nil && err != unix.ESRCH {
					return fmt.Errorf("kill process %d (%s): %w", v.pid, strings.Join(v.args, " "), err)
				}
				known[v.pid] = v.start
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d (%s) does not die", victims[0].pid, strings.Join(victims[0].args, " "))
			}
		}
		<-tick.C
	}
}

// victims lists the living processes of the instance. A child of a killed shim belongs to nobody by the
// next look; known keeps it in sight.
func (p *place) victims(known map[int]uint64) ([]process, error) {
	bundles, err := p.bundles()
	if err != nil {
		return nil, err
	}
	cgroups, err := p.cgroups(bundles)
	if err != nil {
		return nil, err
	}
	procs, err := processes()
	if err != nil {
		return nil, err
	}
	inCgroup := map[int]bool{}
	for _, dir := range cgroups {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile, or a threaded cgroup v2 whose processes are listed above it
		}
		for f := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(f); err == nil {
				inCgroup[pid] = true
			}
		}
	}
	children := map[int][]process{}
	for _, pr := range procs {
		children[pr.parent] = append(children[pr.parent], pr)
	}
	var daemons, shims, rest []process
	seen := map[int]bool{1: true, os.Getpid(): true}
	take := func(to *[]process, pr process) {
		if !seen[pr.pid] {
			seen[pr.pid] = true
			*to = append(*to, pr)
		}
	}
	for _, pr := range procs {
		switch {
		case pr.isDaemon(p.Config):
			take(&daemons, pr)
		case pr.isShim(p.Socket):
			take(&shims, pr)
		}
	}
	for _, pr := range procs {
		if start, ok := known[pr.pid]; inCgroup[pr.pid] || ok && start == pr.start {
			take(&rest, pr)
		}
	}
	queue := slices.Concat(daemons, shims, rest)
	for len(queue) > 0 {
		for _, child := range children[queue[0].pid] {
			if !seen[child.pid] {
				take(&rest, child)
				queue = append(queue, child)
			}
		}
		queue = queue[1:]
	}
	return slices.Concat(daemons, shims, rest), nil
}

// clearNetwork removes what containers' networking put into the node's network namespace: the pods'
// namespaces went with their mounts and processes, but the bridge, veths of half-made pods and packet
// filter rules stay. In the caller's own namespace only the bridge is known to be ours.
func (p *place) clearNetwork() error {
	if p.Netns == "" {
		if p.CNIBridge == "" {
			return nil
		}
		return deleteLink(p.CNIBridge)
	}
	if _, err := os.Stat(p.Netns); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	n := &Netns{name: filepath.Base(p.Netns)}
	err := n.Do(func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			// The kernel may have put devices of its own here, such as tunl0.
			if l.Name == p.CNIBridge || strings.HasPrefix(l.Name, "veth") {
				if err := deleteLink(l.Name); err != nil {
					return err
				}
			}
		}
		if _, err := exec.LookPath("iptables"); err != nil {
			return nil // then nobody has made rules with it
		}
		for _, table := range []string{"nat", "filter", "mangle"} {
			for _, op := range []string{"-F", "-X"} {
				if err := run("iptables", "-w", "-t", table, op); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if errors.Is(err, unix.EINVAL) {
		return nil // the file is there, the namespace went with the mount namespace of its owner
	}
	return err
}

// unmountBelow unmounts everything at and below the directories, the latest mount first.
func unmountBelow(dirs []string) error {
	for range 10 { // mounts may be stacked, and unmounting one may uncover another
		mounts, err := mountInfo()
		if err != nil {
			return err
		}
		var mine []string
		for _, m := range mounts {
			if slices.ContainsFunc(dirs, func(d string) bool { return m.point == d || strings.HasPrefix(m.point, d+"/") }) {
				mine = append(mine, m.point)
			}
		}
		if len(mine) == 0 {
			return nil
		}
		slices.Reverse(mine)
		for _, point := range mine {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return fmt.Errorf("mounts below %s come back as fast as they are removed", strings.Join(dirs, ", "))
}

// removeCgroups removes the directories, deepest first. A cgroup is busy until the kernel has buried its
// last process, which may be a moment after the process is gone.
func removeCgroups(dirs []string) error {
	deadline := time.Now().Add(killDeadline)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, dir := range dirs {
		for {
			err := unix.Rmdir(dir)
			if err == nil || err == unix.ENOENT {
				break
			}
			if err != unix.EBUSY || time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
			<-tick.C
		}
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
