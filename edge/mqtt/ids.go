package mqtt

import (
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// ids keeps packet identifiers of the two directions apart. Client and broker number
// their messages each on its own, and the broker library keeps both in one table: a
// client that publishes with the number of a message that it has not acknowledged yet
// would end the wait for that. So the library sees other numbers of the client's
// messages, from the top, where its own do not come.
type ids struct {
	mu sync.Mutex
	// now is the client's number of what is being read; the library answers it before
	// it reads on.
	now uint16
	// twos are the library's numbers of the client's QoS 2 messages under way.
	twos map[uint16]uint16
	last uint16
}

// ours marks an acknowledgement that has the client's number already.
const ours = "holdfast"

// free is a number that the library's table does not have; mu is held.
func (i *ids) free(cl *mochi.Client) uint16 {
	for range 1 << 16 {
		i.last--
		if i.last < 1<<15 {
			i.last = 1<<16 - 1
		}
		if _, taken := cl.State.Inflight.Get(i.last); !taken {
			return i.last
		}
	}
	return i.last
}

// read replaces the number of a packet that the client sent.
func (i *ids) read(cl *mochi.Client, pk packets.Packet) packets.Packet {
	i.mu.Lock()
	defer i.mu.Unlock()
	if pk.PacketID == 0 {
		return pk // it is malformed, or QoS 0
	}
	switch pk.FixedHeader.Type {
	case packets.Subscribe, packets.Unsubscribe:
		i.now, pk.PacketID = pk.PacketID, i.free(cl)
	case packets.Publish:
		i.now = pk.PacketID
		other, known := i.twos[pk.PacketID]
		if pk.FixedHeader.Qos < 2 || !known {
			other = i.free(cl)
		}
		if pk.FixedHeader.Qos == 2 {
			if i.twos == nil {
				i.twos = make(map[uint16]uint16)
			}
			i.twos[pk.PacketID] = other
		}
		pk.PacketID = other
	case packets.Pubrel:
		i.now = pk.PacketID
		if other, known := i.twos[pk.PacketID]; known {
			pk.PacketID = other
		}
	}
	return pk
}

// client is the client's number of what is being read.
func (i *ids) client() uint16 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now
}

// write gives the client its number back.
func (i *ids) write(pk packets.Packet) packets.Packet {
	if pk.Origin == ours {
		return pk
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch pk.FixedHeader.Type {
	case packets.Suback, packets.Unsuback, packets.Puback:
		pk.PacketID = i.now
	case packets.Pubrec, packets.Pubcomp:
		for client, other := range i.twos {
			if other == pk.PacketID {
				pk.PacketID = client
				if pk.FixedHeader.Type == packets.Pubcomp {
					delete(i.twos, client)
				}
				break
			}
		}
	}
	return pk
}

// inherit takes over what is under way in the session that this one goes on with.
func (i *ids) inherit(from *ids) {
	from.mu.Lock()
	twos := from.twos
	from.twos = nil
	from.mu.Unlock()
	i.mu.Lock()
	i.twos = twos
	i.mu.Unlock()
}

// OnPacketRead keeps the numbers of both directions apart.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if s := h.session(cl); s != nil {
		return s.ids.read(cl, pk), nil
	}
	return pk, nil
}

// OnPacketEncode does so, too.
func (h *hook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Suback, packets.Unsuback, packets.Puback, packets.Pubrec, packets.Pubcomp:
		if s := h.session(cl); s != nil {
			return s.ids.write(pk)
		}
	}
	return pk
}
