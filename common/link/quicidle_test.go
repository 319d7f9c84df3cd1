package link_test

import (
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
)

// TestIdleQUICCostsLittle counts the packets of some keepalives and works out
// those of a day at the usual interval. Retransmissions on a slow machine only
// add to the count, so the bound is loose: it is for gross mistakes.
func TestIdleQUICCostsLittle(t *testing.T) {
	t.Parallel()
	timing := quiet()
	timing.KeepAlive = 100 * time.Millisecond
	hub := linktest.StartQUICHub(t, linktest.NewCA(t), quiet())
	way := linktest.NewUDPProxy(t, hub.Addr)
	o := hub.DialOptions(t, "pi-1")
	o.Hubs, o.Timing = []string{way.Addr()}, timing
	edge, far := connect(t, link.DialQUIC(o), hub.Hub)
	listen(t, edge)
	listen(t, far)
	hear := func(times int) {
		ctx := patient(t)
		for range times {
			select {
			case <-far.Heard():
			case <-ctx.Done():
				t.Fatal("the idle edge is not heard")
			}
		}
	}
	hear(4) // the handshake's last packets are over
	const keepalives = 20
	packets, bytes := way.Count()
	hear(keepalives)
	p, b := way.Count()
	packets, bytes = p-packets, b-bytes
	const aDay = int64(24 * time.Hour / link.DefaultKeepAlive)
	perDay := (bytes + packets*28) * aDay / keepalives
	t.Logf("%d keepalives: %d packets, %d bytes without headers; a day: %d bytes", keepalives, packets, bytes, perDay)
	if perDay > 1_500_000 {
		t.Errorf("an idle day costs %d bytes", perDay)
	}
}
