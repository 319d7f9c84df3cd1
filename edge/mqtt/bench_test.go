package mqtt

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// BenchmarkReports is how many reports a second are acknowledged, and so stored: 20
// devices, each with up to 100 unacknowledged, and a dashboard that sees all.
func BenchmarkReports(b *testing.B) {
	b.Run("embedded", func(b *testing.B) {
		n := newNode(b, Config{}, twenty()...)
		reports(b, n, n.address())
	})
	b.Run("mosquitto", func(b *testing.B) {
		m := newMosquitto(b, "allow_anonymous true", "max_inflight_messages 200", "max_queued_messages 100000", "autosave_on_changes false", "autosave_interval 1800")
		m.start()
		n := newNode(b, Config{Broker: "tcp://" + m.address}, twenty()...)
		n.connected()
		reports(b, n, m.address)
	})
}

func twenty() []any {
	objects := []any{thermostats("plant")}
	for i := range 20 {
		objects = append(objects, thermostat("plant", fmt.Sprint("d", i)))
	}
	return objects
}

func reports(b *testing.B, n *node, address string) {
	dashboard := dial(b, address, "dashboard", nil)
	var seen atomic.Int64
	dashboard.Subscribe("holdfast/+/+/report", 0, func(paho.Client, paho.Message) { seen.Add(1) }).Wait()
	var clients []*client
	for i := range 20 {
		clients = append(clients, dial(b, address, fmt.Sprint("d", i), nil))
	}
	b.ResetTimer()
	began := time.Now()
	var group sync.WaitGroup
	for i, c := range clients {
		group.Go(func() {
			room := make(chan struct{}, 100)
			for j := i; j < b.N; j += len(clients) {
				room <- struct{}{}
				token := c.Publish(fmt.Sprintf("holdfast/plant/d%d/report", i), 1, false, fmt.Sprintf(`{"temperature":%d.5,"on":true}`, j%100))
				go func() {
					if token.Wait(); token.Error() != nil {
						b.Error(token.Error())
					}
					<-room
				}()
			}
			for range cap(room) {
				room <- struct{}{}
			}
		})
	}
	group.Wait()
	eventually(b, "all is stored", func() bool { return n.server.desk.count.messages.Load() >= uint64(b.N) })
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "reports/s")
	eventually(b, "the dashboard has seen all", func() bool {
		return seen.Load()+int64(n.server.desk.count.dropped.Load()) >= int64(b.N)
	})
	b.ReportMetric(float64(n.server.desk.count.dropped.Load()), "dropped")
}
