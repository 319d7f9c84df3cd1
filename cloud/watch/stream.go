package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// source lists and watches one kind of object; client-go's ListWatch is one.
type source interface {
	ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error)
	WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// sink takes what a stream brings, from one goroutine and in order.
type sink interface {
	// started: every change after version will be told.
	started(version string)
	// event is one change.
	event(obj runtime.Object, gone bool)
	// reached: nothing at or below version is still to come.
	reached(version string)
	// relisting: changes were missed; listed tells all objects that there are,
	// then relisted says that this was all, as of version. A further relisting
	// starts anew. anew says that the versions have gone back: the cluster was
	// restored, and what it said before counts no more.
	relisting()
	listed(obj runtime.Object, gone bool)
	relisted(version string, anew bool)
}

// stream keeps one watch of one kind open for as long as it runs. It starts where
// the cluster is, with a list of a single object: what was there before is read
// node by node. Only after a break that the server cannot bridge does it list
// everything, streamed or in pages, and never holds more of that than the sink
// keeps.
type stream struct {
	name     string
	source   source
	sink     sink
	log      *slog.Logger
	wait     time.Duration // first wait after a failure; doubles up to maxWait
	all      bool          // the sink keeps everything: it begins with a list of all
	optional bool          // a cluster may not have this kind; nothing waits for it

	at   string    // Run's: the version up to which the sink knows everything
	lost bool      // Run's: the server cannot go on from there
	gone time.Time // Run's: since when the server says that there is no such kind

	mu      sync.Mutex
	restart context.CancelCauseFunc // of the watch that runs

	up, synced                  atomic.Bool
	events, relists, interrupts atomic.Uint64
}

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 10 * time.Second
	pageSize  = 500
	// A watch that the server does not end by then may hang.
	watchFor = 5 * time.Minute
	// shortWatch is a watch that ends before it has told anything.
	shortWatch = time.Second
)

// errRestored ends a watch because the cluster's versions have gone back.
var errRestored = errors.New("the cluster was restored from an earlier state")

// run follows the source until ctx ends.
func (s *stream) run(ctx context.Context) {
	wait := s.wait
	for ctx.Err() == nil {
		began := time.Now()
		err := s.step(ctx)
		if time.Since(began) > time.Minute {
			wait = s.wait
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if s.optional && s.missing(err) {
			s.pause(ctx, missingWait)
			continue
		}
		s.interrupts.Add(1)
		if s.up.Swap(false) || wait == s.wait {
			s.log.Warn("cannot follow the cluster; what nodes hold stays as it is", "objects", s.name, "err", s.advised(err))
		}
		if s.optional {
			s.synced.Store(true) // nothing waits for it
		}
		s.pause(ctx, wait)
		wait = min(2*wait, maxWait)
	}
	s.up.Store(false)
}

// pause waits. Half of the wait is random, so that hubs do not come back as one.
func (s *stream) pause(ctx context.Context, wait time.Duration) {
	select {
	case <-time.After(wait/2 + rand.N(wait/2+1)):
	case <-ctx.Done():
	}
}

// step does what is to be done next and returns when that has ended.
func (s *stream) step(ctx context.Context) error {
	if s.at == "" && !s.all {
		version, _, _, err := position(ctx, s.source)
		if err != nil {
			return fmt.Errorf("find where the cluster's %s are: %w", s.name, err)
		}
		s.at, s.gone = version, time.Time{}
		s.sink.started(version)
		s.synced.Store(true)
	}
	if s.lost || s.at == "" {
		return s.relist(ctx)
	}
	seconds := int64((watchFor + rand.N(watchFor)).Seconds())
	w, err := s.watch(ctx, metav1.ListOptions{ResourceVersion: s.at, AllowWatchBookmarks: true, TimeoutSeconds: &seconds})
	if err != nil {
		return err
	}
	return s.consume(ctx, w)
}

// position asks for the version at which the cluster is now, by a read that is
// never served from a cache that lags. total is how many objects there are, if the
// apiserver says so, and else at least 0; empty says that there is none.
func position(ctx context.Context, from source) (version string, total int64, empty bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	list, err := from.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return "", 0, false, err
	}
	if version, err = listVersion(list); err != nil {
		return "", 0, false, err
	}
	l, err := meta.ListAccessor(list)
	if err != nil {
		return "", 0, false, err
	}
	if rest := l.GetRemainingItemCount(); rest != nil {
		total = 1 + *rest
	}
	return version, total, meta.LenList(list) == 0 && l.GetContinue() == "", nil
}

// absentee is a sink of a kind that a cluster may not have.
type absentee interface {
	sink
	// absent says that the cluster has no such kind, and so no object of it.
	absent()
}

const (
	// missingWait is how often a kind is looked for that the cluster does not have.
	missingWait = 30 * time.Second
	// missingAfter is how long a cluster must say that it has no such kind, to a hub
	// that has just started, too: an apiserver that starts may be wrong for a moment,
	// and nodes would lose what they hold.
	missingAfter = time.Minute
)

// missing takes err for the answer that the cluster has no such kind, if it is one
// that may be believed.
func (s *stream) missing(err error) bool {
	to, ok := s.sink.(absentee)
	if !apierrors.IsNotFound(err) || !ok {
		return false
	}
	first := s.gone.IsZero()
	if first {
		s.gone = time.Now()
	}
	early := time.Since(s.gone) < missingAfter
	if early && s.at != "" {
		return false
	}
	if first || s.at != "" {
		s.log.Info("the cluster has no such objects; \"holdfast init\" makes their kind known to it", "objects", s.name)
	}
	if !early {
		s.at, s.lost = "", false
		s.up.Store(false)
		to.absent()
	}
	s.synced.Store(true) // nothing waits for it
	return true
}

// advised is err with what to do about it.
func (s *stream) advised(err error) error {
	if s.optional && apierrors.IsForbidden(err) {
		return fmt.Errorf("%w; this cloudcore has the rights of an earlier version: run \"holdfast init\" again, or apply build/manifests", err)
	}
	return err
}

func listVersion(list runtime.Object) (string, error) {
	l, err := meta.ListAccessor(list)
	if err != nil {
		return "", err
	}
	if l.GetResourceVersion() == "" {
		return "", errors.New("the apiserver answers a list without a resource version")
	}
	return l.GetResourceVersion(), nil
}

// again makes the stream list everything, because the cluster was restored.
func (s *stream) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.restart != nil {
		s.restart(errRestored)
	}
}

// watch opens a watch; one that the server cannot serve marks the stream as lost.
func (s *stream) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := s.source.WatchWithContext(ctx, o)
	if err != nil {
		return nil, s.failed(err)
	}
	return w, nil
}

func (s *stream) failed(err error) error {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || tooLarge(err) {
		s.lost = true
	}
	return fmt.Errorf("watch %s: %w", s.name, err)
}

// tooLarge says that a server has not come as far as the version asked for, or
// never will.
func tooLarge(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// running says that a watch is open.
func (s *stream) running() {
	s.gone = time.Time{} // there is such a kind
	if !s.up.Swap(true) && s.interrupts.Load() > 0 {
		s.log.Info("following the cluster again", "objects", s.name)
	}
}

// consume hands on what a watch tells until it ends. The server ends each some
// time, and the next one goes on where it stopped.
func (s *stream) consume(ctx context.Context, w watch.Interface) error {
	defer w.Stop()
	s.running()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.restart = cancel
	s.mu.Unlock()
	began, told := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errRestored) {
				s.lost = true
				return fmt.Errorf("watch %s: %w", s.name, errRestored)
			}
			return nil
		case e, ok := <-w.ResultChan():
			if !ok {
				if told == 0 && time.Since(began) < shortWatch {
					return fmt.Errorf("watch %s: the apiserver ended it at once", s.name)
				}
				return nil
			}
			told++
			version, err := s.versionOf(e)
			if err != nil {
				return err
			}
			s.events.Add(1)
			if e.Type == watch.Bookmark {
				s.sink.reached(version)
			} else {
				s.sink.event(e.Object, e.Type == watch.Deleted)
			}
			s.at = version
		}
	}
}

// versionOf is the version of an event, or what went wrong.
func (s *stream) versionOf(e watch.Event) (string, error) {
	if e.Type == watch.Error {
		return "", s.failed(apierrors.FromObject(e.Object))
	}
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return "", fmt.Errorf("watch %s: %w", s.name, err)
	}
	return m.GetResourceVersion(), nil
}

// relist tells the sink everything that there is, then goes on watching.
func (s *stream) relist(ctx context.Context) error {
	if s.at != "" {
		s.relists.Add(1)
	}
	s.sink.relisting()
	version, w, err := s.everything(ctx, s.sink.listed)
	if err != nil {
		return err
	}
	s.sink.relisted(version, older(version, s.at))
	s.at, s.lost, s.gone = version, false, time.Time{}
	s.synced.Store(true)
	if w == nil {
		return nil
	}
	return s.consume(ctx, w)
}

// everything tells all that there is, as of the version that it returns. If there
// is a watch, it goes on from there.
func (s *stream) everything(ctx context.Context, listed func(obj runtime.Object, gone bool)) (version string, w watch.Interface, err error) {
	all, seconds := true, int64((watchFor + rand.N(watchFor)).Seconds())
	w, err = s.source.WatchWithContext(ctx, metav1.ListOptions{
		SendInitialEvents: &all, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	switch {
	case err == nil:
		version, err = streamed(ctx, w, listed)
	case unsupported(err):
		w = nil
		version, err = s.paged(ctx, listed)
	}
	if err != nil {
		return "", nil, fmt.Errorf("list all %s: %w", s.name, err)
	}
	return version, w, nil
}

// unsupported says that a server cannot stream what there is.
func unsupported(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsMethodNotSupported(err)
}

// streamed takes the beginning of a watch that tells everything that there is: the
// server sends it object by object from its cache. After an error the watch is
// stopped.
func streamed(ctx context.Context, w watch.Interface, listed func(obj runtime.Object, gone bool)) (version string, err error) {
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case e, ok := <-w.ResultChan():
			switch {
			case !ok:
				return "", errors.New("the apiserver ended the stream early")
			case e.Type == watch.Error:
				return "", apierrors.FromObject(e.Object)
			case e.Type != watch.Bookmark:
				listed(e.Object, e.Type == watch.Deleted)
				continue
			}
			m, err := meta.Accessor(e.Object)
			if err != nil {
				return "", err
			}
			if m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				return m.GetResourceVersion(), nil
			}
		}
	}
}

// paged lists everything in pages, for servers that cannot stream.
func (s *stream) paged(ctx context.Context, listed func(obj runtime.Object, gone bool)) (version string, err error) {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := s.page(ctx, o)
		if err != nil {
			return "", err
		}
		if version, err = listVersion(page); err != nil {
			return "", err
		}
		if err := meta.EachListItem(page, func(obj runtime.Object) error {
			listed(obj, false)
			return nil
		}); err != nil {
			return "", err
		}
		l, err := meta.ListAccessor(page)
		if err != nil {
			return "", err
		}
		if o.Continue = l.GetContinue(); o.Continue == "" {
			return version, nil
		}
	}
}

func (s *stream) page(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return s.source.ListWithContext(ctx, o)
}

// pageTimeout bounds one page of a list of everything.
const pageTimeout = time.Minute
