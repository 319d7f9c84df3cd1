package link

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// How a hub bears connections that have not shown who they are.
const (
	// MaxStrangers is how many there may be at one time over each transport.
	MaxStrangers = 1024
	// strangerGrace is how long a stranger may keep the hub waiting when there are too
	// many, and strangerLife its age from which it makes room in any case.
	strangerGrace = time.Second
	strangerLife  = 10 * time.Second
	// deferAccept is how long the kernel itself keeps a TCP connection that has not
	// sent anything (TCP_DEFER_ACCEPT): it costs the hub neither a file nor memory.
	deferAccept = 10 * time.Second
	// sayAgain is how often the same thing is logged at most.
	sayAgain = time.Minute
)

// outcome is what became of a connection.
type outcome int

const (
	accepted    outcome = iota // it is a node's
	crowded                    // too many strangers: closed, or over QUIC refused
	certificate                // none, or of no node
	denied                     // Admit said no
	malformed                  // not what an edge says
	left                       // gone before it said who it is: a failed handshake, a join, a port scan
	busy                       // the hub did not take it
	outcomes
)

func (o outcome) String() string {
	return [outcomes]string{"accepted", "crowded", "certificate", "denied", "malformed", "left", "busy"}[o]
}

// transports are the labels of the counters.
const (
	overWebsocket = iota
	overQUIC
	transports
)

// Strangers bounds the connections to a hub that have not authenticated yet, over
// TCP and over QUIC, counts what becomes of them, and logs each kind of trouble
// once a minute at most. Over TCP, the next connection waits in the kernel's queue
// when there are too many, until one is through, or one has let the hub wait for a
// second, or is ten seconds old: that one is closed. So a crowd of edges that
// waits for the hub's handshakes loses nobody, and one that says nothing goes by at
// a thousand a second. Over QUIC the next one is refused.
type Strangers struct {
	limit       int
	grace, life time.Duration
	log         *slog.Logger

	mu     sync.Mutex
	counts [transports][outcomes]uint64
	quic   int        // over QUIC, now
	tcp    *list.List // of *strangerConn: over TCP, the oldest first
	room   chan struct{}
	said   map[string]*saying
}

// saying is when a kind of trouble was last logged, and how often it was not.
type saying struct {
	at   time.Time
	more uint64
}

// NewStrangers allows so many strangers over each transport; 0: MaxStrangers.
func NewStrangers(limit int, log *slog.Logger) *Strangers {
	if limit <= 0 {
		limit = MaxStrangers
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Strangers{
		limit: limit, grace: strangerGrace, life: strangerLife, log: log,
		tcp: list.New(), room: make(chan struct{}, 1), said: make(map[string]*saying),
	}
}

// WriteMetrics writes the counters for Prometheus.
func (s *Strangers) WriteMetrics(w io.Writer) {
	s.mu.Lock()
	counts, now := s.counts, [transports]int{s.tcp.Len(), s.quic}
	s.mu.Unlock()
	for t, name := range [transports]string{"websocket", "quic"} {
		fmt.Fprintf(w, "holdfast_hub_strangers{transport=%q} %d\n", name, now[t])
		for o := range outcomes {
			fmt.Fprintf(w, "holdfast_hub_connections_total{transport=%q,result=%q} %d\n", name, o, counts[t][o])
		}
	}
}

// count notes what became of a connection.
func (s *Strangers) count(transport int, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[transport][o]++
}

// say logs trouble of one kind, the first time and then once a minute, with how
// often it was kept quiet.
func (s *Strangers) say(level slog.Level, message string, args ...any) {
	s.mu.Lock()
	last := s.said[message]
	if last == nil {
		last = new(saying)
		s.said[message] = last
	}
	if !last.at.IsZero() && time.Since(last.at) < sayAgain {
		last.more++
		s.mu.Unlock()
		return
	}
	more := last.more
	last.at, last.more = time.Now(), 0
	s.mu.Unlock()
	if more > 0 {
		args = append(args, "more", more)
	}
	s.log.Log(context.Background(), level, message, args...)
}

// comeQUIC takes one more over QUIC; false: there are too many. over is called
// when it is no stranger any more, and says whether it was one until then.
func (s *Strangers) comeQUIC() (over func() bool, ok bool) {
	s.mu.Lock()
	if s.quic >= s.limit {
		s.counts[overQUIC][crowded]++
		s.mu.Unlock()
		s.say(slog.LevelWarn, "too many connections over QUIC that have not authenticated: new ones are refused", "limit", s.limit)
		return nil, false
	}
	s.quic++
	s.mu.Unlock()
	done := false
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		first := !done
		if done = true; first {
			s.quic--
		}
		return first
	}, true
}

// crowdQUIC says whether many come over QUIC: then they must show that their
// addresses are their own.
func (s *Strangers) crowdQUIC() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quic > s.limit/4
}

// strangerListener is a TCP port whose connections are strangers at first.
type strangerListener struct {
	net.Listener
	strangers *Strangers
	closed    chan struct{}
	once      sync.Once
}

// strangerConn is a connection over TCP.
type strangerConn struct {
	net.Conn
	strangers *Strangers
	since     time.Time
	known     atomic.Bool   // no stranger any more
	waiting   atomic.Int64  // since when the hub waits for its bytes, after since; 0: it does not
	place     *list.Element // nil: no stranger any more; guarded by strangers.mu
}

// Read notes that the hub waits.
func (c *strangerConn) Read(b []byte) (int, error) {
	if c.known.Load() {
		return c.Conn.Read(b)
	}
	c.waiting.Store(max(1, int64(time.Since(c.since))))
	n, err := c.Conn.Read(b)
	c.waiting.Store(0)
	return n, err
}

// patience is how long the connection may still be a stranger in a crowd.
func (c *strangerConn) patience(grace, life time.Duration) time.Duration {
	age := time.Since(c.since)
	left := life - age
	if waiting := time.Duration(c.waiting.Load()); waiting > 0 {
		left = min(left, grace-(age-waiting))
	}
	return left
}

func (l *strangerListener) Accept() (net.Conn, error) {
	if err := l.strangers.waitForRoom(l.closed); err != nil {
		return nil, err
	}
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.strangers.come(c), nil
}

func (l *strangerListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (s *Strangers) come(c net.Conn) *strangerConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := &strangerConn{Conn: c, strangers: s, since: time.Now()}
	conn.place = s.tcp.PushBack(conn)
	return conn
}

// waitForRoom waits until one more may come, and closes who has had its time.
func (s *Strangers) waitForRoom(closed <-chan struct{}) error {
	for {
		s.mu.Lock()
		if s.tcp.Len() < s.limit {
			s.mu.Unlock()
			return nil
		}
		var slowest *strangerConn
		left := s.life
		for e := s.tcp.Front(); e != nil; e = e.Next() {
			c := e.Value.(*strangerConn)
			if p := c.patience(s.grace, s.life); slowest == nil || p < left {
				slowest, left = c, p
			}
			if left <= 0 {
				break
			}
		}
		s.mu.Unlock()
		if left <= 0 {
			if slowest.leave(crowded) {
				s.say(slog.LevelWarn, "too many connections that have not authenticated: closing the slowest", "limit", s.limit, "remote", slowest.RemoteAddr().String())
				_ = slowest.Conn.Close()
			}
			continue
		}
		// Whom the hub begins to wait for while this sleeps has all its grace before it.
		timer := time.NewTimer(min(left, s.grace))
		select {
		case <-timer.C:
		case <-s.room:
		case <-closed:
			timer.Stop()
			return net.ErrClosed
		}
		timer.Stop()
	}
}

// leave notes that a connection is no stranger any more, and why; false: it was
// none.
func (c *strangerConn) leave(o outcome) bool {
	s := c.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place == nil {
		return false
	}
	s.tcp.Remove(c.place)
	c.place = nil
	c.known.Store(true)
	s.counts[overWebsocket][o]++
	select {
	case s.room <- struct{}{}:
	default:
	}
	return true
}

// Close is called by whoever serves the port.
func (c *strangerConn) Close() error {
	c.leave(left)
	return c.Conn.Close()
}

// NetConn is the connection below.
func (c *strangerConn) NetConn() net.Conn { return c.Conn }

// settle notes what became of the connection under those layers.
func (s *Strangers) settle(conn net.Conn, o outcome) {
	for conn != nil {
		if c, ok := conn.(*strangerConn); ok {
			c.leave(o)
			return
		}
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = layer.NetConn()
	}
	s.count(overWebsocket, o) // a port that link.Listen did not open
}
