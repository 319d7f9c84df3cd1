package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// What is spoken to forward ports: a SPDY connection in which each forwarded connection
// has two streams with a number in common, one for its bytes and one for what went wrong.
const (
	spdyUpgrade     = "SPDY/3.1"
	forwardProtocol = "portforward.k8s.io"
	protocolHeader  = "X-Stream-Protocol-Version"
	streamType      = "Streamtype"
	streamData      = "data"
	streamError     = "error"
	streamPort      = "Port"
	streamRequest   = "Requestid"
)

// Bounds of a client that forwards ports.
const (
	maxForwards = 512           // connections at one time; more are refused
	forwardIdle = 4 * time.Hour // without a byte of any of them
	pairWithin  = 30 * time.Second
	// forwardDial is as long as the kernel goes on trying: while a program has more new
	// connections than its queue holds, it throws attempts away.
	forwardDial = 2 * time.Minute
	// lastWords is how long a client may go on sending to one who has closed.
	lastWords = time.Second
	// breath is how long a write to a pod waits before it is looked at again. What a
	// client that has gone had sent is given up when no pod has taken any for two.
	breath = 2 * time.Second
	// askAfter is how long a pod may take nothing before its client is asked whether it is
	// still there: as long as the client's bytes wait, nobody reads that it has gone.
	askAfter = 10 * time.Second
)

// forward serves the connections of one client itself: the runtime's own server ends one
// as soon as either side has said all it has to say, and the answer would be lost. A nil
// network is the node's own. It returns when all has ended.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, pod string, network *os.File) {
	offered := r.Header.Values(protocolHeader)
	if len(offered) > 0 && !slices.Contains(offered, forwardProtocol) {
		answer(w, fail(http.StatusForbidden, "unable to upgrade: none of the protocols %q is spoken here: use %s", offered, forwardProtocol))
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, fmt.Errorf("take over the connection: %w", err))
		return
	}
	defer client.Close()
	defer context.AfterFunc(r.Context(), func() { client.Close() })()
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + spdyUpgrade + "\r\n" + protocolHeader + ": " + forwardProtocol + "\r\n\r\n"
	if _, err := client.Write([]byte(head)); err != nil {
		return
	}
	session, err := spdystream.NewConnection(bufferedConn{client, buffered.Reader}, true)
	if err != nil {
		s.log.Debug("a client that forwards ports cannot be spoken with", "pod", pod, "err", err)
		return
	}
	session.SetIdleTimeout(forwardIdle)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	f := &forwarder{s: s, ctx: ctx, pod: pod, network: network, client: client, lost: make(chan struct{}), halves: make(map[string]*spdystream.Stream)}
	taken := make(chan struct{})
	go func() {
		session.Serve(f.take)
		f.sending.Wait()
		close(taken)
	}()
	f.settle(session.CloseChan(), taken)
	cancel()
	client.Close() // or what is said to it would be waited for
	f.forget()
	<-taken
	f.open.Wait()
}

// forwarder is one client's forwarded connections.
type forwarder struct {
	s       *Server
	ctx     context.Context // ends with the client
	pod     string
	network *os.File
	client  net.Conn
	lost    chan struct{} // closed when nothing can be said to the client any more
	open    sync.WaitGroup
	sending sync.WaitGroup // holds one for each pod that has yet to take all that it is sent
	taken   atomic.Int64   // bytes that pods have taken
	asking  atomic.Bool    // one asks at a time

	mu     sync.Mutex
	count  int
	halves map[string]*spdystream.Stream // by number: those whose other stream has not come
}

// settle waits until the client has gone, and then for as long as pods take what it has
// sent. The session itself would wait for ever: for one that takes nothing.
func (f *forwarder) settle(gone <-chan bool, taken <-chan struct{}) {
	select {
	case <-gone:
	case <-f.lost:
		f.client.Close()
	case <-f.ctx.Done():
		return
	}
	tick := time.NewTicker(2 * breath)
	defer tick.Stop()
	for before := int64(-1); before != f.taken.Load(); {
		before = f.taken.Load()
		select {
		case <-taken:
			return
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forget gives up the streams that wait for their other one: nobody reads what is sent on
// them.
func (f *forwarder) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for request, st := range f.halves {
		delete(f.halves, request)
		_ = st.Reset()
	}
}

// take takes a new stream. It is called by the session for one stream after the other.
func (f *forwarder) take(st *spdystream.Stream) {
	kind, request := st.Headers().Get(streamType), st.Headers().Get(streamRequest)
	// A stream that is not taken is reset, always: the session would keep what comes on it
	// for a reader, and read nothing more itself.
	if kind != streamData && kind != streamError || request == "" {
		_ = st.Reset() // the client hears it, or has gone
		return
	}
	if err := st.SendReply(http.Header{}, false); err != nil {
		_ = st.Reset()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	other := f.halves[request]
	switch {
	case f.ctx.Err() != nil:
		_ = st.Reset()
		return
	case other == nil && len(f.halves) >= maxForwards, other != nil && other.Headers().Get(streamType) == kind:
		_ = st.Reset()
		return
	case other == nil:
		f.halves[request] = st
		time.AfterFunc(pairWithin, func() { f.giveUp(request, st) })
		return
	}
	delete(f.halves, request)
	data, problems := st, other
	if kind == streamError {
		data, problems = other, st
	}
	if f.count >= maxForwards {
		f.open.Go(func() { f.end(data, problems, fmt.Errorf("%d connections are open already", maxForwards)) })
		return
	}
	f.count++
	f.sending.Add(1)
	f.open.Go(func() {
		f.end(data, problems, f.connect(data))
		f.mu.Lock()
		f.count--
		f.mu.Unlock()
	})
}

// giveUp forgets a stream whose other one has not come.
func (f *forwarder) giveUp(request string, st *spdystream.Stream) {
	f.mu.Lock()
	waits := f.halves[request] == st
	if waits {
		delete(f.halves, request)
	}
	f.mu.Unlock()
	if waits {
		_ = st.Reset()
	}
}

// end ends both streams, and says what went wrong. That the pod has reset the connection,
// be it as soon as it was made, is only said by a reset: programs do that, it is this
// connection's end and no other's, and kubectl ends all of them when it is told of an error.
func (f *forwarder) end(data, problems *spdystream.Stream, err error) {
	if errors.Is(err, unix.ECONNRESET) {
		_ = data.Reset()
	} else if err != nil && f.ctx.Err() == nil {
		_, _ = fmt.Fprintf(problems, "forward port %s of pod %s: %v", data.Headers().Get(streamPort), f.pod, err)
	}
	for _, st := range []*spdystream.Stream{data, problems} {
		_ = st.Close()
		_ = st.Reset() // whoever reads it stops; the client hears nothing of it
	}
}

// connect connects to the port that a stream names and copies both ways, until the pod's
// side has said all it has to say, or the client has gone.
func (f *forwarder) connect(data *spdystream.Stream) error {
	sent := sync.OnceFunc(f.sending.Done)
	defer sent()
	port, err := strconv.ParseUint(data.Headers().Get(streamPort), 10, 16)
	if err != nil || port == 0 {
		return errors.New("that is no port: it must be between 1 and 65535")
	}
	conn, err := f.dial(strconv.FormatUint(port, 10))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(f.ctx, func() { conn.Close() })()
	said := make(chan struct{})
	f.open.Go(func() {
		defer close(said)
		defer sent()
		if transfer(&patient{f: f, conn: conn, from: data}, data, &f.s.buffers) != nil {
			_ = data.Reset() // the pod's side reads no more
			return
		}
		bufferedConn{Conn: conn}.closeWrite()
		// A client that broke off looks the same as one that has said all, at first.
		time.AfterFunc(lastWords, func() {
			if data.IsFinished() {
				conn.Close()
			}
		})
	})
	if err := transfer(unbroken{data}, conn, &f.s.buffers); err != nil {
		if errors.Is(err, errBrokenOff) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
	if err := data.Close(); err != nil {
		return nil // the client has gone
	}
	select {
	case <-said:
	case <-time.After(lastWords):
	}
	return nil
}

// patient is a pod to which is written for as long as it takes, but not for a client that
// has gone meanwhile.
type patient struct {
	f    *forwarder
	conn net.Conn
	from *spdystream.Stream
}

func (p *patient) Write(b []byte) (n int, err error) {
	for asked := time.Now(); ; {
		if err := p.conn.SetWriteDeadline(time.Now().Add(breath)); err != nil {
			return n, err
		}
		taken, err := p.conn.Write(b[n:])
		n += taken
		p.f.taken.Add(int64(taken))
		switch {
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		case p.from.IsFinished():
			return n, errBrokenOff
		case taken > 0:
			asked = time.Now()
		case time.Since(asked) >= askAfter:
			asked = time.Now()
			p.f.ask(p.from)
		}
	}
}

// ask writes nothing to a client, in a frame of its own: who is there makes nothing of it,
// and who is not cannot be written to.
func (f *forwarder) ask(st *spdystream.Stream) {
	if !f.asking.CompareAndSwap(false, true) {
		return
	}
	f.open.Go(func() { // it waits for a client that does not read
		if _, err := st.Write(nil); err != nil {
			close(f.lost) // nobody asks again
			return
		}
		f.asking.Store(false)
	})
}

var errBrokenOff = errors.New("the client broke off")

// unbroken is a stream to which nothing is written once the client has broken it off.
type unbroken struct{ *spdystream.Stream }

func (u unbroken) Write(b []byte) (int, error) {
	if u.IsFinished() {
		return 0, errBrokenOff
	}
	return u.Stream.Write(b)
}

// dial connects to a port of the pod's own loopback, as programs inside do.
func (f *forwarder) dial(port string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, forwardDial)
	defer cancel()
	connect := f.s.o.Dial
	if f.network != nil {
		connect = f.dialInside
	}
	conn, err := connect(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if six, failed := connect(ctx, "tcp", net.JoinHostPort("::1", port)); failed == nil {
		return six, nil
	}
	return nil, err
}

// dialInside connects from the pod's network namespace. A thread makes the socket there
// and comes back; one that cannot is not used again.
func (f *forwarder) dialInside(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		goruntime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer own.Close()
			err = unix.Setns(int(f.network.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			goruntime.UnlockOSThread()
			done <- result{nil, fmt.Errorf("enter the pod's network: %w", err)}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			goruntime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// forwards says whether this server forwards by itself, and to which network: to a pod
// whose network the runtime tells, for clients that speak what kubectl's do.
func (s *Server) forwards(r *http.Request, rt Runtime, sandbox string) (network *os.File, ok bool) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), spdyUpgrade) {
		return nil, false
	}
	path, err := rt.Network(r.Context(), sandbox)
	if err == nil && path == "" {
		return nil, true
	}
	if err == nil {
		network, err = os.Open(path)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		s.log.Debug("the runtime forwards ports: the pod's network cannot be opened", "sandbox", sandbox, "err", err)
	}
	return network, err == nil
}
