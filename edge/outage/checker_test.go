package outage

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = 2 * time.Minute

// newFakeRuntime is containerd 1.7, which tells the image of sandboxes.
func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{version: "1.7.24", setup: runtime.Setup{SandboxImage: pauseImage}, made: map[string]string{}, images: []string{webImage, pauseImage}}
}

// fakeRuntime has images and pins whatever it is told to.
type fakeRuntime struct {
	mu      sync.Mutex
	err     error
	version string
	setup   runtime.Setup
	running []runtime.MadeSandbox // newest first
	made    map[string]string     // their images by id
	images  []string
	pinned  []string // as last wanted
	pinsAll bool     // they were all that is needed
	pins    int      // how often
}

func (r *fakeRuntime) Info(context.Context) (runtime.Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return runtime.Info{Name: "containerd", Version: r.version, Ready: true, NetworkReady: true}, r.err
}
func (r *fakeRuntime) Setup(context.Context) runtime.Setup {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.setup
}

func (r *fakeRuntime) RunningSandboxes(context.Context) ([]runtime.MadeSandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running, r.err
}

func (r *fakeRuntime) SandboxImage(_ context.Context, id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made[id]
}

// make is a sandbox from then on, the newest.
func (r *fakeRuntime) make(id, image string, made time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = append([]runtime.MadeSandbox{{ID: id, Made: made}}, r.running...)
	r.made[id] = image
}

func (r *fakeRuntime) Images(context.Context) ([]runtime.NodeImage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []runtime.NodeImage
	for _, name := range r.images {
		out = append(out, runtime.NodeImage{ID: "id of " + name, Names: []string{name}})
	}
	return out, nil
}

func (r *fakeRuntime) Pin(_ context.Context, want []string, all bool) (runtime.Pins, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(want)
	r.pinned, r.pinsAll = want, all
	r.pins++
	pins := runtime.Pins{Pinned: map[string]bool{}}
	for _, name := range want {
		pins.Pinned[name] = true
	}
	return pins, nil
}

func (r *fakeRuntime) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// node is a store on disk with a checker on it.
type node struct {
	t       *testing.T
	store   *store.Store
	runtime *fakeRuntime
	pods    []pod.Summary
	tokens  *pod.Tokens
	changed chan struct{}
	checker *Checker
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, runtime: newFakeRuntime(), changed: make(chan struct{}, 10)}
	var err error
	if n.store, err = store.Open(filepath.Join(dir, "store.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.store.Close() })
	clock, err := pod.NewClock(nil)
	if err != nil {
		t.Fatal(err)
	}
	n.tokens = pod.NewTokens(n.store, func(_ context.Context, ask *wire.TokenAsk) (*wire.TokenAnswer, error) {
		return &wire.TokenAnswer{Code: wire.ResultCode_RESULT_ACCEPTED, Token: "t", ExpiresUnix: time.Now().Add(time.Hour).Unix(), HubTimeUnixMs: time.Now().UnixMilli()}, nil
	}, clock)
	n.checker = New(Options{
		Node: "pi", Store: n.store, Runtime: func() Runtime { return n.runtime }, Pods: func() []pod.Summary { return n.pods },
		Tokens: n.tokens.Kept, HubTime: func() (time.Time, bool) { return time.Now(), true }, Wall: time.Now,
		Certificate: func() (credential.Dates, error) {
			return credential.Dates{RenewalDue: time.Now().Add(time.Hour), Ends: time.Now().Add(2 * time.Hour)}, nil
		},
		Database: filepath.Join(dir, "store.db"), PodsDir: filepath.Join(dir, "pods"), Endpoint: "unix:///x.sock", Root: t.TempDir(),
		Changed: func() { n.changed <- struct{}{} },
	})
	return n
}

// hold stores objects as the hub sends them.
func (n *node) hold(kind wire.Kind, namespace, name, uid, version string, object interface{ Marshal() ([]byte, error) }) {
	n.t.Helper()
	b, err := object.Marshal()
	if err == nil {
		err = n.store.Apply(n.t.Context(), []*wire.Object{{Ref: &wire.ObjectRef{Kind: kind, Namespace: namespace, Name: name, Uid: uid, Version: []byte(version)}, Payload: b}}, nil)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) holdAll() {
	n.t.Helper()
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	for _, name := range []string{"env", "conf", "root-ca"} {
		n.hold(wire.Kind_KIND_CONFIG_MAP, "shop", name, "uid-"+name, "1", &corev1.ConfigMap{ObjectMeta: meta(name), Data: map[string]string{"x": "y"}})
	}
	n.hold(wire.Kind_KIND_SECRET, "shop", "key", "uid-key", "1", &corev1.Secret{ObjectMeta: meta("key"), Data: map[string][]byte{"k": nil}})
	p := webPod()
	n.hold(wire.Kind_KIND_POD, "shop", "web", "u1", "1", p)
	if _, err := n.tokens.Token(n.t.Context(), p, p.Spec.Volumes[1].Projected.Sources[0].ServiceAccountToken); err != nil {
		n.t.Fatal(err)
	}
	if err := n.store.MarkSynced(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// failing are the reasons that a look finds.
func (n *node) failing(deep bool) (reasons []string) {
	n.t.Helper()
	for _, c := range n.checker.Look(n.t.Context(), deep).Checks {
		if c.Level == localstatus.CheckFailing {
			reasons = append(reasons, c.Reason)
		}
	}
	return reasons
}

func TestALookFindsWhatTheNodeLacks(t *testing.T) {
	n := newNode(t)
	if got := n.failing(false); !slices.Equal(got, []string{"NeverSynced"}) || n.runtime.pins != 0 {
		t.Errorf("a new node: %v; images were pinned %d times", got, n.runtime.pins)
	}
	n.hold(wire.Kind_KIND_POD, "shop", "web", "u1", "0", webPod())
	if got, want := n.failing(false), []string{"NeverSynced", "ConfigMapMissing", "ConfigMapMissing", "SecretMissing", "ConfigMapMissing", "TokenMissing"}; len(got) != len(want) {
		t.Errorf("a pod alone: %v, want %v", got, want)
	}
	n.holdAll()
	if out := n.checker.Look(t.Context(), true); !out.Ready || out.Node != "pi" {
		t.Errorf("a node with everything: %+v", out)
	}
	if want := []string{pauseImage, webImage}; !slices.Equal(n.runtime.pinned, want) {
		t.Errorf("pinned %v, want %v", n.runtime.pinned, want)
	}
	n.runtime.set(func() { n.runtime.images = []string{pauseImage} })
	if got := n.failing(false); !slices.Equal(got, []string{"ImageMissing"}) {
		t.Errorf("without its image: %v", got)
	}
	// What has ended or is to go need not come back.
	n.pods = []pod.Summary{{UID: "u1", Phase: "Succeeded"}}
	if got := n.failing(false); got != nil || !slices.Equal(n.runtime.pinned, []string{pauseImage}) {
		t.Errorf("with the pod ended: %v, pinned %v", got, n.runtime.pinned)
	}
	n.pods = nil
	p := webPod()
	p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	n.hold(wire.Kind_KIND_POD, "shop", "web", "u1", "2", p)
	if got := n.failing(true); got != nil {
		t.Errorf("with the pod deleted: %v", got)
	}
	n.runtime.set(func() { n.runtime.err = errors.New("connection refused") })
	if got := n.failing(false); !slices.Equal(got, []string{"RuntimeDown", "ImagesUnknown"}) {
		t.Errorf("without a runtime: %v", got)
	}
}

func TestAVolumeThatIsThereOutlivesItsObject(t *testing.T) {
	n := newNode(t)
	n.holdAll()
	if err := n.store.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_CONFIG_MAP, Namespace: "shop", Name: "conf", Uid: "uid-conf"}}); err != nil {
		t.Fatal(err)
	}
	if got := n.failing(false); !slices.Equal(got, []string{"ConfigMapMissing"}) {
		t.Errorf("without the ConfigMap: %v", got)
	}
	dir := filepath.Join(n.checker.o.PodsDir, "u1", "volumes", "kubernetes.io~configmap", "conf", "..data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := n.failing(false); got != nil {
		t.Errorf("with the volume's content kept: %v", got)
	}
}

// TestAPodThatCannotBeReadIsNoReadyNode: it does not run, and what it needs is not let go.
func TestAPodThatCannotBeReadIsNoReadyNode(t *testing.T) {
	n := newNode(t)
	n.holdAll()
	p := webPod()
	p.Name, p.UID = "till", "another than it was sent as"
	n.hold(wire.Kind_KIND_POD, "shop", "till", "u2", "1", p)
	if got := n.failing(false); !slices.Equal(got, []string{"PodUnreadable"}) || n.runtime.pinsAll {
		t.Errorf("with a pod that cannot be read: %v; images are unpinned: %v", got, n.runtime.pinsAll)
	}
	if want := []string{pauseImage, webImage}; !slices.Equal(n.runtime.pinned, want) {
		t.Errorf("pinned %v, want %v", n.runtime.pinned, want)
	}
	p.UID = "u2"
	n.hold(wire.Kind_KIND_POD, "shop", "till", "u2", "2", p)
	if _, err := n.tokens.Token(t.Context(), p, p.Spec.Volumes[1].Projected.Sources[0].ServiceAccountToken); err != nil {
		t.Fatal(err)
	}
	if got := n.failing(false); got != nil || !n.runtime.pinsAll {
		t.Errorf("sent anew: %v; images are unpinned: %v", got, n.runtime.pinsAll)
	}
}

// TestDamageIsToldUntilACheckFindsNone: the condition follows it too, which no deep look makes.
func TestDamageIsToldUntilACheckFindsNone(t *testing.T) {
	n := newNode(t)
	n.holdAll()
	ctx := t.Context()
	beside, err := sql.Open("sqlite3", n.checker.o.Database)
	if err != nil {
		t.Fatal(err)
	}
	err = n.store.SetMeta(ctx, "k", make([]byte, 100_000))
	if err == nil {
		_, err = beside.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)") // so that it lies in the file
	}
	if err := errors.Join(err, beside.Close()); err != nil {
		t.Fatal(err)
	}
	const at, size = 40_960, 8192
	f, err := os.OpenFile(n.checker.o.Database, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	good := make([]byte, size)
	if _, err := f.ReadAt(good, at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(slices.Repeat([]byte{0xa5}, size), at); err != nil {
		t.Fatal(err)
	}
	if got := n.failing(true); !slices.Equal(got, []string{"DatabaseDamaged"}) {
		t.Fatalf("doctor: %v", got)
	}
	if got := n.failing(false); !slices.Equal(got, []string{"DatabaseDamaged"}) {
		t.Errorf("the next look: %v", got)
	}
	if _, err := f.WriteAt(good, at); err != nil {
		t.Fatal(err)
	}
	n.checker.fullCheck = time.Time{} // a minute later
	for _, deep := range []bool{true, false} {
		if got := n.failing(deep); got != nil {
			t.Errorf("with a sound file (deep %v): %v", deep, got)
		}
	}
}

// TestAChangeIsSeenByItself: nobody asks, and the condition follows what the hub sends.
func TestAChangeIsSeenByItself(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.checker.Run(ctx) }()
	if _, known := n.checker.Verdict(); known {
		t.Error("a verdict before the first look")
	}
	n.holdAll()
	select {
	case <-n.changed:
	case <-time.After(patience):
		t.Fatal("nobody is told that the node is ready")
	}
	if v, known := n.checker.Verdict(); !known || !v.Ready || strings.Contains(v.Message, "doctor") {
		t.Errorf("verdict %+v, %v", v, known)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// BenchmarkLook is what a node of 20 pods pays each minute, without the runtime's answers.
func BenchmarkLook(b *testing.B) {
	dir := b.TempDir()
	s, err := store.Open(filepath.Join(dir, "store.db"), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	clock, err := pod.NewClock(nil)
	if err != nil {
		b.Fatal(err)
	}
	var objects []*wire.Object
	add := func(kind wire.Kind, name string, o interface{ Marshal() ([]byte, error) }) {
		payload, err := o.Marshal()
		if err != nil {
			b.Fatal(err)
		}
		objects = append(objects, &wire.Object{Ref: &wire.ObjectRef{Kind: kind, Namespace: "shop", Name: name, Uid: "uid-" + name, Version: []byte("1")}, Payload: payload})
	}
	for _, name := range []string{"env", "conf", "root-ca"} {
		add(wire.Kind_KIND_CONFIG_MAP, name, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"x": strings.Repeat("y", 2000)}})
	}
	for i := range 20 {
		p := webPod()
		p.Name = "web-" + string(rune('a'+i))
		p.UID = types.UID("uid-" + p.Name)
		p.Spec.Volumes = p.Spec.Volumes[:1] // no tokens
		add(wire.Kind_KIND_POD, p.Name, p)
	}
	add(wire.Kind_KIND_SECRET, "key", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "key"}, Data: map[string][]byte{"k": nil}})
	if err := errors.Join(s.Apply(b.Context(), objects, nil), s.MarkSynced(b.Context())); err != nil {
		b.Fatal(err)
	}
	c := New(Options{Node: "pi", Store: s, Runtime: func() Runtime { return newFakeRuntime() }, Pods: func() []pod.Summary { return nil },
		Tokens: pod.NewTokens(s, nil, clock).Kept, HubTime: func() (time.Time, bool) { return time.Now(), true }, Wall: time.Now,
		Certificate: func() (credential.Dates, error) {
			return credential.Dates{RenewalDue: time.Now().Add(time.Hour), Ends: time.Now().Add(time.Hour)}, nil
		},
		Database: filepath.Join(dir, "store.db"), PodsDir: dir})
	for b.Loop() {
		if out := c.Look(b.Context(), false); !out.Ready {
			b.Fatal(out)
		}
	}
}
