package mqtt

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of connections.
const (
	// MaxClients is how many clients may be connected to the embedded broker.
	MaxClients = 1000
	// maxStrangers are connections that have not said who they are.
	maxStrangers = 64
	// helloTimeout is how long that may take.
	helloTimeout = 10 * time.Second
	// maxUnread is what a client may leave unread, in bytes, before it is cut off; what
	// the kernel keeps comes on top. Where all together leave more than maxUnreadAll,
	// those who leave more than the share of one are.
	maxUnread, maxUnreadAll, unreadShare = 1 << 20, 32 << 20, 64 << 10
	// writeTimeout bounds one write to a client.
	writeTimeout = 30 * time.Second
)

var errSlow = errors.New("the client does not read what it is sent")

// door accepts connections, as many as there may be.
type door struct {
	net.Listener
	tls *tls.Config // nil: none

	unread atomic.Int64 // bytes that wait for all clients

	mu   sync.Mutex
	open int
}

func (d *door) Accept() (net.Conn, error) {
	for {
		raw, err := d.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil, err
			}
			time.Sleep(50 * time.Millisecond) // no more files: the next one may do
			continue
		}
		d.mu.Lock()
		full := d.open >= MaxClients+maxStrangers
		if !full {
			d.open++
		}
		d.mu.Unlock()
		if full {
			_ = raw.Close()
			continue
		}
		c := &conn{Conn: raw, door: d}
		c.cond.L = &c.mu
		if d.tls != nil {
			c.Conn = tls.Server(raw, d.tls)
		}
		_ = c.SetDeadline(time.Now().Add(helloTimeout)) // the broker sets another one after CONNECT
		return c, nil
	}
}

func (d *door) left() {
	d.mu.Lock()
	d.open--
	d.mu.Unlock()
}

// conn makes writing to a client a matter of its own: Write never blocks, so that a
// client that does not read holds up nobody. What it leaves unread is bounded.
type conn struct {
	net.Conn
	door *door

	mu      sync.Mutex
	cond    sync.Cond // pending has shrunk, or closed
	pending []byte
	spare   []byte
	writing bool // a flush is under way
	closed  bool
	err     error
}

func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		if c.err != nil {
			return 0, c.err
		}
		return 0, net.ErrClosed
	}
	if n := len(c.pending) + len(b); n > maxUnread || n > unreadShare && c.door.unread.Load() > maxUnreadAll {
		c.fail(errSlow)
		return 0, errSlow
	}
	c.pending = append(c.pending, b...)
	c.door.unread.Add(int64(len(b)))
	if !c.writing {
		c.writing = true
		go c.flush()
	}
	return len(b), nil
}

// fail closes without sending what waits; mu is held.
func (c *conn) fail(err error) {
	if !c.closed {
		c.closed, c.err = true, err
		c.door.left()
	}
	c.forget()
	c.cond.Broadcast()
	if !c.writing {
		go c.Conn.Close()
	} else {
		_ = c.Conn.SetWriteDeadline(time.Unix(1, 0)) // flush ends, and closes
	}
}

// forget gives up what waits; mu is held.
func (c *conn) forget() {
	c.door.unread.Add(-int64(len(c.pending)))
	c.pending = nil
}

// flush writes until nothing waits. It ends then, so that idle clients cost none.
func (c *conn) flush() {
	c.mu.Lock()
	for len(c.pending) > 0 {
		out := c.pending
		c.pending, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := c.Conn.Write(out)
		c.door.unread.Add(-int64(len(out)))
		c.mu.Lock()
		if cap(out) <= 4<<10 {
			c.spare = out
		}
		c.cond.Broadcast()
		if err != nil {
			if !c.closed {
				c.closed, c.err = true, err
				c.door.left()
			}
			c.forget()
		}
	}
	c.writing = false
	closed := c.closed
	c.cond.Broadcast()
	c.mu.Unlock()
	if closed {
		_ = c.Conn.Close()
	}
}

// drain waits until at most so many bytes wait, or the connection has ended.
func (c *conn) drain(most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) > most && !c.closed {
		c.cond.Wait()
	}
}

// Close sends what waits, and closes.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.door.left()
	c.cond.Broadcast()
	if c.writing {
		_ = c.Conn.SetReadDeadline(time.Unix(1, 0)) // whoever reads ends now
		_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		return nil
	}
	return c.Conn.Close()
}

// SetDeadline is for reading; writing has its own.
func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.Conn.SetReadDeadline(t)
}

// certified is the common name of the client's certificate; empty without one.
func (c *conn) certified() string {
	t, ok := c.Conn.(*tls.Conn)
	if !ok {
		return ""
	}
	if state := t.ConnectionState(); len(state.VerifiedChains) > 0 {
		return state.PeerCertificates[0].Subject.CommonName
	}
	return ""
}
