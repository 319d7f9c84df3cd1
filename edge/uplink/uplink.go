package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/resume"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Store is what the uplink asks of the node's memory, edge/store.Store. A call
// that has returned without an error is durable. Every error of the store ends a
// session; store.ErrNotFound and store.ErrDiskFull mean what they mean there.
type Store interface {
	ID() string
	Digest(context.Context) ([]byte, error)
	Inventory(context.Context) ([]*wire.ObjectRef, error)
	Apply(ctx context.Context, upserts []*wire.Object, deletes []*wire.ObjectRef) error
	MarkSynced(context.Context) error

	OutboxChanged() <-chan struct{}
	OutboxIndex(ctx context.Context, keyed bool, afterID uint64, limit int) ([]store.Waiting, error)
	OutboxReport(ctx context.Context, id uint64) (*wire.Report, error)
	OutboxLen(context.Context) (int, error)
	Settle(ctx context.Context, ids ...uint64) error

	Meta(ctx context.Context, key string) ([]byte, error)
	SetMeta(ctx context.Context, key string, value []byte) error
}

// Options of New. Dialer and Store are required.
type Options struct {
	Dialer  link.Dialer
	Store   Store
	Timing  Timing
	Log     *slog.Logger
	Version string // edgecore's, told to the hub
	// Wake, when something arrives on it, cuts a pause between two attempts down
	// to BackoffBase: the machine's network changed.
	Wake <-chan struct{}
	// Credential renews the node's certificate; nil: it is not renewed.
	Credential Credential
	// Sources have reports beside the outbox of Store.
	Sources []Source
	// Publish publishes what the hub asks for, for edge/route; nil: nobody does.
	Publish func(ctx context.Context, p *wire.Publish) error
	// Serve serves a stream that the hub opened, for edge/stream, until ctx ends with
	// the session, and closes it; nil: streams are refused.
	Serve func(ctx context.Context, s link.Stream)
}

// State is what is known of the line.
type State struct {
	Connected bool      // a session is open
	Since     time.Time // when Connected last changed
	Hub       string    // the hub's address, of the last session
	Transport string    // websocket or quic, of the last session
	Synced    bool      // this session's hub has sent everything
	LastError string    // why there is no session, or why the last one ended
	HeldUntil time.Time // the line is held down on purpose until then; zero: it is not
}

// Uplink is the node's line to its hub.
type Uplink struct {
	opts Options
	log  *slog.Logger

	asks  chan tokenAsk
	clock hubClock
	count counters

	mu      sync.Mutex
	state   State
	changed chan struct{}           // closed and replaced when state changes
	open    chan struct{}           // closed when the open session ends; nil while there is none
	conn    link.Conn               // of the open session
	cut     context.CancelCauseFunc // ends what Run does, for a hold; nil while it does nothing

	inventory bool // owned by Run: the next Hello must lead to an inventory
}

// New returns an uplink that does nothing until Run.
func New(o Options) *Uplink {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Timing = o.Timing.withDefaults()
	return &Uplink{
		opts: o, log: o.Log,
		asks:    make(chan tokenAsk),
		state:   State{Since: time.Now()},
		changed: make(chan struct{}),
	}
}

// State is the line's state now.
func (u *Uplink) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

// Changed returns a channel that is closed at the next change of State.
func (u *Uplink) Changed() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

func (u *Uplink) update(fn func(*State)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.state
	fn(&u.state)
	if u.state.Connected != before.Connected {
		u.state.Since = time.Now()
		if u.state.Connected {
			u.open = make(chan struct{})
		} else {
			close(u.open)
			u.open = nil
		}
	}
	if u.state != before {
		close(u.changed)
		u.changed = make(chan struct{})
	}
}

// Run connects, and connects again, until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	u.clock.load(ctx, u.opts.Store)
	pause := backoff{timing: u.opts.Timing}
	for ctx.Err() == nil {
		if u.awaitRelease(ctx) {
			pause = backoff{timing: u.opts.Timing} // as if nothing had failed: somebody waits for it
		}
		free, done := u.free(ctx)
		u.once(free, &pause)
		done()
	}
	u.update(func(s *State) { s.Connected, s.Synced, s.LastError = false, false, "edgecore is stopping" })
	return nil
}

// once makes one attempt, and pauses after it. It ends early when the line is held
// down.
func (u *Uplink) once(ctx context.Context, pause *backoff) {
	lasted, err := u.attempt(ctx)
	if errors.Is(context.Cause(ctx), ErrHeld) {
		u.down()
	}
	if ctx.Err() != nil {
		return
	}
	u.failed(err, lasted > 0)
	ceiling := pause.ended(lasted, err)
	if errors.Is(err, resume.ErrDifference) && !u.inventory { // once, without a pause
		u.inventory = true
		return
	}
	u.wait(ctx, upTo(ceiling))
}

// failed notes why there is no session; a reason is logged once, not per attempt.
func (u *Uplink) failed(err error, hadSession bool) {
	u.count.ended[endingOf(err, hadSession)].Add(1)
	news := hadSession || u.State().LastError != err.Error()
	u.update(func(s *State) { s.Connected, s.Synced, s.LastError = false, false, err.Error() })
	switch {
	case !news:
	case refused(err), errors.Is(err, store.ErrDiskFull):
		u.log.Error("the line to the hub is down", "err", err)
	case hadSession:
		u.log.Warn("the line to the hub went down; workloads go on", "err", err)
	default:
		u.log.Warn("the hub cannot be reached; workloads go on, and it is tried again", "err", err)
	}
}

func (u *Uplink) wait(ctx context.Context, d time.Duration) {
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-u.opts.Wake:
			timer.Reset(max(0, min(d, u.opts.Timing.BackoffBase)-time.Since(began)))
		case <-ctx.Done():
			return
		}
	}
}

// attempt dials and talks until the session ends. lasted is 0 when none opened.
func (u *Uplink) attempt(ctx context.Context) (lasted time.Duration, err error) {
	dialCtx, cancel := context.WithTimeout(ctx, u.opts.Timing.Dial)
	conn, err := u.opts.Dialer.Dial(dialCtx)
	cancel()
	if err != nil {
		return 0, err
	}
	outer := ctx
	ctx, cancel = context.WithCancel(ctx)
	c := &conversation{u: u, conn: conn, out: newSender(), window: resume.NewWindow(upTo), unread: true,
		sourced: make(map[uint64]*sourced), published: make(chan *wire.EdgeMessage, maxPublishing), tokens: make(map[uint64]chan<- *wire.TokenAnswer)}
	incoming := make(chan received)
	c.group.Go(func() { c.readAll(ctx, incoming) })
	c.group.Go(func() { c.writeAll(ctx) })
	err = c.run(ctx, incoming)
	u.carry(nil)
	cancel()
	err = errors.Join(err, ignoreClosed(conn.Close()))
	if !c.openedAt.IsZero() { // said before anything is waited for
		u.update(func(s *State) {
			if s.Connected, s.Synced = false, false; outer.Err() == nil {
				s.LastError = err.Error()
			}
		})
	}
	c.group.Wait()
	c.awaitStreams()
	if !c.openedAt.IsZero() {
		lasted = max(1, time.Since(c.openedAt))
	}
	return lasted, err
}

func ignoreClosed(err error) error {
	if errors.Is(err, link.ErrClosed) {
		return nil
	}
	return err
}

// conversation drives one session; run's goroutine owns all but out.
type conversation struct {
	u        *Uplink
	conn     link.Conn
	group    sync.WaitGroup // of what runs beside run
	streams  sync.WaitGroup // of those who serve streams
	session  resume.Session
	window   *resume.Window
	out      *sender
	openedAt time.Time
	unread   bool     // the outbox may hold what the window does not know of
	settled  []uint64 // answered reports that the store does not know of yet

	sourced     map[uint64]*sourced // what the window holds of sources, by id
	lastSourced uint64

	publishing atomic.Int32           // messages of the hub on their way to the broker
	published  chan *wire.EdgeMessage // answers about them

	lastAsk uint64 // number of the last request, for a token or a certificate
	tokens  map[uint64]chan<- *wire.TokenAnswer
	renewal renewal
}

// received is what the reading goroutine hands over.
type received struct {
	message *wire.HubMessage
	err     error
}

func (c *conversation) readAll(ctx context.Context, to chan<- received) {
	for {
		var r received
		b, err := c.conn.Recv(ctx)
		if err == nil {
			r.message, err = wire.DecodeHub(b)
		}
		if err == nil {
			c.u.count.meter.Received(r.message, len(b))
		}
		r.err = err
		select {
		case to <- r:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *conversation) run(ctx context.Context, incoming <-chan received) error {
	if err := c.hello(ctx); err != nil {
		return err
	}
	welcomeBy := time.NewTimer(c.u.opts.Timing.Welcome)
	defer welcomeBy.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	flush := time.NewTicker(settleEvery)
	flush.Stop()
	c.renewal.due = time.NewTimer(0)
	c.renewal.due.Stop()
	defer c.renewal.due.Stop()
	defer func() { c.flush(context.WithoutCancel(ctx)) }()
	fresh := c.begin(ctx)
	for {
		waited := len(c.settled) > 0
		select {
		case r := <-incoming:
			if r.err != nil {
				return r.err
			}
			actions, err := c.session.Receive(r.message)
			if err == nil {
				err = c.perform(ctx, actions)
			}
			if err != nil {
				return err
			}
		case <-c.u.opts.Store.OutboxChanged():
			c.unread = true
		case <-fresh:
		case m := <-c.published:
			if err := c.send(m); err != nil {
				return err
			}
		case <-again.C:
		case <-flush.C:
			flush.Stop()
			c.flush(ctx)
		case <-c.renewal.due.C:
			c.renew()
		case a := <-c.askable():
			c.ask(a)
		case err := <-c.out.failed:
			return err
		case <-welcomeBy.C:
			if !c.session.Welcomed() {
				return fmt.Errorf("the hub at %s did not answer the hello within %s", c.conn.Peer(), c.u.opts.Timing.Welcome)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if !waited && len(c.settled) > 0 {
			flush.Reset(settleEvery)
		}
		if err := c.report(ctx, again); err != nil {
			return err
		}
	}
}

// hello says what the store holds; a zero digest leads to an inventory.
func (c *conversation) hello(ctx context.Context) error {
	digest := make([]byte, wire.DigestLen)
	if !c.u.inventory {
		var err error
		if digest, err = c.u.opts.Store.Digest(ctx); err != nil {
			return err
		}
	}
	return c.send(resume.Hello(digest, c.u.opts.Version, c.u.opts.Store.ID()))
}

func (c *conversation) send(m *wire.EdgeMessage) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	c.out.put(outgoing{m, b})
	return nil
}

// perform does what the session decided, in order.
func (c *conversation) perform(ctx context.Context, actions []resume.Action) error {
	for _, a := range actions {
		more, err := c.do(ctx, a)
		if err == nil {
			err = c.perform(ctx, more)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conversation) do(ctx context.Context, a resume.Action) ([]resume.Action, error) {
	st := c.u.opts.Store
	switch {
	case a.Welcome != nil:
		c.opened(ctx, a.Welcome)
	case a.Inventory:
		refs, err := st.Inventory(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range resume.Inventory(refs) {
			if err := c.send(m); err != nil {
				return nil, err
			}
		}
	case a.Apply != nil:
		if err := st.Apply(ctx, a.Apply.GetUpserts(), a.Apply.GetDeletes()); err != nil {
			return nil, err
		}
		return nil, c.send(c.session.Committed(a.Apply.GetSeq()))
	case a.Compare != nil:
		digest, err := st.Digest(ctx)
		if err != nil {
			return nil, err
		}
		return c.session.Compared(string(digest) == string(a.Compare))
	case a.Complete:
		c.u.inventory = false
		if err := st.MarkSynced(ctx); err != nil {
			return nil, err
		}
		c.u.update(func(s *State) { s.Synced = true })
		c.u.log.Info("the hub has sent everything", "session", c.session.ID())
	case a.Result != nil:
		c.settle(a.Result)
	case a.Token != nil:
		c.u.clock.learn(ctx, st, a.Token.GetHubTimeUnixMs())
		if answer, ok := c.tokens[a.Token.GetId()]; ok {
			delete(c.tokens, a.Token.GetId())
			answer <- a.Token
		}
	case a.Certificate != nil:
		c.renewed(a.Certificate)
	case a.Publish != nil:
		c.publish(ctx, a.Publish)
	}
	return nil, nil
}

func (c *conversation) opened(ctx context.Context, w *wire.Welcome) {
	c.openedAt = time.Now()
	c.u.count.sessions.Add(1)
	c.u.carry(c.conn)
	c.u.clock.learn(ctx, c.u.opts.Store, w.GetHubTimeUnixMs())
	c.u.update(func(s *State) {
		s.Connected, s.Hub, s.Transport, s.LastError = true, c.conn.Peer(), c.conn.Transport(), ""
	})
	c.u.log.Info("the line to the hub is up", "hub", c.conn.Peer(), "session", w.GetSession(),
		"hubVersion", w.GetHubVersion(), "transport", c.conn.Transport(), "inSync", w.GetInSync())
	if c.u.opts.Serve != nil {
		c.group.Go(func() { c.acceptStreams(ctx) })
	}
	c.renew()
}

// report sends what the window lets go, and sets the timer for what waits.
func (c *conversation) report(ctx context.Context, again *time.Timer) error {
	if !c.session.MayReport() {
		return nil
	}
	if err := c.fill(ctx); err != nil {
		return err
	}
	c.collect()
	now := time.Now()
	for r, ok := c.window.Next(now); ok; r, ok = c.window.Next(now) {
		full, err := c.compose(ctx, r.ID)
		if errors.Is(err, store.ErrNotFound) {
			c.window.Gone(r.ID)
			continue
		}
		if err != nil {
			return err
		}
		if err := c.send(&wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: full}}); err != nil {
			return err
		}
	}
	if at := c.window.Due(); !at.IsZero() {
		again.Reset(max(time.Millisecond, time.Until(at)))
	}
	return nil
}

// fill takes over what is new in the outbox: all statuses, events by and by. The
// store is not asked when it has said nothing since.
func (c *conversation) fill(ctx context.Context) error {
	if !c.unread {
		return nil
	}
	keyed, events := c.window.UpTo()
	if _, err := c.takeOver(ctx, true, keyed, -1); err != nil {
		return err
	}
	if c.window.Events() >= resume.WindowSize {
		return nil
	}
	const atOnce = 2 * resume.WindowSize
	n, err := c.takeOver(ctx, false, events, atOnce)
	c.unread = err != nil || n == atOnce
	return err
}

func (c *conversation) takeOver(ctx context.Context, keyed bool, after uint64, limit int) (int, error) {
	rows, err := c.u.opts.Store.OutboxIndex(ctx, keyed, after, limit)
	if err != nil {
		return 0, err
	}
	waiting := make([]resume.Waiting, len(rows))
	for i, r := range rows {
		waiting[i] = resume.Waiting{ID: r.ID, Key: r.Key}
	}
	c.window.Add(waiting)
	return len(rows), nil
}

// settleEvery is how long an answered report may stay in the outbox, so that many
// answers share one commit. A report that is sent again for this is harmless.
const settleEvery = 200 * time.Millisecond

func (c *conversation) settle(r *wire.ReportResult) {
	c.u.count.answered(r.GetCode())
	if c.answeredSource(r) {
		return
	}
	if !c.window.Answer(r.GetId(), r.GetCode(), time.Now()) {
		return
	}
	if r.GetCode() == wire.ResultCode_RESULT_REJECTED {
		c.u.log.Warn("the hub refused a report for good; it is dropped", "report", r.GetId(), "reason", r.GetMessage(), "session", c.session.ID())
	}
	c.settled = append(c.settled, r.GetId())
}

// flush tells the store what was settled. Where it cannot be told (a full disk),
// the reports are sent again in a later session.
func (c *conversation) flush(ctx context.Context) {
	if len(c.settled) == 0 {
		return
	}
	if err := c.u.opts.Store.Settle(ctx, c.settled...); err != nil && ctx.Err() == nil {
		c.u.log.Warn("settled reports stay in the outbox and will be sent once more", "session", c.session.ID(), "err", err)
	}
	c.settled = nil
}
