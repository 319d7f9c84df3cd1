package uplink

import (
	"errors"
	"fmt"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// session is the edge's half of one conversation, without I/O and without a
// clock: messages of the hub go in, actions come out, and the driver does them
// in their order before it hands in the next message.
type session struct {
	id       string // the hub's name for it; empty until the Welcome
	welcomed bool
	seq      uint64 // of the last Changes received
	acked    uint64 // of the last Changes acknowledged
	complete bool   // the hub has said that it sent everything, and it was so
}

// An action is one thing for the driver to do; exactly one field is set.
type action struct {
	welcome   *wire.Welcome      // the session is open
	inventory bool               // send what the store holds
	apply     *wire.Changes      // commit it, then call committed
	compare   []byte             // compare with the store's digest, then call compared
	complete  bool               // the store holds everything: remember it
	result    *wire.ReportResult // for the outbox
	token     *wire.TokenAnswer  // for whoever asked
}

var (
	errProtocol   = errors.New("the hub broke the protocol")
	errDifference = errors.New("the hub says that everything is sent, but the store's digest differs: asking for the difference again")
)

// goodbyeError is the hub's reason for ending the session.
type goodbyeError struct {
	reason  wire.Goodbye_Reason
	message string
}

func (e *goodbyeError) Error() string {
	remedy := map[wire.Goodbye_Reason]string{
		wire.Goodbye_REASON_PROTOCOL_VERSION: "edgecore and cloudcore share no protocol version: bring the older one up to date",
		wire.Goodbye_REASON_REPLACED:         "this node connected a second time",
		wire.Goodbye_REASON_DUPLICATE:        "another machine is connected under this node's name: give one of them another name (holdfast reset, then holdfast join --node-name)",
		wire.Goodbye_REASON_SHUTDOWN:         "the hub is stopping",
		wire.Goodbye_REASON_PROTOCOL_ERROR:   "the hub did not accept what this node sent",
		wire.Goodbye_REASON_REVOKED:          "this node's certificate was revoked: join it again (holdfast reset, then holdfast join)",
		wire.Goodbye_REASON_BUSY:             "the hub is busy",
	}[e.reason]
	if remedy == "" {
		remedy = "the hub ended the session (" + e.reason.String() + ")"
	}
	if e.message != "" {
		remedy += ": " + e.message
	}
	return remedy
}

// hello opens the conversation.
func hello(digest []byte, version, storeID string) *wire.EdgeMessage {
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: &wire.Hello{
		ProtocolVersions: []uint32{wire.ProtocolVersion}, Digest: digest, EdgeVersion: version, StoreId: storeID,
	}}}
}

// receive takes the hub's next message. An error ends the session.
func (s *session) receive(m *wire.HubMessage) ([]action, error) {
	if bye, ok := m.GetBody().(*wire.HubMessage_Goodbye); ok {
		return nil, &goodbyeError{bye.Goodbye.GetReason(), bye.Goodbye.GetMessage()}
	}
	if w, ok := m.GetBody().(*wire.HubMessage_Welcome); ok {
		return s.welcome(w.Welcome)
	}
	if m.GetBody() == nil { // a message that a newer hub knows
		return nil, nil
	}
	if !s.welcomed {
		return nil, fmt.Errorf("%w: %T before the welcome", errProtocol, m.GetBody())
	}
	switch body := m.GetBody().(type) {
	case *wire.HubMessage_InventoryAsk:
		return []action{{inventory: true}}, nil
	case *wire.HubMessage_Changes:
		if got, want := body.Changes.GetSeq(), s.seq+1; got != want {
			return nil, fmt.Errorf("%w: changes number %d where %d must follow", errProtocol, got, want)
		}
		s.seq++
		return []action{{apply: body.Changes}}, nil
	case *wire.HubMessage_Synced:
		return []action{{compare: body.Synced.GetDigest()}}, nil
	case *wire.HubMessage_ReportResult:
		return []action{{result: body.ReportResult}}, nil
	case *wire.HubMessage_TokenAnswer:
		return []action{{token: body.TokenAnswer}}, nil
	}
	return nil, nil
}

func (s *session) welcome(w *wire.Welcome) ([]action, error) {
	if s.welcomed {
		return nil, fmt.Errorf("%w: a second welcome", errProtocol)
	}
	if w.GetProtocolVersion() != wire.ProtocolVersion {
		return nil, fmt.Errorf("%w: it chose protocol version %d, this edgecore speaks %d: bring the older of the two up to date",
			errProtocol, w.GetProtocolVersion(), wire.ProtocolVersion)
	}
	s.welcomed, s.id = true, w.GetSession()
	acts := []action{{welcome: w}}
	if w.GetInSync() {
		s.complete = true
		acts = append(acts, action{complete: true})
	}
	return acts, nil
}

// committed is told when Changes seq are on the disk, and returns the
// acknowledgement. There is no other way to one.
func (s *session) committed(seq uint64) *wire.EdgeMessage {
	s.acked = seq
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: seq}}}
}

// compared is told whether the store's digest is the hub's.
func (s *session) compared(equal bool) ([]action, error) {
	if !equal {
		return nil, errDifference
	}
	if s.complete {
		return nil, nil
	}
	s.complete = true
	return []action{{complete: true}}, nil
}

// inventory cuts what the store holds into messages of a bounded size. There is
// always a last one, also of an empty store.
func inventory(refs []*wire.ObjectRef) []*wire.EdgeMessage {
	var out []*wire.EdgeMessage
	batch, size := new(wire.Inventory), 0
	flush := func(last bool) {
		batch.Last = last
		out = append(out, &wire.EdgeMessage{Body: &wire.EdgeMessage_Inventory{Inventory: batch}})
		batch, size = new(wire.Inventory), 0
	}
	for _, r := range refs {
		n := len(r.GetNamespace()) + len(r.GetName()) + len(r.GetUid()) + len(r.GetVersion()) + 20 // field tags and lengths
		if size > 0 && size+n > wire.SoftMessage {
			flush(false)
		}
		batch.Items = append(batch.Items, r)
		size += n
	}
	flush(true)
	return out
}
