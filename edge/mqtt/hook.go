package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/sync/semaphore"

	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Room for messages that are on their way to the store, in bytes; each counts
// messageCost more than its payload. Beyond it the broker reads no more of the
// client (clientRoom), or of whoever comes last (allRoom).
const (
	messageCost = 1 << 10
	clientRoom  = 512 << 10
	allRoom     = 8 << 20
)

// Room for messages that wait for the acknowledgement of one client and of all. Where
// that of all is full, each may have its share: sessions that nobody comes back to must
// not silence those who acknowledge.
const (
	inflightRoom    = 2 << 20
	allInflightRoom = 32 << 20
	inflightShare   = 16 << 10
)

// Room for messages that clients retain.
const (
	maxRetained      = 10_000
	maxRetainedBytes = 8 << 20
)

// hook is what edgecore adds to the broker: who may do what, and messages about
// devices, which are acknowledged only when they are stored.
type hook struct {
	mochi.HookBase
	ctx      context.Context
	s        *Server
	embedded *embedded
	room     *semaphore.Weighted

	waits atomic.Int64 // bytes in all sessions' inflight
	late  atomic.Pointer[late]

	mu            sync.Mutex
	sessions      map[*mochi.Client]*session
	retained      map[string]int // sizes of what clients retain
	retainedBytes int
	denied        map[string]time.Time // when a device was told so
	complained    string               // about the password file
}

// session is one connection.
type session struct {
	user topic.User
	name string // of the user
	line string // in the password file
	room *semaphore.Weighted
	acks *order
	// handed are the messages that the library took for the client, sent those that
	// it has written.
	handed, sent atomic.Int64
	waits        inflight
	ids          ids
}

func newHook(ctx context.Context, s *Server, e *embedded) *hook {
	return &hook{
		ctx: ctx, s: s, embedded: e, room: semaphore.NewWeighted(allRoom),
		sessions: make(map[*mochi.Client]*session), retained: make(map[string]int), denied: make(map[string]time.Time),
	}
}

// ID names the hook.
func (h *hook) ID() string { return "holdfast" }

// Provides says which methods are to be called.
func (h *hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{
		mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnDisconnect, mochi.OnPublish,
		mochi.OnPublishDropped, mochi.OnRetainMessage, mochi.OnRetainPublished, mochi.OnPacketSent, mochi.OnWill, mochi.OnWillSent,
		mochi.OnSessionEstablish, mochi.OnSubscribe, mochi.OnClientExpired, mochi.OnQosPublish, mochi.OnQosComplete, mochi.OnQosDropped,
		mochi.OnPacketRead, mochi.OnPacketEncode, mochi.OnSubscribed,
	}, b) >= 0
}

// OnConnect refuses what would cost too much.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	c, known := h.embedded.server.Clients.Get(cl.ID)
	h.s.desk.count.connections.Add(1)
	if len(cl.ID) > 256 || !known && h.embedded.server.Clients.Len() > maxSessions || known && c.Net.Inline {
		h.s.desk.count.rejected.Add(1)
		_ = h.embedded.server.SendConnack(cl, packets.ErrClientIdentifierNotValid, false, nil)
		return packets.ErrClientIdentifierNotValid
	}
	return nil
}

// OnConnectAuthenticate says who a client is.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	s, err := h.authenticate(cl, pk)
	if err != nil {
		h.s.desk.count.rejected.Add(1)
		h.s.o.Log.Warn("an MQTT client is refused", "client", clip(cl.ID), "remote", cl.Net.Remote, "error", err)
		return false
	}
	s.room = semaphore.NewWeighted(clientRoom)
	s.acks = &order{broken: func(err error) { h.broken(cl, err) }}
	h.mu.Lock()
	h.sessions[cl] = s
	h.mu.Unlock()
	return true
}

func (h *hook) authenticate(cl *mochi.Client, pk packets.Packet) (*session, error) {
	s := new(session)
	if c, ok := cl.Net.Conn.(*conn); ok {
		s.name = c.certified()
	}
	if users := h.s.users; users != nil {
		s.name = string(pk.Connect.Username)
		if !users.check(s.name, pk.Connect.Password) {
			return nil, fmt.Errorf("user %s: wrong user or password", clip(s.name))
		}
		s.line = users.line(s.name)
	}
	s.user = topic.ParseUser(s.name)
	if s.user.Device != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if other, ok := h.embedded.server.Clients.Get(cl.ID); ok {
			if o := h.sessions[other]; o != nil && o.name != s.name {
				return nil, fmt.Errorf("user %s: the client id is that of user %s: choose another one", clip(s.name), clip(o.name))
			}
		}
	}
	if will := cl.Properties.Will; will.Flag != 0 {
		if !mochi.IsValidFilter(will.TopicName, true) || !s.user.MayPublish(will.TopicName) || len(will.Payload) > maxPayload {
			return nil, fmt.Errorf("user %s: a will to %s is not allowed", clip(s.name), clip(will.TopicName))
		}
	}
	return s, nil
}

func (h *hook) session(cl *mochi.Client) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[cl]
}

// OnSessionEstablish forgets the session that this one replaces.
func (h *hook) OnSessionEstablish(cl *mochi.Client, _ packets.Packet) {
	if other, ok := h.embedded.server.Clients.Get(cl.ID); ok {
		h.mu.Lock()
		if was, is := h.sessions[other], h.sessions[cl]; was != nil && is != nil && !cl.Properties.Clean {
			is.ids.inherit(&was.ids)
		}
		h.forget(other)
		h.mu.Unlock()
	}
}

// forget ends a session; mu is held.
func (h *hook) forget(cl *mochi.Client) {
	if s := h.sessions[cl]; s != nil {
		h.waits.Add(s.waits.end())
		delete(h.sessions, cl)
	}
}

// OnSubscribe makes filters invalid that there is no room for, and lends the library
// what it shall send for the others.
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	room := maxSubscriptions - cl.State.Subscriptions.Len()
	for i := range pk.Filters {
		_, again := cl.State.Subscriptions.Get(pk.Filters[i].Filter)
		if !again {
			room--
		}
		if room < 0 && !again || topic.Problem(pk.Filters[i].Filter) != "" {
			pk.Filters[i].Filter = ""
		}
		if s := h.session(cl); s != nil && s.user.MaySubscribe(pk.Filters[i].Filter) {
			h.embedded.loans.subscribe(pk.Filters[i].Filter, h.s.o.Devices, time.Now())
		}
	}
	return pk
}

// OnACLCheck says whether a client may subscribe to a filter and be sent what matches
// it.
func (h *hook) OnACLCheck(cl *mochi.Client, name string, write bool) bool {
	s := h.session(cl)
	if s == nil {
		return false
	}
	if !write {
		if !s.user.MaySubscribe(name) {
			return false
		}
		most := inflightRoom
		if h.waits.Load() > allInflightRoom {
			most = inflightShare
		}
		if s.waits.full(most) {
			h.s.desk.count.dropped.Add(1)
			return false
		}
		if s.handed.Add(1)-s.sent.Load() > maxQueued/2 {
			h.late.Store(&late{cl, s})
		}
		return true
	}
	return true // OnPublish decides: the library would end the connection, and the client would try again for ever
}

// deny tells a device that it may not publish somewhere, once a second.
func (h *hook) deny(s *session, name string) {
	h.s.desk.count.refused.Add(1)
	if s.user.Device == nil {
		return
	}
	h.mu.Lock()
	again := time.Since(h.denied[s.name]) < time.Second
	if !again {
		if len(h.denied) > 2*MaxClients {
			clear(h.denied)
		}
		h.denied[s.name] = time.Now()
	}
	h.mu.Unlock()
	if !again {
		h.embedded.publish(outgoing{topic: topic.Result(*s.user.Device), payload: payload.Marshal(payload.Answer{
			Error: "user " + s.name + ": " + errForbidden.Error(), Code: forbidden, Topic: clip(name),
		})})
	}
}

// OnPublish takes messages about devices and routed ones. They are acknowledged, and
// sent to subscribers, when they are stored.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	s := h.session(cl)
	if s == nil {
		return pk, packets.ErrRejectPacket
	}
	if !s.user.MayPublish(pk.TopicName) {
		pk.PacketID = s.ids.client()
		h.deny(s, pk.TopicName)
		h.settle(cl, s, pk, verdict{code: forbidden, refused: errForbidden})
		return pk, packets.ErrRejectPacket
	}
	if !h.s.desk.wants(pk.TopicName) {
		if len(pk.Payload) > maxPayload {
			pk.PacketID = s.ids.client()
			h.settle(cl, s, pk, verdict{code: payload.TooLarge, refused: errTooLarge(pk)})
			return pk, packets.ErrRejectPacket
		}
		if pk.FixedHeader.Retain {
			pk.FixedHeader.Retain = h.mayRetain(pk)
		}
		return pk, nil
	}
	cost := min(int64(len(pk.Payload))+messageCost, clientRoom)
	if s.room.Acquire(h.ctx, cost) != nil || h.room.Acquire(h.ctx, cost) != nil {
		cl.Stop(packets.ErrServerShuttingDown)
		return pk, packets.ErrRejectPacket
	}
	free := func() { h.room.Release(cost); s.room.Release(cost) }
	m := message{topic: pk.TopicName, payload: pk.Payload}
	if to := pk.Properties.ResponseTopic; to != "" && h.mayRespond(s, to) {
		m.respondTo, m.correlation = to, pk.Properties.CorrelationData
	}
	if pk.FixedHeader.Qos == 2 {
		return h.twice(cl, s, pk, m, free)
	}
	pk.PacketID = s.ids.client()
	place := s.acks.open()
	h.s.desk.take(h.ctx, m, func(v verdict) {
		s.acks.settle(place, func() {
			h.acknowledge(cl, pk, v)
			h.forward(pk, v)
		}, v.failed)
		h.embedded.queue.after(free)
	})
	return pk, packets.ErrRejectPacket
}

// twice is OnPublish for QoS 2: the broker answers when this returns.
func (h *hook) twice(cl *mochi.Client, s *session, pk packets.Packet, m message, free func()) (packets.Packet, error) {
	settled := make(chan verdict, 1)
	h.s.desk.take(h.ctx, m, func(v verdict) { settled <- v })
	v := <-settled
	h.embedded.queue.after(free)
	if v.failed != nil {
		h.broken(cl, v.failed)
		return pk, packets.ErrRejectPacket
	}
	pk.FixedHeader.Retain = false
	if v.refused != nil {
		return pk, packets.CodeSuccessIgnore
	}
	return pk, nil
}

// mayRespond says whether an answer may go to a topic: where the client may publish
// itself, or to a topic for answers of its own.
func (h *hook) mayRespond(s *session, to string) bool {
	if !mochi.IsValidFilter(to, true) {
		return false
	}
	return s.user.MayPublish(to) || s.user.Device != nil && to == topic.Result(*s.user.Device)
}

// settle answers a message that needs no store, in its turn.
func (h *hook) settle(cl *mochi.Client, s *session, pk packets.Packet, v verdict) {
	s.acks.settle(s.acks.open(), func() { h.acknowledge(cl, pk, v) }, nil)
}

// acknowledge ends the sending of a message. MQTT 5 can say that it was refused.
func (h *hook) acknowledge(cl *mochi.Client, pk packets.Packet, v verdict) {
	if pk.FixedHeader.Qos == 0 {
		return
	}
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID, Origin: ours}
	if pk.FixedHeader.Qos == 2 {
		ack.FixedHeader.Type = packets.Pubrec
	}
	if v.refused != nil && cl.Properties.ProtocolVersion == 5 {
		ack.ReasonCode, ack.Properties.ReasonString = reason(v.code), clip(v.refused.Error())
	}
	_ = cl.WritePacket(ack) // a client that is gone sends it again
}

// reason is the code of MQTT 5 for one of KubeEdge's.
func reason(code int) byte {
	switch code {
	case payload.BadRequest:
		return packets.ErrPayloadFormatInvalid.Code
	case payload.NotFound:
		return packets.ErrTopicNameInvalid.Code
	case payload.TooLarge:
		return packets.ErrPacketTooLarge.Code
	case payload.TooMany:
		return packets.ErrQuotaExceeded.Code
	case forbidden:
		return packets.ErrNotAuthorized.Code
	}
	return packets.ErrImplementationSpecificError.Code
}

// forward sends a message to those who subscribed to its topic, such as a dashboard.
// What was refused is nobody's business. It is not retained: the values in force are
// edge/device's to tell.
func (h *hook) forward(pk packets.Packet, v verdict) {
	if v.refused != nil || !h.embedded.listens(pk.TopicName) {
		return
	}
	pk.FixedHeader.Retain, pk.FixedHeader.Dup = false, false
	h.embedded.queue.add(pk, nil)
}

// broken ends a connection whose message could not be stored: the client sends it
// again when it has connected anew, and only then.
func (h *hook) broken(cl *mochi.Client, err error) {
	h.s.o.Log.Warn("an MQTT message could not be stored; its client must send it again", "client", clip(cl.ID), "error", err)
	h.embedded.queue.after(func() { // what it is told comes before
		if cl.Properties.ProtocolVersion == 5 {
			_ = h.embedded.server.DisconnectClient(cl, packets.ErrImplementationSpecificError)
		}
		cl.Stop(packets.ErrImplementationSpecificError)
	})
}

// OnWillSent hears a device's last will, unless its client only connected anew.
func (h *hook) OnWillSent(cl *mochi.Client, pk packets.Packet) {
	if cl.IsTakenOver() || h.ctx.Err() != nil || !h.s.desk.wants(pk.TopicName) {
		return
	}
	h.s.desk.take(h.ctx, message{topic: pk.TopicName, payload: pk.Payload}, func(verdict) {})
}

// OnDisconnect ends a session.
func (h *hook) OnDisconnect(cl *mochi.Client, err error, expire bool) {
	if errors.Is(err, packets.ErrPacketTooLarge) {
		h.s.o.Log.Warn("an MQTT client sent a packet that is too large", "client", clip(cl.ID), "limit", maxPacket)
		if s := h.session(cl); s != nil && s.user.Device != nil {
			h.tooLarge(*s.user.Device)
		}
	}
	if expire || cl.IsTakenOver() {
		h.mu.Lock()
		h.forget(cl)
		h.mu.Unlock()
	}
}

// tooLarge answers a packet that was not even read.
func (h *hook) tooLarge(key twin.Key) {
	h.embedded.publish(outgoing{topic: topic.Result(key), payload: payload.Marshal(payload.Answer{
		Error: fmt.Sprintf("a packet was larger than %d bytes: a payload may have %d", maxPacket, maxPayload), Code: payload.TooLarge,
	})})
}

// OnClientExpired forgets what the broker does not.
func (h *hook) OnClientExpired(cl *mochi.Client) {
	cl.ClearInflights()
	h.embedded.server.UnsubscribeClient(cl)
	h.mu.Lock()
	h.forget(cl)
	h.mu.Unlock()
}

// forbidden is the code of what a user may not do.
const forbidden = 403

var errForbidden = errors.New("a device may publish to its own topics only, and nobody where edgecore answers")

func errTooLarge(pk packets.Packet) error {
	return fmt.Errorf("the payload has %d bytes, and %d is the limit", len(pk.Payload), maxPayload)
}

func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
