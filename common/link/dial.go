package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// ErrRefused is in the error of a Dial whose hub answered and said no: the
// node's certificate is not good, or what answers is no hub. Trying again soon
// will not help.
var ErrRefused = errors.New("the hub refused the connection")

// ErrExpired is in the error of a Dial whose hub said that the node's
// certificate has ended by the hub's clock; ErrRefused is there too. The old key
// may still renew it.
var ErrExpired = errors.New("the node's certificate has ended")

// certificateExpired is the TLS alert of that name (RFC 8446, section 6).
const certificateExpired = tls.AlertError(45)

// DialOptions say how an edge reaches its hub.
type DialOptions struct {
	// Hubs are addresses (HOST:PORT) of hubs, any of which takes the edge. The last
	// one that did is tried first, then the others in this order.
	Hubs []string
	// RootCAs is the CA that the hub's certificate must come from.
	RootCAs *x509.CertPool
	// Certificate is asked at every Dial for the node's certificate, so that a
	// renewed one is used without a restart.
	Certificate func() (tls.Certificate, error)
	Timing      Timing // zero values are filled in
	Log         *slog.Logger
	// Proxy chooses an HTTP proxy (CONNECT); nil: that of the environment
	// (HTTPS_PROXY, NO_PROXY).
	Proxy func(*http.Request) (*url.URL, error)
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
	// Since is asked at every Dial what the time is for certain not before, however
	// wrong the clock; a hub's certificate that had ended by then is refused
	// (pki.ErrEnded). nil: nothing is certain.
	Since func() time.Time
}

// hubDialer is what the transports' dialers share: the order of addresses, the
// TLS configuration, and what a wrong clock needs.
type hubDialer struct {
	DialOptions
	hubs        *rota
	protocol    string // of ALPN
	attempt     func(ctx context.Context, hub string, config *tls.Config) (Conn, error)
	clockLogged atomic.Bool
}

type websocketDialer struct {
	hubDialer
	connect      func(ctx context.Context, network, address string) (net.Conn, error)
	writeBuffers sync.Pool
}

// complete fills in what is left out.
func (o DialOptions) complete() DialOptions {
	o.Timing = o.Timing.Complete()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Since == nil {
		o.Since = func() time.Time { return time.Time{} }
	}
	return o
}

// DialWebsocket returns the edge's end of the websocket transport.
func DialWebsocket(o DialOptions) Dialer {
	o = o.complete()
	d := &websocketDialer{hubDialer: newHubDialer(o, "http/1.1"), connect: dialer(o.Timing).DialContext}
	d.attempt = d.attemptWebsocket
	return d
}

func newHubDialer(o DialOptions, protocol string) hubDialer {
	return hubDialer{DialOptions: o, hubs: o.rota(), protocol: protocol}
}

func (o DialOptions) rota() *rota { return &rota{hubs: o.Hubs, headStart: o.Timing.HeadStart} }

// Dial tries each hub once, and a second one beside the first where that takes
// long. Its error says what came of each.
func (d *hubDialer) Dial(ctx context.Context) (Conn, error) {
	certificate, err := d.certificate()
	if err != nil {
		return nil, err
	}
	return d.hubs.dial(ctx, func(ctx context.Context, hub string) (Conn, error) {
		return d.dialHub(ctx, hub, certificate)
	})
}

func (o DialOptions) certificate() (tls.Certificate, error) {
	certificate, err := o.Certificate()
	if err != nil {
		return certificate, fmt.Errorf("read the node's certificate: %w", err)
	}
	return certificate, nil
}

// proxied says whether an HTTP proxy stands before that hub.
func (o DialOptions) proxied(hub string) bool {
	proxy, err := o.Proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: hub, Path: Path}})
	return err != nil || proxy != nil
}

func (d *hubDialer) dialHub(ctx context.Context, hub string, certificate tls.Certificate) (Conn, error) {
	host, _, err := net.SplitHostPort(hub)
	if err != nil {
		return nil, fmt.Errorf("the address is not HOST:PORT: %w", err)
	}
	since := d.Since()
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		RootCAs:      d.RootCAs,
		ServerName:   host,
		Certificates: []tls.Certificate{certificate},
		NextProtos:   []string{d.protocol},
		Time:         func() time.Time { return pki.Later(d.Now(), since) },
	}
	c, err := d.attempt(ctx, hub, config)
	if err == nil {
		return c, nil
	}
	now := d.Now()
	at, err := pki.TimeInsideSince(err, d.RootCAs, host, now, since)
	if err != nil {
		return nil, explainDial(err, host)
	}
	if !d.clockLogged.Swap(true) {
		d.Log.Warn("by this machine's clock the hub's certificate is not valid: connecting all the same, since all else about it is right",
			"hub", hub, "clock", now.UTC().Format(time.RFC3339), "nearest", at.UTC().Format(time.RFC3339))
	}
	config.Time = func() time.Time { return at }
	if c, err = d.attempt(ctx, hub, config); err != nil {
		return nil, explainDial(err, host)
	}
	return c, nil
}

// attemptWebsocket makes one connection with that TLS configuration.
func (d *websocketDialer) attemptWebsocket(ctx context.Context, hub string, config *tls.Config) (Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.Timing.Dial, fmt.Errorf("no answer within %s", d.Timing.Dial))
	defer cancel()
	ws := websocket.Dialer{
		NetDialContext:  d.connect,
		TLSClientConfig: config,
		Proxy:           d.Proxy,
		ReadBufferSize:  edgeBuffer,
		WriteBufferSize: writeBuffer,
		WriteBufferPool: &d.writeBuffers,
	}
	var candid *candidConn
	target := (&url.URL{Scheme: "wss", Host: hub, Path: Path}).String()
	proxied := d.proxied(hub)
	if !proxied {
		ws.NetDialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := d.dialTLS(ctx, network, address, config)
			if err != nil {
				return nil, err
			}
			candid = &candidConn{Conn: conn}
			return candid, nil
		}
	}
	// What waits for the hub's answer knows no context: closing the socket ends it.
	var stop func() bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		stop = context.AfterFunc(ctx, func() { _ = closeRaw(info.Conn) })
	}})
	conn, response, err := ws.DialContext(traced, target, http.Header{"User-Agent": {"holdfast"}})
	if stop != nil && !stop() {
		if err == nil {
			_ = closeRaw(conn.NetConn())
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, answered(err, response)
	}
	if candid != nil {
		candid.accepted.Store(true)
	}
	t := d.Timing
	if proxied {
		// The proxy's TCP answers for a hub that is gone: only the hub's pongs count.
		return newWebsocketConn(conn, peer{name: hub}, t, t.EdgeSilent, t.KeepAlive, pinging), nil
	}
	return newWebsocketConn(conn, peer{name: hub}, t, t.HubSilent, t.KeepAlive, ponging), nil
}

// answered adds what the hub, or what stands in its place, answered.
func answered(err error, response *http.Response) error {
	if response == nil {
		return err
	}
	body, rerr := io.ReadAll(io.LimitReader(response.Body, 512))
	if text := strings.TrimSpace(string(body)); rerr == nil && text != "" {
		return fmt.Errorf("%w: %s: %s", ErrRefused, response.Status, text)
	}
	return fmt.Errorf("%w: %s", ErrRefused, response.Status)
}

// explainDial adds a remedy where there is one.
func explainDial(err error, host string) error {
	var (
		wrongName x509.HostnameError
		wrongCA   x509.UnknownAuthorityError
		noTLS     tls.RecordHeaderError
		remote    *net.OpError
	)
	switch {
	case errors.As(err, &wrongName):
		return fmt.Errorf("the hub's certificate is not for %s: add it to advertiseAddresses in the hub's cloudcore.yaml and restart cloudcore: %w", host, err)
	case errors.As(err, &wrongCA):
		return fmt.Errorf("the hub's certificate comes from another CA than the one this node joined: if the hub was set up anew, run \"holdfast reset\" and join again: %w", err)
	case errors.As(err, &noTLS):
		return fmt.Errorf("%w: what answers there does not speak TLS; is it the hub's port? %w", ErrRefused, err)
	case errors.As(err, &remote) && remote.Op == "remote error" && isAlert(remote.Err, certificateExpired):
		return fmt.Errorf("%w: %w by the hub's clock: %w", ErrRefused, ErrExpired, err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("%w: it does not accept this node's certificate; join the node again with \"holdfast join\": %w", ErrRefused, err)
	}
	return err
}

// isAlert tells an alert that crypto/tls received over TCP; its type there is not
// exported, but it reads as the exported one does.
func isAlert(err error, alert tls.AlertError) bool { return err != nil && err.Error() == alert.Error() }

// dialTLS connects and completes the handshake, as gorilla's dialer would.
func (d *websocketDialer) dialTLS(ctx context.Context, network, address string, config *tls.Config) (*tls.Conn, error) {
	raw, err := d.connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, ignoreClosed(raw.Close()))
	}
	return conn, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// candidConn tells why the hub hung up while it was asked for a connection. In
// TLS 1.3 a hub judges the client's certificate after the client's handshake is
// done: the verdict waits to be read while a write only finds the connection
// closed.
type candidConn struct {
	*tls.Conn
	accepted atomic.Bool
}

func (c *candidConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil || c.accepted.Load() {
		return n, err
	}
	var remote *net.OpError
	if derr := c.SetReadDeadline(time.Now().Add(time.Second)); derr != nil {
		return n, err
	}
	if _, rerr := c.Read(make([]byte, 1)); errors.As(rerr, &remote) && remote.Op == "remote error" {
		return n, rerr
	}
	return n, err
}
