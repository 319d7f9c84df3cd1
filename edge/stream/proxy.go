package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second
	// otherHalf is how long one side may go on after the other has ended its half: the
	// runtime sends nothing of use then, and the client reads what is on its way.
	otherHalf = 10 * time.Second
)

// proxy hands the client's upgrade on to the runtime's streaming server, and then bytes
// both ways until either ends or ctx does.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, target *url.URL) {
	backend, response, err := s.ask(r, target)
	if err != nil {
		s.log.Debug("the runtime's streaming server does not answer", "err", err)
		answer(w, fail(http.StatusBadGateway, "the container runtime's streaming server: %w", err))
		return
	}
	defer backend.Close()
	defer context.AfterFunc(r.Context(), func() { backend.Close() })()
	if response.StatusCode != http.StatusSwitchingProtocols {
		for name, values := range response.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(response.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(response.Body, 64<<10))
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, fmt.Errorf("take over the connection: %w", err))
		return
	}
	defer client.Close()
	defer context.AfterFunc(r.Context(), func() { client.Close() })()
	response.Body = nil // only the head is written
	if err := errors.Join(response.Write(buffered), buffered.Flush()); err != nil {
		return
	}
	join(bufferedConn{client, buffered.Reader}, backend, strings.EqualFold(response.Header.Get("Upgrade"), spdyUpgrade), &s.buffers)
}

// ask makes the request to the streaming server, as the client made it but for its
// address, and reads the head of the answer.
func (s *Server) ask(r *http.Request, target *url.URL) (backend bufferedConn, response *http.Response, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	c, err := s.o.Dial(ctx, "tcp", target.Host)
	if err != nil {
		return backend, nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	stop := context.AfterFunc(r.Context(), func() { c.Close() })
	defer stop()
	header := r.Header.Clone()
	header.Del("Authorization")
	out := &http.Request{Method: r.Method, URL: target, Host: target.Host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return backend, nil, err
	}
	if err := out.Write(c); err != nil {
		return backend, nil, err
	}
	backend = bufferedConn{c, bufio.NewReader(c)}
	if response, err = http.ReadResponse(backend.r, out); err != nil {
		return backend, nil, err
	}
	return backend, response, c.SetDeadline(time.Time{})
}

// bufferedConn is a connection of which the beginning was read already.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(b []byte) (int, error) {
	if c.r.Buffered() > 0 {
		return c.r.Read(b)
	}
	return c.Conn.Read(b)
}

// closeWrite ends the half that is written to, where the connection has halves.
func (c bufferedConn) closeWrite() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // an error is found by the reader too
	} else {
		_ = c.Close()
	}
}

// join copies both ways. Who ends its half has that passed on, and the other side gets a
// while to end its own; an error ends both at once. A runtime that reads no more is no
// error: what it has said may still be on its way. Both are closed when it returns.
func join(client, backend bufferedConn, spdy bool, pool *sync.Pool) {
	var up, down io.Writer = &whileTaken{w: backend}, client
	if spdy {
		p := &pinged{client: client}
		up, down = &withoutPings{runtime: up, ping: p.ping}, p
	}
	var copies sync.WaitGroup
	upDone, downDone := make(chan error, 1), make(chan error, 1)
	copies.Go(func() { upDone <- transfer(up, client, pool) })
	copies.Go(func() { downDone <- transfer(down, backend, pool) })
	var err error
	var other chan error
	select {
	case err = <-upDone:
		other = downDone
		if err == nil {
			backend.closeWrite()
		}
	case err = <-downDone:
		other = upDone
		if err == nil {
			client.closeWrite()
		}
	}
	if err == nil {
		timer := time.NewTimer(otherHalf)
		select {
		case <-other:
		case <-timer.C:
		}
		timer.Stop()
	}
	client.Close()
	backend.Close()
	copies.Wait()
}

// whileTaken throws away what is written after the first failure.
type whileTaken struct {
	w      io.Writer
	failed bool
}

func (w *whileTaken) Write(b []byte) (int, error) {
	if !w.failed {
		_, err := w.w.Write(b)
		w.failed = err != nil
	}
	return len(b), nil
}

// A transfer that has little to do holds little: most port-forwards and shells are idle.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

// transfer copies until src ends, which is no error. pool has large buffers.
func transfer(dst io.Writer, src io.Reader, pool *sync.Pool) error {
	small := make([]byte, smallBuffer)
	buf, large := small, (*[largeBuffer]byte)(nil)
	defer func() {
		if large != nil {
			pool.Put(large)
		}
	}()
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case large == nil && n == smallBuffer:
			large = pool.Get().(*[largeBuffer]byte)
			buf = large[:]
		case large != nil && n < smallBuffer:
			pool.Put(large)
			large, buf = nil, small
		}
	}
}
