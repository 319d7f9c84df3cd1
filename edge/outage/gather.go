package outage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/bootunit"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// gather looks at everything once.
func (c *Checker) gather(ctx context.Context, deep bool) Facts {
	f := Facts{SyncedOnce: c.o.Store.SyncedOnce()}
	f.Clock.System = time.Now()
	if t, ok := c.o.HubTime(); ok {
		f.Clock.Floor = t
	}
	f.Certificate.Now = c.o.Wall()
	f.Certificate.Dates, f.Certificate.Err = c.o.Certificate()
	f.Boot = c.boot()
	f.Database = c.database(ctx, deep)
	// Where something is amiss, what mends it need not be told by the store: a token that
	// has come, say.
	if c.changed.Swap(false) || deep || !c.wasReady || c.memo.at.IsZero() || time.Since(c.memo.at) > memoFor {
		c.memo = c.recall(ctx)
	}
	f.Objects, f.Unread, f.PodsErr = c.memo.objects, c.memo.unread, c.memo.err
	f.Pods = c.alive(c.memo.pods)
	c.runtime(ctx, &f)
	return f
}

// memo is what the store holds of the pods. To read it all again each minute would be
// most of what a look costs.
type memo struct {
	at      time.Time // zero: it is of no use
	pods    []PodFacts
	unread  []store.UnreadPod
	objects map[Object]Keys
	err     error
}

// memoFor is how long a memo is believed where the store tells of no change.
const memoFor = 5 * time.Minute

// recall reads what the store holds.
func (c *Checker) recall(ctx context.Context) memo {
	m := memo{at: time.Now(), objects: map[Object]Keys{}}
	all, unread, err := c.o.Store.PodsAndUnread(ctx)
	if err != nil {
		return memo{err: err}
	}
	m.unread = unread
	for _, p := range all {
		if p.DeletionTimestamp != nil {
			continue
		}
		m.pods = append(m.pods, c.podFacts(ctx, p))
		for _, r := range references(p) {
			if _, known := m.objects[r.object]; known {
				continue
			}
			keys, err := c.keys(ctx, r.object)
			if err != nil {
				return memo{err: err}
			}
			m.objects[r.object] = keys
		}
	}
	return m
}

func (c *Checker) podFacts(ctx context.Context, p *corev1.Pod) PodFacts {
	facts := PodFacts{Pod: p, Shown: map[string]bool{}, Hosts: map[string]HostPath{}}
	facts.Tokens, facts.TokensErr = c.o.Tokens(ctx, p)
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.HostPath != nil && v.HostPath.Type != nil:
			facts.Hosts[v.Name] = hostPath(v.HostPath.Path)
		case v.ConfigMap != nil, v.Secret != nil, v.Projected != nil:
			facts.Shown[v.Name] = c.shown(p, v.Name)
		}
	}
	p.Labels, p.Annotations, p.ManagedFields = nil, nil, nil // nobody looks at these, and the memo stays
	return facts
}

// alive are the pods that must run after a reboot: not those that have ended.
func (c *Checker) alive(all []PodFacts) []PodFacts {
	known := map[string]*pod.Summary{}
	summaries := c.o.Pods()
	for i := range summaries {
		known[summaries[i].UID] = &summaries[i]
	}
	var out []PodFacts
	for _, p := range all {
		p.Summary = known[string(p.Pod.UID)]
		phase := p.Pod.Status.Phase
		if p.Summary != nil {
			phase = corev1.PodPhase(p.Summary.Phase)
		}
		if phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			out = append(out, p)
		}
	}
	return out
}

// shown says whether a volume's files have been written: edge/volume leaves a link
// ..data beside them.
func (c *Checker) shown(p *corev1.Pod, name string) bool {
	for _, part := range []string{string(p.UID), name} {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return false
		}
	}
	found, err := filepath.Glob(filepath.Join(c.o.PodsDir, string(p.UID), "volumes", "*", name, "..data"))
	return err == nil && len(found) > 0
}

func hostPath(path string) HostPath {
	info, err := os.Stat(path)
	if err != nil {
		return HostPath{}
	}
	h := HostPath{Fleeing: inMemory(path)}
	switch mode := info.Mode(); {
	case mode.IsDir():
		h.Found = corev1.HostPathDirectory
	case mode.IsRegular():
		h.Found = corev1.HostPathFile
	case mode&fs.ModeSocket != 0:
		h.Found = corev1.HostPathSocket
	case mode&fs.ModeCharDevice != 0:
		h.Found = corev1.HostPathCharDev
	case mode&fs.ModeDevice != 0:
		h.Found = corev1.HostPathBlockDev
	}
	return h
}

// inMemory says whether a reboot empties the file system of path.
func inMemory(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	return int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC
}

// keys are those of a ConfigMap or Secret; nil where there is none.
func (c *Checker) keys(ctx context.Context, o Object) (Keys, error) {
	keys := Keys{}
	if o.Secret {
		secret, err := c.o.Store.Secret(ctx, o.Namespace, o.Name)
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for k := range secret.Data {
			keys[k] = true
		}
		return keys, nil
	}
	cm, err := c.o.Store.ConfigMap(ctx, o.Namespace, o.Name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for k := range cm.Data {
		keys[k] = true
	}
	for k := range cm.BinaryData {
		keys[k] = true
	}
	return keys, nil
}

// runtime asks the container runtime, and pins the images that the pods need.
func (c *Checker) runtime(ctx context.Context, f *Facts) {
	f.Runtime.Endpoint = c.o.Endpoint
	rt := c.o.Runtime()
	if rt == nil {
		f.Runtime.Err = fmt.Errorf("the container runtime at %s has not answered yet", c.o.Endpoint)
		return
	}
	// One that hangs is one that does not answer.
	ctx, cancel := context.WithTimeout(ctx, lookLimit/2)
	defer cancel()
	if f.Runtime.Info, f.Runtime.Err = rt.Info(ctx); f.Runtime.Err != nil {
		c.setupAt = time.Time{} // it may come back as another one
		return
	}
	c.learnSetup(ctx, rt, f.Runtime.Info)
	f.Runtime.SandboxImage, f.Runtime.CNIConfDir = c.setup.SandboxImage, c.setup.CNIConfDir
	if c.o.PauseImage != "" {
		f.Runtime.SandboxImage = c.o.PauseImage
	}
	if f.Runtime.CNIConfDir != "" {
		f.Runtime.CNIConfigs = configsIn(f.Runtime.CNIConfDir)
	}
	if f.Images, f.ImagesErr = rt.Images(ctx); f.ImagesErr != nil || f.PodsErr != nil {
		return
	}
	f.Pinned, f.PinErr = c.pin(ctx, rt, f)
}

// learnSetup asks for what seldom changes every ten minutes.
func (c *Checker) learnSetup(ctx context.Context, rt Runtime, info runtime.Info) {
	met := c.meet(ctx, rt, info.Name+" "+info.Version)
	if !c.setupAt.IsZero() && time.Since(c.setupAt) < 10*time.Minute && c.setup.SandboxImage != "" {
		return
	}
	c.setup, c.setupAt = rt.Setup(ctx), time.Now()
	if c.setup.SandboxImage == "" && c.o.PauseImage == "" && met {
		c.setup.SandboxImage = c.imageOfSandboxes(ctx, rt)
	}
}

// configsIn counts the CNI configurations in a folder.
func configsIn(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			n++
		}
	}
	return n
}

// pin pins what is needed, and lets go what is not where all that is needed is known. A
// database that the hub has not completed lacks pods, perhaps: then nothing is touched.
// What a pod that cannot be read needs is not known, either.
func (c *Checker) pin(ctx context.Context, rt Runtime, f *Facts) (map[string]bool, error) {
	if !f.SyncedOnce {
		return nil, errors.New("the hub has not told everything yet")
	}
	var want []string
	add := func(image string) {
		if full, err := runtime.Normalize(image); err == nil && !slices.Contains(want, full) {
			want = append(want, full)
		}
	}
	if f.Runtime.SandboxImage != "" {
		add(f.Runtime.SandboxImage)
	}
	for i := range f.Pods {
		for _, ct := range containers(f.Pods[i].Pod) {
			add(ct.Image)
		}
	}
	pins, err := rt.Pin(ctx, want, f.Runtime.SandboxImage != "" && len(f.Unread) == 0)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != c.pinFailure && ctx.Err() == nil {
		if c.pinFailure = text; err != nil {
			c.o.Log.Warn("images cannot be pinned; it is tried again", "err", err)
		}
	}
	return pins.Pinned, err
}

func (c *Checker) database(ctx context.Context, deep bool) DatabaseFacts {
	d := DatabaseFacts{Path: c.o.Database, Fleeing: inMemory(filepath.Dir(c.o.Database)), Recovery: c.o.Store.Opened().Recovery, Opened: time.Since(c.opened)}
	d.Health, d.HealthErr = c.o.Store.Health()
	// Damage that was found once is there until a check of all finds none.
	d.CheckErr = c.checkErr
	if !deep {
		return d
	}
	if time.Since(c.fullCheck) > checkEvery {
		ctx, cancel := context.WithTimeout(ctx, lookLimit/2)
		defer cancel()
		err := c.o.Store.Check(ctx)
		if ctx.Err() != nil { // a slow card, not a damaged one
			return d
		}
		c.fullCheck, c.checkErr = time.Now(), err
	}
	d.Checked, d.CheckErr = true, c.checkErr
	return d
}

// containerdUnit starts the runtime whose socket is at containerd's own place.
const (
	containerdUnit     = "containerd.service"
	containerdEndpoint = runtime.DefaultEndpoint
)

func (c *Checker) boot() BootFacts {
	system := bootunit.System{Root: c.o.Root}
	b := BootFacts{Systemd: system.Runs()}
	if !b.Systemd {
		return b
	}
	if b.Unit = system.Own(); b.Unit != "" {
		b.State = system.Unit(b.Unit)
	}
	if c.o.Endpoint == containerdEndpoint {
		b.RuntimeUnit = containerdUnit
		b.RuntimeState = system.Unit(containerdUnit)
		b.RuntimeWants = b.Unit != "" && system.Wants(b.Unit, containerdUnit)
	}
	return b
}
