package link_test

import (
	"os"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// BenchmarkIdleLine measures what an idle line costs, with the headers of IP and
// TCP or UDP, over twenty keepalives and two pings of the hub. The interval is a
// fifth of a second, or HOLDFAST_KEEPALIVE; docs/line.md has the figures of a day.
func BenchmarkIdleLine(b *testing.B) {
	every := 200 * time.Millisecond
	if text := os.Getenv("HOLDFAST_KEEPALIVE"); text != "" {
		var err error
		if every, err = time.ParseDuration(text); err != nil {
			b.Fatal(err)
		}
	}
	const keepalives = 20
	timing := link.Timing{KeepAlive: every, EdgeSilent: linktest.Patience, UserTimeout: linktest.Patience, HubSilent: linktest.Patience + 25*every}.Complete()
	for name, start := range map[string]func(ca *pki.CA) (*linktest.Hub, func(link.DialOptions) link.Dialer){
		"websocket": func(ca *pki.CA) (*linktest.Hub, func(link.DialOptions) link.Dialer) {
			return linktest.StartHub(b, ca, timing), link.DialWebsocket
		},
		"quic": func(ca *pki.CA) (*linktest.Hub, func(link.DialOptions) link.Dialer) {
			return linktest.StartQUICHub(b, ca, timing).Hub, link.DialQUIC
		},
	} {
		b.Run(name, func(b *testing.B) {
			hub, dial := start(linktest.NewCA(b))
			accepted := make(chan link.Conn, 1)
			go func() {
				c, err := hub.Accept(b.Context())
				if err != nil {
					b.Errorf("accept: %v", err)
				}
				accepted <- c
			}()
			edge, err := dial(hub.DialOptions(b, "pi-1")).Dial(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			far := <-accepted
			for _, c := range []link.Conn{edge, far} {
				go func() { _, _ = c.Recv(b.Context()) }()
			}
			for b.Loop() {
				<-time.After(every + every/2) // what the handshake left behind is over
				before := edge.Traffic()
				<-time.After(keepalives * every)
				after := edge.Traffic()
				total := float64(after.Sent - before.Sent + after.Received - before.Received)
				b.ReportMetric(total/keepalives, "B/keepalive")
				b.ReportMetric(total/keepalives*float64(24*time.Hour)/float64(link.DefaultKeepAlive)/1000, "kB/day-at-28s")
			}
			_, _ = edge.Close(), far.Close()
		})
	}
}
