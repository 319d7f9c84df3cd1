package mqtt

import (
	"slices"
	"strings"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// loans hand the library what is retained on desired topics only while somebody
// subscribes: it would take several KiB of memory for each device, and go through all
// of it every second. What is desired is known anyway.
type loans struct {
	server *mochi.Server

	mu    sync.Mutex
	until map[string]time.Time // by topic
}

// loanFor is how long a message is lent: a subscription is answered at once.
const loanFor = 30 * time.Second

// subscribe lends what a filter matches, before the library looks for it. What is
// published from then on goes to the loan, too; what was published before is what
// the device's view says, or older.
func (l *loans) subscribe(filter string, of Devices, now time.Time) {
	if !strings.HasPrefix(filter, "holdfast/") && !strings.HasPrefix(filter, "+") && !strings.HasPrefix(filter, "#") {
		return
	}
	for _, v := range matching(filter, of) {
		if v.Definition == nil {
			continue
		}
		// The marks first: a change that comes after the view was read finds them.
		name := topic.Desired(v.Key)
		marked := l.mark(filter, name, now)
		for property := range v.Properties {
			marked = l.mark(filter, topic.DesiredOne(v.Key, property), now) || marked
		}
		if !marked {
			continue
		}
		if v, err := of.Get(v.Key); err == nil {
			want := payload.Desired(v)
			l.fill(name, payload.Typed(v, want))
			for property, text := range want {
				l.fill(topic.DesiredOne(v.Key, property), []byte(text))
			}
		}
	}
}

// matching are the devices of which a filter may match a desired topic.
func matching(filter string, of Devices) []device.View {
	if levels := strings.SplitN(filter, "/", 4); len(levels) == 4 && !slices.ContainsFunc(levels[:3], func(s string) bool { return s == "+" || s == "#" }) {
		v, err := of.Get(twin.Key{Namespace: levels[1], Name: levels[2]})
		if err != nil {
			return nil
		}
		return []device.View{v}
	}
	return of.List()
}

func (l *loans) mark(filter, name string, now time.Time) bool {
	if !topic.Matches(filter, name) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until[name] = now.Add(loanFor)
	return true
}

// fill retains a message on a topic that is on loan.
func (l *loans) fill(name string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, lent := l.until[name]; lent {
		pk := packet(outgoing{topic: name, payload: body, retain: true})
		pk.Origin, pk.Created = mochi.InlineClientId, time.Now().Unix()
		l.server.Topics.RetainMessage(pk)
	}
}

// end takes back what was lent long enough ago.
func (l *loans) end(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, until := range l.until {
		if now.After(until) {
			delete(l.until, name)
			l.server.Topics.RetainMessage(packet(outgoing{topic: name}))
		}
	}
}
