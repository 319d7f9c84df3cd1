package dmi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Devices keeps the twins; edge/device's Manager does.
type Devices interface {
	Do(ctx context.Context, op device.Operation) (before, after device.View, err error)
	Get(key twin.Key) (device.View, error)
	List() []device.View
	Listen(buffer int) (<-chan device.Change, func())
	// Started is closed when Get and List tell the truth.
	Started() <-chan struct{}
}

// Options are what a Server needs.
type Options struct {
	// Socket is where mappers reach edgecore. Its folder is made, and in it a folder
	// "mappers" for the sockets of mappers that do not run as root (group 0).
	Socket  string
	Devices Devices
	Log     *slog.Logger
	// StateFile keeps which mappers there are, so that a restart of edgecore needs
	// none of theirs; empty: they are forgotten.
	StateFile string
	// Silence is how long a mapper may not answer before its devices are offline; 0
	// means 30 s.
	Silence time.Duration
	// Patience bounds one call to a mapper; 0 means 10 s.
	Patience time.Duration
}

// Limits.
const (
	maxMappers     = 64
	maxConnections = 256
	maxMessage     = 8 << 20
)

// Server answers mappers and tells them of their devices.
type Server struct {
	dmi.UnimplementedDeviceManagerServiceServer
	o Options

	mu       sync.Mutex
	ctx      context.Context     // of Run; nil before and after it
	sessions map[string]*session // by protocol
	running  sync.WaitGroup      // sessions
	save     sync.Mutex          // one writer of StateFile
}

// New returns a Server that does nothing until Run.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Silence == 0 {
		o.Silence = 30 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	return &Server{o: o, sessions: make(map[string]*session)}
}

// Run serves until ctx ends. It is called once.
func (s *Server) Run(ctx context.Context) error {
	select {
	case <-s.o.Devices.Started():
	case <-ctx.Done():
		return nil
	}
	listener, err := listen(s.o.Socket)
	if err != nil {
		return fmt.Errorf("serve mappers on %s: %w", s.o.Socket, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.running.Wait()
	defer cancel()
	changes, stop := s.o.Devices.Listen(64)
	defer stop()
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	s.restore()

	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(64), grpc.ConnectionTimeout(10*time.Second),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 5 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	dmi.RegisterDeviceManagerServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(newLimited(listener, maxConnections)) }()
	defer func() {
		s.mu.Lock()
		s.ctx = nil
		s.mu.Unlock()
		server.Stop()
	}()
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return device.ErrEnded
			}
			s.follow(c)
		case err := <-served:
			return fmt.Errorf("serve mappers on %s: %w", s.o.Socket, err)
		case <-ctx.Done():
			return nil
		}
	}
}

// follow tells the sessions that a change concerns.
func (s *Server) follow(c device.Change) {
	if !concerns(c) {
		return
	}
	was, is := protocolOf(c.Before), protocolOf(c.After)
	s.mu.Lock()
	defer s.mu.Unlock()
	if session := s.sessions[was]; session != nil {
		session.mark(c.Key())
	}
	if session := s.sessions[is]; session != nil && is != was {
		session.mark(c.Key())
	}
}

// concerns says whether a mapper must hear of a change: the definition is another
// one, or a desired value in force.
func concerns(c device.Change) bool {
	if c.Before.Definition != c.After.Definition {
		return true
	}
	if c.After.Definition == nil || c.Before.Twin == c.After.Twin {
		return false
	}
	for name, e := range c.After.Twin.Properties {
		was := c.Before.Twin.Properties[name]
		if was == e {
			continue
		}
		a, _ := was.Desired()
		b, _ := e.Desired()
		if a != b && (a == nil || b == nil || a.Text != b.Text || a.At != b.At) {
			return true
		}
	}
	return false
}

// protocolOf is the protocol by which a device is served; empty: by no mapper.
func protocolOf(v device.View) string {
	if v.Definition == nil || v.Model == nil {
		return ""
	}
	return v.Device.Spec.Protocol.ProtocolName
}

// Mapper is what is known of a registered mapper.
type Mapper struct {
	Name, Version, Protocol, Socket string
	// Answers: it has answered lately.
	Answers bool
	Devices int
}

// Mappers returns those that have registered, by protocol.
func (s *Server) Mappers() []Mapper {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Mapper
	for _, protocol := range sortedNames(s.sessions) {
		all = append(all, s.sessions[protocol].describe())
	}
	return all
}

// listen makes the socket under a name of this process and renames it into place,
// so that it never exists with another mode; one that is left over is replaced.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Mappers need not be root: group 0 is enough to reach both.
	if err := os.Mkdir(filepath.Join(dir, "mappers"), 0o770); err == nil {
		err = os.Chmod(filepath.Join(dir, "mappers"), 0o770)
		if err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return unixsocket.Listen(path, 0o660)
}

// limited has no more connections than places; others wait to be accepted.
type limited struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, most int) *limited {
	return &limited{Listener: l, places: make(chan struct{}, most), closed: make(chan struct{})}
}

// Close ends an Accept that waits for a place, too.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{Conn: conn, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

type placed struct {
	net.Conn
	leave func()
}

func (c *placed) Close() error {
	c.leave()
	return c.Conn.Close()
}
