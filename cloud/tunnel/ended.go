package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/spdy"
)

// sayWhyItEnds makes an answer tell its reader when the line breaks in the middle of it.
func (t *Tunnel) sayWhyItEnds(r *http.Response) {
	why := func(err error) string {
		if errors.Is(err, io.EOF) {
			return fmt.Sprintf("node %s ended the connection and did not say how the command ended: it may have ended, or go on", nodeOf(r.Request.Context()))
		}
		return fmt.Sprintf("the line to node %s was cut at %s (%v)", nodeOf(r.Request.Context()), t.o.Now().UTC().Format(time.RFC3339), err)
	}
	path := r.Request.URL.Path
	switch {
	case r.StatusCode == http.StatusOK && strings.HasPrefix(path, "/containerLogs/"):
		r.Body = &endedLog{ReadCloser: r.Body, why: why}
	case r.StatusCode == http.StatusSwitchingProtocols:
		conn, ok := r.Body.(io.ReadWriteCloser)
		if !ok {
			return
		}
		if strings.EqualFold(r.Header.Get("Upgrade"), "SPDY/3.1") && r.Header.Get("X-Stream-Protocol-Version") == "v4.channel.k8s.io" {
			r.Body = newCommand(conn, why)
		} else {
			r.Body = &handedOver{ReadWriteCloser: conn}
		}
	}
}

// brokenLine says that an error is the line's end: not the answer's, and not that of
// whoever asked.
func brokenLine(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, http.ErrBodyReadAfterClose) && !isCanceled(err)
}

// lingerFor is how long who asked may take to read the end of what was said.
const lingerFor = 5 * time.Minute

// lingering is the connection of who asked. Once all was said it stays open until the
// other side ends it: the kernel throws away what is unread when a connection is closed to
// which something comes afterwards, such as a keep-alive.
type lingering struct{ net.Conn }

func (l lingering) CloseWrite() error {
	if err := closeWrite(l.Conn); err != nil {
		return err
	}
	return l.SetReadDeadline(time.Now().Add(lingerFor))
}

// endedLog says in a log why it ends: kubectl would only stop.
type endedLog struct {
	io.ReadCloser
	why  func(error) string
	last *bytes.Reader // what is said at the end; nil: not ended
	err  error
}

func (l *endedLog) Read(b []byte) (int, error) {
	if l.last == nil {
		n, err := l.ReadCloser.Read(b)
		if !brokenLine(err) {
			return n, err
		}
		l.err = err
		l.last = bytes.NewReader(fmt.Appendf(nil, "\nholdfast: this log ends here: %s. The container goes on; ask again when the node is back.\n", l.why(err)))
		if n > 0 {
			return n, nil
		}
	}
	if n, err := l.last.Read(b); err == nil {
		return n, nil
	}
	return 0, l.err
}

// handedOver is the node's side of a connection that has switched protocols. A node that
// reads no more has ended, and what it said before is still on its way: what is written to
// it is thrown away, for an error would make the proxy cut that off.
type handedOver struct {
	io.ReadWriteCloser
	deaf bool
}

func (h *handedOver) Write(b []byte) (int, error) {
	if !h.deaf {
		_, err := h.ReadWriteCloser.Write(b)
		h.deaf = err != nil
	}
	return len(b), nil
}

// CloseWrite ends the writing half.
func (h *handedOver) CloseWrite() error { return closeWrite(h.ReadWriteCloser) }

// closeWrite ends the writing half where a connection has one.
func closeWrite(conn any) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// command is the node's side of exec and attach. Clients take a connection's end for the
// command's, and for success. So this says in the error stream where the node has not said
// how it ended, and it does not end before the client does: an apiserver that proxies to a
// slow client closes as soon as this side ends, and when a keep-alive of the client's comes
// after that, the kernel throws away what the client has not read yet.
type command struct {
	handedOver
	why    func(error) string
	opened atomic.Uint32 // streams of the client
	left   chan struct{} // closed when the client says no more
}

const (
	// errorStream is the first stream that a client of v4.channel.k8s.io opens. A client's
	// streams have odd numbers, in order.
	errorStream = 1
	// maxOpened bounds the streams that are ended one by one: that protocol has five.
	maxOpened = 64
	frameFin  = 1
)

func newCommand(node io.ReadWriteCloser, why func(error) string) *command {
	return &command{handedOver: handedOver{ReadWriteCloser: node}, why: why, left: make(chan struct{})}
}

// WriteTo copies what the node says, and the last words, and waits for the client.
func (c *command) WriteTo(w io.Writer) (written int64, err error) {
	told := false // how the command ended
	written, split, readError, err := copyFrames(w, c.ReadWriteCloser, func(f *spdy.Frames) {
		stream, size, data := f.Data()
		told = told || data && stream == errorStream && size > 0
	})
	switch {
	case err != nil:
		return written, err
	case split && errors.Is(readError, io.EOF):
		return written, nil
	case split: // in the middle of a large frame nothing can be said
		return written, readError
	}
	var last []byte
	if !told {
		last = lastFrame(c.why(readError))
	}
	// That all streams have ended is how a client knows that it may leave.
	for i := range min(c.opened.Load(), maxOpened) {
		last = dataFrame(last, 2*i+1, nil)
	}
	n, err := w.Write(last)
	written += int64(n)
	if err != nil {
		return written, err
	}
	_ = c.Close() // the node's stream is free for another: it has nothing more to say
	timer := time.NewTimer(lingerFor)
	defer timer.Stop()
	select {
	case <-c.left:
	case <-timer.C:
	}
	return written, nil
}

// ReadFrom copies what the client says.
func (c *command) ReadFrom(r io.Reader) (int64, error) {
	defer close(c.left)
	written, _, readError, err := copyFrames(&c.handedOver, r, func(f *spdy.Frames) {
		if f.Opens() {
			c.opened.Add(1)
		}
	})
	if err == nil && !errors.Is(readError, io.EOF) {
		err = readError
	}
	return written, err
}

// A copy of frames holds little while nothing comes, as most shells do; the larger buffer
// holds a frame as runtimes and clients send them: they copy in pieces of 32 KiB.
const (
	idleBuffer  = 4 << 10
	frameBuffer = 64 << 10
)

var frameBuffers = sync.Pool{New: func() any { return new([frameBuffer]byte) }}

// copyFrames copies until a side fails. Whole frames alone are written, up to those that
// are larger than the buffer, so that another may follow: split says that one of these was
// cut off. And a frame that comes in parts, the header for itself, goes on as one. each is
// called with each frame.
func copyFrames(w io.Writer, r io.Reader, each func(*spdy.Frames)) (written int64, split bool, readError, writeError error) {
	var large *[frameBuffer]byte
	defer func() {
		if large != nil {
			frameBuffers.Put(large)
		}
	}()
	small := make([]byte, idleBuffer)
	buf, held := small, 0 // held: bytes of a frame that is not whole
	var frames spdy.Frames
	for {
		n, readError := r.Read(buf[held:])
		end, at, got := 0, held, held+n
		for at < got {
			at += frames.Next(buf[at:got])
			if frames.Between() {
				end, split = at, false
				each(&frames)
			}
		}
		if end == 0 && got == frameBuffer {
			end, split = got, true
		}
		if end > 0 {
			n, err := w.Write(buf[:end])
			written += int64(n)
			if err != nil {
				return written, split, nil, err
			}
		}
		if readError != nil {
			return written, split, readError, nil
		}
		held = got - end
		switch {
		case large == nil && got == len(buf):
			large = frameBuffers.Get().(*[frameBuffer]byte)
			copy(large[:], buf[end:got])
			buf = large[:]
		case large != nil && held == 0 && got < idleBuffer:
			frameBuffers.Put(large)
			large, buf = nil, small
		default:
			copy(buf, buf[end:got])
		}
	}
}

// lastFrame is a data frame that ends the error stream with a Status.
func lastFrame(message string) []byte {
	status, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Message: message, Reason: metav1.StatusReasonInternalError, Code: http.StatusBadGateway,
	})
	if err != nil { // text always encodes
		return nil
	}
	return dataFrame(nil, errorStream, status)
}

// dataFrame appends a data frame that ends a stream.
func dataFrame(to []byte, stream uint32, data []byte) []byte {
	to = binary.BigEndian.AppendUint32(to, stream)
	to = binary.BigEndian.AppendUint32(to, frameFin<<24|uint32(len(data)))
	return append(to, data...)
}
