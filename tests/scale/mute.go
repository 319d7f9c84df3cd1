package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// muteSetup says whom to bother, and how.
type muteSetup struct {
	CA        []byte // certificate, PEM
	Hub       string // HOST:PORT
	Transport string // websocket: half of them say nothing at all, half begin a handshake; quic: all begin one
	Count     int
}

// muteProcess holds connections that never speak. A connection that the hub has
// closed is made anew, so that their number stays.
type muteProcess struct {
	ctx    context.Context
	group  *errgroup.Group
	open   atomic.Int64  // connections that the hub holds
	made   atomic.Uint64 // in all
	closed atomic.Uint64 // by the hub
}

// playMute is the role of those who never speak.
func playMute(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	p := new(muteProcess)
	p.group, p.ctx = errgroup.WithContext(ctx)
	err := obey(ctx, in, out, methods{"setup": method(p.setUp), "state": method(p.state)})
	cancel()
	return errors.Join(err, p.group.Wait())
}

// muteState counts.
type muteState struct {
	Open         int64
	Made, Closed uint64
}

func (p *muteProcess) state(context.Context, none) (muteState, error) {
	return muteState{p.open.Load(), p.made.Load(), p.closed.Load()}, nil
}

func (p *muteProcess) setUp(_ context.Context, s muteSetup) (none, error) {
	pool, err := pki.Pool(s.CA)
	if err != nil {
		return none{}, err
	}
	host, _, err := net.SplitHostPort(s.Hub)
	if err != nil {
		return none{}, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: host}
	if s.Transport == "quic" {
		return none{}, p.stallQUIC(s, config)
	}
	// A real attacker does not come at once either: a burst would only show the
	// length of the listener's queue.
	for n := range s.Count {
		p.group.Go(func() error {
			for p.ctx.Err() == nil {
				if err := p.stallTCP(s.Hub, config, n%2 == 1); err != nil {
					_ = pause(p.ctx, time.Second) // the hub's queue is full: later
				}
			}
			return nil
		})
		if n%10 == 9 {
			if err := pause(p.ctx, 2*time.Millisecond); err != nil {
				return none{}, err
			}
		}
	}
	return none{}, nil
}

// stallTCP holds one connection until the hub closes it.
func (p *muteProcess) stallTCP(hub string, config *tls.Config, greet bool) error {
	raw, err := new(net.Dialer).DialContext(p.ctx, "tcp", hub)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(p.ctx, func() { _ = raw.Close() })
	defer stop()
	defer raw.Close()
	p.made.Add(1)
	p.open.Add(1)
	defer p.open.Add(-1)
	if greet {
		// The ClientHello goes out, and nothing that comes back is answered.
		if err := tls.Client(&deaf{Conn: raw}, config).HandshakeContext(p.ctx); p.ctx.Err() == nil {
			p.closed.Add(1)
			return nil
		} else if err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, raw)
	if p.ctx.Err() == nil {
		p.closed.Add(1)
	}
	return err
}

// deaf reads what comes and keeps it to itself.
type deaf struct{ net.Conn }

// Read ends when the other side has hung up.
func (d *deaf) Read([]byte) (int, error) {
	if _, err := io.Copy(io.Discard, d.Conn); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// stallQUIC begins handshakes from one socket, and does not answer the hub but
// for the proof of its address.
func (p *muteProcess) stallQUIC(s muteSetup, config *tls.Config) error {
	address, err := net.ResolveUDPAddr("udp", s.Hub)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	config.NextProtos = []string{link.QUICProtocol}
	transport := &quic.Transport{Conn: &retriesOnly{PacketConn: socket}}
	p.group.Go(func() error {
		<-p.ctx.Done()
		return errors.Join(transport.Close(), socket.Close())
	})
	for n := range s.Count {
		p.group.Go(func() error {
			for p.ctx.Err() == nil {
				p.made.Add(1)
				p.open.Add(1)
				_, err := transport.Dial(p.ctx, address, config, &quic.Config{HandshakeIdleTimeout: 20 * time.Second})
				p.open.Add(-1)
				if err != nil {
					_ = pause(p.ctx, time.Second)
				}
			}
			return nil
		})
		if n%10 == 9 {
			if err := pause(p.ctx, 2*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// retriesOnly lets only QUIC's Retry packets in (RFC 9000, section 17.2.5), with
// which a busy hub asks for the proof of an address.
type retriesOnly struct{ net.PacketConn }

// ReadFrom drops all others.
func (r *retriesOnly) ReadFrom(b []byte) (int, net.Addr, error) {
	const longHeader, typeBits, retry = 0x80, 0x30, 0x30
	for {
		n, from, err := r.PacketConn.ReadFrom(b)
		if err != nil || n > 0 && b[0]&longHeader != 0 && b[0]&typeBits == retry {
			return n, from, err
		}
	}
}
