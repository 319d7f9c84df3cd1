package stream

import (
	"strings"
	"sync"
	"time"
)

// maxLine is how much is kept of one line.
const maxLine = 8 << 10

// Ring keeps the latest lines of a log, for where no journal does: each Write is a line,
// as slog's handlers write them. The oldest are dropped beyond so many bytes.
type Ring struct {
	most int

	mu    sync.Mutex
	size  int
	lines []line // oldest first
}

type line struct {
	at   time.Time
	text string
}

// NewRing makes one for that many bytes of text.
func NewRing(most int) *Ring { return &Ring{most: most} }

// Write never fails.
func (r *Ring) Write(b []byte) (int, error) {
	text := strings.ToValidUTF8(string(b[:min(len(b), maxLine)]), "\ufffd")
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line{time.Now(), text})
	r.size += len(text)
	drop := 0
	for ; r.size > r.most && drop < len(r.lines); drop++ {
		r.size -= len(r.lines[drop].text)
	}
	if drop > 0 {
		r.lines = append(r.lines[:0], r.lines[drop:]...)
		clear(r.lines[len(r.lines):cap(r.lines)])
	}
	return len(b), nil
}

// snapshot is what there is now.
func (r *Ring) snapshot() []line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]line(nil), r.lines...)
}
