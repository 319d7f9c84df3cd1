package mqtt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestAcknowledgementsKeepTheirOrder, whichever order messages are settled in; after a
// failure there is none.
func TestAcknowledgementsKeepTheirOrder(t *testing.T) {
	for range 200 {
		var acked []int
		broken := 0
		o := &order{broken: func(error) { broken++ }}
		const n = 20
		fails := rand.IntN(2 * n) // or none
		var slots []*slot
		for range n {
			slots = append(slots, o.open())
		}
		for _, i := range rand.Perm(n) {
			var err error
			if i == fails {
				err = errors.New("disk full")
			}
			o.settle(slots[i], func() { acked = append(acked, i) }, err)
		}
		want, breaks := n, 0
		if fails < n {
			want, breaks = fails, 1
		}
		all := make([]int, want)
		for i := range all {
			all[i] = i
		}
		if fmt.Sprint(acked) != fmt.Sprint(all) || broken != breaks {
			t.Fatalf("message %d failed: acknowledged %v, broken %d times", fails, acked, broken)
		}
	}
}
