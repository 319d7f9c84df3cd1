package route

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

const patience = time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"a/+", "a/b", true}, {"a/+", "a/b/c", false}, {"+/+", "a/b", true}, {"+", "a/b", false}, {"a/+/c", "a//c", true},
		{"#", "a/b/c", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "b/a", false}, {"a/+/#", "a", false},
		{"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"a", "", false}, {"/", "/", true}, {"+/", "a/", true}, {"a/", "a", false},
	} {
		if got := Match(tt.filter, tt.topic); got != tt.want {
			t.Errorf("%q and %q: %v", tt.filter, tt.topic, got)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a/+/#", "a/b/c")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if Match(filter, topic) && Match(filter, "$"+topic) {
			t.Errorf("%q takes $%q", filter, topic)
		}
		if topic != "" && topic[0] != '$' && !Match("#", topic) {
			t.Errorf("# does not take %q", topic)
		}
	})
}

type wall struct{}

func (wall) Wall() time.Time { return time.Now() }

// start opens a store and runs a Router on it; end ends both.
func start(t *testing.T, path string) (r *Router, s *store.Store, end func()) {
	t.Helper()
	s, err := store.Open(path, store.Options{})
	must(t, err)
	r = New(Options{Store: s, Clock: wall{}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, s, func() {
		cancel()
		must(t, <-done)
		must(t, s.Close())
	}
}

func routeObject(t *testing.T, name string, spec v1beta1.RouteSpec) *wire.Object {
	t.Helper()
	of := &v1beta1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-" + "x"}, Spec: spec}
	b, err := json.Marshal(of)
	must(t, err)
	return &wire.Object{Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_ROUTE, Namespace: "shop", Name: name, Uid: string(of.UID), Version: wire.Version(b)}, Payload: b}
}

func awaitFilters(t *testing.T, r *Router, n int) {
	t.Helper()
	for deadline := time.After(patience); len(r.Filters()) != n; {
		select {
		case <-r.Changed():
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatalf("filters %q", r.Filters())
		}
	}
}

func offer1(t *testing.T, r *Router, topic, payload string) error {
	t.Helper()
	done := make(chan error, 1)
	if !r.Offer(t.Context(), topic, []byte(payload), func(err error) { done <- err }) {
		t.Fatalf("%s is not wanted", topic)
	}
	return <-done
}

func receive(t *testing.T, r *Router) (messages []*wire.RoutedMessage, dropped uint64) {
	t.Helper()
	source := r.Reports()
	source.Begin()
	for {
		keys := source.Take()
		if len(keys) == 0 {
			return messages, dropped
		}
		for _, key := range keys {
			report, receipt, err := source.Report(t.Context(), key)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			must(t, err)
			m := new(wire.RoutedMessages)
			must(t, proto.Unmarshal(report.Payload, m))
			messages, dropped = append(messages, m.Messages...), m.Dropped
			source.Settle(key, receipt)
		}
	}
}

func TestMessagesWaitForTheHubInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	r, s, end := start(t, path)
	must(t, s.Apply(t.Context(), []*wire.Object{routeObject(t, "sales", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "till/+/sold"}})}, nil))
	awaitFilters(t, r, 1)
	if r.Offer(t.Context(), "till/1/error", nil, nil) {
		t.Error("a topic that nobody wants is taken")
	}
	for i := range 1000 {
		must(t, offer1(t, r, "till/1/sold", fmt.Sprint(i)))
	}
	end()
	r, _, end = start(t, path)
	awaitFilters(t, r, 1)
	got, dropped := receive(t, r)
	if len(got) != 1000 || dropped != 0 {
		t.Fatalf("%d of 1000 messages, %d dropped", len(got), dropped)
	}
	for i, m := range got {
		if string(m.Payload) != fmt.Sprint(i) || m.Topic != "till/1/sold" || i > 0 && m.Number <= got[i-1].Number {
			t.Fatalf("message %d is %v", i, m)
		}
	}
	end()
	r, _, end = start(t, path)
	defer end()
	awaitFilters(t, r, 1)
	if got, _ := receive(t, r); len(got) != 0 {
		t.Errorf("%d messages are delivered again", len(got))
	}
}

func TestTheOldestMessagesAreDroppedAndCounted(t *testing.T) {
	r, s, end := start(t, filepath.Join(t.TempDir(), "store.db"))
	defer end()
	must(t, s.Apply(t.Context(), []*wire.Object{routeObject(t, "sales", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#", Buffer: v1beta1.RouteBuffer{Messages: 10, KiB: 1}}})}, nil))
	awaitFilters(t, r, 1)
	for i := range 25 {
		must(t, offer1(t, r, "t", fmt.Sprint(i)))
	}
	if err := offer1(t, r, "t", string(make([]byte, 2000))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than the buffer: %v", err)
	}
	got, dropped := receive(t, r)
	if len(got) != 10 || string(got[0].Payload) != "15" || dropped != 15 {
		t.Errorf("%d messages from %v, %d dropped", len(got), got[0], dropped)
	}
	// By bytes, too.
	for range 4 {
		must(t, offer1(t, r, "t", string(make([]byte, 400))))
	}
	if got, dropped := receive(t, r); len(got) != 2 || dropped != 17 {
		t.Errorf("%d messages, %d dropped", len(got), dropped)
	}
	// A route that goes takes its messages along.
	must(t, offer1(t, r, "t", "x"))
	must(t, s.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_ROUTE, Namespace: "shop", Name: "sales", Uid: "uid-x"}}))
	awaitFilters(t, r, 0)
	if got, _ := receive(t, r); len(got) != 0 {
		t.Errorf("messages of a route that is gone: %v", got)
	}
}

func TestTheCloudPublishesOnlyWhereARouteLetsIt(t *testing.T) {
	r, s, end := start(t, filepath.Join(t.TempDir(), "store.db"))
	defer end()
	var published []string
	r.o.Publish = func(_ context.Context, topic string, payload []byte) error {
		published = append(published, topic+"="+string(payload))
		return nil
	}
	must(t, s.Apply(t.Context(), []*wire.Object{routeObject(t, "prices", v1beta1.RouteSpec{Down: &v1beta1.DownRoute{Topic: "till/prices"}})}, nil))
	for deadline := time.After(patience); r.Len() == 0; {
		select {
		case <-r.Changed():
		case <-deadline:
			t.Fatal("no route")
		}
	}
	must(t, r.PublishDown(t.Context(), &wire.Publish{RouteUid: "uid-x", Topic: "till/prices", Payload: []byte("1")}))
	for _, p := range []*wire.Publish{{RouteUid: "uid-x", Topic: "other"}, {RouteUid: "uid-y", Topic: "till/prices"}} {
		if err := r.PublishDown(t.Context(), p); !errors.Is(err, ErrNoRoute) {
			t.Errorf("%v: %v", p, err)
		}
	}
	if len(published) != 1 || published[0] != "till/prices=1" {
		t.Errorf("published %q", published)
	}
}
