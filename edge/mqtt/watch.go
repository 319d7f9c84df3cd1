package mqtt

import (
	"context"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// watch follows the password file, and forgets sessions that the broker forgot.
func (h *hook) watch(ctx context.Context) {
	for pause(ctx, 2*time.Second) {
		h.sweep()
		h.embedded.loans.end(time.Now())
		if h.s.users != nil {
			h.followPasswords()
		}
	}
}

func (h *hook) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for cl := range h.sessions {
		if cl.Closed() {
			if now, _ := h.embedded.server.Clients.Get(cl.ID); now != cl {
				h.forget(cl)
			}
		}
	}
}

// followPasswords ends the connections of users that are gone or have another
// password.
func (h *hook) followPasswords() {
	changed, err := h.s.users.reload()
	if err != nil {
		if err.Error() != h.complained {
			h.complained = err.Error()
			h.s.o.Log.Error("the MQTT passwords of before hold", "error", err)
		}
		return
	}
	h.complained = ""
	if !changed {
		return
	}
	h.s.o.Log.Info("read the MQTT password file", "file", h.s.users.file)
	h.mu.Lock()
	var gone []*mochi.Client
	for cl, s := range h.sessions {
		if h.s.users.line(s.name) != s.line && !cl.Closed() {
			gone = append(gone, cl)
		}
	}
	h.mu.Unlock()
	for _, cl := range gone {
		_ = h.embedded.server.DisconnectClient(cl, packets.ErrNotAuthorized)
	}
}
