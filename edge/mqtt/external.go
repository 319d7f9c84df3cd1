package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sync/semaphore"

	"github.com/holdfast-edge/holdfast/edge/mqtt/topic"
)

// Patience with an external broker.
const (
	connectTimeout = 20 * time.Second
	keepAlive      = 30 * time.Second
	brokerTimeout  = 30 * time.Second // for what a broker must answer
	longConnection = 10 * time.Second // after which the pauses begin anew
)

// external is one connection to a broker that is not ours.
type external struct {
	s      *Server
	client paho.Client
	queue  *outbox
	room   *semaphore.Weighted
	acks   *order
	lost   chan error // capacity 1
	resume bool       // the broker had kept our session
}

func (c Config) brokerURL() (*url.URL, error) {
	u, err := url.Parse(c.Broker)
	switch {
	case err != nil:
		return nil, fmt.Errorf("mqtt: broker: %w", err)
	case u.User != nil:
		return nil, errors.New("mqtt: broker has a user in its address: set user and password instead")
	case u.Host == "":
		return nil, fmt.Errorf("mqtt: broker %q is no address such as tcp://127.0.0.1:1883", c.Broker)
	}
	switch u.Scheme {
	case "tcp", "mqtt":
		if c.CAFile != "" || c.CertFile != "" {
			return nil, fmt.Errorf("mqtt: broker %s is not TLS, and caFile or certFile is set: write ssl:// or remove them", c.Broker)
		}
		u.Scheme = "tcp"
		if u.Port() == "" {
			u.Host += ":1883"
		}
	case "ssl", "tls", "mqtts":
		u.Scheme = "ssl"
		if u.Port() == "" {
			u.Host += ":8883"
		}
	case "ws", "wss":
	default:
		return nil, fmt.Errorf("mqtt: broker %q: %q is none of tcp, ssl, ws and wss", c.Broker, u.Scheme)
	}
	return u, nil
}

// clientTLS reads the files anew for each connection, so that they may be replaced.
func (c Config) clientTLS(u *url.URL) (*tls.Config, error) {
	if u.Scheme != "ssl" && u.Scheme != "wss" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	if c.CAFile != "" {
		pool, err := readPool(c.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = pool
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load the certificate for the broker: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

func (c Config) password() (string, error) {
	if c.UserPasswordFile == "" {
		return c.Password, nil
	}
	b, err := os.ReadFile(c.UserPasswordFile)
	if err != nil {
		return "", fmt.Errorf("read the password for the broker: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// runExternal keeps a connection to the broker until ctx ends. Why there is none is
// said once.
func (s *Server) runExternal(ctx context.Context) {
	said, wait := "", s.o.BackoffBase
	for short := 0; ctx.Err() == nil; {
		began := time.Now()
		connected, err := s.connection(ctx, short < 3)
		if ctx.Err() != nil {
			return
		}
		if connected && time.Since(began) > longConnection {
			short, wait = 0, s.o.BackoffBase
		} else if connected {
			short++
		}
		if connected && short < 3 {
			said = ""
		}
		if err.Error() != said {
			said = err.Error()
			s.o.Log.Warn("the MQTT broker cannot be used; it goes on trying", "broker", s.o.Config.Broker, "error", err)
		}
		if !pause(ctx, wait/2+rand.N(wait/2+1)) {
			return
		}
		wait = min(2*wait, s.o.BackoffCap)
	}
}

// connection is one connection from its beginning to its end. After some short
// ones it is loud no more, so that what goes wrong again and again fills no log.
func (s *Server) connection(ctx context.Context, loud bool) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &external{s: s, queue: newOutbox(), room: semaphore.NewWeighted(allRoom), lost: make(chan error, 1)}
	e.acks = &order{broken: func(err error) {
		e.queue.add(errand{run: func() { e.end(err) }}) // after what was said about it
	}}
	options, err := e.options(ctx)
	if err != nil {
		return false, err
	}
	e.client = paho.NewClient(options)
	token := e.client.Connect()
	select {
	case <-token.Done():
	case <-ctx.Done():
	}
	defer func() {
		cancel()
		e.client.Disconnect(250)
	}()
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err := token.Error(); err != nil {
		return false, err
	}
	if t, ok := token.(*paho.ConnectToken); ok {
		e.resume = t.SessionPresent()
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { e.queue.run(ctx, e.client) })
	if err := e.subscribe(topic.Filters(s.o.Node)); err != nil {
		return true, err
	}
	group.Go(func() { e.follow(ctx) })
	level := slog.LevelInfo
	if !loud {
		level = slog.LevelDebug
	}
	s.o.Log.Log(ctx, level, "the MQTT broker is connected", "broker", s.o.Config.Broker, "session", e.resume)
	e.publish(outgoing{topic: topic.NodeState(s.o.Node), payload: []byte("online"), retain: true})
	s.up(e, "")
	defer s.up(nil, "")
	select {
	case err = <-e.lost:
		return true, err
	case <-ctx.Done():
		goodbye, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer stop()
		_ = e.now(goodbye, outgoing{topic: topic.NodeState(s.o.Node), payload: []byte("offline"), retain: true})
		return true, ctx.Err()
	}
}

func (e *external) options(ctx context.Context) (*paho.ClientOptions, error) {
	config := e.s.o.Config
	u, err := config.brokerURL()
	if err != nil {
		return nil, err
	}
	secure, err := config.clientTLS(u)
	if err != nil {
		return nil, err
	}
	password, err := config.password()
	if err != nil {
		return nil, err
	}
	o := paho.NewClientOptions().AddBroker(u.String()).SetClientID("holdfast-"+e.s.o.Node).
		SetUsername(config.User).SetPassword(password).
		SetCleanSession(false).SetProtocolVersion(4).
		SetAutoReconnect(false).SetConnectRetry(false).SetConnectTimeout(connectTimeout).SetWriteTimeout(brokerTimeout).
		SetKeepAlive(keepAlive).SetOrderMatters(true).SetAutoAckDisabled(true).
		SetWill(topic.NodeState(e.s.o.Node), "offline", 1, true).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { e.receive(ctx, m) }).
		SetConnectionLostHandler(func(_ paho.Client, err error) { e.end(err) })
	if secure != nil {
		o.SetTLSConfig(secure)
	}
	return o, nil
}

// end ends the connection; the first reason counts.
func (e *external) end(err error) {
	select {
	case e.lost <- err:
	default:
	}
}

// receive takes one message. It is called in order, and blocks while there is no
// room: the broker waits then.
func (e *external) receive(ctx context.Context, m paho.Message) {
	if m.Retained() && !e.current(m.Topic()) {
		m.Ack()
		return
	}
	cost := min(int64(len(m.Payload()))+messageCost, allRoom)
	if e.room.Acquire(ctx, cost) != nil {
		return // it comes again
	}
	place := e.acks.open()
	e.s.desk.take(ctx, message{topic: m.Topic(), payload: m.Payload()}, func(v verdict) {
		e.acks.settle(place, func() { e.queue.add(errand{run: m.Ack}) }, v.failed)
		e.queue.add(errand{run: func() { e.room.Release(cost) }})
	})
}

// current says whether a retained message, which a broker sends because of a
// subscription, is news: a state is. Values are not: they would come again with each
// connection, after newer ones that were reported or set elsewhere.
func (e *external) current(name string) bool { return topic.Parse(name).Kind == topic.State }

func (e *external) subscribe(filters []string) error {
	if len(filters) == 0 {
		return nil
	}
	all := make(map[string]byte, len(filters))
	for _, f := range filters {
		all[f] = 1
	}
	token := e.client.SubscribeMultiple(all, nil)
	if !token.WaitTimeout(brokerTimeout) {
		return errors.New("the broker does not answer a subscription")
	}
	if err := token.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if t, ok := token.(*paho.SubscribeToken); ok {
		for _, f := range slices.Sorted(maps.Keys(t.Result())) {
			if t.Result()[f] == 0x80 {
				e.s.o.Log.Error("the MQTT broker refuses a subscription: its access rules must allow it", "filter", f, "user", e.s.o.Config.User)
			}
		}
	}
	return nil
}

// follow subscribes to what is routed. What a filter of devices covers, or one that
// covers others, is subscribed to once, so that messages come once.
func (e *external) follow(ctx context.Context) {
	have := map[string]bool{}
	for {
		changed := e.s.routes.changed()
		want := map[string]bool{}
		for _, f := range distinct(e.s.routes.all(), topic.Filters(e.s.o.Node)) {
			want[f] = true
		}
		var more []string
		for f := range want {
			if !have[f] {
				more = append(more, f)
			}
		}
		slices.Sort(more)
		if err := e.subscribe(more); err != nil {
			e.end(err)
			return
		}
		for f := range have {
			if !want[f] {
				e.client.Unsubscribe(f) // if it fails, messages come that nobody wants
			}
		}
		have = want
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// distinct leaves out filters that another one, or one of base, covers.
func distinct(filters, base []string) []string {
	var out []string
	for i, f := range filters {
		covered := slices.ContainsFunc(base, func(b string) bool { return topic.Covers(b, f) })
		for j, other := range filters {
			if i != j && topic.Covers(other, f) && (!topic.Covers(f, other) || j < i) {
				covered = true
			}
		}
		if !covered {
			out = append(out, f)
		}
	}
	return out
}

func (e *external) publish(m outgoing) { e.queue.add(errand{message: &m}) }

func (e *external) deliver(ctx context.Context, m outgoing) error {
	sent := make(chan paho.Token, 1)
	e.queue.add(errand{message: &m, sent: func(t paho.Token) { sent <- t }})
	select {
	case t := <-sent:
		return e.wait(ctx, t)
	case <-e.queue.ended:
		return ErrNoBroker
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// now publishes past the queue.
func (e *external) now(ctx context.Context, m outgoing) error {
	return e.wait(ctx, e.client.Publish(m.topic, 1, m.retain, m.payload))
}

func (e *external) wait(ctx context.Context, t paho.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-e.queue.ended:
		return ErrNoBroker
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *external) listens(string) bool { return true }
func (e *external) knows() bool         { return false }

// errand is something to do on a connection in its turn.
type errand struct {
	message *outgoing
	sent    func(paho.Token) // must not block; may be nil
	run     func()
}

// outbox does errands in order: an answer is on its way before the message that it
// answers is acknowledged. Who adds has taken room before, or adds one at a time.
type outbox struct {
	wake  chan struct{} // capacity 1
	ended chan struct{}

	mu    sync.Mutex
	items []errand
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (q *outbox) add(e errand) {
	q.mu.Lock()
	q.items = append(q.items, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *outbox) run(ctx context.Context, client paho.Client) {
	defer close(q.ended)
	for {
		q.mu.Lock()
		items := q.items
		q.items = nil
		q.mu.Unlock()
		for _, it := range items {
			if ctx.Err() != nil {
				return
			}
			if it.message != nil {
				t := client.Publish(it.message.topic, 1, it.message.retain, it.message.payload)
				if it.sent != nil {
					it.sent(t)
				}
			}
			if it.run != nil {
				it.run()
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
