package hub

import (
	"sync"
	"time"
)

// hush bounds what is logged about one node's coming and going: a node that
// connects in a loop, broken or hostile, fills no log. It keeps the nodes of the
// present minute only.
type hush struct {
	mu    sync.Mutex
	began time.Time
	lines map[string]int // of the present minute
	left  uint64         // out, since the last one that told of it
}

// maxLines is how many lines there are about one node in a minute.
const maxLines = 10

// mayTell says whether one more line about a node may be logged, and how many
// lines, of all nodes, were left out that nobody has told of.
func (h *hush) mayTell(node string, now time.Time) (ok bool, left uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lines == nil || now.Sub(h.began) >= time.Minute {
		h.began, h.lines = now, make(map[string]int)
	}
	if h.lines[node] >= maxLines {
		h.left++
		return false, 0
	}
	h.lines[node]++
	left, h.left = h.left, 0
	return true, left
}
