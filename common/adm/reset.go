package adm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/build/manifests"
	"github.com/holdfast-edge/holdfast/common/adm/cri"
	"github.com/holdfast-edge/holdfast/common/adm/install"
	"github.com/holdfast-edge/holdfast/common/adm/journal"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// ResetOptions say what to undo.
type ResetOptions struct {
	DataDir string // of a join or an init; empty: both, at their usual places
	Force   bool   // do not ask
	In      io.Reader
	// What a join was told, where the journal does not say it.
	Config, RunDir, PodLogsDir, RuntimeEndpoint, CNIConfDir string
}

// Reset undoes what join or init did on this machine, by their journals, and
// says what it leaves. Where there is nothing to undo it says so.
func (a *App) Reset(ctx context.Context, o ResetOptions) error {
	dirs := []string{config.DefaultEdge().DataDir, config.DefaultCloud().DataDir}
	if o.DataDir != "" {
		if err := absolute(&o.DataDir); err != nil {
			return err
		}
		dirs = []string{o.DataDir}
	}
	var journals []*journal.Journal
	var where []string
	for _, dir := range dirs {
		j, err := journal.Load(dir)
		if errors.Is(err, fs.ErrNotExist) {
			a.printf("nothing to undo in %s: no journal of init or join is there\n", dir)
			continue
		}
		if err != nil {
			return err
		}
		journals, where = append(journals, j), append(where, dir)
	}
	for i, j := range journals {
		if err := a.confirm(o, j, where[i]); err != nil {
			return err
		}
		undo := a.resetEdge
		if j.Command == journal.Init {
			undo = a.resetCloud
		}
		if err := undo(ctx, o, j, where[i]); err != nil {
			return fmt.Errorf("reset of %s: %w; mend that and run `holdfast reset` again: what is done is not done twice", where[i], err)
		}
	}
	return nil
}

// confirm asks, unless told not to.
func (a *App) confirm(o ResetOptions, j *journal.Journal, dir string) error {
	what := "stops and removes node " + j.Node + "'s pods, its certificate and its data in " + dir
	if j.Command == journal.Init {
		what = "stops cloudcore and removes its CA: every node must join again. It removes " + dir
		if j.ControlPlaneDir != "" {
			what += " and the whole cluster in " + j.ControlPlaneDir
		} else {
			what += ", and from the cluster of " + j.Kubeconfig + " Holdfast's objects and definitions, with every Device, DeviceModel and Route"
		}
	}
	a.printf("reset %s.\n", what)
	if o.Force {
		return nil
	}
	a.printf("Go on? [y/N] ")
	answer, err := bufio.NewReader(o.In).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		a.printf("\n")
		return usage("nothing was removed: answer y, or pass --force")
	}
	return nil
}

func (a *App) resetEdge(ctx context.Context, o ResetOptions, j *journal.Journal, dir string) error {
	set(&j.Config, o.Config)
	set(&j.RunDir, o.RunDir)
	set(&j.PodLogsDir, o.PodLogsDir)
	set(&j.RuntimeEndpoint, o.RuntimeEndpoint)
	if err := a.removeUnits(ctx, j); err != nil {
		return err
	}
	if err := a.edgecoreGone(ctx, j); err != nil {
		return err
	}
	uids, err := podUIDs(dir)
	if err != nil {
		return err
	}
	if err := a.removePods(ctx, j, uids); err != nil {
		return err
	}
	a.unpinImages(ctx, j)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := removeLogs(j.PodLogsDir, uids); err != nil {
		return err
	}
	a.removeCgroups(j.CgroupRoot, uids)
	if madeNetwork(j) {
		if err := errors.Join(a.removeCNI(ctx), os.RemoveAll(filepath.Join(j.RunDir, "cni"))); err != nil {
			return err
		}
	}
	if err := a.removeFiles(j, dir); err != nil {
		return err
	}
	a.printf("\nThis machine is an edge node no more. Left as it is:\n")
	a.printf("  - the Node object in the cluster: kubectl delete node %s\n", j.Node)
	a.printf("  - the container runtime, its images, and CNI plugins\n")
	if !madeNetwork(j) {
		a.printf("  - the CNI configuration, which join did not write\n")
	}
	a.printf("  - what pods wrote into hostPath volumes, and rules of the packet filter for host ports (gone after a reboot)\n")
	return nil
}

// madeNetwork says whether join wrote the pods' network.
func madeNetwork(j *journal.Journal) bool {
	return slices.ContainsFunc(j.Files, func(f string) bool { return filepath.Base(f) == cniFile })
}

// edgecoreGone waits until edgecore has stopped, and refuses to pull the ground
// from under one that somebody else started.
func (a *App) edgecoreGone(ctx context.Context, j *journal.Journal) error {
	deadline := time.Now().Add(stopWithin)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		_, err := localstatus.Get(ctx, j.RunDir)
		if err != nil {
			return nil
		}
		if len(j.Units) == 0 || time.Now().After(deadline) {
			return fmt.Errorf("edgecore of node %s still runs: stop it first (Ctrl-C in `holdfast join --foreground`, or SIGTERM to edgecore --config %s)", j.Node, j.Config)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// podUIDs are the pods that this edge has run: each has a folder.
func podUIDs(dir string) (map[string]bool, error) {
	uids := map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(dir, "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the pods of this node: %w", err)
	}
	for _, e := range entries {
		uids[e.Name()] = true
	}
	return uids, nil
}

func (a *App) removePods(ctx context.Context, j *journal.Journal, uids map[string]bool) error {
	if len(uids) == 0 {
		return nil
	}
	r, err := cri.Dial(j.RuntimeEndpoint)
	if errors.Is(err, cri.ErrNoSocket) {
		return fmt.Errorf("%d pods may still run: %w; start the container runtime so that they can be stopped", len(uids), err)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := r.RemovePods(ctx, func(uid string) bool { return uids[uid] }, func(pod string) { a.step("stopping pod %s", pod) })
	if err == nil && n > 0 {
		a.step("%d pods are gone", n)
	}
	return err
}

// unpinImages lets go the images that pods needed. What fails here is said and stops
// nothing: a pin does no harm but that the image stays.
func (a *App) unpinImages(ctx context.Context, j *journal.Journal) {
	r, err := cri.Dial(j.RuntimeEndpoint)
	if errors.Is(err, cri.ErrNoSocket) {
		return
	}
	n := 0
	if err == nil {
		defer r.Close()
		n, err = r.Unpin(ctx)
	}
	if err != nil {
		a.step("the pins of images stay: %v", err)
	} else if n > 0 {
		a.step("%d images are pinned no more", n)
	}
}

func (a *App) resetCloud(ctx context.Context, _ ResetOptions, j *journal.Journal, dir string) error {
	nodes := a.edgeNodes(ctx, j)
	if j.ControlPlaneDir == "" {
		// The cluster stays; what init put into it goes.
		if err := a.strip(ctx, j); err != nil {
			return err
		}
	}
	if err := a.removeUnits(ctx, j); err != nil {
		return err
	}
	if j.ControlPlaneDir != "" {
		if err := controlPlaneGone(j.ControlPlaneDir); err != nil {
			return err
		}
		if err := emptyOut(j.ControlPlaneDir); err != nil {
			return err
		}
	}
	if err := a.removeFiles(j, dir); err != nil {
		return err
	}
	a.printf("\nThe cloud is gone from this machine. Left as it is:\n")
	if j.ControlPlaneDir == "" {
		a.printf("  - the cluster of %s; Holdfast's objects are no longer in it, nor are Devices, DeviceModels and Routes\n", j.Kubeconfig)
	}
	if len(nodes) > 0 {
		a.printf("  - edge nodes, which keep running their pods: %s; run `holdfast reset` on each", strings.Join(nodes, ", "))
		if j.ControlPlaneDir == "" {
			a.printf(", and `kubectl delete node %s`", strings.Join(nodes, " "))
		}
		a.printf("\n")
	}
	return nil
}

// edgeNodes lists the nodes, as far as the cluster still answers.
func (a *App) edgeNodes(ctx context.Context, j *journal.Journal) []string {
	admin, err := clientcmd.BuildConfigFromFlags("", j.Kubeconfig)
	if err != nil {
		return nil
	}
	admin.Timeout = 10 * time.Second
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return nil
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "holdfast.io/edge=true"})
	if err != nil {
		a.printf("  [warn] the cluster does not tell which edge nodes there are: %v\n", err)
		return nil
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names
}

func (a *App) strip(ctx context.Context, j *journal.Journal) error {
	a.step("removing Holdfast's objects from the cluster of %s", j.Kubeconfig)
	admin, err := clientcmd.BuildConfigFromFlags("", j.Kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", j.Kubeconfig, err)
	}
	objects, err := install.Objects(manifests.Files)
	if err != nil {
		return err
	}
	c, err := install.New(admin)
	if err != nil {
		return err
	}
	return c.Delete(ctx, objects)
}

// controlPlaneGone makes sure that nobody uses the folder any more: the control
// plane holds a lock on it as long as it runs.
func controlPlaneGone(dir string) error {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	deadline := time.Now().Add(stopWithin)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the control plane in %s still runs: stop it first (Ctrl-C in `holdfast init --foreground`)", dir)
		}
		<-tick.C
	}
}

func (a *App) removeUnits(ctx context.Context, j *journal.Journal) error {
	for _, unit := range slices.Backward(j.Units) {
		a.step("stopping %s", unit)
		if err := a.Machine.RemoveUnit(ctx, unit); err != nil {
			return err
		}
	}
	return nil
}

// removeFiles removes the data directory's content, and the journal, which is in
// it, last; then what is noted elsewhere.
func (a *App) removeFiles(j *journal.Journal, dir string) error {
	for _, path := range j.Files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := emptyOut(dir, journal.FileName); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, journal.FileName)); err != nil {
		return err
	}
	for _, path := range slices.Backward(j.Folders) {
		// A folder with something of somebody else in it stays.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
			return err
		}
	}
	a.step("removed what is in %s", dir)
	return nil
}

// emptyOut removes what is in a folder, but not the folder, nor what keep names.
func emptyOut(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unmountBelow takes away every mount below dir, so that removing dir removes
// nothing that only shows there.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list the mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[4]))
		}
	}
	for _, point := range slices.Backward(points) {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// removeLogs removes the logs of these pods: folders named NAMESPACE_NAME_UID.
func removeLogs(dir string, uids map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the pods' logs: %w", err)
	}
	for _, e := range entries {
		parts := strings.Split(e.Name(), "_")
		if len(parts) != 3 || !uids[parts[2]] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the pods' logs: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the empty cgroups that these pods leave. One that stays
// does no harm and is gone with the next reboot.
func (a *App) removeCgroups(root string, uids map[string]bool) {
	if root == "" {
		return
	}
	var found []string
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, level := range []string{"kubepods*", "kubepods*/*", "kubepods*/*/*"} {
			matches, err := filepath.Glob(filepath.Join(a.Machine.Path(top), root, level))
			if err != nil {
				return
			}
			found = append(found, matches...)
		}
	}
	for _, path := range found {
		name := strings.TrimSuffix(filepath.Base(path), ".slice")
		_, uid, ok := strings.Cut(name, "pod")
		for strings.Contains(uid, "pod") { // kubepods-burstable-pod<uid>
			_, uid, _ = strings.Cut(uid, "pod")
		}
		if ok && (uids[uid] || uids[strings.ReplaceAll(uid, "_", "-")]) {
			_ = os.Remove(path) // of a cgroup: fails when something is in it
		}
	}
}
