package mqtt

import (
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// inflight counts the bytes of messages that wait for acknowledgement.
type inflight struct {
	mu    sync.Mutex
	sizes map[uint16]int
	bytes int
	ended bool
}

// set notes the size of a message, 0 when it waits no more, and returns by how much
// the sum has changed.
func (i *inflight) set(id uint16, size int) int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return 0
	}
	change := size - i.sizes[id]
	if size == 0 {
		delete(i.sizes, id)
	} else {
		if i.sizes == nil {
			i.sizes = make(map[uint16]int)
		}
		i.sizes[id] = size
	}
	i.bytes += change
	return int64(change)
}

func (i *inflight) full(most int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bytes > most
}

// end returns what is given back with the session.
func (i *inflight) end() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	return int64(-i.bytes)
}

// OnQosPublish counts what waits for a client's acknowledgement.
func (h *hook) OnQosPublish(cl *mochi.Client, pk packets.Packet, _ int64, _ int) {
	if pk.FixedHeader.Type == packets.Publish {
		if s := h.session(cl); s != nil {
			h.waits.Add(s.waits.set(pk.PacketID, len(pk.Payload)+len(pk.TopicName)+1))
		}
	}
}

// OnQosComplete ends the wait.
func (h *hook) OnQosComplete(cl *mochi.Client, pk packets.Packet) {
	if s := h.session(cl); s != nil {
		h.waits.Add(s.waits.set(pk.PacketID, 0))
	}
}

// OnQosDropped ends the wait, too.
func (h *hook) OnQosDropped(cl *mochi.Client, pk packets.Packet) { h.OnQosComplete(cl, pk) }

// late is a client for which the library has much to write. It writes without being
// held up (see conn), so that this lasts only as long as other work takes.
type late struct {
	client  *mochi.Client
	session *session
}

// patienceWithLate bounds that, for what the counters cannot see: messages that wait
// for acknowledgements first (MQTT 5's receive maximum), or that there was no room for.
const patienceWithLate = 50 * time.Millisecond

func (l *late) wait() {
	for began := time.Now(); l.session.handed.Load()-l.session.sent.Load() > maxQueued/2 && !l.client.Closed(); {
		most := int(l.client.Properties.Props.ReceiveMaximum)
		if most > 0 && l.client.State.Inflight.Len() >= most || time.Since(began) > patienceWithLate {
			l.session.handed.Store(l.session.sent.Load())
			return
		}
		time.Sleep(time.Millisecond) // the library tells nobody of the length of its queue
	}
}

// catchUp waits until no client is late, before there is more for it.
func (h *hook) catchUp() {
	if l := h.late.Swap(nil); l != nil {
		l.wait()
	}
}

// OnRetainPublished lets a client that subscribes to very many retained messages read
// them before there are more: it holds up itself alone.
func (h *hook) OnRetainPublished(cl *mochi.Client, _ packets.Packet) {
	if s := h.session(cl); s != nil {
		(&late{cl, s}).wait()
	}
	if c, ok := cl.Net.Conn.(*conn); ok {
		c.drain(maxUnread / 4)
	}
}

// OnSubscribed takes back what OnACLCheck has counted of the filters.
func (h *hook) OnSubscribed(cl *mochi.Client, _ packets.Packet, codes []byte) {
	if s := h.session(cl); s != nil {
		for _, code := range codes {
			if code <= 2 {
				s.handed.Add(-1)
			}
		}
	}
}

// OnPacketSent counts what was written.
func (h *hook) OnPacketSent(cl *mochi.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type != packets.Publish {
		return
	}
	if s := h.session(cl); s != nil {
		s.sent.Add(1)
	}
}

// OnPublishDropped counts what will never be written.
func (h *hook) OnPublishDropped(cl *mochi.Client, _ packets.Packet) {
	h.s.desk.count.dropped.Add(1)
	if s := h.session(cl); s != nil {
		s.sent.Add(1)
	}
}

// mayRetain says whether there is room to retain a client's message.
func (h *hook) mayRetain(pk packets.Packet) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, there := h.retained[pk.TopicName]
	if len(pk.Payload) == 0 {
		return true
	}
	if !there && len(h.retained) >= maxRetained || h.retainedBytes-was+len(pk.Payload)+len(pk.TopicName) > maxRetainedBytes {
		h.s.desk.count.dropped.Add(1)
		return false
	}
	return true
}

// OnWill holds a last will to the rules of other messages: updates are not retained, and
// the rest where there is room.
func (h *hook) OnWill(_ *mochi.Client, will mochi.Will) (mochi.Will, error) {
	if will.Retain && (h.s.desk.wants(will.TopicName) || !h.mayRetain(packets.Packet{TopicName: will.TopicName, Payload: will.Payload})) {
		will.Retain = false
	}
	return will, nil
}

// OnRetainMessage counts what clients retain.
func (h *hook) OnRetainMessage(cl *mochi.Client, pk packets.Packet, _ int64) {
	if cl.Net.Inline {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.retainedBytes -= h.retained[pk.TopicName]
	delete(h.retained, pk.TopicName)
	if len(pk.Payload) > 0 {
		size := len(pk.Payload) + len(pk.TopicName)
		h.retained[pk.TopicName] = size
		h.retainedBytes += size
	}
}
