package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lingering is how long a connection stays open after its last words, so that they are
// read before its end is.
const lingering = 200 * time.Millisecond

// sayWhyItEnds makes an answer tell its reader when the line breaks in the middle of it.
func (t *Tunnel) sayWhyItEnds(r *http.Response) {
	why := func(err error) string {
		return fmt.Sprintf("the line to node %s was cut at %s (%v)", nodeOf(r.Request.Context()), t.o.Now().UTC().Format(time.RFC3339), err)
	}
	path := r.Request.URL.Path
	switch {
	case r.StatusCode == http.StatusOK && strings.HasPrefix(path, "/containerLogs/"):
		r.Body = &endedLog{ReadCloser: r.Body, why: why}
	case r.StatusCode == http.StatusSwitchingProtocols && strings.EqualFold(r.Header.Get("Upgrade"), "SPDY/3.1") &&
		r.Header.Get("X-Stream-Protocol-Version") == "v4.channel.k8s.io":
		if conn, ok := r.Body.(io.ReadWriteCloser); ok {
			r.Body = &endedCommand{ReadWriteCloser: conn, why: why}
		}
	}
}

// brokenLine says that an error is the line's end: not the answer's, and not that of
// whoever asked.
func brokenLine(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, http.ErrBodyReadAfterClose) && !isCanceled(err)
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

// endedCommand says in the error stream of exec and attach why the connection ends.
// It counts frames (SPDY/3.1: eight bytes of header, of which the last three are the
// length) and looks into none: a frame can be added only between two.
type endedCommand struct {
	io.ReadWriteCloser
	why    func(error) string
	header [frameHeader]byte // of the frame that begins
	got    int               // bytes of header
	rest   int               // bytes of the frame that are still to come
	last   *bytes.Reader
	err    error
}

const (
	frameHeader = 8
	// errorStream is the first stream that a client of v4.channel.k8s.io opens.
	errorStream = 1
	frameFin    = 1
)

func (c *endedCommand) Read(b []byte) (int, error) {
	if c.last == nil {
		n, err := c.ReadWriteCloser.Read(b)
		c.count(b[:n])
		if !brokenLine(err) || c.got != 0 || c.rest != 0 {
			return n, err
		}
		c.err, c.last = err, bytes.NewReader(lastFrame(c.why(err)))
		if n > 0 {
			return n, nil
		}
	}
	if n, err := c.last.Read(b); err == nil {
		return n, nil
	}
	time.Sleep(lingering)
	return 0, c.err
}

// CloseWrite ends the writing half where the connection has one.
func (c *endedCommand) CloseWrite() error {
	if half, ok := c.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// count follows the frames.
func (c *endedCommand) count(b []byte) {
	for len(b) > 0 {
		if c.rest > 0 {
			n := min(c.rest, len(b))
			c.rest -= n
			b = b[n:]
			continue
		}
		n := copy(c.header[c.got:], b)
		c.got += n
		b = b[n:]
		if c.got == frameHeader {
			c.got, c.rest = 0, int(binary.BigEndian.Uint32(c.header[4:])&0xffffff)
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
	frame := binary.BigEndian.AppendUint32(nil, errorStream)
	frame = binary.BigEndian.AppendUint32(frame, frameFin<<24|uint32(len(status)))
	return append(frame, status...)
}
