package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = 2 * time.Minute

func openAt(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openTemp(t *testing.T) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "store.db"), Options{})
}

type marshaler interface{ Marshal() ([]byte, error) }

func object(t *testing.T, kind wire.Kind, namespace, name, uid string, o marshaler) *wire.Object {
	t.Helper()
	b, err := o.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &wire.Object{Ref: &wire.ObjectRef{Kind: kind, Namespace: namespace, Name: name, Uid: uid, Version: wire.Version(b)}, Payload: b}
}

func podObject(t *testing.T, namespace, name, uid, image string) *wire.Object {
	t.Helper()
	return object(t, wire.Kind_KIND_POD, namespace, name, uid, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}},
	})
}

func configMapObject(t *testing.T, namespace, name, uid, value string) *wire.Object {
	t.Helper()
	return object(t, wire.Kind_KIND_CONFIG_MAP, namespace, name, uid, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Data:       map[string]string{"key": value},
	})
}

func apply(t *testing.T, s *Store, upserts []*wire.Object, deletes ...*wire.ObjectRef) {
	t.Helper()
	if err := s.Apply(context.Background(), upserts, deletes); err != nil {
		t.Fatal(err)
	}
}

func TestAppliedObjectsAreThereAfterReopening(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	pod, cm := podObject(t, "shop", "till", "u1", "till:1"), configMapObject(t, "shop", "settings", "u2", "a")
	secret := object(t, wire.Kind_KIND_SECRET, "shop", "key", "u3", &corev1.Secret{Data: map[string][]byte{"k": {0, 1, 2}}})
	node := object(t, wire.Kind_KIND_NODE, "", "pi", "u4", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "pi"}})
	all := []*wire.Object{pod, cm, secret, node}
	apply(t, s, all)
	id := s.ID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openAt(t, path, Options{})
	if s.ID() != id || id == "" {
		t.Errorf("the id was %q and is %q", id, s.ID())
	}
	if o := s.Opened(); o.Created || o.Recovery != nil || o.SchemaBefore != schemaVersion() {
		t.Errorf("opened: %+v", o)
	}
	pods, err := s.Pods(ctx)
	if err != nil || len(pods) != 1 || pods[0].Spec.Containers[0].Image != "till:1" || string(pods[0].UID) != "u1" {
		t.Errorf("pods %v, %v", pods, err)
	}
	if p, err := s.Pod(ctx, "u1"); err != nil || p.Name != "till" {
		t.Errorf("pod %v, %v", p, err)
	}
	if c, err := s.ConfigMap(ctx, "shop", "settings"); err != nil || c.Data["key"] != "a" {
		t.Errorf("configmap %v, %v", c, err)
	}
	if c, err := s.Secret(ctx, "shop", "key"); err != nil || !bytes.Equal(c.Data["k"], []byte{0, 1, 2}) {
		t.Errorf("secret %v, %v", c, err)
	}
	if n, err := s.Node(ctx); err != nil || n.Name != "pi" {
		t.Errorf("node %v, %v", n, err)
	}
	var refs []*wire.ObjectRef
	for _, o := range all {
		refs = append(refs, o.Ref)
	}
	if d, err := s.Digest(ctx); err != nil || !bytes.Equal(d, wire.Digest(refs)) {
		t.Errorf("digest %x, %v", d, err)
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	apply(t, s, []*wire.Object{configMapObject(t, "a", "x", "u", "v")})
	_, err1 := s.Pod(ctx, "u")
	_, err2 := s.ConfigMap(ctx, "b", "x")
	_, err3 := s.Secret(ctx, "a", "x")
	_, err4 := s.Node(ctx)
	_, err5 := s.PodState(ctx, "u")
	_, err6 := s.Meta(ctx, "nothing")
	for i, err := range []error{err1, err2, err3, err4, err5, err6} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%d: %v", i+1, err)
		}
	}
}

func TestNothingIsDeletedButByUID(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	apply(t, s, []*wire.Object{configMapObject(t, "a", "x", "old", "1")})
	// The hub may send the new one before it deletes the old one.
	apply(t, s, []*wire.Object{configMapObject(t, "a", "x", "new", "2")})
	if c, err := s.ConfigMap(ctx, "a", "x"); err != nil || c.Data["key"] != "2" {
		t.Errorf("of two namesakes: %v, %v", c, err)
	}
	apply(t, s, nil, &wire.ObjectRef{Kind: wire.Kind_KIND_CONFIG_MAP, Namespace: "a", Name: "x", Uid: "old"},
		&wire.ObjectRef{Kind: wire.Kind_KIND_SECRET, Namespace: "a", Name: "x", Uid: "new"})
	if c, err := s.ConfigMap(ctx, "a", "x"); err != nil || c.Data["key"] != "2" {
		t.Errorf("after the delete of the old one: %v, %v", c, err)
	}
}

func TestDeletedPodKeepsItsStateUntilForgotten(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	pod := podObject(t, "a", "p", "u1", "i")
	apply(t, s, []*wire.Object{pod})
	must(t, s.SetPodState(ctx, "u1", []byte("one")))
	must(t, s.SetPodState(ctx, "u1", []byte("two")))
	must(t, s.SetPodState(ctx, "u2", nil))
	token := Token{PodUID: "u1", ServiceAccount: "sa", Audience: "", ExpirationSeconds: 3607, Token: "t1", Issued: time.Unix(5, 0).UTC(), Expires: time.Unix(10, 0).UTC()}
	must(t, s.PutToken(ctx, token))
	other := token
	other.Audience, other.Token = "vault", "t2"
	must(t, s.PutToken(ctx, other))
	token.Token = "t3"
	must(t, s.PutToken(ctx, token))

	apply(t, s, nil, pod.Ref)
	if _, err := s.Pod(ctx, "u1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the deleted pod: %v", err)
	}
	states, err := s.PodStates(ctx)
	if err != nil || len(states) != 2 || string(states["u1"]) != "two" || len(states["u2"]) != 0 {
		t.Errorf("states %q, %v", states, err)
	}
	if got, err := s.Tokens(ctx, "u1"); err != nil || len(got) != 2 || got[0] != token || got[1] != other {
		t.Errorf("tokens %+v, %v", got, err)
	}
	must(t, s.DeletePodState(ctx, "u1"))
	if got, err := s.Tokens(ctx, "u1"); err != nil || len(got) != 0 {
		t.Errorf("tokens of a forgotten pod: %+v, %v", got, err)
	}
	if _, err := s.PodState(ctx, "u1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("state of a forgotten pod: %v", err)
	}
}

func TestFailedApplyStoresNothing(t *testing.T) {
	s := openTemp(t)
	ctx, cancel := context.WithCancel(context.Background())
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	before, err := s.Digest(ctx)
	must(t, err)
	changes, stop := s.Subscribe(1)
	defer stop()
	bad := podObject(t, "a", "q", "u2", "i")
	bad.Ref.Version = nil // the schema wants one
	if err := s.Apply(ctx, []*wire.Object{podObject(t, "a", "r", "u3", "i"), bad}, nil); err == nil {
		t.Fatal("an object without a version was stored")
	}
	cancel()
	if err := s.Apply(ctx, []*wire.Object{podObject(t, "a", "s", "u4", "i")}, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a cancelled context: %v", err)
	}
	after, err := s.Digest(context.Background())
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the store changed: %x, %x, %v", before, after, err)
	}
	// The first change that anybody is told of is the one that was stored.
	apply(t, s, []*wire.Object{podObject(t, "a", "z", "u9", "i")})
	if c := receive(t, changes); c.UID != "u9" {
		t.Errorf("told of %+v", c)
	}
}

func TestUnreadablePodHidesNoOther(t *testing.T) {
	s := openTemp(t)
	garbage := []byte{0xff, 0xff, 0xff}
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i"),
		{Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Namespace: "a", Name: "g", Uid: "u2", Version: wire.Version(garbage)}, Payload: garbage}})
	pods, err := s.Pods(context.Background())
	if err != nil || len(pods) != 1 || pods[0].Name != "p" {
		t.Errorf("pods %v, %v", pods, err)
	}
}

func TestSubscriberLosesNothingAndHoldsNobodyUp(t *testing.T) {
	s := openTemp(t)
	changes, cancel := s.Subscribe(0)
	defer cancel()
	const pods, rounds = 10, 5
	for round := range rounds { // nobody reads meanwhile
		for i := range pods {
			apply(t, s, []*wire.Object{podObject(t, "a", fmt.Sprint("p", i), fmt.Sprint("u", i), fmt.Sprint("image:", round))})
		}
	}
	apply(t, s, nil, &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Namespace: "a", Name: "p0", Uid: "u0"})
	last, told := map[string]Change{}, 0
	for len(last) < pods || !last["u0"].Deleted {
		c := receive(t, changes)
		last[c.UID] = c
		told++
	}
	if told > pods+2 { // one may be on its way while the same object changes again
		t.Errorf("%d changes for %d objects: they do not coalesce", told, pods)
	}
	apply(t, s, []*wire.Object{podObject(t, "a", "p1", "u1", fmt.Sprint("image:", rounds-1))}) // no change
	apply(t, s, []*wire.Object{podObject(t, "a", "p2", "u2", "new")})
	if c := receive(t, changes); c.UID != "u2" {
		t.Errorf("told of %+v, which did not change", c)
	}
	cancel()
	for range changes {
	}
}

func TestFirstSyncIsToldAndRemembered(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	if s.SyncedOnce() {
		t.Error("a new store says it has been synced")
	}
	changes, cancel := s.Subscribe(1)
	defer cancel()
	must(t, s.MarkSynced(ctx))
	if c := receive(t, changes); c != (Change{}) {
		t.Errorf("told of %+v", c)
	}
	must(t, s.Close())
	if s = openAt(t, path, Options{}); !s.SyncedOnce() {
		t.Error("the store forgot that it was synced")
	}
}

func receive(t *testing.T, changes <-chan Change) Change {
	t.Helper()
	select {
	case c, ok := <-changes:
		if !ok {
			t.Fatal("the subscription ended")
		}
		return c
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return Change{}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func TestPodThatCallsItselfOtherwiseIsNotRun(t *testing.T) {
	s := openTemp(t)
	for _, p := range []*corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "../../../etc"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "../..", Name: "till", UID: "u1"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "/etc", UID: "u1"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "u1"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "../../../etc"}}}},
	} {
		apply(t, s, []*wire.Object{object(t, wire.Kind_KIND_POD, "shop", "till", "u1", p), podObject(t, "shop", "other", "u2", "other:1")})
		if pods, err := s.Pods(t.Context()); err != nil || len(pods) != 1 || pods[0].Name != "other" {
			t.Errorf("pods %v, %v; want the other alone", pods, err)
		}
		pods, unread, err := s.PodsAndUnread(t.Context())
		if err != nil || len(pods) != 1 || len(unread) != 1 || unread[0].Namespace != "shop" || unread[0].Name != "till" || unread[0].UID != "u1" || unread[0].Err == nil {
			t.Errorf("pods %v, unread %+v, %v; want the other, and till as what it was sent as", pods, unread, err)
		}
		if got, err := s.Pod(t.Context(), "u1"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("pod %v, %v; want an error that is not its absence", got, err)
		}
	}
}
