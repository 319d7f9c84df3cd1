package hub

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// session is one node's connection. Two goroutines live as long as it does: one
// reads, the other (run) owns all state below. Everything that waits for the
// line or the apiserver runs in a goroutine of its own that posts its outcome
// back, so that run never blocks. What most sessions need never, or only for a
// while, is made when it is needed: a hub holds thousands of idle sessions.
type session struct {
	hub     *Hub
	conn    link.Conn
	node    string
	storeID string
	knows   uint32 // the highest kind of object that the edge takes
	version string // edgecore's
	id      string
	began   time.Time
	ctx     context.Context // ends with run
	cancel  context.CancelFunc
	ending  chan error    // capacity 1: somebody else ends the session
	ended   chan struct{} // closed when nothing of it runs any more
	posts   chan func()
	arrived chan arrival // from read to run

	// Owned by run.
	all       sync.WaitGroup
	delivery  *delivery.Delivery
	resolve   func(context.Context) (*roster.Wanted, error)
	replies   []*wire.HubMessage // results and answers to send
	sending   bool
	reports   [lanes]reportQueue
	asking    int // token requests that run
	resolving bool
	stale     bool             // what the node must hold is to be worked out (again)
	late      <-chan time.Time // the Welcome waits no longer; nil after it
	failing   bool             // of the resolver, for the log
	confirms  bool             // a live read of missing pods runs
	confirm   bool             // one is allowed
	resolves  backoff
	confirmed backoff
	claim     claim
	lease     lease
	restore   restore
	publishes publishing
	renewing  bool   // of the node's certificate
	held      int    // bytes of reports taken whose results are not known
	rejected  uint64 // reports
	putOff    uint64 // reports that the edge must repeat

	// For Each, from any goroutine.
	meter wire.Meter
	state atomic.Int32 // delivery.State
}

// arrival is one message of the edge, or why there are no more. It comes encoded:
// decoding takes a deep stack, which the reader of an idle node would keep, since
// it waits too deep inside TLS for the runtime to take half of it back.
type arrival struct {
	bytes []byte
	err   error
}

// Limits of one session.
const (
	maxBacklog = 64               // reports and token requests taken whose answers are not on the line; beyond, the hub stops reading
	maxHeld    = 4 << 20          // bytes of reports taken; beyond, the hub stops reading
	maxHeldAll = 256 << 20        // the same of all sessions together; beyond, only those that hold none are read
	maxAsking  = 4                // token requests at a time
	maxWord    = 128              // bytes of what an edge calls itself, its version and its database
	maxSend    = 10 * time.Minute // for one message on a line that moves at all; common/link gives up one that does not
	sendGrace  = 2 * time.Second  // for a send at the session's end
)

func (h *Hub) newSession(conn link.Conn, hello *wire.Hello) *session {
	s := &session{
		hub: h, conn: conn, began: time.Now(), node: conn.Peer(), storeID: hello.GetStoreId(), knows: hello.GetMaxKind(), version: hello.GetEdgeVersion(), id: rand.Text()[:10],
		ending: make(chan error, 1), ended: make(chan struct{}), posts: make(chan func()), arrived: make(chan arrival),
		delivery: delivery.New(hello.GetDigest()),
	}
	s.delivery.Knows(s.knows)
	return s
}

// log is made anew for each line: few sessions have anything to say.
func (s *session) log() *slog.Logger {
	return s.hub.log.With("node", s.node, "addr", s.conn.RemoteAddr(), "session", s.id)
}

// end asks the session to end for that reason; it may be called at any time.
func (s *session) end(why error) {
	select {
	case s.ending <- why:
	default:
	}
}

// run holds the session until the connection breaks, the edge misbehaves,
// somebody ends it, or the hub stops. When it returns, nothing of it runs any
// more but the connection, which it leaves open for a Goodbye. Its frame stays
// small: every idle session keeps it.
func (s *session) run() error {
	changed, unfollow := s.hub.cluster.Follow(s.node)
	defer s.stop(unfollow)
	s.start()
	for {
		if err := s.advance(); err != nil {
			return err
		}
		var err error
		select {
		case a := <-s.input():
			err = s.take(a)
		case err = <-s.ending:
		case f := <-s.posts:
			f()
		case <-changed:
			s.stale, s.confirm, s.restore.look = true, true, true
		case <-s.late:
			s.welcome()
		case <-s.conn.Heard():
			s.lease.due, s.restore.look = true, true
		case <-s.lease.alarm():
			s.lease.due, s.lease.armed = true, false
		case <-s.ctx.Done():
			err = &goodbye{wire.Goodbye_REASON_SHUTDOWN, "the hub stops; its nodes go on without it"}
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) start() {
	s.resolve = s.hub.cluster.Resolver(s.node)
	s.stale, s.confirm, s.claim.due, s.lease.due = true, true, true, true
	s.late = time.After(s.hub.timing.Sync)
}

// stop waits for what runs. A send may end: stopping it closes the connection,
// and with it the way for a Goodbye.
func (s *session) stop(unfollow func()) {
	s.hold(-s.held) // what is not written now comes again with the next session
	s.cancel()
	late := time.AfterFunc(sendGrace, func() { _ = s.conn.Close() })
	s.all.Wait()
	late.Stop()
	if s.lease.timer != nil {
		s.lease.timer.Stop()
	}
	unfollow()
}

// input is where messages come from, nil while the session holds enough.
func (s *session) input() <-chan arrival {
	if s.waiting()+s.asking+len(s.replies) >= maxBacklog || s.tooMuchHeld() {
		return nil
	}
	return s.arrived
}

// read hands on what arrives until the connection ends. When the session has
// ended it only drains: a connection that is closed with unread input would lose
// the Goodbye, and stopping a read closes the connection.
func (s *session) read() {
	for {
		b, err := s.conn.Recv(context.Background())
		if err != nil {
			s.hand(arrival{err: fmt.Errorf("receive: %w", err)})
			return
		}
		s.hand(arrival{bytes: b})
	}
}

func (s *session) hand(a arrival) {
	select {
	case s.arrived <- a:
	case <-s.ctx.Done():
	}
}

// work runs f beside the session and then, in the session's goroutine, what f
// returns.
func (s *session) work(f func(ctx context.Context) (then func())) {
	s.all.Go(func() { s.post(f(s.ctx)) })
}

// post has f run in the session's goroutine, unless the session ends.
func (s *session) post(f func()) {
	select {
	case s.posts <- f:
	case <-s.ctx.Done():
	}
}

// backoff is the waiting between attempts at one thing, longer each time.
type backoff struct {
	wait    time.Duration
	waiting bool
}

// worthTelling says that attempts have failed for longer than an apiserver needs
// to learn of something new.
func (b *backoff) worthTelling() bool { return b.wait > 2*time.Second }

func (b *backoff) reset() { b.wait = 0 }

// again does f after a while, in the session's goroutine. The while is chosen at
// random: all sessions may fail at one moment.
func (s *session) again(b *backoff, f func()) {
	if b.waiting {
		return
	}
	b.waiting, b.wait = true, min(max(2*b.wait, s.hub.timing.Retry), maxRetry)
	time.AfterFunc(b.wait/2+mathrand.N(b.wait/2), func() {
		s.post(func() {
			b.waiting = false
			f()
		})
	})
}

// take handles one message of the edge.
func (s *session) take(a arrival) error {
	if a.err != nil {
		return a.err
	}
	m, err := wire.DecodeEdge(a.bytes)
	if err != nil {
		return protocolError(err)
	}
	s.meter.Received(m, len(a.bytes))
	s.hub.counts.meter.Received(m, len(a.bytes))
	switch body := m.GetBody().(type) {
	case *wire.EdgeMessage_Hello:
		err = fmt.Errorf("%w: a second Hello", delivery.ErrProtocol)
	case *wire.EdgeMessage_Inventory:
		err = s.delivery.Inventory(body.Inventory)
	case *wire.EdgeMessage_Ack:
		err = s.delivery.Ack(body.Ack.GetSeq())
		s.restore.look = true
	case *wire.EdgeMessage_Report:
		s.hold(len(body.Report.GetPayload()))
		s.reports[laneOf(body.Report)].add(body.Report)
	case *wire.EdgeMessage_TokenAsk:
		s.ask(body.TokenAsk)
	case *wire.EdgeMessage_CertificateAsk:
		s.certify(body.CertificateAsk)
	case *wire.EdgeMessage_Published:
		s.published(body.Published)
	}
	if err != nil {
		return protocolError(err)
	}
	return nil
}

// ask answers a request for a token.
func (s *session) ask(a *wire.TokenAsk) {
	s.asking++
	if s.asking > maxAsking {
		s.asking--
		s.reply(&wire.HubMessage{Body: &wire.HubMessage_TokenAnswer{TokenAnswer: &wire.TokenAnswer{
			Id: a.GetId(), Code: wire.ResultCode_RESULT_RETRY, Message: "too many token requests at a time", HubTimeUnixMs: time.Now().UnixMilli(),
		}}})
		return
	}
	s.work(func(ctx context.Context) func() {
		answer := s.hub.reports.Token(ctx, s.node, a)
		return func() {
			s.asking--
			s.reply(&wire.HubMessage{Body: &wire.HubMessage_TokenAnswer{TokenAnswer: answer}})
		}
	})
}

func (s *session) hold(bytes int) {
	s.held += bytes
	s.hub.held.Add(int64(bytes))
}

// tooMuchHeld stops the reading. A session that is stopped holds something, and
// looks again when that is written.
func (s *session) tooMuchHeld() bool {
	return s.held >= maxHeld || s.held > 0 && s.hub.held.Load() >= maxHeldAll
}

// certify answers a request for a new certificate, one at a time.
func (s *session) certify(a *wire.CertificateAsk) {
	answer := &wire.CertificateAnswer{Code: wire.ResultCode_RESULT_RETRY, Message: "an earlier request for a certificate is not answered yet"}
	if s.renewing {
		s.certified(a, answer)
		return
	}
	if s.hub.certificates == nil {
		answer.Code, answer.Message = wire.ResultCode_RESULT_REJECTED, "this hub renews no certificates"
		s.certified(a, answer)
		return
	}
	s.renewing = true
	s.work(func(ctx context.Context) func() {
		answer := s.hub.certificates.Renew(ctx, s.node, s.conn.Issued(), a.GetCsr())
		return func() {
			s.renewing = false
			s.certified(a, answer)
		}
	})
}

func (s *session) certified(a *wire.CertificateAsk, answer *wire.CertificateAnswer) {
	answer.Id = a.GetId()
	s.reply(&wire.HubMessage{Body: &wire.HubMessage_CertificateAnswer{CertificateAnswer: answer}})
}

func (s *session) reply(m *wire.HubMessage) { s.replies = append(s.replies, m) }

// advance starts whatever can be started.
func (s *session) advance() error {
	s.startResolve()
	if s.late != nil && s.delivery.Complete() {
		s.welcome()
	}
	s.startClaim()
	for lane := range s.reports {
		s.startReports(lane)
	}
	if err := s.startSend(); err != nil {
		return err
	}
	s.startRenew()
	s.startRestore()
	s.state.Store(int32(s.delivery.State()))
	return nil
}

func (s *session) welcome() {
	s.late = nil
	inSync := s.delivery.Welcome()
	s.log().Debug("welcomed", "in_sync", inSync)
	s.reply(&wire.HubMessage{Body: &wire.HubMessage_Welcome{Welcome: &wire.Welcome{
		ProtocolVersion: wire.ProtocolVersion, Session: s.id, InSync: inSync,
		HubTimeUnixMs: time.Now().UnixMilli(), HubVersion: s.hub.version, ClaimFollows: true,
	}}})
}

// startResolve works out what the node must hold, when that may have changed.
func (s *session) startResolve() {
	if !s.stale || s.resolving {
		return
	}
	s.stale, s.resolving = false, true
	s.work(func(ctx context.Context) func() {
		want, err := s.resolve(ctx)
		return func() { s.resolved(want, err) }
	})
}

func (s *session) resolved(want *roster.Wanted, err error) {
	s.resolving, s.restore.look = false, true
	if want != nil {
		s.delivery.Wanted(want)
	}
	if err == nil {
		if s.failing {
			s.log().Info("what the node must hold is known again")
		}
		s.failing = false
		s.resolves.reset()
		return
	}
	s.again(&s.resolves, func() { s.stale = true })
	// The first refusals are the Node authorizer's delay, nothing to tell.
	if !s.failing && s.resolves.worthTelling() {
		s.failing = true
		s.log().Warn("not all that the node must hold can be read; what it holds stays", "err", err)
	}
}

// startConfirm looks for pods that the node holds and caches do not know.
func (s *session) startConfirm(refs []*wire.ObjectRef) {
	if len(refs) == 0 || s.confirms || !s.confirm {
		return
	}
	s.confirms, s.confirm = true, false
	s.work(func(ctx context.Context) func() {
		var gone []roster.ID
		var failed error
		for _, ref := range refs {
			is, err := s.hub.cluster.Gone(ctx, s.node, ref)
			if err != nil {
				failed = err
				break
			}
			if is {
				gone = append(gone, roster.IDOf(ref))
			}
		}
		return func() {
			s.confirms = false
			for _, id := range gone {
				s.delivery.Confirmed(id)
			}
			if len(gone) < len(refs) {
				s.log().Debug("pods that caches do not know stay for now", "pods", len(refs)-len(gone), "err", failed)
				s.again(&s.confirmed, func() { s.stale, s.confirm = true, true })
			} else {
				s.confirm = true
				s.confirmed.reset()
			}
		}
	})
}

// startSend hands the line what is to be sent, if it is free.
func (s *session) startSend() error {
	if s.sending {
		return nil
	}
	messages := s.replies
	s.replies = nil
	for {
		m, unconfirmed, err := s.delivery.Next()
		if err != nil {
			return err
		}
		s.startConfirm(unconfirmed)
		if m == nil {
			break
		}
		if m.GetSynced() != nil {
			objects, changes := s.delivery.Sent()
			s.hub.tell(s.node, s.log(), slog.LevelInfo, "the node holds what it must", "objects", objects, "changes", changes)
		}
		messages = append(messages, m)
	}
	if len(messages) == 0 {
		return nil
	}
	s.sending = true
	s.work(func(ended context.Context) func() {
		err := s.send(ended, messages)
		return func() {
			s.sending = false
			if err != nil {
				s.end(err)
			}
		}
	})
	return nil
}

// send sends all messages, or those before the session's end.
func (s *session) send(ended context.Context, messages []*wire.HubMessage) error {
	for _, m := range messages {
		if ended.Err() != nil {
			return nil
		}
		b, err := wire.Encode(m)
		if err != nil {
			return err
		}
		if err := s.sendOne(b); err != nil {
			return err
		}
		s.meter.Sent(m, len(b))
		s.hub.counts.meter.Sent(m, len(b))
	}
	return nil
}

// sendOne is not stopped by the end of the session; see stop.
func (s *session) sendOne(b []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), maxSend)
	defer cancel()
	if err := s.conn.Send(ctx, b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// startReports writes waiting reports of a lane, once the node is claimed.
func (s *session) startReports(lane int) {
	for s.claim.epoch != 0 {
		r, done := s.reports[lane].next(maxRunning(lane))
		if r == nil {
			return
		}
		s.work(func(ctx context.Context) func() {
			result, err := s.write(ctx, r)
			return func() {
				done()
				s.hold(-len(r.GetPayload()))
				if err != nil {
					s.fenced(err)
					return
				}
				s.reported(r, result)
				s.reply(&wire.HubMessage{Body: &wire.HubMessage_ReportResult{ReportResult: result}})
				if r.GetKind() == wire.ReportKind_REPORT_NODE && result.GetCode() == wire.ResultCode_RESULT_ACCEPTED {
					s.lease.now()
				}
			}
		})
	}
}

// reported counts a result, and tells of the first rejection and of the first
// failure: what follows is more of the same.
func (s *session) reported(r *wire.Report, result *wire.ReportResult) {
	s.hub.counts.reported(result.GetCode())
	tell := func(count *uint64, level slog.Level, what string) {
		if *count++; *count == 1 {
			s.hub.tell(s.node, s.log(), level, what, "kind", r.GetKind().String(), "message", result.GetMessage())
		}
	}
	switch result.GetCode() {
	case wire.ResultCode_RESULT_REJECTED:
		tell(&s.rejected, slog.LevelWarn, "a report was rejected; further ones of this session are only counted")
	case wire.ResultCode_RESULT_RETRY:
		tell(&s.putOff, slog.LevelInfo, "a report cannot be written now, and the edge repeats it; further ones of this session are only counted")
	}
}
