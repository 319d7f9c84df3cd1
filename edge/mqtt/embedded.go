package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Limits of the embedded broker.
const (
	// maxPacket bounds a packet: so much is read of a payload that is too large, in
	// order to answer it. Beyond, the connection ends.
	maxPacket = 256 << 10
	// maxInflight is how many QoS 1 messages wait for a client, also while it is away:
	// all that is retained must fit, for who subscribes to it. What they take is
	// bounded by inflightRoom.
	maxInflight = 16 << 10
	// maxQueued is how many messages wait to be encoded for a client.
	maxQueued = 1024
	// maxSessions are clients and sessions of clients that are away, sessionExpiry is
	// how long those are kept.
	maxSessions   = 2 * MaxClients
	sessionExpiry = 24 * time.Hour
	// maxSubscriptions is what one client may have.
	maxSubscriptions = 256
)

// embedded is edgecore's own broker.
type embedded struct {
	server *mochi.Server
	inline *mochi.Client
	queue  *queue
	hook   *hook
	loans  *loans
}

// runEmbedded serves until ctx ends. What is in the way, such as another broker at
// the port, is said once and tried again.
func (s *Server) runEmbedded(ctx context.Context) {
	said := ""
	for wait := s.o.BackoffBase; ; wait = min(2*wait, s.o.BackoffCap) {
		open, err := s.open(ctx)
		if err == nil {
			s.serve(ctx, open)
			return
		}
		if err.Error() != said {
			said = err.Error()
			s.o.Log.Error("the MQTT broker cannot start; it goes on trying", "error", err)
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// open listens at all addresses.
func (s *Server) open(ctx context.Context) (open []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
			open = nil
		}
	}()
	secure, err := s.o.Config.serverTLS()
	if err != nil {
		return nil, err
	}
	for _, address := range s.o.Config.listen() {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return open, fmt.Errorf("%w: another broker may have the port: set devices.mqtt.broker to tcp://%s to use it, or listen elsewhere", err, address)
		} else if err != nil {
			return open, err
		}
		open = append(open, &door{Listener: l, tls: secure})
	}
	return open, nil
}

// serverTLS is nil without TLS. The certificate is read anew for each connection
// when its file has changed.
func (c Config) serverTLS() (*tls.Config, error) {
	if c.TLSCert == "" {
		return nil, nil
	}
	pair := &keyPair{cert: c.TLSCert, key: c.TLSKey}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get}
	if c.ClientCA != "" {
		pool, err := readPool(c.ClientCA)
		if err != nil {
			return nil, err
		}
		t.ClientCAs, t.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return t, nil
}

func readPool(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("the CA file %s has no certificate in PEM", file)
	}
	return pool, nil
}

type keyPair struct {
	cert, key string

	mu   sync.Mutex
	at   time.Time
	pair *tls.Certificate
}

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.cert)
	if err == nil && k.pair != nil && info.ModTime().Equal(k.at) {
		return k.pair, nil
	}
	pair, e := tls.LoadX509KeyPair(k.cert, k.key)
	if e != nil {
		if k.pair != nil {
			return k.pair, nil // it is being replaced
		}
		return nil, fmt.Errorf("load the broker's certificate %s: %w", k.cert, e)
	}
	if err == nil {
		k.at = info.ModTime()
	}
	k.pair = &pair
	return k.pair, nil
}

func capabilities() *mochi.Capabilities {
	c := mochi.NewDefaultServerCapabilities()
	c.MaximumClients = MaxClients
	c.MaximumMessageExpiryInterval = 0 // else retained messages would end, too
	c.MaximumClientWritesPending = maxQueued
	c.MaximumSessionExpiryInterval = uint32(sessionExpiry / time.Second)
	c.MaximumPacketSize = maxPacket
	c.ReceiveMaximum = 256
	c.MaximumInflight = maxInflight
	c.TopicAliasMaximum = 0 // access is checked by topic, before an alias is known
	return c
}

// serve is the broker until ctx ends.
func (s *Server) serve(ctx context.Context, open []net.Listener) {
	server := mochi.New(&mochi.Options{
		Capabilities: capabilities(), InlineClient: true,
		Logger:                 slog.New(slog.DiscardHandler), // it logs activity; the hook logs what matters
		SysTopicResendInterval: 100 * 365 * 24 * 3600,         // $SYS is nobody's need; metrics say more
	})
	e := &embedded{server: server, queue: newQueue()}
	e.inline, _ = server.Clients.Get(mochi.InlineClientId)
	e.loans = &loans{server: server, until: make(map[string]time.Time)}
	e.hook = newHook(ctx, s, e)
	if err := server.AddHook(e.hook, nil); err != nil {
		s.o.Log.Error("the MQTT broker cannot start", "error", err)
		return
	}
	var group sync.WaitGroup
	defer group.Wait()
	for i, l := range open {
		if err := server.AddListener(listeners.NewNet(fmt.Sprint("listener", i), l)); err != nil {
			s.o.Log.Error("the MQTT broker cannot listen", "address", l.Addr(), "error", err)
			return
		}
	}
	group.Go(func() { e.queue.run(ctx, e.inject) })
	group.Go(func() { e.hook.watch(ctx) })
	s.up(e, open[0].Addr().String())
	if err := server.Serve(); err != nil {
		s.o.Log.Error("the MQTT broker cannot serve", "error", err)
	}
	s.o.Log.Info("the MQTT broker serves", "address", open[0].Addr().String())
	<-ctx.Done()
	s.up(nil, "")
	_ = server.Close() // it returns nil
}

// packet is a message of edgecore as the broker has it.
func packet(m outgoing) packets.Packet {
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: m.retain},
		TopicName:   m.topic, Payload: m.payload,
		Properties: packets.Properties{CorrelationData: m.correlation},
		PacketID:   1, // of no use: the inline client acknowledges nothing
	}
}

func (e *embedded) inject(pk packets.Packet) {
	e.hook.catchUp()
	if pk.FixedHeader.Retain {
		e.loans.fill(pk.TopicName, pk.Payload)
		pk.FixedHeader.Retain = false // see loans
	}
	_ = e.server.InjectPacket(e.inline, pk) // an inline client is refused nothing
}

func (e *embedded) publish(m outgoing) { e.queue.add(packet(m), nil) }

func (e *embedded) deliver(ctx context.Context, m outgoing) error {
	done := make(chan struct{})
	e.queue.add(packet(m), func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *embedded) listens(name string) bool {
	subs := e.server.Topics.Subscribers(name)
	return len(subs.Subscriptions)+len(subs.Shared) > 0
}

func (e *embedded) knows() bool { return true }

// queue hands messages to the broker in order, from one goroutine. Who adds has
// taken room before, or adds one at a time, so that its length is bounded.
type queue struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	items []item
}

type item struct {
	pk   packets.Packet
	done func() // may be nil
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) add(pk packets.Packet, done func()) {
	q.mu.Lock()
	q.items = append(q.items, item{pk, done})
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// after calls done when everything before was handed over.
func (q *queue) after(done func()) { q.add(packets.Packet{}, done) }

func (q *queue) run(ctx context.Context, inject func(packets.Packet)) {
	for {
		q.mu.Lock()
		items := q.items
		q.items = nil
		q.mu.Unlock()
		for _, it := range items {
			if it.pk.TopicName != "" {
				inject(it.pk)
			}
			if it.done != nil {
				it.done()
			}
		}
		if len(items) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}
