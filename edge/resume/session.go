package resume

import (
	"errors"
	"fmt"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Session is the edge's half of one conversation: messages of the hub go in,
// actions come out, and the driver does them in their order before it hands in
// the next message. The zero value is ready.
type Session struct {
	id       string // the hub's name for it; empty until the Welcome
	welcomed bool
	claiming bool   // the hub has yet to claim the node: no report may be sent
	seq      uint64 // of the last Changes received
	acked    uint64 // of the last Changes acknowledged
	complete bool   // the hub has said that it sent everything, and it was so
}

// An Action is one thing for the driver to do; exactly one field is set.
type Action struct {
	Welcome     *wire.Welcome           // the session is open
	Inventory   bool                    // send what the store holds
	Apply       *wire.Changes           // commit it, then call Committed
	Compare     []byte                  // compare with the store's digest, then call Compared
	Complete    bool                    // the store holds everything: remember it
	Result      *wire.ReportResult      // for the outbox
	Token       *wire.TokenAnswer       // for whoever asked
	Certificate *wire.CertificateAnswer // for whoever asked
	Publish     *wire.Publish           // for the node's broker
}

// Errors that end a session; test with errors.Is.
var (
	ErrProtocol   = errors.New("the hub broke the protocol")
	ErrDifference = errors.New("the hub says that everything is sent, but the store's digest differs: asking for the difference again")
)

// GoodbyeError is the hub's reason for ending the session.
type GoodbyeError struct {
	Reason  wire.Goodbye_Reason
	Message string
}

func (e *GoodbyeError) Error() string {
	remedy := map[wire.Goodbye_Reason]string{
		wire.Goodbye_REASON_PROTOCOL_VERSION: "edgecore and cloudcore share no protocol version: bring the older one up to date",
		wire.Goodbye_REASON_REPLACED:         "this node connected a second time, to this hub or another",
		wire.Goodbye_REASON_DUPLICATE:        "another machine is connected under this node's name: give one of them another name (holdfast reset, then holdfast join --node-name)",
		wire.Goodbye_REASON_SHUTDOWN:         "the hub is stopping",
		wire.Goodbye_REASON_PROTOCOL_ERROR:   "the hub did not accept what this node sent",
		wire.Goodbye_REASON_REVOKED:          "this node's certificate was revoked: join it again (holdfast reset, then holdfast join)",
		wire.Goodbye_REASON_BUSY:             "the hub is busy",
	}[e.Reason]
	if remedy == "" {
		remedy = "the hub ended the session (" + e.Reason.String() + ")"
	}
	if e.Message != "" {
		remedy += ": " + e.Message
	}
	return remedy
}

// Hello opens the conversation. A digest of zeros leads to an inventory.
func Hello(digest []byte, version, storeID string) *wire.EdgeMessage {
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: &wire.Hello{
		ProtocolVersions: []uint32{wire.ProtocolVersion}, Digest: digest, EdgeVersion: version, StoreId: storeID,
		MaxKind: uint32(wire.KindMax),
	}}}
}

// Welcomed says that the hub has opened the session.
func (s *Session) Welcomed() bool { return s.welcomed }

// MayReport says that reports may be sent: the session is open, and the hub has
// claimed the node if it said that it would. A report that is sent earlier could
// be written under a claim that is made after this session is long over, and so
// later than what a newer session wrote.
func (s *Session) MayReport() bool { return s.welcomed && !s.claiming }

// ID is the hub's name for the session.
func (s *Session) ID() string { return s.id }

// Clone returns a copy that shares nothing with s.
func (s *Session) Clone() *Session {
	c := *s
	return &c
}

// Receive takes the hub's next message. An error ends the session.
func (s *Session) Receive(m *wire.HubMessage) ([]Action, error) {
	if bye, ok := m.GetBody().(*wire.HubMessage_Goodbye); ok {
		return nil, &GoodbyeError{bye.Goodbye.GetReason(), bye.Goodbye.GetMessage()}
	}
	if w, ok := m.GetBody().(*wire.HubMessage_Welcome); ok {
		return s.welcome(w.Welcome)
	}
	if m.GetBody() == nil { // a message that a newer hub knows
		return nil, nil
	}
	if !s.welcomed {
		return nil, fmt.Errorf("%w: %T before the welcome", ErrProtocol, m.GetBody())
	}
	switch body := m.GetBody().(type) {
	case *wire.HubMessage_InventoryAsk:
		return []Action{{Inventory: true}}, nil
	case *wire.HubMessage_Changes:
		if got, want := body.Changes.GetSeq(), s.seq+1; got != want {
			return nil, fmt.Errorf("%w: changes number %d where %d must follow", ErrProtocol, got, want)
		}
		s.seq++
		return []Action{{Apply: body.Changes}}, nil
	case *wire.HubMessage_Synced:
		return []Action{{Compare: body.Synced.GetDigest()}}, nil
	case *wire.HubMessage_Claimed:
		s.claiming = false
	case *wire.HubMessage_ReportResult:
		return []Action{{Result: body.ReportResult}}, nil
	case *wire.HubMessage_TokenAnswer:
		return []Action{{Token: body.TokenAnswer}}, nil
	case *wire.HubMessage_CertificateAnswer:
		return []Action{{Certificate: body.CertificateAnswer}}, nil
	case *wire.HubMessage_Publish:
		return []Action{{Publish: body.Publish}}, nil
	}
	return nil, nil
}

func (s *Session) welcome(w *wire.Welcome) ([]Action, error) {
	if s.welcomed {
		return nil, fmt.Errorf("%w: a second welcome", ErrProtocol)
	}
	if w.GetProtocolVersion() != wire.ProtocolVersion {
		return nil, fmt.Errorf("%w: it chose protocol version %d, this edgecore speaks %d: bring the older of the two up to date",
			ErrProtocol, w.GetProtocolVersion(), wire.ProtocolVersion)
	}
	s.welcomed, s.id, s.claiming = true, w.GetSession(), w.GetClaimFollows()
	acts := []Action{{Welcome: w}}
	if w.GetInSync() {
		s.complete = true
		acts = append(acts, Action{Complete: true})
	}
	return acts, nil
}

// Committed is told when Changes seq are on the disk, and returns the
// acknowledgement. There is no other way to one.
func (s *Session) Committed(seq uint64) *wire.EdgeMessage {
	s.acked = seq
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: seq}}}
}

// Compared is told whether the store's digest is the hub's.
func (s *Session) Compared(equal bool) ([]Action, error) {
	if !equal {
		return nil, ErrDifference
	}
	if s.complete {
		return nil, nil
	}
	s.complete = true
	return []Action{{Complete: true}}, nil
}

// Inventory cuts what the store holds into messages of a bounded size. There is
// always a last one, also of an empty store.
func Inventory(refs []*wire.ObjectRef) []*wire.EdgeMessage {
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
