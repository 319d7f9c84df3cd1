package mqtt

import (
	"context"
	"slices"
	"sync"

	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
)

// filters remembers which topics are routed, for the path of every message.
type filters struct {
	routes Routes // nil: none

	mu   sync.RWMutex
	list []string
	some bool          // there are routes, perhaps of the other direction
	news chan struct{} // closed and made anew when list or some changes
}

func (f *filters) refresh() {
	var list []string
	some := false
	if f.routes != nil {
		some = f.routes.Len() > 0
		for _, filter := range f.routes.Filters() {
			if topic.ValidFilter(filter) && filter[0] != '$' {
				list = append(list, filter)
			}
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.news != nil && slices.Equal(list, f.list) && some == f.some {
		return
	}
	f.list, f.some = list, some
	if f.news != nil {
		close(f.news)
	}
	f.news = make(chan struct{})
}

func (f *filters) follow(ctx context.Context) {
	var changed <-chan struct{}
	if f.routes != nil {
		changed = f.routes.Changed()
	}
	for {
		select {
		case <-changed:
			f.refresh()
		case <-ctx.Done():
			return
		}
	}
}

func (f *filters) all() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.list
}

func (f *filters) any() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.some
}

// changed is closed when all would answer otherwise.
func (f *filters) changed() <-chan struct{} {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.news
}

// match says whether messages of a topic are routed.
func (f *filters) match(name string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, filter := range f.list {
		if topic.Matches(filter, name) {
			return true
		}
	}
	return false
}
