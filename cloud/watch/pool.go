package watch

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
)

// pool keeps all objects of a kind of which a cluster has few. A stream with all
// set tells it.
type pool[T any] struct {
	// place and keep are as a shelf's.
	place func(obj runtime.Object) (key string)
	keep  func(obj runtime.Object) (*T, error)
	same  func(a, b *T) bool
	// changed hears of an object that came (was is nil), changed, or went (now is nil).
	changed func(key string, was, now *T)
	// settled hears that everything is known from now on.
	settled func()
	failed  func(key string, err error)

	mu      sync.Mutex
	known   bool
	objects map[string]*T
	relist  map[string]*T // the stream's
}

// get returns one object, or nil.
func (p *pool[T]) get(key string) *T {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.objects[key]
}

// all returns all objects; ok is false for unknown, which is not empty.
func (p *pool[T]) all() (objects []*T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.objects {
		objects = append(objects, o)
	}
	return objects, p.known
}

func (p *pool[T]) isKnown() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

func (p *pool[T]) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.objects)
}

func (p *pool[T]) started(string) {}
func (p *pool[T]) reached(string) {}

// absent says that the cluster has no such kind of object.
func (p *pool[T]) absent() { p.replace(make(map[string]*T)) }

func (p *pool[T]) event(obj runtime.Object, gone bool) {
	key := p.place(obj)
	var now *T
	if !gone {
		var err error
		if now, err = p.keep(obj); err != nil {
			p.failed(key, err)
			return
		}
	}
	p.mu.Lock()
	was := p.objects[key]
	if now == nil {
		delete(p.objects, key)
	} else {
		p.objects[key] = now
	}
	p.mu.Unlock()
	p.compare(key, was, now)
}

func (p *pool[T]) compare(key string, was, now *T) {
	if was == nil && now == nil || was != nil && now != nil && p.same(was, now) {
		return
	}
	p.changed(key, was, now)
}

func (p *pool[T]) relisting() { p.relist = make(map[string]*T) }

func (p *pool[T]) listed(obj runtime.Object, gone bool) {
	key := p.place(obj)
	if gone {
		delete(p.relist, key)
		return
	}
	now, err := p.keep(obj)
	if err != nil {
		p.failed(key, err)
		return
	}
	p.relist[key] = now
}

func (p *pool[T]) relisted(string, bool) {
	objects := p.relist
	p.relist = nil
	p.replace(objects)
}

func (p *pool[T]) replace(objects map[string]*T) {
	p.mu.Lock()
	was, first := p.objects, !p.known
	p.objects, p.known = objects, true
	p.mu.Unlock()
	if first {
		p.settled()
		return
	}
	for key, w := range was {
		p.compare(key, w, objects[key])
	}
	for key, now := range objects {
		if was[key] == nil {
			p.compare(key, nil, now)
		}
	}
}
