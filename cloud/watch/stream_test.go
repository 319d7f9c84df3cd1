package watch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// server answers lists and watches of a truth as an apiserver does, at its leisure,
// and fails as one does.
type server struct {
	mu      sync.Mutex
	r       *rand.Rand
	truth   *truth
	moved   chan struct{} // closed when the truth has changed
	streams bool          // it can stream what there is
	oldest  int           // watches from before that are refused
	away    bool          // it answers nothing
	cut     chan struct{} // closed to end all watches
	lists   []metav1.ListOptions
}

func newServer(seed uint64) *server {
	r := rand.New(rand.NewPCG(seed, 11))
	return &server{r: r, truth: newTruth(3), moved: make(chan struct{}), cut: make(chan struct{}), streams: r.IntN(3) > 0}
}

func (s *server) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.truth.step(s.r)
	close(s.moved)
	s.moved = make(chan struct{})
}

// interrupt ends all watches; forget also refuses to go on from where they were.
func (s *server) interrupt(forget bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
	if forget {
		s.truth.step(s.r)
		s.oldest = s.truth.version
	}
}

func (s *server) set(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// delay takes time of the test's bubble, which costs none.
func (s *server) delay() { time.Sleep(time.Duration(s.pick(2000)) * time.Millisecond) }

func (s *server) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(n)
}

func (s *server) refuses() error {
	if s.away {
		return fmt.Errorf("connection refused")
	}
	return nil
}

func (s *server) ListWithContext(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
	s.delay()
	s.mu.Lock()
	s.lists = append(s.lists, o)
	defer func() { s.mu.Unlock(); s.delay() }()
	if err := s.refuses(); err != nil {
		return nil, err
	}
	version := s.truth.version
	if o.ResourceVersion != "" {
		// Not older than that, but maybe older than now.
		least := max(number(o.ResourceVersion), s.truth.first)
		version = least + s.r.IntN(version-least+1)
	}
	list := &corev1.PodList{}
	list.ResourceVersion = say(version)
	var keys []string
	now := s.truth.at(version)
	for i := range 8 {
		if key := "shop/pod-" + strconv.Itoa(i); now[key] != nil {
			keys = append(keys, key)
		}
	}
	from := 0
	if o.Continue != "" {
		// A page of a version that is gone by now: a client must begin again.
		at, err := strconv.Atoi(o.Continue)
		if err != nil {
			return nil, err
		}
		if from = at % 100; at/100 != s.truth.version {
			return nil, apierrors.NewResourceExpired("the continue token is too old")
		}
	}
	for i := from; i < len(keys); i++ {
		p := now[keys[i]]
		if o.FieldSelector != "" && o.FieldSelector != p.Spec.NodeName {
			continue
		}
		if o.Limit > 0 && len(list.Items) == 3 {
			list.Continue = strconv.Itoa(s.truth.version*100 + i)
			break
		}
		list.Items = append(list.Items, *p)
	}
	return list, nil
}

func (s *server) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	s.delay()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuses(); err != nil {
		return nil, err
	}
	w := &scripted{events: make(chan watch.Event), ended: make(chan struct{})}
	if o.SendInitialEvents != nil {
		if !s.streams {
			return nil, apierrors.NewBadRequest("sendInitialEvents is not known here")
		}
		go w.tell(s, s.truth.version, s.truth.at(s.truth.version), s.cut)
		return w, nil
	}
	from := number(o.ResourceVersion)
	if from < s.oldest {
		if s.r.IntN(2) == 0 {
			return nil, apierrors.NewResourceExpired("too old resource version")
		}
		go w.send(watch.Event{Type: watch.Error, Object: &apierrors.NewResourceExpired("too old resource version").ErrStatus})
		return w, nil
	}
	go w.follow(s, from, s.cut)
	return w, nil
}

// scripted is one watch.
type scripted struct {
	events chan watch.Event
	once   sync.Once
	ended  chan struct{}
}

func (w *scripted) ResultChan() <-chan watch.Event { return w.events }
func (w *scripted) Stop()                          { w.once.Do(func() { close(w.ended) }) }

func (w *scripted) send(e watch.Event) bool {
	select {
	case w.events <- e:
		return true
	case <-w.ended:
		return false
	}
}

// tell sends what there is, then follows.
func (w *scripted) tell(s *server, version int, all map[string]*corev1.Pod, cut chan struct{}) {
	for _, p := range all {
		s.delay()
		if !w.send(watch.Event{Type: watch.Added, Object: p}) {
			return
		}
	}
	// What changed meanwhile may come before the end.
	for s.pick(3) > 0 && version < s.now() {
		s.mu.Lock()
		next := s.truth.history[version-s.truth.first]
		s.mu.Unlock()
		e := watch.Event{Type: watch.Modified, Object: next.pod}
		if next.gone {
			e.Type = watch.Deleted
		}
		if !w.send(e) {
			return
		}
		version++
	}
	if !w.send(watch.Event{Type: watch.Bookmark, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: say(version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}}) {
		return
	}
	w.follow(s, version, cut)
}

// follow sends every change after a version, with a bookmark now and then.
func (w *scripted) follow(s *server, from int, cut chan struct{}) {
	defer close(w.events)
	for {
		s.mu.Lock()
		var next *change
		if from < s.truth.version {
			next = &s.truth.history[from-s.truth.first]
		}
		moved, bookmark := s.moved, s.r.IntN(4) == 0
		s.mu.Unlock()
		e := watch.Event{Type: watch.Bookmark, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: say(from)}}}
		switch {
		case next != nil:
			from++
			e = watch.Event{Type: watch.Modified, Object: next.pod}
			if next.gone {
				e.Type = watch.Deleted
			}
		case !bookmark:
			select {
			case <-moved:
			case <-cut:
				return
			case <-w.ended:
				return
			case <-time.After(time.Minute):
			}
			continue
		default:
			time.Sleep(time.Second)
		}
		select {
		case w.events <- e:
		case <-cut:
			return
		case <-w.ended:
			return
		}
		s.delay()
	}
}

// shelved makes what a Cluster makes of a source of pods.
func (s *server) shelved() *shelved[keptPod] {
	c := &Cluster{log: slog.New(slog.DiscardHandler), acquired: make(chan struct{}, maxReads), followers: map[string][]chan struct{}{}}
	pods := shelve(c, "pods", placePod, keepPod, func(node string) string { return node })
	pods.stream, pods.tide = c.follow("pods", s, pods), newTide(s)
	c.pods = pods
	c.nodes = &shelved[keptNode]{tide: newTide(s)}
	if s.r.IntN(2) == 0 {
		// As if there were so many that each waits for all.
		pods.crowd, c.acquired = 2, make(chan struct{})
	}
	return pods
}

// TestAStreamBridgesWhatBreaks runs real streams and loads against a server that is
// slow, away, forgetful and interrupted at random: in the end everybody knows the
// truth, and at no time is something known that never was.
func TestAStreamBridgesWhatBreaks(t *testing.T) {
	relists, bulks, pages := uint64(0), uint64(0), 0
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(seed)
			pods := s.shelved()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all sync.WaitGroup
			all.Go(func() { pods.stream.run(ctx) })
			for _, node := range s.truth.nodes[1:] {
				all.Go(func() { s.guest(ctx, t, pods, node) })
			}
			pods.follow(s.truth.nodes[0])
			for range 40 {
				switch n := s.pick(12); {
				case n < 7:
					s.change()
				case n < 8:
					s.interrupt(false)
				case n < 9:
					s.interrupt(true)
				case n < 10:
					s.set(true)
					s.interrupt(s.pick(2) == 0)
				default:
					s.set(false)
				}
				time.Sleep(time.Duration(s.pick(3000)) * time.Millisecond)
			}
			s.set(false)
			for _, node := range s.truth.nodes[:1] {
				for pods.load(ctx, node) != nil {
					time.Sleep(time.Second)
				}
			}
			time.Sleep(5 * time.Minute) // of the bubble: for back-off, and watches that lag
			node := s.truth.nodes[0]
			if err := s.agrees(pods, node, s.truth.version); err != nil {
				t.Errorf("seed %d: at rest, %v", seed, err)
			}
			cancel()
			all.Wait()
			relists += pods.stream.relists.Load()
			bulks += pods.bulks.Load()
			for _, o := range s.lists {
				if o.Continue != "" {
					pages++
				}
			}
		})
	}
	if relists == 0 || bulks == 0 || pages == 0 {
		t.Errorf("%d lists of everything after a break, %d for many nodes, %d further pages: the seeds show too little", relists, bulks, pages)
	}
}

// guest follows a node for a while, again and again.
func (s *server) guest(ctx context.Context, t *testing.T, pods *shelved[keptPod], node string) {
	for ctx.Err() == nil {
		pods.follow(node)
		least := s.now()
		for range 4 {
			time.Sleep(time.Duration(s.pick(4000)) * time.Millisecond)
			if err := pods.load(ctx, node); err != nil {
				continue
			}
			if kept, ok := pods.get(node); ok && !s.ever(node, kept, least) {
				t.Errorf("of %s %d pods are known that were never there together since it was followed", node, len(kept))
				return
			}
		}
		pods.drop(node)
	}
}

func (s *server) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.truth.version
}

// ever says that a node had exactly these pods at some time since a version.
func (s *server) ever(node string, kept []*keptPod, since int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := versions(kept)
	for v := s.truth.version; v >= since; v-- {
		if maps.Equal(has, s.truth.of(node, v)) {
			return true
		}
	}
	return false
}

func (s *server) agrees(pods *shelved[keptPod], node string, version int) error {
	kept, ok := pods.get(node)
	if !ok {
		return fmt.Errorf("%s is unknown", node)
	}
	if has, want := versions(kept), s.truth.of(node, version); !maps.Equal(has, want) {
		return fmt.Errorf("%s has %v, the truth is %v", node, has, want)
	}
	return nil
}

func versions(kept []*keptPod) map[string]string {
	has := make(map[string]string)
	for _, k := range kept {
		has[k.item.Ref.Namespace+"/"+k.item.Ref.Name] = k.version
	}
	return has
}
