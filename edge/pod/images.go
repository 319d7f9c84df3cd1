package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// The back-off of pulls, as the kubelet's.
const (
	pullFirst = 10 * time.Second
	pullMost  = 300 * time.Second
)

// images brings images to the node: one pull of an image at a time, held back after failures. Nothing is
// pulled that is here already while the registry cannot be reached.
type images struct {
	runtime Runtime
	clock   Clock

	mu      sync.Mutex
	pulls   map[string]*pull
	backOff map[string]held
	lanes   *semaphore.Weighted
}

// pullLanes bounds the pulls at once: a slow line brings one image sooner than three at a third of the speed.
const pullLanes = 2

type pull struct {
	done chan struct{}
	id   string
	err  error
}

func newImages(r Runtime, c Clock) *images {
	return &images{runtime: r, clock: c, pulls: map[string]*pull{}, backOff: map[string]held{}, lanes: semaphore.NewWeighted(pullLanes)}
}

// imageWish is what one container needs.
type imageWish struct {
	ref     string
	policy  corev1.PullPolicy
	auths   []runtime.Auth
	offline bool // the node knows that it has no line
	tell    func(kind, reason, text string)
}

// pullError is why an image is not here, with the status's reason and how long to wait.
type pullError struct {
	reason string
	wait   time.Duration
	text   string
}

func (e *pullError) Error() string { return e.text }

// ensure returns the image's id, pulling it if need be.
func (im *images) ensure(ctx context.Context, w imageWish) (string, error) {
	id, present, err := im.runtime.Image(ctx, w.ref)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", w.ref, err)
	}
	switch w.policy {
	case corev1.PullNever:
		if !present {
			w.tell(corev1.EventTypeWarning, "ErrImageNeverPull", fmt.Sprintf("Container image %q is not present with pull policy of Never", w.ref))
			return "", &pullError{"ErrImageNeverPull", retryMost, fmt.Sprintf("Container image %q is not present with pull policy of Never", w.ref)}
		}
		return id, nil
	case corev1.PullAlways:
	default:
		if present {
			w.tell(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine", w.ref))
			return id, nil
		}
	}
	if present && (w.offline || !im.runtime.RegistryReachable(ctx, w.ref)) {
		w.tell(corev1.EventTypeNormal, "Pulled",
			fmt.Sprintf("Container image %q already present on machine; its registry cannot be reached, so no newer one was looked for", w.ref))
		return id, nil
	}
	if wait := im.waits(w.ref); wait > 0 {
		if present {
			return id, nil
		}
		w.tell(corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", w.ref))
		return "", &pullError{"ImagePullBackOff", wait, fmt.Sprintf("Back-off pulling image %q", w.ref)}
	}
	pulled, err := im.pull(ctx, w, present)
	if err == nil || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return pulled, err
	}
	if present {
		w.tell(corev1.EventTypeWarning, "FailedToPullImage",
			fmt.Sprintf("Failed to pull image %q, the one that is present is used: %v", w.ref, err))
		return id, nil
	}
	w.tell(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", w.ref, err))
	// Looked at again at once, so that the status shows first the error and then the wait.
	return "", &pullError{"ErrImagePull", time.Second, fmt.Sprintf("failed to pull image %q: %v", w.ref, err)}
}

// waits tells how long pulls of the image are still held back.
func (im *images) waits(ref string) time.Duration {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.backOff[ref].until - im.clock.Mono()
}

// A pull that only looks for a newer image of one that is here may not hold a container up for long.
const renewalPatience = 30 * time.Second

// pull joins a pull of the image that is under way, or begins one.
func (im *images) pull(ctx context.Context, w imageWish, present bool) (string, error) {
	im.mu.Lock()
	p := im.pulls[w.ref]
	if p == nil || len(w.auths) > 0 { // other credentials may see other things
		p = &pull{done: make(chan struct{})}
		im.pulls[w.ref] = p
		im.mu.Unlock()
		if err := im.lanes.Acquire(ctx, 1); err != nil {
			p.err = err
			im.settle(w.ref, p, true)
			return "", err
		}
		defer im.lanes.Release(1)
		w.tell(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", w.ref))
		bounded, cancel := ctx, context.CancelFunc(func() {})
		if present {
			bounded, cancel = context.WithTimeout(ctx, renewalPatience)
		}
		began := im.clock.Mono()
		p.id, p.err = im.runtime.Pull(bounded, w.ref, w.auths)
		cancel()
		im.settle(w.ref, p, ctx.Err() != nil)
		if p.err == nil {
			w.tell(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s", w.ref,
				(im.clock.Mono()-began).Round(time.Millisecond)))
		}
		return p.id, p.err
	}
	im.mu.Unlock()
	select {
	case <-p.done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if errors.Is(p.err, context.Canceled) { // whoever pulled was called off
		return im.pull(ctx, w, present)
	}
	return p.id, p.err
}

// settle ends a pull: those who wait are told, and a failure holds the next one back.
func (im *images) settle(ref string, p *pull, calledOff bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.pulls[ref] == p {
		delete(im.pulls, ref)
	}
	switch {
	case p.err == nil:
		delete(im.backOff, ref)
	case !calledOff:
		h := im.backOff[ref]
		h.delay = min(max(2*h.delay, pullFirst), pullMost)
		h.until = im.clock.Mono() + h.delay
		im.backOff[ref] = h
	}
	close(p.done)
}

// pullSecrets reads the credentials for an image from the pod's imagePullSecrets. One that is missing or
// unreadable is left out, as the kubelet does: the image may be public or here already.
func (m *Manager) pullSecrets(ctx context.Context, p *corev1.Pod, image string) ([]runtime.Auth, error) {
	if len(p.Spec.ImagePullSecrets) == 0 {
		return nil, nil
	}
	keys := &runtime.Keyring{}
	for _, ref := range p.Spec.ImagePullSecrets {
		secret, err := m.o.Store.Secret(ctx, p.Namespace, ref.Name)
		if missing(err) {
			m.events.pod(p, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve the image pull secret (%s); attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := keys.Add(secret); err != nil {
			m.events.pod(p, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret", err.Error())
		}
	}
	return keys.For(image), nil
}
