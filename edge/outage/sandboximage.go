package outage

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// madeBy is what sandboxes tell of the image that the next one is made from, for a
// runtime that does not tell itself (containerd 2.x). Sandboxes outlive an upgrade of the
// runtime, and the new version may want another image: so only those count that the
// version which answers has made. It is kept in the store, for an upgrade while edgecore
// is down.
type madeBy struct {
	Runtime string   `json:"runtime"`         // its name and version
	Older   []string `json:"older,omitempty"` // sandboxes that an earlier one may have made
	Image   string   `json:"image,omitempty"` // of the newest other; empty: there was none yet
}

const metaMadeBy = "sandboxes-made-by"

// meet takes in which runtime answers; false: what sandboxes tell is of no use now.
func (c *Checker) meet(ctx context.Context, rt Runtime, who string) bool {
	if c.madeBy.Runtime == who {
		c.keepMadeBy(ctx)
		return true
	}
	c.setup = runtime.Setup{} // of another one
	first := c.madeBy.Runtime == ""
	if first {
		kept, err := c.o.Store.Meta(ctx, metaMadeBy)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return false
		}
		var m madeBy
		if err == nil && json.Unmarshal(kept, &m) == nil && m.Runtime == who {
			c.madeBy, c.madeByKept = m, true
			return true
		}
	}
	running, err := rt.RunningSandboxes(ctx)
	if err != nil {
		return false
	}
	m := madeBy{Runtime: who}
	for _, s := range running {
		// After a boot edgecore makes them anew before it looks for the first time.
		if ours := first && !s.Made.Before(c.opened); !ours {
			m.Older = append(m.Older, s.ID)
		}
	}
	c.madeBy, c.madeByKept = m, false
	c.keepMadeBy(ctx)
	return true
}

// keepMadeBy writes it where it is not written yet: on a full disk the next look tries
// again, and an edgecore that is restarted meanwhile believes less, not more.
func (c *Checker) keepMadeBy(ctx context.Context) {
	if c.madeByKept {
		return
	}
	b, err := json.Marshal(c.madeBy)
	c.madeByKept = err == nil && c.o.Store.SetMeta(ctx, metaMadeBy, b) == nil
}

// imageOfSandboxes is the image that the newest sandbox of this very runtime was made
// from, or was when there still was one.
func (c *Checker) imageOfSandboxes(ctx context.Context, rt Runtime) string {
	running, err := rt.RunningSandboxes(ctx)
	if err != nil {
		return c.madeBy.Image
	}
	i := slices.IndexFunc(running, func(s runtime.MadeSandbox) bool { return !slices.Contains(c.madeBy.Older, s.ID) })
	if i < 0 {
		return c.madeBy.Image
	}
	if image := rt.SandboxImage(ctx, running[i].ID); image != "" && image != c.madeBy.Image {
		c.madeBy.Image, c.madeByKept = image, false
		c.keepMadeBy(ctx)
	}
	return c.madeBy.Image
}
