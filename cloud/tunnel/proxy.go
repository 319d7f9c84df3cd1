package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/access"
	"github.com/holdfast-edge/holdfast/cloud/hub"
	"github.com/holdfast-edge/holdfast/common/link"
)

const (
	dialTimeout = 5 * time.Second // to another hub
	bufferSize  = 32 << 10
)

// failure is an answer other than the node's.
type failure struct {
	code    int
	message string
}

func (f *failure) Error() string { return f.message }

func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

// answer writes an error. An apiserver shows the text to its user; a client that
// wanted to switch protocols reads a Status.
func answer(w http.ResponseWriter, r *http.Request, err error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusedTimeout)) // a writer that has none waits for nobody
	var f *failure
	if !errors.As(err, &f) {
		access.Answer(w, err)
		return
	}
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, f.message, f.code)
		return
	}
	b, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Message: f.message, Reason: metav1.StatusReasonServiceUnavailable, Code: int32(f.code),
	})
	if err != nil { // text always encodes
		http.Error(w, f.message, f.code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.code)
	_, _ = w.Write(b) // who asked has gone
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }

// notHere says that a stream was not opened because the node is not this hub's.
func notHere(err error) bool { return errors.Is(err, hub.ErrNotConnected) }

// unreachable says why a request does not reach its node, and what to do. The code
// is always the one whose text an apiserver passes on; of a 503 or 504 it keeps none.
func (t *Tunnel) unreachable(node string, at place, err error) error {
	switch {
	case notHere(err) && !at.silent.IsZero():
		return fail(http.StatusBadGateway, "node %s is not connected to the cloud; it was last heard %s (%s ago). Its pods go on there: try again when it is back, or look at it there with `holdfast status`",
			node, at.silent.UTC().Format(time.RFC3339), t.o.Now().Sub(at.silent).Round(time.Second))
	case notHere(err):
		return fail(http.StatusBadGateway, "node %s is not connected to the cloud at present. Its pods go on there: try again when it is back", node)
	case errors.Is(err, link.ErrNoStream):
		return t.takesNone(node)
	}
	return fail(http.StatusBadGateway, "%v", err)
}

func (t *Tunnel) takesNone(node string) error {
	return fail(http.StatusBadGateway, "node %s takes no more requests: either %d are open there, or its edgecore is too old for logs and exec", node, link.MaxStreams)
}

// broken is how a request ends whose stream ended before its answer began.
func (t *Tunnel) broken(node string, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, link.ErrNoStream):
		return t.takesNone(node)
	case errors.Is(err, errNotTaken):
		return fail(http.StatusBadGateway, "node %s did not take the request within %s: its line is very slow, or has just been cut", node, t.o.TakenWithin)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fail(http.StatusBadGateway, "node %s took the request and did not begin to answer within %s", node, t.o.AnswerWithin)
	case errors.Is(err, link.ErrClosed) || errors.Is(err, link.ErrSilent):
		return fail(http.StatusBadGateway, "the line to node %s was cut before it answered (%v)", node, err)
	}
	return fail(http.StatusBadGateway, "node %s did not answer: %v", node, err)
}

// nodeHeader names the node to the hub to which a request for it is passed on.
const nodeHeader = "Holdfast-Node"

type streamKey struct{}
type targetKey struct{}

func withStream(ctx context.Context, s link.BegunStream) context.Context {
	return context.WithValue(ctx, streamKey{}, s)
}

func withTarget(ctx context.Context, to netip.AddrPort) context.Context {
	return context.WithValue(ctx, targetKey{}, to)
}

// proxy passes requests on, unchanged but for the hop.
func (t *Tunnel) proxy(over http.RoundTripper) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", nodeOf(p.In.Context())
			if to, ok := p.In.Context().Value(targetKey{}).(netip.AddrPort); ok {
				p.Out.URL.Scheme, p.Out.URL.Host = "https", to.String()
				p.Out.Header.Set(nodeHeader, nodeOf(p.In.Context()))
			} else {
				p.Out.Header.Del(nodeHeader)
			}
			p.Out.Host = p.Out.URL.Host
			p.Out.URL.RawQuery = p.In.URL.RawQuery
		},
		Transport: over, FlushInterval: -1, BufferPool: buffers,
		ModifyResponse: func(r *http.Response) error {
			t.sayWhyItEnds(r)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			answer(w, r, t.broken(nodeOf(r.Context()), err))
		},
		ErrorLog: t.quiet(),
	}
}

// pool lends buffers for copying.
type pool struct{ sync.Pool }

func (p *pool) Get() []byte  { return *p.Pool.Get().(*[]byte) }
func (p *pool) Put(b []byte) { p.Pool.Put(&b) }

var buffers = &pool{sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}}

// streams speaks HTTP with a node of this hub, in the stream of the request's context
// (withStream): no request has the stream of another.
func (t *Tunnel) streams() http.RoundTripper {
	return &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		ResponseHeaderTimeout: t.o.AnswerWithin, MaxResponseHeaderBytes: maxHeader,
		WriteBufferSize: bufferSize, ReadBufferSize: bufferSize,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			s, ok := ctx.Value(streamKey{}).(link.BegunStream)
			if !ok {
				return nil, errors.New("a request without a stream")
			}
			return &streamConn{BegunStream: s, within: t.o.TakenWithin}, nil
		},
	}
}

// streamConn is a stream as a net.Conn. The request is on its way before the node has taken
// the stream, for which it has bounded time.
type streamConn struct {
	link.BegunStream
	within time.Duration
	taken  bool // of the goroutine that reads
}

var errNotTaken = errors.New("the stream was not taken in time")

func (c *streamConn) Read(b []byte) (int, error) {
	if !c.taken {
		if err := c.SetReadDeadline(time.Now().Add(c.within)); err != nil {
			return 0, err
		}
		err := c.Taken()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errNotTaken
		}
		if err := errors.Join(err, c.SetReadDeadline(time.Time{})); err != nil {
			return 0, err
		}
		c.taken = true
	}
	return c.BegunStream.Read(b)
}

func (*streamConn) LocalAddr() net.Addr  { return streamAddr{} }
func (*streamConn) RemoteAddr() net.Addr { return streamAddr{} }

type streamAddr struct{}

func (streamAddr) Network() string { return "stream" }
func (streamAddr) String() string  { return "a node's line" }

// hubs speaks with other hubs.
func (t *Tunnel) hubs() http.RoundTripper {
	return &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		ResponseHeaderTimeout: t.o.AnswerWithin + t.o.TakenWithin, MaxResponseHeaderBytes: maxHeader,
		WriteBufferSize: bufferSize, ReadBufferSize: bufferSize,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout: dialTimeout,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: t.o.Peers.CA, ServerName: t.o.Peers.Name, NextProtos: []string{"http/1.1"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if t.o.Peers.Client == nil {
					return new(tls.Certificate), nil
				}
				return t.o.Peers.Client(), nil
			},
		},
	}
}

// isHub says whether another hub of the cluster sent a request.
func (t *Tunnel) isHub(r *http.Request) bool {
	if t.o.Peers.CA == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	leaf := r.TLS.PeerCertificates[0]
	if leaf.Subject.CommonName != t.o.Peers.ClientName {
		return false
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: t.o.Peers.CA, CurrentTime: t.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}
