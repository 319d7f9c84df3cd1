package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Devices keeps the twins; edge/device's Manager.
type Devices interface {
	Submit(ctx context.Context, op device.Operation) error
	Get(key twin.Key) (device.View, error)
	List() []device.View
	Listen(buffer int) (<-chan device.Change, func())
	// Started is closed when what was stored is known.
	Started() <-chan struct{}
}

// Routes carries application messages; edge/route's Router.
type Routes interface {
	// Started is closed when what was stored is known.
	Started() <-chan struct{}
	// Filters are the topic filters whose messages are wanted now.
	Filters() []string
	// Len is how many routes there are, in either direction.
	Len() int
	// Changed has capacity 1 and says that Filters and Len may be others.
	Changed() <-chan struct{}
	// Offer takes a message if it is wanted; done follows when it is durable or, with
	// an error, when it could not be kept: route.ErrTooLarge, never.
	Offer(ctx context.Context, topic string, payload []byte, done func(error)) (wanted bool)
}

// Modes of Config.
const (
	Auto     = "auto"     // External if Broker is set, else Embedded as soon as there is something to serve
	Embedded = "embedded" // edgecore is the broker
	External = "external" // edgecore is a client of Broker
	Off      = "off"
)

// Config says which broker serves the node.
type Config struct {
	Mode string `json:"mode,omitempty"` // empty: Auto

	// Listen, TLSCert, TLSKey, ClientCA and PasswordFile are the embedded broker's.
	Listen            []string `json:"listen,omitempty"` // empty: DefaultListen
	TLSCert, TLSKey   string   `json:",omitempty"`
	ClientCA          string   `json:"clientCA,omitempty"`     // clients must show a certificate of it
	PasswordFile      string   `json:"passwordFile,omitempty"` // as mosquitto_passwd writes it
	Broker            string   `json:"broker,omitempty"`       // tcp, ssl, ws or wss://HOST:PORT
	User, Password    string   `json:",omitempty"`             // at the external broker
	UserPasswordFile  string   `json:"userPasswordFile,omitempty"`
	CAFile            string   `json:"caFile,omitempty"` // empty: the system's
	CertFile, KeyFile string   `json:",omitempty"`
}

// DefaultListen is where the embedded broker listens.
const DefaultListen = "127.0.0.1:1883"

func (c Config) mode() string {
	switch {
	case c.Mode != "" && c.Mode != Auto:
		return c.Mode
	case c.Broker != "":
		return External
	}
	return Auto
}

// validate says what of the config cannot be.
func (c Config) validate() error {
	switch c.mode() {
	case Off:
		return nil
	case External:
		if c.Broker == "" {
			return errors.New("mqtt: mode external needs broker, such as tcp://127.0.0.1:1883")
		}
		_, err := c.brokerURL()
		return err
	case Embedded, Auto:
	default:
		return fmt.Errorf("mqtt: there is no mode %q: choose auto, embedded, external or off", c.Mode)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("mqtt: tlsCert and tlsKey belong together: set both or none")
	}
	if c.ClientCA != "" && c.TLSCert == "" {
		return errors.New("mqtt: clientCA needs tlsCert and tlsKey: clients show certificates in TLS only")
	}
	for _, address := range c.listen() {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("mqtt: listen %q is no HOST:PORT: %w", address, err)
		}
		if ip := net.ParseIP(host); c.PasswordFile == "" && c.ClientCA == "" && (ip == nil || !ip.IsLoopback()) && host != "localhost" {
			return fmt.Errorf("mqtt: listening on %s would let anybody who reaches it steer the devices: "+
				"set passwordFile (made by mosquitto_passwd) or clientCA, or listen on 127.0.0.1", address)
		}
	}
	return nil
}

func (c Config) listen() []string {
	if len(c.Listen) == 0 {
		return []string{DefaultListen}
	}
	return c.Listen
}

// Options are what a Server needs.
type Options struct {
	Node    string
	Devices Devices
	Routes  Routes // nil: no messages are routed
	Config  Config
	Log     *slog.Logger
	// Backoff bounds the pauses between attempts to reach an external broker, or to
	// listen; 0: from 0.5 s to 30 s.
	BackoffBase, BackoffCap time.Duration
}

// Server serves the node's devices and programs over MQTT.
type Server struct {
	o      Options
	desk   *desk
	users  *passwords // nil: there is no password file
	routes *filters
	wanted chan struct{} // capacity 1: somebody published

	mu       sync.Mutex
	broker   broker
	address  string        // where the embedded broker listens, for tests and logs
	upOrDown chan struct{} // closed and made anew when broker changes
}

// broker is the embedded or the external one, while it is up.
type broker interface {
	// publish sends a message to whoever subscribed to it, in order, and never
	// blocks; what it leads to is not waited for.
	publish(m outgoing)
	// deliver is publish, and waits until the broker has the message.
	deliver(ctx context.Context, m outgoing) error
	// listens says whether somebody may hear a topic, knows whether that is known.
	listens(topic string) bool
	knows() bool
}

// outgoing is a message that edgecore publishes.
type outgoing struct {
	topic   string
	payload []byte
	retain  bool
	// correlation goes with the answer to a request of MQTT 5.
	correlation []byte
}

// ErrNoBroker says that no broker is up now.
var ErrNoBroker = errors.New("the node's MQTT broker is not up")

// New checks the config and returns a Server that does nothing until Run.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BackoffBase == 0 {
		o.BackoffBase = 500 * time.Millisecond
	}
	if o.BackoffCap == 0 {
		o.BackoffCap = 30 * time.Second
	}
	if err := o.Config.validate(); err != nil {
		return nil, err
	}
	s := &Server{o: o, wanted: make(chan struct{}, 1), upOrDown: make(chan struct{})}
	if f := o.Config.PasswordFile; f != "" {
		users, err := loadPasswords(f)
		if err != nil {
			return nil, fmt.Errorf("mqtt: %w", err)
		}
		s.users = users
	}
	s.routes = &filters{routes: o.Routes}
	s.desk = newDesk(o, s.routes, s.current)
	return s, nil
}

// Run serves until ctx ends, and returns nil then.
func (s *Server) Run(ctx context.Context) error {
	mode := s.o.Config.mode()
	if mode == Off {
		<-ctx.Done()
		return nil
	}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-s.o.Devices.Started(): // before that, unknown is not none
	case <-ctx.Done():
		return nil
	}
	if s.o.Routes != nil {
		select {
		case <-s.o.Routes.Started():
		case <-ctx.Done():
			return nil
		}
	}
	s.routes.refresh()
	group.Go(func() { s.routes.follow(ctx) })
	changes, stop := s.o.Devices.Listen(16)
	defer stop()
	if mode == Auto && !s.needed(ctx, changes) {
		return nil
	}
	group.Go(func() { s.desk.tell(ctx, changes) })
	if mode == External {
		s.runExternal(ctx)
	} else {
		s.runEmbedded(ctx)
	}
	return nil
}

// needed waits until the node has a device or a route; false when ctx ended before.
func (s *Server) needed(ctx context.Context, changes <-chan device.Change) bool {
	for {
		changed := s.routes.changed()
		if len(s.o.Devices.List()) > 0 || s.routes.any() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case _, ok := <-changes:
			if !ok {
				changes = nil
			}
		case <-changed:
		case <-s.wanted:
			return true
		}
	}
}

// Publish publishes a message at the node with QoS 1; nil means that the broker has
// it. It waits for a broker that is not up until ctx ends.
func (s *Server) Publish(ctx context.Context, topic string, body []byte) error {
	if s.o.Config.mode() == Off {
		return fmt.Errorf("publish to %s: %w: devices.mqtt.mode is off", topic, ErrNoBroker)
	}
	select {
	case s.wanted <- struct{}{}:
	default:
	}
	for {
		s.mu.Lock()
		b, changed := s.broker, s.upOrDown
		s.mu.Unlock()
		if b != nil {
			if err := b.deliver(ctx, outgoing{topic: topic, payload: body}); err != nil {
				return fmt.Errorf("publish to %s: %w", topic, err)
			}
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("publish to %s: %w", topic, ErrNoBroker)
		}
	}
}

// Address is where the embedded broker listens first; empty when it does not.
func (s *Server) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.address
}

func (s *Server) current() broker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broker
}

// up says that a broker is there, or that it is gone (nil).
func (s *Server) up(b broker, address string) {
	s.mu.Lock()
	s.broker, s.address = b, address
	close(s.upOrDown)
	s.upOrDown = make(chan struct{})
	s.mu.Unlock()
	if b != nil {
		s.desk.greet()
	}
}

// pause waits; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// maxPayload is that of payload, for those who never look inside.
const maxPayload = payload.Max
