package watch

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// moody is an apiserver that sometimes says that it has no such kind.
type moody struct {
	mu      sync.Mutex
	missing bool
	cut     chan struct{}
}

// set ends all watches.
func (m *moody) set(missing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.missing = missing
	close(m.cut)
	m.cut = make(chan struct{})
}

func (m *moody) refuses() error {
	if m.missing {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "devices"}, "")
	}
	return nil
}

func (m *moody) ListWithContext(context.Context, metav1.ListOptions) (runtime.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}, m.refuses()
}

func (m *moody) WatchWithContext(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuses(); err != nil {
		return nil, err
	}
	w, cut := watch.NewRaceFreeFake(), m.cut
	go func() {
		select {
		case <-cut:
		case <-ctx.Done():
		}
		w.Stop()
	}()
	return w, nil
}

// absences counts how often a stream said that there is no such kind.
type absences struct {
	sink
	mu sync.Mutex
	n  int
}

func (a *absences) started(string) {}
func (a *absences) absent()        { a.mu.Lock(); a.n++; a.mu.Unlock() }

func (a *absences) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// TestAnApiserverThatIsWrongForAMomentIsNotBelieved, however often that happens:
// what devices a node holds hangs on it.
func TestAnApiserverThatIsWrongForAMomentIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		from, to := &moody{cut: make(chan struct{})}, &absences{}
		s := &stream{name: "devices", source: from, sink: to, log: slog.New(slog.DiscardHandler), wait: firstWait, optional: true}
		from.missing = true
		go s.run(ctx)
		time.Sleep(missingAfter / 4)
		if n := to.count(); n != 0 || !s.synced.Load() {
			t.Errorf("a stream that begins: believed %d times, and others wait for it: %v", n, !s.synced.Load())
		}
		from.set(false)
		for range 3 {
			time.Sleep(2 * missingAfter)
			from.set(true)
			time.Sleep(missingAfter / 4)
			from.set(false)
		}
		time.Sleep(missingAfter)
		if n := to.count(); n != 0 {
			t.Errorf("believed %d times that there are no devices", n)
		}
		from.set(true)
		time.Sleep(2 * missingAfter)
		if to.count() == 0 {
			t.Error("a cluster that has had no devices for long is not believed")
		}
	})
}
