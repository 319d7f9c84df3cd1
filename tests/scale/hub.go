package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// hubSetup is what the hub process is told first.
type hubSetup struct {
	CA        []byte // certificate, PEM
	Cert, Key []byte // the hub's own, PEM
	ResetKey  [32]byte
	Listen    string // HOST:PORT; port 0: one that is free for TCP and UDP
	Nodes     int
	Pods      int // of each node
	KeepAlive time.Duration
	Lazy      bool // the objects of a node are made when it asks
	Profile   bool // exact profiles of the heap, which cost time
}

// hubAt is where the hub listens.
type hubAt struct{ Address string }

// hubProcess is a hub as cloud/cmd/cloudcore wires it, with its objects in memory.
type hubProcess struct {
	setup  hubSetup
	source *source
	sink   *sink
	hub    *hub.Hub
	group  *errgroup.Group
	ctx    context.Context
}

// playHub is the role of the hub.
func playHub(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	h := new(hubProcess)
	h.group, h.ctx = errgroup.WithContext(ctx)
	err := obey(ctx, in, out, methods{
		"setup":   method(h.setUp),
		"state":   method(h.state),
		"memory":  method(h.memory),
		"change":  method(h.change),
		"profile": method(h.profile),
	})
	cancel()
	return errors.Join(err, h.group.Wait())
}

func (h *hubProcess) setUp(ctx context.Context, s hubSetup) (hubAt, error) {
	h.setup, h.sink = s, new(sink)
	if s.Profile {
		runtime.MemProfileRate = 4 << 10
	}
	var err error
	if h.source, err = newSource(s.Nodes, s.Pods, s.Lazy); err != nil {
		return hubAt{}, err
	}
	log := quietLog()
	config, err := h.tls()
	if err != nil {
		return hubAt{}, err
	}
	strangers := link.NewStrangers(0, log)
	tcp, udp, err := listen(ctx, s.Listen, strangers)
	if err != nil {
		return hubAt{}, err
	}
	options := link.AcceptOptions{Timing: link.TimingFor(s.KeepAlive), Log: log, Strangers: strangers}
	websocket, handler := link.AcceptWebsocket(options)
	quic, err := link.AcceptQUIC(udp, link.QUICOptions{AcceptOptions: options, TLS: config, ResetKey: s.ResetKey})
	if err != nil {
		return hubAt{}, err
	}
	h.hub = hub.New(hub.Options{Cluster: h.source, Reports: h.sink, Log: log, Version: "scale"})
	acceptor := link.AcceptBoth(websocket, quic)
	h.group.Go(func() error {
		defer acceptor.Close()
		return h.hub.Serve(h.ctx, acceptor)
	})
	h.group.Go(func() error { return serveTLS(h.ctx, tcp, handler, config, log) })
	return hubAt{tcp.Addr().String()}, nil
}

// tls is cloud/identity's configuration.
func (h *hubProcess) tls() (*tls.Config, error) {
	pool, err := pki.Pool(h.setup.CA)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(h.setup.Cert, h.setup.Key)
	if err != nil {
		return nil, fmt.Errorf("the hub's certificate: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil },
	}, nil
}

// listen opens the TCP port and the UDP port of the same number.
func listen(ctx context.Context, address string, strangers *link.Strangers) (net.Listener, net.PacketConn, error) {
	const attempts = 20
	for attempt := 1; ; attempt++ {
		tcp, err := link.Listen(ctx, address, strangers)
		if err != nil {
			return nil, nil, err
		}
		udp, err := link.ListenUDP(ctx, tcp.Addr().String())
		if err == nil {
			return tcp, udp, nil
		}
		if err = errors.Join(err, tcp.Close()); attempt == attempts || !strings.HasSuffix(address, ":0") {
			return nil, nil, err
		}
	}
}

// serveTLS is cloudcore's HTTP server.
func serveTLS(ctx context.Context, l net.Listener, links http.Handler, config *tls.Config, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle(link.Path, links)
	server := &http.Server{
		Handler: mux, TLSConfig: config,
		ReadHeaderTimeout: 15 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// hubState is what the hub says of itself without disturbing anything.
type hubState struct {
	Connected         int
	Accepted, Renewed uint64
	Goroutines        int
	CPU               time.Duration // since the process began
}

func (h *hubProcess) state(context.Context, none) (hubState, error) {
	cpu, err := cpuTime(os.Getpid())
	return hubState{
		Connected: h.hub.Connected(), Accepted: h.sink.accepted.Load(), Renewed: h.sink.renewed.Load(),
		Goroutines: runtime.NumGoroutine(), CPU: cpu,
	}, err
}

// hubMemory is in bytes. Found is what the OS counted before anything was done
// about it, Resident what it counts after collections that give back all that is
// free, as happens by itself to a hub at rest; Heap and Stacks are in use then.
type hubMemory struct {
	Connected                     int
	Found, Resident, Heap, Stacks int64
	Goroutines                    int
}

// Live is the heap and the stacks together.
func (m hubMemory) Live() int64 { return m.Heap + m.Stacks }

func (h *hubProcess) memory(context.Context, none) (hubMemory, error) {
	m := hubMemory{Connected: h.hub.Connected(), Goroutines: runtime.NumGoroutine()}
	var err error
	if m.Found, err = resident(os.Getpid()); err != nil {
		return m, err
	}
	for range 3 { // pools give back with the second one, a stack shrinks by half with each
		runtime.GC()
	}
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m.Heap, m.Stacks = int64(stats.HeapAlloc), int64(stats.StackInuse)
	m.Resident, err = resident(os.Getpid())
	return m, err
}

// changeArgs say how many objects are to be changed.
type changeArgs struct {
	Rate   int // a second
	During time.Duration
}

type changeDone struct{ Made int }

func (h *hubProcess) change(ctx context.Context, a changeArgs) (changeDone, error) {
	made, err := h.source.generate(ctx, a.Rate, h.setup.Pods, a.During)
	return changeDone{made}, err
}

// profileArgs name the files: PREFIX-heap.pprof and so on.
type profileArgs struct{ Prefix string }

func (h *hubProcess) profile(_ context.Context, a profileArgs) (none, error) {
	runtime.GC()
	for _, name := range []string{"heap", "goroutine"} {
		path := fmt.Sprintf("%s-%s.pprof", a.Prefix, name)
		f, err := os.Create(filepath.Clean(path))
		if err != nil {
			return none{}, fmt.Errorf("write a profile: %w", err)
		}
		if err := errors.Join(pprof.Lookup(name).WriteTo(f, 0), f.Close()); err != nil {
			return none{}, fmt.Errorf("write profile %s: %w", path, err)
		}
	}
	return none{}, nil
}
