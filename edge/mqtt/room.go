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

func (i *inflight) full() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bytes > inflightRoom
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

// OnRetainPublished lets a client that subscribes to very many retained messages read
// them before there are more: it holds up itself alone.
func (h *hook) OnRetainPublished(cl *mochi.Client, _ packets.Packet) {
	s := h.session(cl)
	c, ok := cl.Net.Conn.(*conn)
	if s == nil || !ok {
		return
	}
	queued := s.queued.Add(1)
	for queued-s.sent.Load() > maxQueued/2 && !cl.Closed() {
		time.Sleep(time.Millisecond) // the broker's own queue tells nobody of its length
	}
	c.drain(maxUnread / 4)
}

// OnPacketSent counts what OnRetainPublished waits for.
func (h *hook) OnPacketSent(cl *mochi.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type != packets.Publish {
		return
	}
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
