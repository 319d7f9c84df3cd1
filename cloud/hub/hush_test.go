package hub

import (
	"testing"
	"time"
)

func TestANodeInALoopFillsNoLog(t *testing.T) {
	var h hush
	now := time.Now()
	told := 0
	for range 1000 {
		if ok, left := h.mayTell("loop", now); ok {
			told++
			if left != 0 {
				t.Errorf("%d lines were left out before any was", left)
			}
		}
	}
	if told != maxLines {
		t.Errorf("%d lines about one node in a minute", told)
	}
	if ok, left := h.mayTell("other", now); !ok || left != 1000-maxLines {
		t.Errorf("another node: %v, and %d lines left out", ok, left)
	}
	if ok, left := h.mayTell("loop", now.Add(time.Minute)); !ok || left != 0 || len(h.lines) != 1 {
		t.Errorf("a minute later: %v, %d left out, %d nodes kept", ok, left, len(h.lines))
	}
}
