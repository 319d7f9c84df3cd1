package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the ports.
const (
	backlog  = 64
	maxConns = 8192 // connections of all ports together; beyond, new ones are closed
	// crowd is how many connections may be kept for a next request: beyond, each ends
	// with its answer. Who scrapes 20,000 nodes would keep one to each.
	crowd = maxConns / 4
	// maxTries is how many ports in a row are tried for a node: others may have them.
	maxTries = 512
	// startPatience is how long an accept waits after the process ran out of files.
	startPatience = 50 * time.Millisecond
	tellAgain     = time.Minute
)

// Why a node gets no port.
var (
	errNoPort  = errors.New("no port of the range is left (tunnel.ports)")
	errNoFiles = errors.New("a fifth of the files that the process may open are nodes' ports, and the rest is for nodes' connections (LimitNOFILE)")
)

// ports listens at one port for each node. It is a net.Listener whose connections
// tell the node (nodeConn). A listening socket is all that a node costs: one
// goroutine waits for all of them.
type ports struct {
	bind        netip.Addr // to listen at
	first, last int
	most        int // ports at a time, for the sake of the files
	log         *slog.Logger
	claimed     func(node string, port int) bool // by another node, which is not to be met there

	epoll   *os.File
	accept  chan net.Conn
	done    chan struct{}
	stopped chan struct{}
	open    atomic.Int64 // connections
	told    time.Time    // when run last logged that a connection must wait

	mu     sync.Mutex
	next   int
	nodes  map[string]nodePort // by node
	owners map[int]string      // by port
	byFD   map[int32]string
	closed bool
}

// nodePort is the port of a node and its listening socket.
type nodePort struct {
	port int
	fd   int
}

// nodeConn is a connection to the port of a node.
type nodeConn struct {
	net.Conn
	node string
	once sync.Once
	gone func()
}

func (c *nodeConn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

// CloseWrite ends the writing half.
func (c *nodeConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func openPorts(bind netip.Addr, first, last int, log *slog.Logger) (*ports, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll for the nodes' ports: %w", err)
	}
	// Not blocking, so that the runtime's own poller waits for it.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make an epoll for the nodes' ports: %w", err)
	}
	files := unix.Rlimit{Cur: 1024}
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &files) // else the least that there is
	p := &ports{
		bind: bind, first: first, last: last, most: int(min(files.Cur, 1<<30) / 5), next: first, log: log, claimed: func(string, int) bool { return false }, epoll: os.NewFile(uintptr(fd), "epoll"),
		accept: make(chan net.Conn), done: make(chan struct{}), stopped: make(chan struct{}),
		nodes: make(map[string]nodePort), owners: make(map[int]string), byFD: make(map[int32]string),
	}
	go p.run()
	return p, nil
}

// of is the port of a node; 0: it has none.
func (p *ports) of(node string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes[node].port
}

// crowded says that connections are not to be kept open for more.
func (p *ports) crowded() bool { return p.open.Load() > crowd }

// count is how many nodes have a port.
func (p *ports) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.nodes)
}

// give listens for a node, at the wanted port if that is free and in the range (0:
// any), and returns the port. A node that has one keeps it.
func (p *ports) give(node string, wanted int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	if has, ok := p.nodes[node]; ok {
		return has.port, nil
	}
	if len(p.nodes) >= p.most {
		return 0, fmt.Errorf("listen for node %s: %w", node, errNoFiles)
	}
	if wanted >= p.first && wanted <= p.last && p.free(node, wanted) {
		if err := p.listen(node, wanted); err == nil {
			return wanted, nil
		}
	}
	size := p.last - p.first + 1
	if len(p.owners) >= size { // asked for again and again, by each node that gets none
		return 0, fmt.Errorf("listen for node %s: %w", node, errNoPort)
	}
	for tries := 0; tries < size; tries++ {
		port := p.next
		if p.next++; p.next > p.last {
			p.next = p.first
		}
		if !p.free(node, port) {
			continue
		}
		err := p.listen(node, port)
		if err == nil {
			return port, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || tries > len(p.nodes)+maxTries {
			return 0, fmt.Errorf("listen for node %s: %w", node, err)
		}
	}
	return 0, fmt.Errorf("listen for node %s: %w", node, errNoPort)
}

// keep is give at that port or not at all.
func (p *ports) keep(node string, port int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.nodes) >= p.most || port < p.first || port > p.last || !p.free(node, port) || p.nodes[node].port != 0 {
		return false
	}
	return p.listen(node, port) == nil
}

// free says that a port is nobody else's; it is called with mu held.
func (p *ports) free(node string, port int) bool {
	return p.owners[port] == "" && !p.claimed(node, port)
}

// listen is called with mu held.
func (p *ports) listen(node string, port int) error {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: p.bind.As16()})
	if p.bind.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: p.bind.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err == nil {
		err = p.control(func(epoll int) error {
			return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		})
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	p.nodes[node], p.owners[port], p.byFD[int32(fd)] = nodePort{port, fd}, node, node
	return nil
}

func (p *ports) control(f func(epoll int) error) error {
	raw, err := p.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// release closes the port of a node; connections that are open go on.
func (p *ports) release(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if has, ok := p.nodes[node]; ok {
		p.drop(node, has)
	}
}

func (p *ports) drop(node string, has nodePort) {
	delete(p.nodes, node)
	delete(p.owners, has.port)
	delete(p.byFD, int32(has.fd))
	_ = unix.Close(has.fd) // which takes it out of the epoll
}

// run hands on what arrives until Close.
func (p *ports) run() {
	defer close(p.stopped)
	raw, err := p.epoll.SyscallConn()
	if err != nil {
		p.log.Error("the nodes' ports cannot be watched", "err", err)
		return
	}
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		// The runtime waits until the epoll has something, then calls this.
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			if !p.take(e.Fd) {
				return
			}
		}
	}
}

// take accepts one connection of a port; false: no more are taken.
func (p *ports) take(listener int32) bool {
	p.mu.Lock()
	node, ok := p.byFD[listener]
	if !ok { // released meanwhile
		p.mu.Unlock()
		return true
	}
	fd, _, err := unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	p.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR): // it went away
		return true
	default: // too many files are open, or the kernel is short of memory
		if now := time.Now(); now.Sub(p.told) > tellAgain {
			p.told = now
			p.log.Warn("connections for nodes must wait", "node", node, "err", err)
		}
		time.Sleep(startPatience) // it stays in the backlog, and the epoll would tell of it at once
		return true
	}
	conn, err := connOf(fd)
	if err != nil {
		return true
	}
	if p.open.Add(1) > maxConns {
		p.open.Add(-1)
		_ = conn.Close()
		return true
	}
	c := &nodeConn{Conn: conn, node: node, gone: func() { p.open.Add(-1) }}
	select {
	case p.accept <- c:
		return true
	case <-p.done:
		_ = c.Close()
		return false
	}
}

func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // FileConn has one of its own
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, syscall.EINVAL
	}
	_ = tcp.SetNoDelay(true)
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4})
	return conn, nil
}

// Accept returns the next connection; see nodeConn.
func (p *ports) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close closes every port.
func (p *ports) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	for node, has := range p.nodes {
		p.drop(node, has)
	}
	p.mu.Unlock()
	close(p.done)
	err := p.epoll.Close()
	<-p.stopped
	return err
}

// Addr is where the first port is.
func (p *ports) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.bind, uint16(p.first)))
}

type nodeKey struct{}

// withNode puts the node of a connection into the context of its requests.
func withNode(ctx context.Context, c net.Conn) context.Context {
	if layer, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = layer.NetConn()
	}
	if nc, ok := c.(*nodeConn); ok {
		return context.WithValue(ctx, nodeKey{}, nc.node)
	}
	return ctx
}

func nodeOf(ctx context.Context) string {
	node, _ := ctx.Value(nodeKey{}).(string)
	return node
}
